//! Metrics of `consume`.
