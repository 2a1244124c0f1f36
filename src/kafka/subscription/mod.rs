//! One member of a consumer group, polled from a thread of its own.
//!
//! Owns the seam between that thread (`poll`) and whoever takes the records. An async consumer would block a runtime's
//! worker in the callbacks of a rebalance, which wait for claims and for transactions in flight.

mod inbox;
mod poll;

use std::{sync::Arc, thread};

use rdkafka::{consumer::Consumer, error::KafkaError};

pub use self::inbox::Inbox;
use self::poll::Context;
use super::{Error, Options};
use crate::domain::TopicPartition;

/// A record as the poll thread sees it; everything is borrowed from librdkafka.
pub struct Incoming<'a, 'h> {
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    pub headers: &'h mut (dyn Iterator<Item = (&'a str, Option<&'a [u8]>)> + 'h),
}

/// What the poll thread does after handing a record over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// The partition's buffer is full: hand over no more of it until [`Ask::Resume`].
    Hold,
}

/// A partition that was assigned, with where to read from.
pub struct Assigned<P> {
    pub at: TopicPartition,
    pub partition: P,
    /// None: not claimed yet; the partition stays paused until an [`Ask::Seek`].
    pub start: Option<i64>,
}

/// The side that owns partitions and takes their records. What it does is done on the poll thread: it must not wait,
/// except in [`Assignee::assigned`] and [`Assignee::revoked`], whose waiting it bounds (5 s each), far below
/// `max.poll.interval.ms`.
pub trait Assignee: Send + Sync + 'static {
    /// Handle of one assigned partition.
    type Partition: Clone + Send + Sync;

    /// `assignment` is what [`Command::Ask`] has to name for these partitions.
    fn assigned(&self, partitions: Vec<TopicPartition>, assignment: u64) -> Vec<Assigned<Self::Partition>>;
    /// `lost`: the group has given them to someone else already; there is nothing to finish.
    fn revoked(&self, partitions: Vec<TopicPartition>, lost: bool);
    fn record(&self, partition: &Self::Partition, record: Incoming<'_, '_>) -> Flow;
    /// The consumer now stands at `offset`, and nothing from before the seek will come.
    fn sought(&self, partition: &Self::Partition, offset: i64);
    /// Some partition cannot be read where the consumer stands: its log was cut, or the topic is another.
    fn lost_place(&self);
    /// An error of the client that it cannot mend by itself.
    fn failed(&self, error: &str);
}

/// What the poll thread is told.
#[derive(Debug)]
pub enum Command {
    /// What a worker asks for its partition. It is not obeyed once the partition has been taken away, even if it has been
    /// given back since: then another worker has it, which knows nothing of this.
    Ask { at: TopicPartition, assignment: u64, ask: Ask },
    /// Leave the group and end the thread.
    Stop,
}

#[derive(Debug, Clone, Copy)]
pub enum Ask {
    /// Go on from this offset, held or paused before or not.
    Seek(i64),
    /// There is room again after [`Flow::Hold`].
    Resume,
    /// Fetch no more of it until a seek: what comes would be thrown away.
    Pause,
    /// Tell the group how far a partition is; a hint for lag tools, never read back as truth.
    Commit(i64),
}

/// Handle on the poll thread.
pub struct Subscription {
    inbox: Arc<Inbox>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Subscription {
    /// Joins the group and starts polling. `connect` gets the way to send commands before anything can be assigned.
    pub fn start<A: Assignee>(
        options: &Options,
        group: &str,
        topics: &[String],
        assignee: Arc<A>,
        connect: impl FnOnce(Arc<Inbox>),
    ) -> Result<Self, Error> {
        let config = options.member(group)?;
        let failed = |e: KafkaError| Error::Create { what: "consumer", why: e.to_string() };
        let inbox = Arc::new(Inbox::default());
        let consumer = Context::consumer(&config, assignee, &inbox).map_err(failed)?;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(failed)?;
        connect(Arc::clone(&inbox));
        let heard = Arc::clone(&inbox);
        let thread = thread::Builder::new()
            .name(format!("poll-{group}"))
            .spawn(move || poll::run(&consumer, &heard))
            .map_err(|e| Error::Create { what: "poll thread", why: e.to_string() })?;
        Ok(Self { inbox, thread: Some(thread) })
    }

    /// Leaves the group, which revokes every partition in order, and waits for the thread to end.
    pub fn stop(mut self) {
        self.inbox.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
