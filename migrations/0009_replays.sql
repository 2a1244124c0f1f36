-- Replays: a part of the log applied to tables of a version that nobody reads and that expires.
alter table millpond.versions drop constraint versions_state_check;
alter table millpond.versions
    add constraint versions_state_check check (state in ('building', 'live', 'standby', 'retired', 'scratch')),
    add column build_rate double precision;     -- records a second, of the last build that came to the end of the log
