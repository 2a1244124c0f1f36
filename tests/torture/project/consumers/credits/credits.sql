select account, transfer_id, max(amount) as amount, count(*) as times
from credit
group by 1, 2;
