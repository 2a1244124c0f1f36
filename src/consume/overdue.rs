//! Handlers that take long, while they do: nothing is wrong that would be an error, and nothing moves either.
//!
//! The group does not miss a member whose handler is slow, for it is polled from a thread of its own; so somebody has to be
//! told in another way.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::Instant};
use tracing::warn;

use super::{engine::Engine, handler::Record, partition::Partition};
use crate::telemetry::metrics::consume as metrics;

/// A handler is told of when it has been at work on a batch for so long, and each time it was for so long again. Far more
/// than branches and arithmetic take, which is all that a handler is for.
const PERIOD: Duration = Duration::from_secs(10);

/// Tells of a handler until it is dropped.
pub struct Overdue(JoinHandle<()>);

impl Overdue {
    /// Begins to watch: the handler has just been given `records`. From a task of its own, since a handler that computes
    /// lets nobody else run in its task.
    pub fn watch(engine: &Arc<Engine>, partition: &Arc<Partition>, records: &[Record]) -> Self {
        let (consumer, label, partition) = (engine.projection.clone(), engine.label(), Arc::clone(partition));
        let (count, from) = (records.len(), records.first().map_or(0, |record| record.offset));
        let begun = Instant::now();
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(PERIOD).await;
                let seconds = begun.elapsed().as_secs();
                warn!(consumer, partition = %partition.at, records = count, from, seconds, "the handler is still at work on a batch");
                partition.note_error(&format!(
                    "the handler has been at work for {seconds} s on {count} records from offset {from} on; the partition waits for it"
                ));
                metrics::HANDLERS_OVERDUE.with_label_values(&[label.as_str()]).inc();
            }
        }))
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.0.abort();
    }
}
