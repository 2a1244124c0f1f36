//! ROLE consume: one member per consumer group, one worker per partition, one transaction per batch.
//!
//! The path of a record: poll thread (`kafka::subscription`) → `buffer` → `worker` → `prepare` (Avro to rows)
//! → `transaction` (stage, then fence + rows + outbox + dead letters + commit in one flush). The protocol, and why
//! each step is there, is told in `docs/ARCHITECTURE.md`. Nothing here may read Kafka's committed offsets.

mod apply;
mod breaker;
mod buffer;
mod compare;
mod dead_letter;
mod dedupe;
mod divide;
mod drain;
mod drained;
mod engine;
mod group;
mod guard;
mod halts;
pub mod handler;
mod hold;
mod limit;
mod only;
mod overdue;
mod pace;
mod parked;
mod partition;
mod prepare;
mod purge;
mod reporter;
mod sessions;
mod tally;
mod transaction;
mod trial;
mod verdict;
mod worker;

use std::sync::Arc;

pub use buffer::{Bounds, Chunk};
pub use engine::{Emitter, Engine, Vitals};
pub use handler::Handlers;
pub use only::{Condition, Only};
pub use pace::Pace;
pub use prepare::{Input, Preparer, WriterSchemas};
pub use sessions::Sessions;
use tokio::{sync::watch, task::JoinHandle};
pub use trial::{Stopped, Trial};
pub use verdict::TOPIC as VERDICTS_TOPIC;

use self::{group::Group, reporter::Reporter};
use crate::{
    domain::TopicPartition,
    kafka::{self, Options, subscription::Subscription},
};

/// A consumer at work in this process.
pub struct Member {
    subscription: Subscription,
    reporter: JoinHandle<()>,
    purge: JoinHandle<()>,
    stop: watch::Sender<bool>,
    /// How many partitions it has taken; none for one to which a group gives them.
    pub followed: Option<usize>,
    pub engine: Arc<Engine>,
}

impl Member {
    /// Joins the group of the engine's version.
    pub fn start(options: &Options, topics: &[String], engine: Engine) -> Result<Self, kafka::Error> {
        let engine = Arc::new(engine);
        let group = Arc::new(Group::new(Arc::clone(&engine)));
        let name = format!("millpond.{}.v{}", engine.projection, engine.version);
        let connect = |poll_thread| group.connect(poll_thread);
        let subscription = Subscription::start(options, &name, topics, Arc::clone(&group), connect)?;
        Ok(Self::of(options, engine, group, subscription, None))
    }

    /// Takes all of these partitions without a group, whoever else reads them: to build a version.
    pub fn follow(options: &Options, partitions: Vec<TopicPartition>, engine: Engine) -> Result<Self, kafka::Error> {
        let engine = Arc::new(engine);
        let group = Arc::new(Group::new(Arc::clone(&engine)));
        let name = format!("millpond.{}.v{}.rebuild", engine.projection, engine.version);
        let connect = |poll_thread| group.connect(poll_thread);
        let followed = Some(partitions.len());
        let subscription = Subscription::follow(options, &name, partitions, Arc::clone(&group), connect)?;
        Ok(Self::of(options, engine, group, subscription, followed))
    }

    fn of(
        options: &Options,
        engine: Arc<Engine>,
        group: Arc<Group>,
        subscription: Subscription,
        followed: Option<usize>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let purge = tokio::spawn(purge::run(Arc::clone(&group), stopped.clone()));
        let reporter = tokio::spawn(Reporter::new(group, options.clone()).run(stopped));
        Self { subscription, reporter, purge, stop, followed, engine }
    }

    /// Leaves the group: transactions in flight end (5 s at most), fences are released.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = tokio::task::spawn_blocking(move || self.subscription.stop()).await;
        let _ = self.reporter.await;
        let _ = self.purge.await;
    }
}
