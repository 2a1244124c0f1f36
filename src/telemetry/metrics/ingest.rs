//! Metrics of `ingest`.

use super::{metrics, seconds_buckets};

metrics! {
    ACCEPTED_RECORDS: IntCounterVec = "millpond_ingest_accepted_records_total",
        "Records that Kafka has acknowledged, by record type", &["type"];
    REJECTED_REQUESTS: IntCounterVec = "millpond_ingest_rejected_requests_total",
        "Requests answered with a problem, by its code", &["code"];
    INVALID_RECORDS: IntCounter = "millpond_ingest_invalid_records_total",
        "Records refused because they do not fit their schema or contract";
    UNFINISHED_RECORDS: IntCounterVec = "millpond_ingest_unfinished_records_total",
        "Records handed to Kafka and not acknowledged, by outcome: not_written or unknown", &["outcome"];
    DEPARTED_CLIENTS: IntCounter = "millpond_ingest_departed_clients_total",
        "Requests whose client left before the acknowledgement; their records were seen to the end all the same";
    BODY_BYTES: IntCounterVec = "millpond_ingest_body_bytes_total",
        "Bytes of bodies, by stage: wire (as sent), json (decompressed), avro (encoded and framed)", &["stage"];
    ENCODE_SECONDS: Histogram = "millpond_ingest_encode_duration_seconds",
        "Time to validate and encode the records of one request or one chunk of it", seconds_buckets();
    WAITING_REQUESTS: IntGauge = "millpond_ingest_waiting_requests",
        "Requests, or chunks of lenient ones, that wait for their client's turn";
    TURN_SECONDS: Histogram = "millpond_ingest_turn_duration_seconds",
        "Time that those requests waited which did not pass at once", seconds_buckets();
    IN_FLIGHT_BYTES: IntGauge = "millpond_ingest_in_flight_bytes",
        "Bytes held for requests that are not answered yet";
}
