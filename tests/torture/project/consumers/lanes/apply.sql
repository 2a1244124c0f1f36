-- A poisoned value divides by zero, and Postgres refuses it.
insert into lanes (lane, length, chain, last, last_offset)
select key, 1 / (1 - poison), encode(sha256((':' || client::text || '/' || n::text)::bytea), 'hex'),
       client::text || '/' || n::text, _offset
from enqueue
on conflict (lane) do update set
    length      = lanes.length + excluded.length,
    chain       = encode(sha256((lanes.chain || ':' || excluded.last)::bytea), 'hex'),
    last        = excluded.last,
    last_offset = excluded.last_offset;
