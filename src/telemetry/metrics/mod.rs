//! Every metric, declared once, one file per area. Names are `millpond_<area>_<thing>_<base unit>[_total]`.
//!
//! Labels come from bounded sets (topic, consumer, outcome, reason, route, status), never ids, keys or error texts.
//! Metrics are updated per batch or per request, not per event.

pub mod consume;
pub mod http;
pub mod ingest;
pub mod kafka;
pub mod publish;
pub mod serve;

use prometheus::{Encoder, TextEncoder};

/// The metrics of this process in Prometheus' text format.
pub fn render() -> String {
    let mut out = Vec::new();
    // Encoding to memory fails only on a duplicate or empty family, which the tests would show.
    let _ = TextEncoder::new().encode(&prometheus::gather(), &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// Declares metrics: `NAME: Kind = "name", "help" [, labels or buckets]`, registered on first use.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $text:literal, $help:literal $(, $extra:expr)?;)*) => {$(
        $(#[$doc])*
        #[doc = $help]
        pub static $name: std::sync::LazyLock<prometheus::$kind> = std::sync::LazyLock::new(|| {
            metrics!(@register $kind, $text, $help $(, $extra)?).expect("invariant: each metric is declared once")
        });
    )*};
    (@register IntCounter, $n:literal, $h:literal) => { prometheus::register_int_counter!($n, $h) };
    (@register IntGauge, $n:literal, $h:literal) => { prometheus::register_int_gauge!($n, $h) };
    (@register IntCounterVec, $n:literal, $h:literal, $e:expr) => { prometheus::register_int_counter_vec!($n, $h, $e) };
    (@register IntGaugeVec, $n:literal, $h:literal, $e:expr) => { prometheus::register_int_gauge_vec!($n, $h, $e) };
    (@register GaugeVec, $n:literal, $h:literal, $e:expr) => { prometheus::register_gauge_vec!($n, $h, $e) };
    (@register Histogram, $n:literal, $h:literal, $e:expr) => { prometheus::register_histogram!($n, $h, $e) };
    (@register HistogramVec, $n:literal, $h:literal, $e:expr) => {
        prometheus::register_histogram_vec!($n, $h, $e.0, $e.1)
    };
}
pub(crate) use metrics;

/// Buckets for durations from half a millisecond to ten seconds.
pub(crate) fn seconds_buckets() -> Vec<f64> {
    vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
}
