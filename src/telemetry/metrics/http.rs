//! Metrics of every HTTP listener.

use super::{metrics, seconds_buckets};

metrics! {
    REQUEST_SECONDS: HistogramVec = "millpond_http_request_duration_seconds",
        "Time from a request's head to its answer's head, by route pattern, method and status",
        (&["route", "method", "status"], seconds_buckets());
}
