-- Repeats. Which ids a version has seen is in the table `_seen` of its own schema, which goes with it; here is what the
-- fence adds: a number that stands for it there, and how late it is in the log, by which ids are forgotten.
alter table millpond.fences
    add column number   bigint generated always as identity,
    add column log_time bigint;    -- greatest timestamp of an applied record, in milliseconds since 1970

update millpond.fences set log_time = (extract(epoch from last_timestamp) * 1000)::int8;

drop function millpond.advance_fence(
    text, integer, text, integer, uuid, bigint, bigint, bigint, bigint, timestamptz, bigint, bigint);

-- As before, and notes the time of the log.
create function millpond.advance_fence(
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
    returning out_seq - p_emitted into first_seq;
    if not found then
        raise exception 'fence of % version % on %/% is not at offset % for this owner',
            p_projection, p_version, p_topic, p_partition, p_from using errcode = 'MP001';
    end if;
    return first_seq;
end $$;
