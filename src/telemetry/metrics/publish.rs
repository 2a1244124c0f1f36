//! Metrics of `publish`.
