-- A version that is built beside the live one has the indexes of its folder made once its rows are there: false from its
-- first row until then. Nobody is to read it before.
alter table millpond.versions add column indexed boolean not null default true;
