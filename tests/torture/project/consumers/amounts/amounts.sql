select amount, count(*) as times from deposit group by 1;
select amount, count(*) as times from transfer group by 1;
