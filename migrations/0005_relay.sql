-- Who the relay of this database is to Kafka, and how the relay that led last has sent. One row, made by the first relay
-- that leads: a database that is copied before has none, and its relay becomes another.
create table millpond.relay (
    one          boolean primary key default true check (one),
    installation uuid not null default gen_random_uuid(), -- in the transactional id and in every marker
    exactly_once boolean,                                 -- null: no relay has led yet
    reason       text,                                    -- why at least once
    since        timestamptz
);
