//! One member of a consumer's group: assignment in, workers out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    engine::Engine,
    partition::{Partition, Stop},
    worker::Worker,
};
use crate::{
    domain::TopicPartition,
    kafka::subscription::{Assigned, Assignee, Flow, Inbox, Incoming},
    store::fence::{Claim, Claimed},
    telemetry::metrics::consume as metrics,
};

/// How long an assignment may wait for claims, and a revocation for transactions in flight: half of the session
/// timeout, so that waiting never costs the membership.
const WAIT: Duration = Duration::from_secs(5);

pub struct Group {
    pub engine: Arc<Engine>,
    runtime: Handle,
    poll_thread: OnceLock<Arc<Inbox>>,
    owned: Mutex<HashMap<TopicPartition, Owned>>,
}

struct Owned {
    partition: Arc<Partition>,
    worker: JoinHandle<()>,
}

impl Group {
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, runtime: Handle::current(), poll_thread: OnceLock::new(), owned: Mutex::default() }
    }

    /// Gives the workers their way to the poll thread; called once, before the first assignment can come.
    pub fn connect(&self, poll_thread: Arc<Inbox>) {
        let _ = self.poll_thread.set(poll_thread);
    }

    fn owned(&self) -> std::sync::MutexGuard<'_, HashMap<TopicPartition, Owned>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this member holds.
    pub fn partitions(&self) -> Vec<Arc<Partition>> {
        self.owned().values().map(|owned| Arc::clone(&owned.partition)).collect()
    }

    async fn claim(&self, at: &TopicPartition) -> Option<Claim> {
        match timeout(WAIT, self.engine.claim(at, Uuid::new_v4())).await {
            Ok(Ok(Claimed::Mine(claim))) => Some(claim),
            Ok(Ok(Claimed::Closed { state, reason, .. })) => {
                warn!(consumer = %self.engine.projection, partition = %at, state, reason, "partition is closed");
                None
            }
            Ok(Err(error)) => {
                warn!(consumer = %self.engine.projection, partition = %at, %error, "cannot claim; trying again in the background");
                None
            }
            Err(_) => {
                warn!(consumer = %self.engine.projection, partition = %at, "no claim within 5 s; trying again in the background");
                None
            }
        }
    }

    /// Ends workers and waits for them, all at once, at most [`WAIT`]; one that is late is aborted, which its fence
    /// makes safe.
    async fn finish(&self, mut stopped: Vec<Owned>) {
        let deadline = tokio::time::Instant::now() + WAIT;
        for owned in &mut stopped {
            if tokio::time::timeout_at(deadline, &mut owned.worker).await.is_err() {
                owned.worker.abort();
                warn!(consumer = %self.engine.projection, partition = %owned.partition.at, "transaction did not end within 5 s of the revocation; abandoned");
            }
        }
    }
}

impl Assignee for Group {
    type Partition = Arc<Partition>;

    fn assigned(&self, partitions: Vec<TopicPartition>, assignment: u64) -> Vec<Assigned<Arc<Partition>>> {
        if partitions.is_empty() {
            return Vec::new();
        }
        self.engine.vitals.note_panic(None);
        metrics::REBALANCES.with_label_values(&[self.engine.label().as_str(), "assigned"]).inc();
        let claims = self.runtime.block_on(futures_util::future::join_all(partitions.iter().map(|at| self.claim(at))));
        let Some(poll_thread) = self.poll_thread.get() else { return Vec::new() };
        let mut assigned = Vec::with_capacity(partitions.len());
        for (at, claim) in partitions.into_iter().zip(claims) {
            info!(consumer = %self.engine.projection, partition = %at, next_offset = ?claim.as_ref().map(|c| c.next_offset), "assigned");
            let partition = Arc::new(Partition::new(at.clone(), assignment));
            let start = claim.as_ref().map(|c| c.next_offset);
            if let Some(start) = start {
                partition.buffer().accept(start);
            }
            let worker = Worker::new(Arc::clone(&self.engine), Arc::clone(&partition), Arc::clone(poll_thread), claim);
            let worker = self.runtime.spawn(worker.run());
            let before = self.owned().insert(at.clone(), Owned { partition: Arc::clone(&partition), worker });
            if let Some(before) = before {
                // Never seen: the group took it without a word. Two workers would fence each other for ever.
                before.partition.stop(Stop::Abandon);
                before.worker.abort();
            }
            assigned.push(Assigned { at, partition, start });
        }
        assigned
    }

    fn revoked(&self, partitions: Vec<TopicPartition>, lost: bool) {
        let stopped: Vec<Owned> = {
            let mut owned = self.owned();
            partitions.iter().filter_map(|at| owned.remove(at)).collect()
        };
        // Leaving the group revokes once more what was given back before.
        if stopped.is_empty() {
            return;
        }
        info!(consumer = %self.engine.projection, partitions = stopped.len(), lost, "revoked");
        metrics::REBALANCES
            .with_label_values(&[self.engine.label().as_str(), if lost { "lost" } else { "revoked" }])
            .inc();
        for owned in &stopped {
            owned.partition.stop(if lost { Stop::Abandon } else { Stop::Finish });
        }
        if lost {
            stopped.iter().for_each(|owned| owned.worker.abort());
            return;
        }
        self.runtime.block_on(self.finish(stopped));
    }

    fn record(&self, partition: &Arc<Partition>, record: Incoming<'_, '_>) -> Flow {
        let pushed = {
            let mut buffer = partition.buffer();
            if !buffer.is_accepting() {
                return Flow::Continue;
            }
            buffer.push(record, self.engine.bounds)
        };
        if pushed.wake {
            partition.wake();
        }
        if pushed.full { Flow::Hold } else { Flow::Continue }
    }

    fn sought(&self, partition: &Arc<Partition>, offset: i64) {
        tracing::debug!(consumer = %self.engine.projection, partition = %partition.at, offset, "sought");
        partition.accept(offset);
    }

    fn lost_place(&self) {
        // The client names the topic at most: each partition compares for itself, and the one at fault says so.
        warn!(consumer = %self.engine.projection, "a partition cannot be read where it stands; comparing all with the log");
        for owned in self.owned().values() {
            owned.partition.doubt();
        }
    }

    fn was_stopped(&self, long: Duration) {
        if self.owned().is_empty() {
            return;
        }
        warn!(consumer = %self.engine.projection, seconds = long.as_secs_f64(), "this process was stopped for a while; comparing all partitions with the log");
        for owned in self.owned().values() {
            owned.partition.doubt();
        }
    }

    fn failed(&self, error: &str) {
        // It is the member's: nobody says of which partition.
        self.owned().values().for_each(|owned| owned.partition.note_error(error));
        warn!(consumer = %self.engine.projection, error, "Kafka consumer reports an error");
    }

    fn panicked(&self, message: &str) {
        error!(consumer = %self.engine.projection, panic = message, "polling Kafka panicked, which is a fault of Millpond; joining anew");
        self.engine.vitals.note_panic(Some(message.to_owned()));
    }
}
