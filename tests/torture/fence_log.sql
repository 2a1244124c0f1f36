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
    by_owner    uuid,                       -- who asked for the step, as the text of the request says; null: not a batch
    by_epoch    bigint,
    xid         xid8 not null default pg_current_xact_id(),
    at          timestamptz not null default clock_timestamp()
);

create function rig.log_fence() returns trigger language plpgsql as $$
declare
    -- Of advance_fence: projection, version, topic, partition, owner, epoch, …
    asked text[] := string_to_array(substring(left(current_query(), 2000) from 'advance_fence\(([^)]*)'), ', ');
begin
    insert into rig.fence_log (projection, version, topic, partition, epoch, owner, state, from_offset, to_offset,
                               by_owner, by_epoch)
    values (new.projection, new.version, new.topic, new.partition, new.epoch, new.owner, new.state,
            case tg_op when 'INSERT' then 0 else old.next_offset end, new.next_offset,
            trim(both '''' from asked[5])::uuid, asked[6]::bigint);
    return null;
end $$;

create trigger log_fence after insert or update on millpond.fences for each row execute function rig.log_fence();

-- What is of the versions that people read; others may stand beside them.
create view rig.fences as
    select f.* from millpond.fences f join millpond.projections p on p.projection = f.projection and p.live_version = f.version;
create view rig.dead_letters as
    select d.* from millpond.dead_letters d join millpond.projections p on p.projection = d.projection and p.live_version = d.version;
create view rig.parked_keys as
    select k.* from millpond.parked_keys k join millpond.projections p on p.projection = k.projection and p.live_version = k.version;
create view rig.refusals as
    select r.* from millpond.refusals r join millpond.projections p on p.projection = r.projection and p.live_version = r.version;
create view rig.outbox as
    select o.* from millpond.outbox o join millpond.versions v on v.projection = o.projection and v.version = o.version
     where not o.held and v.state <> 'building';
