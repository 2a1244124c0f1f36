-- Every step of every fence, written by the transaction that makes it: whoever moves a fence, and however, is seen. A
-- trigger of the rig, not a facility of Millpond: what is under test cannot forget to write it.
create schema rig;

create table rig.fence_log (
    id          bigserial primary key,      -- given while the fence's row is locked: the order of its steps
    projection  text not null,
    version     integer not null,
    topic       text not null,
    partition   integer not null,
    epoch       bigint not null,
    owner       uuid,
    state       text not null,
    from_offset bigint not null,
    to_offset   bigint not null,
    xid         xid8 not null default pg_current_xact_id(),
    at          timestamptz not null default clock_timestamp()
);

create function rig.log_fence() returns trigger language plpgsql as $$
begin
    insert into rig.fence_log (projection, version, topic, partition, epoch, owner, state, from_offset, to_offset)
    values (new.projection, new.version, new.topic, new.partition, new.epoch, new.owner, new.state,
            case tg_op when 'INSERT' then 0 else old.next_offset end, new.next_offset);
    return null;
end $$;

create trigger log_fence after insert or update on millpond.fences for each row execute function rig.log_fence();
