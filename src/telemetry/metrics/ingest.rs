//! Metrics of `ingest`.
