-- Replays: a part of the log applied to tables of a version that nobody reads and that expires.
alter table millpond.versions drop constraint versions_state_check;
alter table millpond.versions
    add constraint versions_state_check check (state in ('building', 'live', 'standby', 'retired', 'scratch')),
    add column build_rate double precision;     -- records a second, of the last build that came to the end of the log

-- No number is given twice, also not that of a version that was given up: who was at work on it may not know yet.
alter table millpond.projections add column versions_made integer not null default 0;
update millpond.projections p
   set versions_made = coalesce((select max(version) from millpond.versions v where v.projection = p.projection), 0);
