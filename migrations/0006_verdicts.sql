-- Verdicts are written by one function, and know whether the log still has the record that they are about; and a breaker
-- may rest.

-- Set by the worker that reads the log again and finds another record at the offset, for the topic was made anew; taken back
-- when it finds the old one there again. Nobody acts by a void verdict, and nobody is told of it.
alter table millpond.verdicts add column void boolean not null default false;

-- Until then the breaker lets everything pass: somebody has looked, and what is in the log may be set aside as it comes.
alter table millpond.projections add column breaker_rests_until timestamptz;

-- What was decided about a record last is what counts.
create function millpond.decide(
    p_projection text, p_topic text, p_partition integer, p_offset bigint, p_checksum bytea, p_what text, p_payload bytea,
    p_class text, p_reason text, p_by text, p_at timestamptz default null
) returns void language sql as $$
    insert into millpond.verdicts (projection, topic, partition, "offset", checksum, what, payload, class, reason,
                                   decided_by, decided_at)
    values (p_projection, p_topic, p_partition, p_offset, p_checksum, p_what, p_payload, p_class, p_reason, p_by,
            coalesce(p_at, now()))
    on conflict (projection, topic, partition, "offset") do update
       set checksum = excluded.checksum, what = excluded.what, payload = excluded.payload, class = excluded.class,
           reason = excluded.reason, decided_by = excluded.decided_by, decided_at = excluded.decided_at, void = false;
$$;

-- As before, by that function.
create or replace function millpond.settle(
    p_projection text, p_version integer, p_topic text, p_partition integer, p_offsets bigint[], p_revisions bigint
) returns void language plpgsql as $$
declare found_count bigint; found_revisions bigint;
begin
    perform from millpond.dead_letters d
      where d.projection = p_projection and d.version = p_version and d.topic = p_topic and d.partition = p_partition
        and d."offset" = any(p_offsets)
      order by d."offset" for update;
    perform millpond.decide(
           d.projection, d.topic, d.partition, d."offset",
           sha256(convert_to(coalesce(octet_length(d.key), -1) || '/', 'UTF8') || coalesce(d.key, '')
                  || coalesce(d.payload, '')),
           case when d.wanted = 'discard' then 'discard' when d.edited is not null then 'edit' else 'apply' end,
           case when d.wanted is distinct from 'discard' then d.edited end,
           d.reason_class, d.reason, coalesce(d.wanted_by, 'millpond'), d.wanted_at)
      from millpond.dead_letters d
     where d.projection = p_projection and d.version = p_version and d.topic = p_topic and d.partition = p_partition
       and d."offset" = any(p_offsets) and (d.wanted is not null or d.edited is not null);
    with gone as (
        delete from millpond.dead_letters d
         where d.projection = p_projection and d.version = p_version and d.topic = p_topic
           and d.partition = p_partition and d."offset" = any(p_offsets)
        returning d.revision)
    select count(*), coalesce(sum(revision), 0) into found_count, found_revisions from gone;
    if found_count <> cardinality(p_offsets) or found_revisions <> p_revisions then
        raise exception 'dead letters of % version % on %/% are not as they were read',
            p_projection, p_version, p_topic, p_partition using errcode = 'MP002';
    end if;
end $$;
