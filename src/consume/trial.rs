//! Batches on the engine's own path, with fence, dead letters and outbox, but without a group or a log: what
//! `consumer test` and `consumer show` stand on. The caller brings the records and a database to throw away.

use std::sync::Arc;

use super::{
    buffer::Chunk,
    engine::Engine,
    partition::Partition,
    worker::{Broken, Worker},
};
use crate::{kafka::subscription::Inbox, store::fence::Claim};

/// The worker of one partition, driven by hand.
pub struct Trial {
    worker: Worker,
}

/// Why a batch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Stopped {
    /// The code of the halt; `retry` and `fenced` where a worker would try again.
    pub code: &'static str,
    pub reason: String,
}

impl Trial {
    /// A worker that holds `claim` and stands at its offset.
    pub fn new(engine: Arc<Engine>, claim: Claim) -> Self {
        let partition = Arc::new(Partition::new(claim.at.clone(), 0));
        // Nobody listens: there is no poll thread.
        let nobody = Arc::new(Inbox::default());
        Self { worker: Worker::new(engine, partition, nobody, Some(claim)) }
    }

    /// Applies a batch as a worker does: records below the fence are passed over, faulty ones become dead letters.
    pub async fn apply(&mut self, chunk: &Chunk) -> Result<(), Stopped> {
        self.worker.apply(chunk).await.map_err(|broken| match broken {
            Broken::Held => Stopped { code: "held", reason: "the fence is held".to_owned() },
            Broken::Retry(reason) => Stopped { code: "retry", reason },
            Broken::Fenced => Stopped { code: "fenced", reason: "the fence is not at this offset".to_owned() },
            Broken::Halt(halt) => Stopped { code: halt.code, reason: halt.reason },
        })
    }
}
