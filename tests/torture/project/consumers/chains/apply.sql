insert into chains (key, length, chain, last)
select key, 1, encode(sha256((':' || client::text || '/' || n::text)::bytea), 'hex'), client::text || '/' || n::text
from append
on conflict (key) do update set
    length = chains.length + 1,
    chain  = encode(sha256((chains.chain || ':' || excluded.last)::bytea), 'hex'),
    last   = excluded.last;
