//! The application that this repository ships: the engine, with the Rust handlers of its `consumers/`.

use std::process::ExitCode;

#[path = "../consumers/flight_rules/handler.rs"]
mod flight_rules;

fn main() -> ExitCode {
    millpond::Application::new().handler("flight_rules", flight_rules::FlightRules).main()
}
