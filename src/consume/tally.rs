//! What batches did, counted.

use std::time::Instant;

use crate::telemetry::metrics::consume as metrics;

/// What a committed batch did, for the metrics.
pub struct Tally {
    pub applied: usize,
    pub skipped: usize,
    /// Repeats of records that were applied before.
    pub repeated: usize,
    /// They wait with their key.
    pub parked: usize,
    /// Set aside, and holding nothing up.
    pub dead: usize,
    /// Of those that were at fault.
    pub classes: Vec<&'static str>,
}

impl Tally {
    pub fn report(&self, consumer: &str, refused: usize, started: Instant) {
        let count = |outcome: &str, n: usize| {
            metrics::MESSAGES.with_label_values(&[consumer, outcome]).inc_by(n as u64);
        };
        count("applied", self.applied.saturating_sub(refused));
        count("refused", refused);
        count("skipped", self.skipped);
        count("repeated", self.repeated);
        count("dead_lettered", self.dead);
        count("parked", self.parked);
        for class in &self.classes {
            metrics::DEAD_LETTERS.with_label_values(&[consumer, *class]).inc();
        }
        metrics::BATCHES.with_label_values(&[consumer, "committed"]).inc();
        metrics::BATCH_SECONDS.with_label_values(&[consumer]).observe(started.elapsed().as_secs_f64());
    }
}
