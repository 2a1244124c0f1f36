//! One member of a consumer group, polled from a thread of its own.
//!
//! Owns the `BaseConsumer`: polling, assignment, pausing, seeking. Must not wait for anything but Kafka, except in
//! [`Assignee::assigned`] and [`Assignee::revoked`], whose waiting the implementer bounds (5 s each), far below
//! `max.poll.interval.ms`. An async consumer would block a runtime's worker in these callbacks.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// The partition's buffer is full: fetch no more of it until [`Ask::Resume`].
    Pause,
}

/// A partition that was assigned, with where to read from.
pub struct Assigned<P> {
    pub at: TopicPartition,
    pub partition: P,
    /// None: not claimed yet; the partition stays paused until an [`Ask::Seek`].
    pub start: Option<i64>,
}

/// The side that owns partitions and takes their records.
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
    /// Go on from this offset, paused before or not.
    Seek(i64),
    /// There is room again: see [`Flow::Pause`].
    Resume,
    /// Fetch no more of it until a seek: what comes would be thrown away.
    Pause,
    /// Tell the group how far a partition is; a hint for lag tools, never read back as truth.
    Commit(i64),
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
        let context = Context {
            assignee,
            partitions: Mutex::default(),
            changes: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
        };
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

/// A partition of this member.
struct Owned<P> {
    partition: P,
    assignment: u64,
    fetching: Fetching,
}

/// Whether a partition is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetching {
    On,
    /// Its buffer is full. The worker may ask for more at any moment.
    Full,
    /// Nobody takes its records: it is not claimed, or has halted.
    Closed,
}

struct Context<A: Assignee> {
    assignee: Arc<A>,
    partitions: Mutex<HashMap<TopicPartition, Owned<A::Partition>>>,
    /// Counts assignments and revocations: the number of an assignment, and how the poll loop knows when what it
    /// remembers is stale.
    changes: AtomicU64,
    /// Set when the member leaves: whatever the group still gives is not taken up.
    leaving: AtomicBool,
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
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if self.leaving.load(Ordering::Relaxed) => {
                if cooperative {
                    consumer.incremental_assign(tpl)
                } else {
                    consumer.assign(tpl)
                }
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions, cooperative),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                let lost = consumer.assignment_lost();
                self.forget(&partitions);
                self.assignee.revoked(partitions, lost);
                // librdkafka keeps a pause beyond the assignment: a partition that came back would never be fetched.
                if let Err(error) = consumer.resume(tpl) {
                    self.assignee.failed(&format!("cannot resume what is taken away: {error}"));
                }
                if cooperative { consumer.incremental_unassign(tpl) } else { consumer.unassign() }
            }
            other => {
                self.assignee.failed(&format!("rebalance failed: {}", RDKafkaErrorCode::from(other)));
                let all: Vec<TopicPartition> = self.lock().keys().cloned().collect();
                self.forget(&all);
                self.assignee.revoked(all, true);
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
        let assignment = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        let assigned = self.assignee.assigned(partitions, assignment);
        let mut list = TopicPartitionList::new();
        let mut waiting = TopicPartitionList::new();
        let mut owned = self.lock();
        for Assigned { at, partition, start } in assigned {
            // Without a claim the place to start at is unknown, and whatever comes from here is thrown away. But it has to
            // be a number: librdkafka looks up an end or a beginning in its own time, also once more half a second after
            // a seek, and then goes on from there, over everything between.
            let offset = Offset::Offset(start.unwrap_or(0));
            list.add_partition_offset(&at.topic, at.partition, offset)?;
            if start.is_none() {
                waiting.add_partition(&at.topic, at.partition);
            }
            let fetching = if start.is_some() { Fetching::On } else { Fetching::Closed };
            owned.insert(at, Owned { partition, assignment, fetching });
        }
        drop(owned);
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

    fn is_any_full(&self) -> bool {
        self.lock().values().any(|owned| owned.fetching == Fetching::Full)
    }

    /// The partition, if it is still that of the assignment.
    fn asking(&self, at: &TopicPartition, assignment: u64) -> Option<A::Partition> {
        self.lock().get(at).filter(|o| o.assignment == assignment).map(|o| o.partition.clone())
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
/// The same while a buffer is full: its worker may ask for more at any moment, and waits for it.
const POLL_FULL: Duration = Duration::from_millis(2);

fn poll<A: Assignee>(consumer: &BaseConsumer<Context<A>>, inbox: &mpsc::Receiver<Command>) {
    let mut recent: Option<Recent<A::Partition>> = None;
    let mut retries: Vec<(Command, u32)> = Vec::new();
    loop {
        let new = inbox.try_iter().map(|command| (command, 0));
        let pending: Vec<(Command, u32)> = std::mem::take(&mut retries).into_iter().chain(new).collect();
        for (command, tries) in pending {
            match obey(consumer, command, tries) {
                Obeyed::Done => {}
                Obeyed::Again(command) => retries.push((command, tries + 1)),
                Obeyed::Stop => return leave(consumer),
            }
        }
        let longest = if consumer.context().is_any_full() { POLL_FULL } else { POLL };
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
    consumer.context().leaving.store(true, Ordering::Relaxed);
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
        fetch(consumer, &at, Fetching::Full);
    }
}

enum Obeyed {
    Done,
    Again(Command),
    Stop,
}

fn obey<A: Assignee>(consumer: &BaseConsumer<Context<A>>, command: Command, tries: u32) -> Obeyed {
    let Command::Ask { at, assignment, ask } = command else { return Obeyed::Stop };
    let Some(partition) = consumer.context().asking(&at, assignment) else { return Obeyed::Done };
    match ask {
        Ask::Resume => fetch(consumer, &at, Fetching::On),
        Ask::Pause => fetch(consumer, &at, Fetching::Closed),
        Ask::Seek(offset) => {
            let sought = if tries < SEEKS {
                // 1 s: it is local.
                consumer.seek(&at.topic, at.partition, Offset::Offset(offset), Duration::from_secs(1))
            } else {
                take_anew(consumer, &at, offset)
            };
            if let Err(error) = sought {
                tracing::debug!(partition = %at, offset, %error, "cannot seek yet; trying again");
                return Obeyed::Again(Command::Ask { at, assignment, ask });
            }
            consumer.context().assignee.sought(&partition, offset);
            fetch(consumer, &at, Fetching::On);
        }
        Ask::Commit(offset) => {
            let mut list = TopicPartitionList::new();
            if list.add_partition_offset(&at.topic, at.partition, Offset::Offset(offset)).is_ok() {
                let _ = consumer.commit(&list, CommitMode::Async);
            }
        }
    }
    Obeyed::Done
}

/// So often a seek is tried: a partition that was just assigned refuses it until its fetcher runs.
const SEEKS: u32 = 5;

/// Gives a partition back to the client, not to the group, and takes it from there on. Once librdkafka was told that an
/// offset is out of range it has stopped fetching the partition for good, and refuses every seek.
fn take_anew<A: Assignee>(
    consumer: &BaseConsumer<Context<A>>,
    at: &TopicPartition,
    offset: i64,
) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&at.topic, at.partition, Offset::Offset(offset))?;
    consumer.incremental_unassign(&list)?;
    consumer.incremental_assign(&list)
}

/// Begins or ends fetching a partition. While it is paused librdkafka keeps none of its records.
fn fetch<A: Assignee>(consumer: &BaseConsumer<Context<A>>, at: &TopicPartition, fetching: Fetching) {
    let before = match consumer.context().lock().get_mut(at) {
        Some(owned) => std::mem::replace(&mut owned.fetching, fetching),
        None => return,
    };
    if (before == Fetching::On) == (fetching == Fetching::On) {
        return;
    }
    tracing::debug!(partition = %at, ?fetching, "fetching changes");
    let mut list = TopicPartitionList::new();
    list.add_partition(&at.topic, at.partition);
    let result = if fetching == Fetching::On { consumer.resume(&list) } else { consumer.pause(&list) };
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
        tracing::debug!(%error, "a partition cannot be read where it stands");
        return context.assignee.lost_place();
    }
    context.assignee.failed(&error.to_string());
}
