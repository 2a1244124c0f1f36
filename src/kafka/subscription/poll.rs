//! The poll thread: rebalances, commands, and records from each partition's own queue.
//!
//! Owns the `BaseConsumer`: polling, assignment, pausing, seeking. Must not wait for anything but Kafka and the inbox,
//! except in the assignee's callbacks.
//!
//! A partition whose buffer is full is held: its records stay in its queue, which librdkafka then stops filling and
//! looks at again every few milliseconds. To pause it instead would throw away what was fetched, and a fetcher whose
//! partitions are all paused sleeps for up to a second before it notices that one was resumed (librdkafka 2.12).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
    types::RDKafkaRespErr,
};

use super::{
    super::{client, headers},
    Ask, Assigned, Assignee, Command, Flow, Incoming,
    inbox::Inbox,
};
use crate::{
    domain::TopicPartition,
    planted::{self, Bug},
};

/// What Postgres and RFC 3339 can both say, in milliseconds: a producer may have put anything into its timestamps.
const YEAR_1: i64 = -62_135_596_800_000;
const YEAR_9999: i64 = 253_402_300_799_999;

/// Whatever happens rings the bell; a look every so often costs nothing, and bounds what a lost ring would.
const IDLE: Duration = Duration::from_millis(100);
/// Before a seek that the client refused is tried again.
const SEEK_AGAIN: Duration = Duration::from_millis(10);
/// So often a seek is tried: a partition that was just assigned refuses it until its fetcher runs.
const SEEKS: u32 = 20;
/// Records of one partition that are handed over before commands and other partitions have their turn.
const TURN: usize = 1000;

/// A thread that was away for so long was not at work but stopped, with the process or the machine. Twenty times as long as
/// it waits by itself, and sooner than a topic is deleted, made anew and longer than before.
const STOPPED: Duration = Duration::from_secs(2);

/// Counts assignments: each has its number, also those of a member that takes the place of one that panicked.
static ASSIGNMENTS: AtomicU64 = AtomicU64::new(0);

pub(super) type Member<A> = BaseConsumer<Context<A>>;

pub(super) struct Context<A: Assignee> {
    assignee: Arc<A>,
    inbox: Arc<Inbox>,
    /// The consumer that this is the context of, which splits the partitions' queues off.
    consumer: OnceLock<Weak<Member<A>>>,
    partitions: Mutex<HashMap<TopicPartition, Owned<A>>>,
    /// Whether a group gave the partitions: it is told how far they are.
    grouped: bool,
    /// Set when the member leaves: whatever the group still gives is not taken up.
    leaving: AtomicBool,
    /// Whether a poll has called back: it returns nothing then, though more may be waiting.
    served: AtomicBool,
}

/// A partition of this member.
struct Owned<A: Assignee> {
    partition: A::Partition,
    assignment: u64,
    /// Its records, and nothing else.
    queue: PartitionQueue<Context<A>>,
    /// Whether its records stay in the queue until there is room for them.
    held: bool,
    /// Whether it waits for a seek, and none of it is fetched.
    paused: bool,
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
        self.served.store(true, Ordering::Relaxed);
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
                let queues = self.forget(&partitions);
                self.assignee.revoked(partitions, lost);
                // librdkafka keeps a pause beyond the assignment: a partition that came back would never be fetched.
                if let Err(error) = consumer.resume(tpl) {
                    self.assignee.failed(&format!("cannot resume what is taken away: {error}"));
                }
                let result = if cooperative { consumer.incremental_unassign(tpl) } else { consumer.unassign() };
                empty(&queues);
                result
            }
            other => {
                self.assignee.failed(&format!("rebalance failed: {}", RDKafkaErrorCode::from(other)));
                let all: Vec<TopicPartition> = self.lock().keys().cloned().collect();
                let queues = self.forget(&all);
                self.assignee.revoked(all, true);
                let result = consumer.unassign();
                empty(&queues);
                result
            }
        };
        if let Err(error) = result {
            self.assignee.failed(&format!("assignment failed: {error}"));
        }
    }

    fn commit_callback(&self, _: KafkaResult<()>, _: &TopicPartitionList) {
        self.served.store(true, Ordering::Relaxed);
    }
}

impl<A: Assignee> Context<A> {
    /// A member of a group that rings `inbox` when there is something to poll.
    pub(super) fn consumer(
        config: &ClientConfig,
        assignee: Arc<A>,
        inbox: &Arc<Inbox>,
        grouped: bool,
    ) -> KafkaResult<Arc<Member<A>>> {
        let mut consumer: Member<A> = config.create_with_context(Self {
            assignee,
            inbox: Arc::clone(inbox),
            consumer: OnceLock::new(),
            partitions: Mutex::default(),
            grouped,
            leaving: AtomicBool::new(false),
            served: AtomicBool::new(false),
        })?;
        let bell = Arc::clone(inbox);
        consumer.set_nonempty_callback(move || bell.ring());
        let consumer = Arc::new(consumer);
        let _ = consumer.context().consumer.set(Arc::downgrade(&consumer));
        Ok(consumer)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TopicPartition, Owned<A>>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(
        &self,
        consumer: &Member<A>,
        partitions: Vec<TopicPartition>,
        cooperative: bool,
    ) -> Result<(), KafkaError> {
        let assignment = ASSIGNMENTS.fetch_add(1, Ordering::Relaxed) + 1;
        let assigned = self.assignee.assigned(partitions, assignment);
        let mut list = TopicPartitionList::new();
        let mut waiting = TopicPartitionList::new();
        for Assigned { at, partition, start } in assigned {
            // Without a claim the place to start at is unknown, and whatever comes from here is thrown away. But it has to
            // be a number: librdkafka looks up an end or a beginning in its own time, also once more half a second after
            // a seek, and then goes on from there, over everything between.
            let trusted = planted::is(Bug::KafkaOffsetTrusted);
            let from = if trusted { Offset::Stored } else { Offset::Offset(start.unwrap_or(0)) };
            list.add_partition_offset(&at.topic, at.partition, from)?;
            if start.is_none() {
                waiting.add_partition(&at.topic, at.partition);
            }
            // Before the assignment: a record that was fetched first would go to the queue of all.
            let queue = self.split(&at)?;
            self.lock().insert(at, Owned { partition, assignment, queue, held: false, paused: start.is_none() });
        }
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

    fn split(&self, at: &TopicPartition) -> Result<PartitionQueue<Self>, KafkaError> {
        let consumer = self.consumer.get().and_then(Weak::upgrade).ok_or(KafkaError::Canceled)?;
        let mut queue = consumer.split_partition_queue(&at.topic, at.partition).ok_or(KafkaError::Canceled)?;
        let bell = Arc::clone(&self.inbox);
        queue.set_nonempty_callback(move || bell.ring());
        Ok(queue)
    }

    /// Their queues, which [`empty`] is for.
    fn forget(&self, partitions: &[TopicPartition]) -> Vec<PartitionQueue<Self>> {
        let mut owned = self.lock();
        partitions.iter().filter_map(|at| owned.remove(at)).map(|owned| owned.queue).collect()
    }

    fn partition(&self, at: &TopicPartition) -> Option<A::Partition> {
        self.lock().get(at).map(|owned| owned.partition.clone())
    }

    /// The partition, if it is still that of the assignment.
    fn asking(&self, at: &TopicPartition, assignment: u64) -> Option<A::Partition> {
        self.lock().get(at).filter(|owned| owned.assignment == assignment).map(|owned| owned.partition.clone())
    }

    /// Its records are handed over again.
    fn release(&self, at: &TopicPartition) {
        if let Some(owned) = self.lock().get_mut(at) {
            owned.held = false;
        }
    }
}

/// Throws away what partitions have left behind that were taken away: librdkafka keeps the queues, and nothing comes into
/// them any more.
fn empty<A: Assignee>(queues: &[PartitionQueue<Context<A>>]) {
    for queue in queues {
        while queue.poll(Duration::ZERO).is_some() {}
    }
}

/// Takes partitions that no group has given.
pub(super) fn take<A: Assignee>(consumer: &Arc<Member<A>>, partitions: Vec<TopicPartition>) {
    let context = consumer.context();
    if let Err(error) = context.assign(consumer, partitions, true) {
        context.assignee.failed(&format!("the partitions cannot be read: {error}"));
    }
}

/// Polls until it is told to stop.
pub(super) fn run<A: Assignee>(consumer: &Arc<Member<A>>, inbox: &Inbox) {
    let mut refused: Vec<(Command, u32)> = Vec::new();
    let mut more = false;
    let mut served = Instant::now();
    loop {
        let longest = match (more, refused.is_empty()) {
            (true, _) => Duration::ZERO,
            (false, false) => SEEK_AGAIN,
            (false, true) => IDLE,
        };
        let new: Vec<_> = inbox.take(longest).into_iter().map(|command| (command, 0)).collect();
        if served.elapsed() > STOPPED {
            // What the client would have been told meanwhile it may never be told: that the topic is another one now. Before
            // anything is handed over that it has fetched since.
            consumer.context().assignee.was_stopped(served.elapsed());
        }
        for (command, tries) in std::mem::take(&mut refused).into_iter().chain(new) {
            match obey(consumer, command, tries) {
                Obeyed::Done => {}
                Obeyed::Again(command) => refused.push((command, tries + 1)),
                Obeyed::Stop => return leave(consumer),
            }
        }
        serve(consumer);
        // Callbacks may wait for seconds in there; nothing else here does.
        served = Instant::now();
        more = drain(consumer.context());
    }
}

/// Serves rebalances, errors and the answers to commits.
fn serve<A: Assignee>(consumer: &Member<A>) {
    let context = consumer.context();
    loop {
        match consumer.poll(Duration::ZERO) {
            // Partitions have queues of their own from before they are assigned; but no record may ever be passed over.
            Some(Ok(message)) => {
                let at = TopicPartition::new(message.topic(), message.partition());
                if let Some(partition) = context.partition(&at) {
                    hand_over(context, &partition, &message);
                }
            }
            Some(Err(error)) => report(context, &error),
            None if context.served.swap(false, Ordering::Relaxed) => {}
            None => return,
        }
    }
}

/// Hands over what has arrived. True when there may be more.
fn drain<A: Assignee>(context: &Context<A>) -> bool {
    let mut more = false;
    for owned in context.lock().values_mut().filter(|owned| !owned.held) {
        let mut taken = 0;
        while taken < TURN && !owned.held {
            match owned.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => owned.held = hand_over(context, &owned.partition, &message) == Flow::Hold,
                Some(Err(error)) => report(context, &error),
            }
            taken += 1;
        }
        more |= taken == TURN && !owned.held;
    }
    more
}

fn hand_over<A: Assignee>(context: &Context<A>, partition: &A::Partition, message: &BorrowedMessage<'_>) -> Flow {
    let mut headers = headers::of(message.headers());
    let record = Incoming {
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or_default().clamp(YEAR_1, YEAR_9999),
        key: message.key(),
        payload: message.payload(),
        headers: &mut headers,
    };
    context.assignee.record(partition, record)
}

fn leave<A: Assignee>(consumer: &Member<A>) {
    give_back_all(consumer, false);
    consumer.unsubscribe();
}

/// For a member that cannot go on: what its partitions have in flight is dropped, and their fences keep the rest out.
pub(super) fn abandon<A: Assignee>(consumer: &Member<A>) {
    give_back_all(consumer, true);
}

fn give_back_all<A: Assignee>(consumer: &Member<A>, lost: bool) {
    let context = consumer.context();
    context.leaving.store(true, Ordering::Relaxed);
    let partitions: Vec<TopicPartition> = context.lock().keys().cloned().collect();
    // What is left in their queues goes with the client; but a queue holds the client.
    drop(context.forget(&partitions));
    context.assignee.revoked(partitions, lost);
}

enum Obeyed {
    Done,
    Again(Command),
    Stop,
}

fn obey<A: Assignee>(consumer: &Member<A>, command: Command, tries: u32) -> Obeyed {
    let Command::Ask { at, assignment, ask } = command else { return Obeyed::Stop };
    let context = consumer.context();
    let Some(partition) = context.asking(&at, assignment) else { return Obeyed::Done };
    match ask {
        Ask::Resume => context.release(&at),
        Ask::Pause => set_paused(consumer, &at, true),
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
            context.assignee.sought(&partition, offset);
            context.release(&at);
            set_paused(consumer, &at, false);
        }
        Ask::Commit(_) if !context.grouped => {}
        Ask::Commit(offset) => {
            let mut list = TopicPartitionList::new();
            if list.add_partition_offset(&at.topic, at.partition, Offset::Offset(offset)).is_ok() {
                let _ = consumer.commit(&list, CommitMode::Async);
            }
        }
    }
    Obeyed::Done
}

/// Gives a partition back to the client, not to the group, and takes it from there on. Once librdkafka was told that an
/// offset is out of range it has stopped fetching the partition for good, and refuses every seek.
fn take_anew<A: Assignee>(consumer: &Member<A>, at: &TopicPartition, offset: i64) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&at.topic, at.partition, Offset::Offset(offset))?;
    consumer.incremental_unassign(&list)?;
    consumer.incremental_assign(&list)
}

/// To resume what is not paused would have librdkafka read it again from where it was sought last.
fn set_paused<A: Assignee>(consumer: &Member<A>, at: &TopicPartition, paused: bool) {
    match consumer.context().lock().get_mut(at) {
        Some(owned) if owned.paused != paused => owned.paused = paused,
        _ => return,
    }
    tracing::debug!(partition = %at, paused, "fetching changes");
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
    let code = error.rdkafka_error_code();
    let astray = matches!(code, Some(Code::AutoOffsetReset | Code::OffsetOutOfRange));
    // A topic that is gone may be back as another before anybody asks. A group takes its partitions away.
    let gone = matches!(code, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition));
    if astray || (gone && !context.grouped) {
        tracing::debug!(%error, "a partition cannot be read where it stands");
        return context.assignee.lost_place();
    }
    context.assignee.failed(&error.to_string());
}
