-- When something was decided about a record last stays known when it has failed all the same: a version follows what was
-- decided through another one once, however often it has tried by itself meanwhile.
create or replace function millpond.set_back(
    p_projection text, p_version integer, p_topic text, p_partition integer, p_offset bigint, p_revision bigint,
    p_class text, p_reason text, p_dead boolean
) returns void language plpgsql as $$
begin
    update millpond.dead_letters
       set reason_class = p_class, reason = p_reason, wanted = null, wanted_by = null, revision = revision + 1,
           parked_at = case when p_dead then null else parked_at end
     where projection = p_projection and version = p_version and topic = p_topic and partition = p_partition
       and "offset" = p_offset and revision = p_revision;
    if not found then
        raise exception 'the dead letter of % version % at %/% offset % is not as it was read',
            p_projection, p_version, p_topic, p_partition, p_offset using errcode = 'MP002';
    end if;
end $$;
