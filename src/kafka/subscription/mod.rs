//! One member of a consumer group, or one reader of all partitions without a group, polled from a thread of its own.
//!
//! Owns the seam between that thread (`poll`) and whoever takes the records. An async consumer would block a runtime's
//! worker in the callbacks of a rebalance, which wait for claims and for transactions in flight.

mod inbox;
mod poll;

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
    time::Duration,
};

use rdkafka::{ClientConfig, consumer::Consumer, error::KafkaError};

pub use self::inbox::Inbox;
use self::poll::Context;
use super::{Error, Options};
use crate::{domain::TopicPartition, telemetry::panic_message};

/// Before a member whose thread has panicked joins again: the same record may bring it about again, and a group that
/// rebalances all the time gets nothing done.
const REJOIN: Duration = Duration::from_secs(2);

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
    /// The poll thread was stopped for so long, with its process or its machine: what it stands on may be another log now.
    fn was_stopped(&self, _long: Duration) {}
    /// An error of the client that it cannot mend by itself.
    fn failed(&self, error: &str);
    /// The poll thread has panicked, which is a fault of Millpond's. All partitions were revoked as lost, and the member
    /// joins anew.
    fn panicked(&self, message: &str);
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

/// Which partitions are read.
enum Source {
    /// Those of the topics that the group of this name gives the member.
    Group { name: String, topics: Vec<String> },
    /// These, whoever else reads them; no group knows of it, and none is told how far they are.
    Partitions { reader: String, partitions: Vec<TopicPartition> },
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Group { name, .. } => name,
            Self::Partitions { reader, .. } => reader,
        }
    }
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
        let source = Source::Group { name: group.to_owned(), topics: topics.to_vec() };
        Self::begin(options, source, assignee, connect)
    }

    /// Reads these partitions, whoever else does, and starts polling. `reader` names it in logs.
    pub fn follow<A: Assignee>(
        options: &Options,
        reader: &str,
        partitions: Vec<TopicPartition>,
        assignee: Arc<A>,
        connect: impl FnOnce(Arc<Inbox>),
    ) -> Result<Self, Error> {
        let source = Source::Partitions { reader: reader.to_owned(), partitions };
        Self::begin(options, source, assignee, connect)
    }

    fn begin<A: Assignee>(
        options: &Options,
        source: Source,
        assignee: Arc<A>,
        connect: impl FnOnce(Arc<Inbox>),
    ) -> Result<Self, Error> {
        let config = match &source {
            Source::Group { name, .. } => options.member(name)?,
            Source::Partitions { reader, partitions } => options.follower(reader, partitions.len())?,
        };
        let inbox = Arc::new(Inbox::default());
        let name = format!("poll-{}", source.name());
        let membership = Membership { config, source, assignee, inbox: Arc::clone(&inbox) };
        let member = membership.join()?;
        connect(Arc::clone(&inbox));
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || membership.keep(member))
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

/// One that is dropped leaves as well, in its own time.
impl Drop for Subscription {
    fn drop(&mut self) {
        self.inbox.send(Command::Stop);
    }
}

/// What it takes to be given partitions.
struct Membership<A: Assignee> {
    config: ClientConfig,
    source: Source,
    assignee: Arc<A>,
    inbox: Arc<Inbox>,
}

impl<A: Assignee> Membership<A> {
    fn join(&self) -> Result<Arc<poll::Member<A>>, Error> {
        let failed = |e: KafkaError| Error::Create { what: "consumer", why: e.to_string() };
        let grouped = matches!(self.source, Source::Group { .. });
        let member =
            Context::consumer(&self.config, Arc::clone(&self.assignee), &self.inbox, grouped).map_err(failed)?;
        if let Source::Group { topics, .. } = &self.source {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            member.subscribe(&topics).map_err(failed)?;
        }
        Ok(member)
    }

    fn poll(&self, member: &Arc<poll::Member<A>>) {
        if let Source::Partitions { partitions, .. } = &self.source {
            poll::take(member, partitions.clone());
        }
        poll::run(member, &self.inbox);
    }

    /// Polls until told to stop, through panics: a thread that is gone would be a consumer that stands still, unseen.
    fn keep(&self, mut member: Arc<poll::Member<A>>) {
        while let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| self.poll(&member))) {
            poll::abandon(&member);
            drop(member);
            self.assignee.panicked(&panic_message(panic.as_ref()));
            member = loop {
                if self.inbox.wait_for_stop(REJOIN) {
                    return;
                }
                match self.join() {
                    Ok(member) => break member,
                    Err(error) => self.assignee.failed(&error.to_string()),
                }
            };
        }
    }
}
