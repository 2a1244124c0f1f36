//! Members of a consumer group on a real broker: what the poll thread fetches, hands over and keeps back.

mod closed;
mod held;
mod panics;
mod rebalance;
