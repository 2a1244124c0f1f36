-- How punctual each carrier was on each day. A flight belongs to the day of its scheduled departure in New York,
-- whenever it left. Each statement contributes the sums that its command knows of.

select carrier, (scheduled_at at time zone 'America/New_York')::date as day,
       count(*) as scheduled
from schedule_flight
group by 1, 2;

select carrier, (scheduled_at at time zone 'America/New_York')::date as day,
       count(*) as departures,
       count(*) filter (where delay_minutes >= 15) as delayed,
       sum(delay_minutes) as departure_delay_minutes
from record_departure
group by 1, 2;

select carrier, (scheduled_at at time zone 'America/New_York')::date as day,
       count(*) as arrivals,
       count(*) filter (where delay_minutes is null) as diverted,
       sum(delay_minutes) as arrival_delay_minutes
from record_arrival
group by 1, 2;

select carrier, (scheduled_at at time zone 'America/New_York')::date as day,
       count(*) as cancelled
from cancel_flight
group by 1, 2;
