-- A poisoned value divides by zero, and Postgres refuses it.
select client, n, max(key) as key, count(*) as times, sum(1 / (1 - poison)) as weight,
       min(_offset) as first_offset, max(_offset) as last_offset
from append
group by 1, 2;
