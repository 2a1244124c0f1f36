//! Metrics of `serve`.

use super::{metrics, seconds_buckets};

metrics! {
    CONNECTIONS: IntGauge = "millpond_serve_connections",
        "Connections to Postgres on which reads are answered";
    PREPARED: IntCounter = "millpond_serve_statements_prepared_total",
        "Statements prepared; one for each new shape of a query and connection";
    READS: IntCounterVec = "millpond_serve_reads_total",
        "Reads by consumer and outcome: rows, not_modified, or the code of the problem", &["consumer", "outcome"];
    READS_PER_STATEMENT: Histogram = "millpond_serve_reads_per_statement",
        "Point reads that one statement asked for together", vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
    STALE_POINTERS: IntCounterVec = "millpond_serve_stale_pointers_total",
        "Reads done again because another version was made live meanwhile", &["consumer"];
    WAITING: IntGauge = "millpond_serve_waiting",
        "Reads that wait for a position";
    WAIT_SECONDS: Histogram = "millpond_serve_wait_duration_seconds",
        "Time that reads waited for a position which was not reached when they came", seconds_buckets();
}
