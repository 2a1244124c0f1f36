-- Platform tables of Millpond: what the engine knows about projections, beside the projections themselves.
-- Forward only; never edited once released. Each projection version has its own schema, `p_<consumer>_v<version>`;
-- people read through the stable views in the schema `live`.

create schema if not exists millpond;
create schema if not exists live;

-- One row per consumer: which version people read, and whether an operator has paused it.
create table millpond.projections (
    projection    text primary key,
    live_version  integer,
    paused        boolean not null default false,
    created_at    timestamptz not null default now()
);

-- One row per version ever built. `hash` covers everything that decides what its rows are.
-- `tables` describes the physical tables for readers (a JSON array of domain::TableInfo).
create table millpond.versions (
    projection  text not null references millpond.projections,
    version     integer not null,
    hash        text not null,
    schema_name text not null,
    state       text not null check (state in ('building', 'live', 'retired')),
    topics      text[] not null,
    tables      jsonb not null,
    created_at  timestamptz not null default now(),
    primary key (projection, version)
);

-- How far a version is on a partition, and who may write it. The row is locked by every batch that is
-- applied, so it is kept small, free of indexes on changing columns (HOT updates) and with room on its page.
create table millpond.fences (
    projection     text not null,
    version        integer not null,
    topic          text not null,
    partition      integer not null,
    next_offset    bigint not null,              -- first offset that is not applied yet
    epoch          bigint not null default 0,    -- grows with every claim
    owner          uuid,                         -- token of the claim that may write; null when released
    state          text not null default 'running' check (state in ('running', 'halted', 'retired')),
    halt_code      text,
    halt_reason    text,
    last_offset    bigint,                       -- the last applied record, re-read from Kafka at a claim
    last_timestamp timestamptz,
    last_checksum  bigint,
    out_seq        bigint not null default 0,    -- last number given to a row of the outbox
    applied_at     timestamptz,
    primary key (projection, version, topic, partition),
    foreign key (projection, version) references millpond.versions
) with (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- What the consumer last saw of the end of its partitions, written about once a second: lag and age without Kafka.
create table millpond.ends (
    projection  text not null,
    version     integer not null,
    topic       text not null,
    partition   integer not null,
    end_offset  bigint not null,
    observed_at timestamptz not null,
    last_error    text,
    last_error_at timestamptz,
    primary key (projection, version, topic, partition)
) with (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Records that could not be applied, with where they were and why.
create table millpond.dead_letters (
    projection    text not null,
    version       integer not null,
    topic         text not null,
    partition     integer not null,
    "offset"      bigint not null,
    record_type   text,
    key           bytea,
    headers       jsonb not null default '[]',   -- [[name, base64 value or null], …] in the record's order
    payload       bytea,
    recorded_at   timestamptz not null,          -- the record's own timestamp
    reason_class  text not null,                 -- decode | refused_by_postgres | handler
    reason        text not null,
    created_at    timestamptz not null default now(),
    primary key (projection, version, topic, partition, "offset")
);

-- Commands that a handler refused: a decision of the domain, not a fault.
create table millpond.refusals (
    projection  text not null,
    version     integer not null,
    topic       text not null,
    partition   integer not null,
    "offset"    bigint not null,
    code        text not null,
    reason      text not null,
    created_at  timestamptz not null default now(),
    primary key (projection, version, topic, partition, "offset")
);

-- Events waiting to be published, in the order of `out_seq` within their source partition.
create table millpond.outbox (
    projection    text not null,
    version       integer not null,
    topic         text not null,                 -- source
    partition     integer not null,              -- source
    out_seq       bigint not null,
    source_offset bigint not null,
    index         integer not null,              -- of the event among those emitted for that record
    event_id      uuid not null,
    target_topic  text not null,
    record_type   text not null,
    key           bytea,
    payload       bytea,                         -- framed Avro; null is a tombstone
    headers       jsonb not null default '[]',
    created_at    timestamptz not null default now(),
    primary key (projection, version, topic, partition, out_seq)
);

-- What a view in `live` does with an attempt to write through it.
create function millpond.refuse_write() returns trigger language plpgsql as $$
begin
    raise exception '%.% is a view of a projection: its rows follow from the log', tg_table_schema, tg_table_name
        using errcode = '25006', hint = 'post an event, or change the consumer''s folder';
end $$;

-- Raised by a fence that hits no row; the engine reads the row to learn why.
create function millpond.advance_fence(
    p_projection text, p_version integer, p_topic text, p_partition integer,
    p_owner uuid, p_epoch bigint, p_from bigint, p_to bigint,
    p_last_offset bigint, p_last_timestamp timestamptz, p_last_checksum bigint, p_emitted bigint
) returns bigint language plpgsql as $$
declare first_seq bigint;
begin
    update millpond.fences
       set next_offset = p_to,
           last_offset = coalesce(p_last_offset, last_offset),
           last_timestamp = coalesce(p_last_timestamp, last_timestamp),
           last_checksum = coalesce(p_last_checksum, last_checksum),
           out_seq = out_seq + p_emitted,
           applied_at = clock_timestamp()
     where projection = p_projection and version = p_version and topic = p_topic and partition = p_partition
       and owner = p_owner and epoch = p_epoch and next_offset = p_from and state = 'running'
    returning out_seq - p_emitted into first_seq;
    if not found then
        raise exception 'fence of % version % on %/% is not at offset % for this owner',
            p_projection, p_version, p_topic, p_partition, p_from using errcode = 'MP001';
    end if;
    return first_seq;
end $$;
