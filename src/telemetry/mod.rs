//! Logs and metrics: how Millpond tells what it does. Must not import anything above `domain`.

pub mod logging;
pub mod metrics;
