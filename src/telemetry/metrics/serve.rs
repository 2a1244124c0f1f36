//! Metrics of `serve`.
