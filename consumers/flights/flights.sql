-- What is known of each flight. Each statement contributes the columns that it names; the last record wins.

select flight_id, carrier, flight_number, origin, destination, scheduled_at, distance_miles,
       'scheduled' as status
from schedule_flight;

select flight_id, 'departed' as status, departed_at, delay_minutes as departure_delay_minutes, tail_number
from record_departure;

select flight_id, 'arrived' as status, arrived_at, delay_minutes as arrival_delay_minutes, air_time_minutes
from record_arrival;

select flight_id, 'cancelled' as status, cancelled_at, tail_number
from cancel_flight;
