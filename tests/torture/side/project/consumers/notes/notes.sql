select n, max(key) as key, count(*) as times from note group by n;
