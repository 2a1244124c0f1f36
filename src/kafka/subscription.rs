//! One member of a consumer group, polled from a thread of its own.
//!
//! Owns the `BaseConsumer`: polling, assignment, pausing, seeking. Must not wait for anything but Kafka, except in
//! [`Assignee::assigned`] and [`Assignee::revoked`], whose waiting the implementer bounds (5 s each), far below
//! `max.poll.interval.ms`. An async consumer would block a runtime's worker in these callbacks.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
    types::RDKafkaRespErr,
};

use super::{Error, Options, client};
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
    /// The partition's buffer is full: fetch no more of it until [`Command::Resume`].
    Pause,
}

/// A partition that was assigned, with where to read from.
pub struct Assigned<P> {
    pub at: TopicPartition,
    pub partition: P,
    /// None: not claimed yet; the partition stays paused until a [`Command::Seek`].
    pub start: Option<i64>,
}

/// The side that owns partitions and takes their records.
pub trait Assignee: Send + Sync + 'static {
    /// Handle of one assigned partition.
    type Partition: Clone + Send + Sync;

    fn assigned(&self, partitions: Vec<TopicPartition>) -> Vec<Assigned<Self::Partition>>;
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

/// What a worker asks of the poll thread.
#[derive(Debug)]
pub enum Command {
    Seek {
        at: TopicPartition,
        offset: i64,
    },
    Resume {
        at: TopicPartition,
    },
    /// Fetch no more of it until a resume or a seek: what comes would be thrown away.
    Pause {
        at: TopicPartition,
    },
    /// Tell the group how far a partition is; a hint for lag tools, never read back as truth.
    Commit {
        at: TopicPartition,
        offset: i64,
    },
    /// Leave the group and end the thread.
    Stop,
}

/// Handle on the poll thread.
pub struct Subscription {
    /// Bounded by what workers may ask: a resume, a seek or a commit per batch.
    commands: mpsc::Sender<Command>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Subscription {
    /// Joins the group and starts polling. `connect` gets the way to send commands before anything can be assigned.
    pub fn start<A: Assignee>(
        options: &Options,
        group: &str,
        topics: &[String],
        assignee: Arc<A>,
        connect: impl FnOnce(mpsc::Sender<Command>),
    ) -> Result<Self, Error> {
        let config = options.member(group)?;
        let failed = |e: KafkaError| Error::Create { what: "consumer", why: e.to_string() };
        let context = Context { assignee, partitions: Mutex::default(), changes: AtomicU64::new(0) };
        let consumer: BaseConsumer<Context<A>> = config.create_with_context(context).map_err(failed)?;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(failed)?;
        let (commands, inbox) = mpsc::channel();
        connect(commands.clone());
        let thread = thread::Builder::new()
            .name(format!("poll-{group}"))
            .spawn(move || poll(&consumer, &inbox))
            .map_err(|e| Error::Create { what: "poll thread", why: e.to_string() })?;
        Ok(Self { commands, thread: Some(thread) })
    }

    /// Leaves the group, which revokes every partition in order, and waits for the thread to end.
    pub fn stop(mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Partitions of this member and whether they wait for their first seek.
struct Owned<P> {
    partition: P,
    paused: bool,
}

struct Context<A: Assignee> {
    assignee: Arc<A>,
    partitions: Mutex<HashMap<TopicPartition, Owned<A::Partition>>>,
    /// Counts assignments, so that the poll loop knows when what it remembers is stale.
    changes: AtomicU64,
}

impl<A: Assignee> ClientContext for Context<A> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka logs it, too; while no broker is there it comes many times a second.
        tracing::debug!(target: "millpond::kafka", %error, "{reason}");
    }
}

impl<A: Assignee> ConsumerContext for Context<A> {
    /// Replaces the library's own handling, which ignores the result of the assignment and has no start offsets.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, tpl: &mut TopicPartitionList) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let partitions: Vec<TopicPartition> =
            tpl.elements().iter().map(|e| TopicPartition::new(e.topic(), e.partition())).collect();
        let result = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions, cooperative),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                let lost = consumer.assignment_lost();
                self.forget(&partitions);
                self.assignee.revoked(partitions, lost);
                if cooperative { consumer.incremental_unassign(tpl) } else { consumer.unassign() }
            }
            other => {
                self.assignee.failed(&format!("rebalance failed: {}", RDKafkaErrorCode::from(other)));
                consumer.unassign()
            }
        };
        if let Err(error) = result {
            self.assignee.failed(&format!("assignment failed: {error}"));
        }
    }
}

impl<A: Assignee> Context<A> {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TopicPartition, Owned<A::Partition>>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: Vec<TopicPartition>,
        cooperative: bool,
    ) -> Result<(), KafkaError> {
        let assigned = self.assignee.assigned(partitions);
        let mut list = TopicPartitionList::new();
        let mut waiting = TopicPartitionList::new();
        let mut owned = self.lock();
        for Assigned { at, partition, start } in assigned {
            // Without a claim the place to start at is unknown; the end is harmless, for nothing is fetched yet.
            let offset = start.map_or(Offset::End, Offset::Offset);
            list.add_partition_offset(&at.topic, at.partition, offset)?;
            if start.is_none() {
                waiting.add_partition(&at.topic, at.partition);
            }
            owned.insert(at, Owned { partition, paused: start.is_none() });
        }
        drop(owned);
        self.changes.fetch_add(1, Ordering::Relaxed);
        if cooperative {
            consumer.incremental_assign(&list)?
        } else {
            consumer.assign(&list)?
        }
        if waiting.count() > 0 {
            consumer.pause(&waiting)?;
        }
        Ok(())
    }

    fn forget(&self, partitions: &[TopicPartition]) {
        let mut owned = self.lock();
        for at in partitions {
            owned.remove(at);
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    fn is_any_paused(&self) -> bool {
        self.lock().values().any(|owned| owned.paused)
    }

    fn partition(&self, topic: &str, partition: i32) -> Option<A::Partition> {
        self.lock().get(&TopicPartition::new(topic, partition)).map(|o| o.partition.clone())
    }
}

/// What Postgres and RFC 3339 can both say, in milliseconds: a producer may have put anything into its timestamps.
const YEAR_1: i64 = -62_135_596_800_000;
const YEAR_9999: i64 = 253_402_300_799_999;

/// Longest wait for a record; commands are looked at in between.
const POLL: Duration = Duration::from_millis(50);
/// The same while a partition is paused: its worker may ask for more at any moment, and waits for it.
const POLL_PAUSED: Duration = Duration::from_millis(2);

fn poll<A: Assignee>(consumer: &BaseConsumer<Context<A>>, inbox: &mpsc::Receiver<Command>) {
    let mut recent: Option<Recent<A::Partition>> = None;
    let mut retries: Vec<Command> = Vec::new();
    loop {
        let pending: Vec<Command> = std::mem::take(&mut retries).into_iter().chain(inbox.try_iter()).collect();
        for command in pending {
            match obey(consumer, command) {
                Obeyed::Done => {}
                Obeyed::Again(command) => retries.push(command),
                Obeyed::Stop => return leave(consumer),
            }
        }
        let longest = if consumer.context().is_any_paused() { POLL_PAUSED } else { POLL };
        // Drain what is there before looking at commands again, but not for ever.
        for turn in 0..1000 {
            let wait = if turn == 0 { longest } else { Duration::ZERO };
            match consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => hand_over(consumer, &message, &mut recent),
                Some(Err(error)) => report(consumer.context(), &error),
            }
        }
    }
}

fn leave<A: Assignee>(consumer: &BaseConsumer<Context<A>>) {
    let partitions: Vec<TopicPartition> = consumer.context().lock().keys().cloned().collect();
    consumer.context().forget(&partitions);
    consumer.context().assignee.revoked(partitions, false);
    consumer.unsubscribe();
}

/// The partition of the last record: records come in runs.
struct Recent<P> {
    topic: String,
    number: i32,
    change: u64,
    partition: P,
}

fn hand_over<A: Assignee>(
    consumer: &BaseConsumer<Context<A>>,
    message: &BorrowedMessage<'_>,
    recent: &mut Option<Recent<A::Partition>>,
) {
    let context = consumer.context();
    let change = context.changes.load(Ordering::Relaxed);
    let known = recent
        .as_ref()
        .is_some_and(|r| r.change == change && r.number == message.partition() && r.topic == message.topic());
    if !known {
        let Some(partition) = context.partition(message.topic(), message.partition()) else { return };
        *recent = Some(Recent { topic: message.topic().to_owned(), number: message.partition(), change, partition });
    }
    let Some(recent) = recent else { return };
    let headers = message.headers();
    let mut headers = headers.iter().flat_map(|h| h.iter()).map(|h| (h.key, h.value));
    let record = Incoming {
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or_default().clamp(YEAR_1, YEAR_9999),
        key: message.key(),
        payload: message.payload(),
        headers: &mut headers,
    };
    if context.assignee.record(&recent.partition, record) == Flow::Pause {
        let at = TopicPartition::new(message.topic(), message.partition());
        set_paused(consumer, &at, true);
    }
}

enum Obeyed {
    Done,
    Again(Command),
    Stop,
}

fn obey<A: Assignee>(consumer: &BaseConsumer<Context<A>>, command: Command) -> Obeyed {
    match command {
        Command::Stop => return Obeyed::Stop,
        Command::Resume { at } => set_paused(consumer, &at, false),
        Command::Pause { at } => set_paused(consumer, &at, true),
        Command::Seek { at, offset } => {
            let Some(partition) = consumer.context().partition(&at.topic, at.partition) else { return Obeyed::Done };
            // 1 s: the seek is local; a partition that was just assigned may refuse it until its fetcher runs.
            if consumer.seek(&at.topic, at.partition, Offset::Offset(offset), Duration::from_secs(1)).is_err() {
                return Obeyed::Again(Command::Seek { at, offset });
            }
            consumer.context().assignee.sought(&partition, offset);
            set_paused(consumer, &at, false);
        }
        Command::Commit { at, offset } => {
            let mut list = TopicPartitionList::new();
            let added = list.add_partition_offset(&at.topic, at.partition, Offset::Offset(offset));
            if added.is_ok() && consumer.context().partition(&at.topic, at.partition).is_some() {
                let _ = consumer.commit(&list, CommitMode::Async);
            }
        }
    }
    Obeyed::Done
}

fn set_paused<A: Assignee>(consumer: &BaseConsumer<Context<A>>, at: &TopicPartition, paused: bool) {
    if let Some(owned) = consumer.context().lock().get_mut(at) {
        if owned.paused == paused {
            return;
        }
        owned.paused = paused;
    } else {
        return;
    }
    let mut list = TopicPartitionList::new();
    list.add_partition(&at.topic, at.partition);
    let result = if paused { consumer.pause(&list) } else { consumer.resume(&list) };
    if let Err(error) = result {
        consumer.context().assignee.failed(&format!("cannot pause or resume {at}: {error}"));
    }
}

fn report<A: Assignee>(context: &Context<A>, error: &KafkaError) {
    use RDKafkaErrorCode as Code;
    // Passing states of the connection: librdkafka goes on by itself, and its own log says so.
    let passing = [Code::AllBrokersDown, Code::BrokerTransportFailure, Code::OperationTimedOut, Code::Resolve];
    if error.rdkafka_error_code().is_some_and(|code| passing.contains(&code)) {
        tracing::debug!(%error, "waiting for Kafka");
        return;
    }
    if matches!(error.rdkafka_error_code(), Some(Code::AutoOffsetReset | Code::OffsetOutOfRange)) {
        context.assignee.lost_place();
    }
    context.assignee.failed(&error.to_string());
}
