-- Parked keys: a record that failed and those of its key behind it wait in order, while other keys go on.
-- Verdicts: what was decided about single records, which nobody could derive from the log again.

-- A wish is what an operator wants done with a record: written here and nowhere else, carried out by the worker that owns
-- the partition, under its fence.
alter table millpond.dead_letters
    add column parked_at bigint,                     -- the parked key it belongs to; null: it holds nothing up
    add column edited    bytea,                      -- framed Avro in the place of `payload`
    add column wanted    text check (wanted in ('apply', 'edit', 'discard')),
    add column wanted_by text,
    add column wanted_at timestamptz,
    add column revision  bigint not null default 0;  -- grows with every wish

create index dead_letters_parked on millpond.dead_letters (projection, version, topic, partition, parked_at, "offset")
    where parked_at is not null;
create index dead_letters_wanted on millpond.dead_letters (projection, version, topic, partition, "offset")
    where wanted is not null;

-- A key is known by the offset at which it was parked, which does not change while its head moves on. The key itself may
-- be longer than an index takes.
create table millpond.parked_keys (
    projection text not null,
    version    integer not null,
    topic      text not null,
    partition  integer not null,
    parked_at  bigint not null,
    key        bytea,                                -- null: a record without a key, which waits alone
    head       bigint not null,                      -- offset of the first record that waits
    records    bigint not null,                      -- how many wait
    state      text not null check (state in ('parked', 'draining')),
    since      timestamptz not null default now(),
    attempts   integer not null default 0,           -- of applying the head, where its handler asked for more
    retry_at   timestamptz,                          -- when the next of them is due
    primary key (projection, version, topic, partition, parked_at),
    foreign key (projection, version) references millpond.versions
) with (fillfactor = 70);

-- Of the projection, not of a version: whoever reads the log again does the same at the same place.
create table millpond.verdicts (
    projection text not null,
    topic      text not null,
    partition  integer not null,
    "offset"   bigint not null,
    what       text not null check (what in ('apply', 'edit', 'discard', 'dead_letter')),
    checksum   bytea not null,                       -- of the record, as the log has it: another topic of the name has others
    payload    bytea,                                -- of an edit: framed Avro
    class      text,                                 -- why the record had not been applied
    reason     text,
    decided_by text not null,
    decided_at timestamptz not null default now(),
    primary key (projection, topic, partition, "offset")
);

-- Whether records may be applied out of the order of their key and give the same rows.
alter table millpond.versions add column commutes boolean not null default false;

-- Takes dead letters away and writes down what was decided about them. It raises unless they are as they were read: a
-- wish that came meanwhile counts.
create function millpond.settle(
    p_projection text, p_version integer, p_topic text, p_partition integer, p_offsets bigint[], p_revisions bigint
) returns void language plpgsql as $$
declare found_count bigint; found_revisions bigint;
begin
    perform from millpond.dead_letters d
      where d.projection = p_projection and d.version = p_version and d.topic = p_topic and d.partition = p_partition
        and d."offset" = any(p_offsets)
      order by d."offset" for update;
    insert into millpond.verdicts as v (projection, topic, partition, "offset", checksum, what, payload, class, reason,
                                        decided_by, decided_at)
    select d.projection, d.topic, d.partition, d."offset",
           sha256(convert_to(coalesce(octet_length(d.key), -1) || '/', 'UTF8') || coalesce(d.key, '')
                  || coalesce(d.payload, '')),
           case when d.wanted = 'discard' then 'discard' when d.edited is not null then 'edit' else 'apply' end,
           case when d.wanted is distinct from 'discard' then d.edited end,
           d.reason_class, d.reason, coalesce(d.wanted_by, 'millpond'), coalesce(d.wanted_at, now())
      from millpond.dead_letters d
     where d.projection = p_projection and d.version = p_version and d.topic = p_topic and d.partition = p_partition
       and d."offset" = any(p_offsets) and (d.wanted is not null or d.edited is not null)
     order by d."offset"
    on conflict (projection, topic, partition, "offset") do update
       set checksum = excluded.checksum, what = excluded.what, payload = excluded.payload, class = excluded.class, reason = excluded.reason,
           decided_by = excluded.decided_by, decided_at = excluded.decided_at;
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

-- A record that failed once more: the wish is fulfilled, the reason is the new one. With `p_dead` it holds nothing up from
-- now on.
create function millpond.set_back(
    p_projection text, p_version integer, p_topic text, p_partition integer, p_offset bigint, p_revision bigint,
    p_class text, p_reason text, p_dead boolean
) returns void language plpgsql as $$
begin
    update millpond.dead_letters
       set reason_class = p_class, reason = p_reason, wanted = null, wanted_by = null, wanted_at = null,
           revision = revision + 1, parked_at = case when p_dead then null else parked_at end
     where projection = p_projection and version = p_version and topic = p_topic and partition = p_partition
       and "offset" = p_offset and revision = p_revision;
    if not found then
        raise exception 'the dead letter of % version % at %/% offset % is not as it was read',
            p_projection, p_version, p_topic, p_partition, p_offset using errcode = 'MP002';
    end if;
end $$;
