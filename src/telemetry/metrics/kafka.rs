//! Metrics of `kafka`.
