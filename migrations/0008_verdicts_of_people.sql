-- What a person has decided about a record is not replaced by what the engine makes of it later. Only another decision of a
-- person's replaces it, or one about another record, where the topic was made anew.
create or replace function millpond.decide(
    p_projection text, p_topic text, p_partition integer, p_offset bigint, p_checksum bytea, p_what text, p_payload bytea,
    p_class text, p_reason text, p_by text, p_at timestamptz default null
) returns void language sql as $$
    insert into millpond.verdicts as v (projection, topic, partition, "offset", checksum, what, payload, class, reason,
                                        decided_by, decided_at)
    values (p_projection, p_topic, p_partition, p_offset, p_checksum, p_what, p_payload, p_class, p_reason, p_by,
            coalesce(p_at, now()))
    on conflict (projection, topic, partition, "offset") do update
       set checksum = excluded.checksum, what = excluded.what, payload = excluded.payload, class = excluded.class,
           reason = excluded.reason, decided_by = excluded.decided_by, decided_at = excluded.decided_at, void = false
     where excluded.decided_by <> 'millpond' or v.decided_by = 'millpond' or v.void or v.checksum <> excluded.checksum;
$$;
