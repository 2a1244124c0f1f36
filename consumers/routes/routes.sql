select origin,
       destination,
       (scheduled_at at time zone 'America/New_York')::date as day,
       count(*) as departures,
       max(delay_minutes) as worst_delay_minutes
from record_departure
group by 1, 2, 3;
