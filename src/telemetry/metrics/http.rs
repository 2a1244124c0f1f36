//! Metrics of every HTTP listener.

use super::{metrics, seconds_buckets};

metrics! {
    REQUEST_SECONDS: HistogramVec = "millpond_http_request_duration_seconds",
        "Time from a request's head to its answer's head, by route pattern, method and status",
        (&["route", "method", "status"], seconds_buckets());
    REQUESTS_IN_FLIGHT: IntGauge = "millpond_http_requests_in_flight",
        "Requests whose answer's head is not ready yet, as last looked at";
    REQUESTS_REFUSED: IntCounterVec = "millpond_http_requests_refused_total",
        "Requests that no role saw, by reason: busy (too many under way), malformed", &["reason"];
    CONNECTIONS: IntGauge = "millpond_http_connections",
        "Connections that are open";
    CONNECTIONS_REFUSED: IntCounterVec = "millpond_http_connections_refused_total",
        "Connections closed as they came, by reason: full (as many as there may be, none of them idle), client (as many as one address may have)",
        &["reason"];
    CONNECTIONS_CLOSED: IntCounterVec = "millpond_http_connections_closed_total",
        "Connections closed by us, by reason: no_request, slow_head, idle, stalled (took nothing of an answer), resets (gave up most of its requests), made_room (idle, when the listener was full)",
        &["reason"];
    ACCEPT_ERRORS: IntCounter = "millpond_http_accept_errors_total",
        "Connections that could not be accepted";
    PANICS: IntCounter = "millpond_http_panics_total",
        "Handlers that panicked and were answered with 500";
}
