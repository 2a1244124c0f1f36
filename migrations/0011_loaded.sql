-- Whether a version that is built beside the live one has been at the end of the log since its building began, or went on,
-- and has the indexes of its folder. Nobody is to read it before.
alter table millpond.versions add column loaded boolean not null default true;
