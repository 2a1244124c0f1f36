//! The rules of flights: each command is accepted and moves its flight on, or refused with a reason. See README.md.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use millpond::handler::{Effects, Handler, HandlerError, Record, State, async_trait};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// From how many minutes on a departure is late.
const LATE_MINUTES: i32 = 15;

pub struct FlightRules;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Scheduled,
    Departed,
    Arrived,
    Cancelled,
}

/// A row of `flight_states`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FlightState {
    flight_id: String,
    status: Status,
    departed_at: Option<DateTime<Utc>>,
}

/// The fields of the commands that the rules look at.
#[derive(Debug, Deserialize)]
struct Command {
    flight_id: String,
    departed_at: Option<DateTime<Utc>>,
    arrived_at: Option<DateTime<Utc>>,
    delay_minutes: Option<i32>,
}

/// `FlightDelayed`, with all fields as the command has them.
#[derive(Deserialize, Serialize)]
struct FlightDelayed {
    flight_id: String,
    carrier: Box<RawValue>,
    origin: Box<RawValue>,
    destination: Box<RawValue>,
    scheduled_at: Box<RawValue>,
    departed_at: Box<RawValue>,
    delay_minutes: Box<RawValue>,
}

#[async_trait]
impl Handler for FlightRules {
    fn revision(&self) -> u32 {
        1
    }

    async fn apply(
        &self,
        records: &[Record],
        state: &mut State<'_>,
        effects: &mut Effects,
    ) -> Result<(), HandlerError> {
        let commands = records.iter().map(Record::decode).collect::<Result<Vec<Command>, _>>()?;
        let ids: BTreeSet<String> = commands.iter().map(|c| c.flight_id.clone()).collect();
        let ids: Vec<String> = ids.into_iter().collect();
        let mut flights: HashMap<String, FlightState> = state.load("flight_states", "flight_id", &ids).await?;
        for (record, command) in records.iter().zip(&commands) {
            let before = flights.get(&command.flight_id);
            match judge(&record.record_type, command, before) {
                Ok(after) => {
                    effects.upsert("flight_states", &after);
                    flights.insert(command.flight_id.clone(), after);
                    if record.record_type == "RecordDeparture" && command.delay_minutes >= Some(LATE_MINUTES) {
                        let late: FlightDelayed = record.decode()?;
                        effects.emit(record, "FlightDelayed", &command.flight_id, &late);
                    }
                }
                Err((code, what)) => effects.refuse(record, code, format!("flight {} {what}", command.flight_id)),
            }
        }
        Ok(())
    }
}

/// The table of README.md: the flight after an accepted command, or a refusal's code and the rest of its sentence.
fn judge(
    record_type: &str,
    command: &Command,
    flight: Option<&FlightState>,
) -> Result<FlightState, (&'static str, &'static str)> {
    let Some(flight) = flight else {
        if record_type != "ScheduleFlight" {
            return Err(("not_scheduled", "has not been scheduled"));
        }
        return Ok(FlightState { flight_id: command.flight_id.clone(), status: Status::Scheduled, departed_at: None });
    };
    let to = |status| FlightState { status, ..flight.clone() };
    match (record_type, flight.status) {
        ("ScheduleFlight", _) => Err(("already_scheduled", "has been scheduled before")),
        ("RecordDeparture", Status::Scheduled) => {
            Ok(FlightState { departed_at: command.departed_at, ..to(Status::Departed) })
        }
        ("CancelFlight", Status::Scheduled) => Ok(to(Status::Cancelled)),
        ("RecordArrival", Status::Departed) if command.arrived_at > flight.departed_at => Ok(to(Status::Arrived)),
        ("RecordArrival", Status::Departed) => {
            Err(("arrival_not_after_departure", "cannot arrive before it has departed"))
        }
        ("RecordArrival", Status::Scheduled) => Err(("not_departed", "has not departed")),
        ("RecordArrival", Status::Arrived) => Err(("already_arrived", "has arrived already")),
        ("RecordDeparture" | "CancelFlight", Status::Departed | Status::Arrived) => {
            Err(("already_departed", "has departed already"))
        }
        ("CancelFlight", Status::Cancelled) => Err(("already_cancelled", "has been cancelled already")),
        _ => Err(("flight_cancelled", "has been cancelled")),
    }
}
