-- How punctual each carrier was on each day. A flight belongs to the day of its scheduled departure in New York,
-- whenever it left. One statement over all four commands, so that every column of a row has a value from the start.

select carrier,
       (scheduled_at at time zone 'America/New_York')::date as day,
       count(*) filter (where fact = 'scheduled') as scheduled,
       count(*) filter (where fact = 'departed') as departures,
       count(*) filter (where fact = 'departed' and delay_minutes >= 15) as delayed,
       coalesce(sum(delay_minutes) filter (where fact = 'departed'), 0) as departure_delay_minutes,
       count(*) filter (where fact = 'arrived') as arrivals,
       count(*) filter (where fact = 'arrived' and delay_minutes is null) as diverted,
       coalesce(sum(delay_minutes) filter (where fact = 'arrived'), 0) as arrival_delay_minutes,
       count(*) filter (where fact = 'cancelled') as cancelled
from (
    select 'scheduled' as fact, carrier, scheduled_at, null::integer as delay_minutes from schedule_flight
    union all
    select 'departed', carrier, scheduled_at, delay_minutes from record_departure
    union all
    select 'arrived', carrier, scheduled_at, delay_minutes from record_arrival
    union all
    select 'cancelled', carrier, scheduled_at, null from cancel_flight
) as facts
group by 1, 2;
