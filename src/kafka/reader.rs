//! Plain reads of a topic: a range, or one record. No group, no commits, and only committed records unless asked.
//!
//! Everything here blocks; call it from a thread of its own.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode as Code,
};

use super::{
    Error, Options,
    client::{self, Isolation, Logging, PAUSE, is_passing},
    gaps::{self, Gap},
    headers,
};
use crate::domain::TopicPartition;

/// A reader that hears nothing from the brokers for so long gives up.
const SILENCE: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(100);
/// How long transactions of others are waited for. Those of a producer that has died end by their own timeout (ours: 10 s),
/// for which the coordinator looks every 10 s.
const UNDECIDED: Duration = Duration::from_secs(25);

/// One record, copied out of the client's buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970; `None` in logs of very old brokers.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// In the record's order; names may repeat.
    pub headers: Vec<Header>,
}

/// One header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: Option<Vec<u8>>,
}

impl Record {
    /// The value of the first header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|header| header.name == name)?.value.as_deref()
    }

    fn copy(topic: &Arc<str>, message: &BorrowedMessage<'_>) -> Self {
        let headers = headers::of(message.headers());
        Self {
            topic: topic.clone(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: headers
                .map(|(name, value)| Header { name: name.to_owned(), value: value.map(<[u8]>::to_vec) })
                .collect(),
        }
    }
}

/// Where a read begins in each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Beginning,
    Offset(i64),
    /// The first record of that time or later, in milliseconds since 1970.
    Timestamp(i64),
}

/// What to read of a topic.
#[derive(Debug, Clone)]
pub struct TopicRange {
    pub topic: Arc<str>,
    /// `None` for all.
    pub partitions: Option<Vec<i32>>,
    pub start: Start,
    /// Only records of this key.
    pub key: Option<Vec<u8>>,
    /// Stop after so many records (of that key).
    pub limit: Option<usize>,
    /// Go on at the end, waiting for more; else stop at the end the topic had when the read began.
    pub follow: bool,
}

/// A client that reads. It serves one read at a time.
pub struct Reader {
    options: Options,
    isolation: Isolation,
    consumer: BaseConsumer<Logging>,
}

impl Reader {
    /// Sees committed records only.
    pub fn open(options: &Options) -> Result<Self, Error> {
        Self::with(options, Isolation::Committed)
    }

    /// Sees those of open and aborted transactions too: to find out what happened, never to act on.
    pub fn open_uncommitted(options: &Options) -> Result<Self, Error> {
        Self::with(options, Isolation::Uncommitted)
    }

    pub(super) fn with(options: &Options, isolation: Isolation) -> Result<Self, Error> {
        let consumer = client::create(&options.reader(isolation)?, Logging, "reader")?;
        Ok(Self { options: options.clone(), isolation, consumer })
    }

    /// First offset that is kept and first that is not written yet (for committed reads: not decided yet).
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        client::watermarks(self.consumer.client(), topic, partition)
    }

    /// [`Self::watermarks`] for those who do not wait long for a leader to be elected.
    pub fn watermarks_within(&self, topic: &str, partition: i32, limit: Duration) -> Result<(i64, i64), Error> {
        client::watermarks_within(self.consumer.client(), topic, partition, limit)
    }

    /// Number of partitions of a topic.
    pub fn partitions_of(&self, topic: &str) -> Result<usize, Error> {
        let describe = |name| {
            let metadata = self.consumer.fetch_metadata(name, SILENCE);
            metadata.map_err(Error::request(format!("describe topic `{topic}`")))
        };
        let metadata = describe(Some(topic))?;
        let found = metadata.topics().iter().find(|t| t.name() == topic);
        let (partitions, error) = found.map_or((0, None), |t| (t.partitions().len(), t.error()));
        if partitions > 0 {
            return Ok(partitions);
        }
        if let Some(Code::TopicAuthorizationFailed) = error.map(Code::from) {
            let refused = KafkaError::MetadataFetch(Code::TopicAuthorizationFailed);
            return Err(Error::request(format!("describe topic `{topic}`"))(refused));
        }
        let all = describe(None)?;
        Err(Error::no_topic(topic, all.topics().iter().map(|t| t.name()).filter(|name| *name != topic)))
    }

    /// Reads a range, in offset order per partition. `each` may stop it. Returns the number of records given to it.
    pub fn read(&self, range: &TopicRange, mut each: impl FnMut(Record) -> ControlFlow<()>) -> Result<usize, Error> {
        let partitions = match &range.partitions {
            Some(partitions) => partitions.clone(),
            None => (0..self.partitions_of(&range.topic)? as i32).collect(),
        };
        // Asked first: this says which partitions there are when one is asked for that is not.
        let ends = partitions.iter().map(|partition| self.watermarks(&range.topic, *partition));
        let ends = ends.collect::<Result<Vec<_>, _>>()?;
        let mut spans = Vec::with_capacity(partitions.len());
        let starts = self.starts(&range.topic, range.start, &partitions)?;
        for ((partition, (low, high)), start) in partitions.iter().zip(ends).zip(starts) {
            // What begins behind the end begins at it: no offset beyond can be fetched.
            let first = start.unwrap_or(low).min(high).max(low);
            if range.follow || first < high {
                spans.push(Span { partition: *partition, first, end: (!range.follow).then_some(high) });
            }
        }
        let mut count = 0;
        if spans.is_empty() || range.limit == Some(0) {
            return Ok(0);
        }
        self.run(&range.topic, &spans, range.follow, |message| {
            if range.key.as_ref().is_some_and(|key| message.key() != Some(key)) {
                return ControlFlow::Continue(());
            }
            count += 1;
            let flow = each(Record::copy(&range.topic, message));
            if range.limit.is_some_and(|limit| count >= limit) { ControlFlow::Break(()) } else { flow }
        })?;
        Ok(count)
    }

    /// Reads one record again. `None`: nothing readable is at that offset (below the log's start, beyond its end,
    /// compacted away, aborted, or a marker of a transaction).
    pub fn read_record(&self, topic: &str, partition: i32, offset: i64) -> Result<Option<Record>, Error> {
        let (low, high) = self.watermarks(topic, partition)?;
        if offset < low || offset >= high {
            return Ok(None);
        }
        let topic: Arc<str> = topic.into();
        let mut found = None;
        let span = Span { partition, first: offset, end: Some(offset + 1) };
        let name = topic.clone();
        self.run(&name, &[span], false, |message| {
            if message.offset() == offset {
                found = Some(Record::copy(&topic, message));
            }
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Reads a partition from `first` (`None`: its beginning) to an end that is not before the one it had at the call.
    /// `each` gets key and payload, and says whether it knows that the record behind this one is none, but the marker of a
    /// transaction. Returns where to go on.
    pub(super) fn catch_up(
        &self,
        topic: &str,
        partition: i32,
        first: Option<i64>,
        mut each: impl FnMut(Option<&[u8]>, Option<&[u8]>) -> bool,
    ) -> Result<i64, Error> {
        self.catch_up_whole(topic, partition, first, |message| each(message.key(), message.payload()))
    }

    /// [`Self::catch_up`] for who needs more of a record.
    fn catch_up_whole(
        &self,
        topic: &str,
        partition: i32,
        first: Option<i64>,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> Result<i64, Error> {
        // Asked first: a leader just elected answers this only once it knows the end for sure.
        let (low, high) = self.watermarks(topic, partition)?;
        // What retention has removed is not waited for.
        let mut next = first.unwrap_or(low).max(low);
        if next > high {
            return Err(Error::Shrunk { topic: topic.into(), partition, end: high, read: next });
        }
        let (started, name, mut before_marker) = (Instant::now(), Arc::from(topic), false);
        while next < high {
            self.run(&name, &[Span { partition, first: next, end: None }], false, |message| {
                next = message.offset() + 1;
                before_marker = each(message);
                ControlFlow::Continue(())
            })?;
            if before_marker && next + 1 == high {
                return Ok(high);
            }
            // The end of what was fetched: a leader that was elected meanwhile may show less for a moment.
            if next < high && self.is_empty(topic, partition, (next, high))? {
                return Ok(high);
            }
            if next < high && started.elapsed() > SILENCE {
                return Err(Error::Timeout {
                    action: format!("show {topic}/{partition} up to {high}"),
                    seconds: SILENCE.as_secs(),
                });
            }
        }
        Ok(next)
    }

    /// Whether there certainly is no record from one offset to before another.
    fn is_empty(&self, topic: &str, partition: i32, (from, to): (i64, i64)) -> Result<bool, Error> {
        let gap = Gap { at: TopicPartition::new(topic, partition), from, to };
        Ok(!gaps::without(&self.options, self.isolation, vec![gap])?.is_empty())
    }

    /// Reads the committed records of a partition from `first` (`None`: its beginning) to the end that it has at the call,
    /// whichever transactions are open there: waits until each of them is committed or aborted. Returns where to go on.
    pub fn read_decided(
        options: &Options,
        topic: &str,
        partition: i32,
        first: Option<i64>,
        mut each: impl FnMut(Record),
    ) -> Result<i64, Error> {
        let (_, end) = Self::open_uncommitted(options)?.watermarks(topic, partition)?;
        let reader = Self::open(options)?;
        let started = Instant::now();
        while reader.watermarks(topic, partition)?.1 < end {
            if started.elapsed() > UNDECIDED {
                return Err(Error::Undecided { topic: topic.into(), partition, seconds: UNDECIDED.as_secs() });
            }
            thread::sleep(PAUSE);
        }
        reader.copy_all(topic, partition, first, &mut each)
    }

    /// Reads all records of a partition from `first` on, those of open and aborted transactions too. Returns where to go on.
    pub fn read_attempted(
        options: &Options,
        topic: &str,
        partition: i32,
        first: Option<i64>,
        mut each: impl FnMut(Record),
    ) -> Result<i64, Error> {
        Self::open_uncommitted(options)?.copy_all(topic, partition, first, &mut each)
    }

    fn copy_all(
        &self,
        topic: &str,
        partition: i32,
        first: Option<i64>,
        each: &mut impl FnMut(Record),
    ) -> Result<i64, Error> {
        let name = Arc::from(topic);
        self.catch_up_whole(topic, partition, first, |message| {
            each(Record::copy(&name, message));
            false
        })
    }

    /// First offset of each of these partitions that is not before a start; none for the beginning, the greatest number for
    /// what is later than all that there is.
    pub fn starts(&self, topic: &str, start: Start, partitions: &[i32]) -> Result<Vec<Option<i64>>, Error> {
        let at = match start {
            Start::Beginning => return Ok(vec![None; partitions.len()]),
            Start::Offset(offset) => return Ok(vec![Some(offset); partitions.len()]),
            Start::Timestamp(at) => at,
        };
        let failed = || Error::request(format!("find the records of `{topic}` by time"));
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            wanted.add_partition_offset(topic, *partition, Offset::Offset(at)).map_err(failed())?;
        }
        let found = self.consumer.offsets_for_times(wanted, SILENCE).map_err(failed())?;
        let offset_of = |partition: &i32| match found.find_partition(topic, *partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            // Nothing that late: begin at the end.
            _ => Some(i64::MAX),
        };
        Ok(partitions.iter().map(offset_of).collect())
    }

    /// Reads spans until all have ended or `each` stops. A span ends where the log does, unless it is followed.
    fn run<F>(&self, topic: &Arc<str>, spans: &[Span], follow: bool, mut each: F) -> Result<(), Error>
    where
        F: FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    {
        let failed = || Error::request(format!("read topic `{topic}`"));
        let mut assignment = TopicPartitionList::new();
        for span in spans {
            assignment.add_partition_offset(topic, span.partition, Offset::Offset(span.first)).map_err(failed())?;
        }
        self.consumer.assign(&assignment).map_err(failed())?;
        let mut open: HashMap<i32, Option<i64>> = spans.iter().map(|span| (span.partition, span.end)).collect();
        let mut heard = Instant::now();
        while !open.is_empty() && (follow || heard.elapsed() < SILENCE) {
            match self.consumer.poll(TICK) {
                None => continue,
                Some(Ok(message)) => {
                    let Some(end) = open.get(&message.partition()).copied() else { continue };
                    let beyond = end.is_some_and(|end| message.offset() >= end);
                    if !beyond && each(&message).is_break() {
                        open.clear();
                    } else if end.is_some_and(|end| message.offset() + 1 >= end) {
                        open.remove(&message.partition());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) if follow => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                Some(Err(error)) if is_passing(&error) => continue,
                Some(Err(error)) => {
                    let _ = self.consumer.unassign();
                    return Err(failed()(error));
                }
            }
            heard = Instant::now();
        }
        self.consumer.unassign().map_err(failed())?;
        if open.is_empty() {
            return Ok(());
        }
        Err(Error::Timeout { action: format!("answer reads of topic `{topic}`"), seconds: SILENCE.as_secs() })
    }
}

/// A part of one partition: from `first` up to, not including, `end`; without one, to wherever the log ends.
struct Span {
    partition: i32,
    first: i64,
    end: Option<i64>,
}
