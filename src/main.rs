//! The application that this repository ships: the engine, with the Rust handlers of its `consumers/`.

use std::process::ExitCode;

/// A tenth of the CPU time of an event went into glibc's allocator; with `override` librdkafka's C code has this one, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[path = "../consumers/flight_rules/handler.rs"]
mod flight_rules;

fn main() -> ExitCode {
    millpond::Application::new().handler("flight_rules", flight_rules::FlightRules).main()
}
