-- The crash guard: what a process had under way when it ended without a word.
alter table millpond.fences
    add column previous_owner uuid,                      -- who held the fence when it was claimed; null when it was released
    add column attempts       integer not null default 0, -- of applying what begins at `attempts_at`, none of which ended
    add column attempts_at    bigint;
