//! Ingest under siege: clients that are slow, greedy, broken or hostile, beside good ones.
//!
//! Each test puts one process of `millpond ingest` under attack over loopback and shows three things: the attack comes to
//! an end by the bound that is there against it, good clients are answered meanwhile, and nothing of it stays: memory, open
//! files and the log are afterwards as they ought to be. Attackers come from addresses of their own (`127.0.1.1` and so on)
//! where the system has them. `MILLPOND_SIEGE=5` multiplies their numbers.

mod ends;
mod fairness;
mod http2;
mod oversize;
mod slow;
mod smuggling;
mod target;
mod wire;

/// What numbers of attackers are multiplied by.
fn scale() -> usize {
    std::env::var("MILLPOND_SIEGE").ok().and_then(|value| value.parse().ok()).unwrap_or(1)
}
