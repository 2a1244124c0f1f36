-- Each record of RecordDeparture is a row of record_departure; besides its fields there are
-- _key, _topic, _partition, _offset, _timestamp, _event_id and _seq.
select
  flight_id,     -- text
  carrier,       -- text
  origin,        -- text
  destination,   -- text
  scheduled_at,  -- timestamp with time zone
  departed_at,   -- timestamp with time zone
  delay_minutes, -- integer
  tail_number    -- text
from record_departure;
