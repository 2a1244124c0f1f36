-- Rebuilds: versions that are built beside the live one, and versions that are kept behind it to go back to.
alter table millpond.versions drop constraint versions_state_check;
alter table millpond.versions
    add constraint versions_state_check check (state in ('building', 'live', 'standby', 'retired')),
    add column live_sql   text[],       -- statements that point the views in `live` at it, and grant what its folder says
    add column kept_until timestamptz;  -- of a standby: when its tables are removed

-- The files that a version was built from: any process can go on with it when the folder has changed since.
create table millpond.version_files (
    projection text not null,
    version    integer not null,
    path       text not null,                   -- from the project's folder
    content    bytea not null,
    primary key (projection, version, path),
    foreign key (projection, version) references millpond.versions on delete cascade
);

-- Which version people read, since when, and who has said so.
create table millpond.swaps (
    id           bigint generated always as identity primary key,
    projection   text not null references millpond.projections on delete cascade,
    from_version integer not null,
    to_version   integer not null,
    swapped_by   text not null,
    swapped_at   timestamptz not null default clock_timestamp()
);

-- Events of a version that is not the live one: they leave only once it is, and what the other one has sent never does.
alter table millpond.outbox add column held boolean not null default false;
create index outbox_due on millpond.outbox (projection, version, topic, partition, out_seq) where not held;

-- While two versions are compared, the one that is not live goes no further than this. Whoever compares may die: it holds
-- for seconds.
alter table millpond.fences
    add column bound       bigint,
    add column bound_until timestamptz;

-- As before, and does not pass a bound.
create or replace function millpond.advance_fence(
    p_projection text, p_version integer, p_topic text, p_partition integer,
    p_owner uuid, p_epoch bigint, p_from bigint, p_to bigint,
    p_last_offset bigint, p_last_timestamp timestamptz, p_last_checksum bigint, p_emitted bigint,
    p_log_time bigint default null
) returns bigint language plpgsql as $$
declare first_seq bigint;
begin
    update millpond.fences
       set next_offset = p_to,
           last_offset = coalesce(p_last_offset, last_offset),
           last_timestamp = coalesce(p_last_timestamp, last_timestamp),
           last_checksum = coalesce(p_last_checksum, last_checksum),
           out_seq = out_seq + p_emitted,
           log_time = greatest(log_time, p_log_time),
           applied_at = clock_timestamp()
     where projection = p_projection and version = p_version and topic = p_topic and partition = p_partition
       and owner = p_owner and epoch = p_epoch and next_offset = p_from and state = 'running'
       and (bound is null or p_to <= bound or bound_until < clock_timestamp())
    returning out_seq - p_emitted into first_seq;
    if not found then
        perform from millpond.fences
          where projection = p_projection and version = p_version and topic = p_topic and partition = p_partition
            and owner = p_owner and epoch = p_epoch and next_offset = p_from and state = 'running';
        if found then
            raise exception 'fence of % version % on %/% is held where it is for a comparison',
                p_projection, p_version, p_topic, p_partition using errcode = 'MP003';
        end if;
        raise exception 'fence of % version % on %/% is not at offset % for this owner',
            p_projection, p_version, p_topic, p_partition, p_from using errcode = 'MP001';
    end if;
    return first_seq;
end $$;
