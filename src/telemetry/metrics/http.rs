//! Metrics of every HTTP listener.

use super::{metrics, seconds_buckets};

metrics! {
    REQUEST_SECONDS: HistogramVec = "millpond_http_request_duration_seconds",
        "Time from a request's head to its answer's head, by route pattern, method and status",
        (&["route", "method", "status"], seconds_buckets());
    REQUESTS_IN_FLIGHT: IntGauge = "millpond_http_requests_in_flight",
        "Requests whose answer's head is not ready yet";
    CONNECTIONS: IntGauge = "millpond_http_connections",
        "Connections that are open";
    ACCEPT_ERRORS: IntCounter = "millpond_http_accept_errors_total",
        "Connections that could not be accepted";
    PANICS: IntCounter = "millpond_http_panics_total",
        "Handlers that panicked and were answered with 500";
}
