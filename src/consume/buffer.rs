//! Records between the poll thread and the worker of a partition: chunks of plain bytes, one lock per hand-over.
//!
//! A chunk is a batch: it is closed when it reaches the batch's bound of records or bytes. While a batch is being
//! applied, what arrives gathers in the next chunk, so batches grow with load and stay small without it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use crate::{
    domain::{Fingerprint, HEADER_EVENT_ID, HEADER_FINGERPRINT},
    kafka::subscription::Incoming,
};

/// One record as it came, in ranges of its chunk's bytes.
#[derive(Debug, Clone)]
pub struct RawRecord {
    pub offset: i64,
    /// Milliseconds since the Unix epoch, as the topic's timestamp type has it.
    pub timestamp: i64,
    pub key: Option<Range<usize>>,
    pub payload: Option<Range<usize>>,
    pub event_id: Option<Range<usize>>,
    /// Only of records whose id is their client's.
    pub fingerprint: Option<Fingerprint>,
    /// All headers, encoded by [`Chunk::push`].
    headers: Range<usize>,
}

/// A run of records of one partition.
#[derive(Debug, Default, Clone)]
pub struct Chunk {
    /// The chunk holds every record from this offset on, up to its last: what it may be applied to.
    pub from: i64,
    pub bytes: Vec<u8>,
    pub records: Vec<RawRecord>,
    /// Whether one of the records has a fingerprint: else nobody has to look for any.
    pub has_fingerprints: bool,
    /// What the log has in the place of values that were edited, by offset.
    logged: BTreeMap<i64, Option<Range<usize>>>,
}

impl Chunk {
    /// One that holds every record from this offset on.
    pub fn beginning_at(from: i64) -> Self {
        Self { from, ..Self::default() }
    }

    pub fn push(&mut self, record: Incoming<'_, '_>) {
        let key = record.key.map(|key| self.append(key));
        let payload = record.payload.map(|payload| self.append(payload));
        let start = self.bytes.len();
        let (mut event_id, mut fingerprint) = (None, None);
        for (name, value) in record.headers {
            self.append_length(Some(name.len()));
            self.append(name.as_bytes());
            self.append_length(value.map(<[u8]>::len));
            let value = value.map(|value| self.append(value));
            if name == HEADER_EVENT_ID {
                event_id = value;
            } else if name == HEADER_FINGERPRINT {
                fingerprint = value.and_then(|value| Fingerprint::from_hex(self.slice(&value)));
                self.has_fingerprints |= fingerprint.is_some();
            }
        }
        let headers = start..self.bytes.len();
        self.records.push(RawRecord {
            offset: record.offset,
            timestamp: record.timestamp,
            key,
            payload,
            event_id,
            fingerprint,
            headers,
        });
    }

    fn append(&mut self, value: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        start..self.bytes.len()
    }

    /// Four bytes; all ones stand for a null value.
    fn append_length(&mut self, length: Option<usize>) {
        let length = length.map_or(u32::MAX, |l| u32::try_from(l).expect("invariant: Kafka records are below 2 GiB"));
        self.bytes.extend_from_slice(&length.to_be_bytes());
    }

    pub fn slice(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    pub fn key(&self, record: &RawRecord) -> Option<&[u8]> {
        record.key.as_ref().map(|r| self.slice(r))
    }

    pub fn payload(&self, record: &RawRecord) -> Option<&[u8]> {
        record.payload.as_ref().map(|r| self.slice(r))
    }

    /// The value as the log has it.
    pub fn logged(&self, record: &RawRecord) -> Option<&[u8]> {
        self.logged.get(&record.offset).unwrap_or(&record.payload).as_ref().map(|r| self.slice(r))
    }

    /// The value that was put in the place of the log's.
    pub fn edited(&self, record: &RawRecord) -> Option<&[u8]> {
        if self.logged.contains_key(&record.offset) { self.payload(record) } else { None }
    }

    /// Puts another value in the place of the log's.
    pub fn edit(&mut self, index: usize, value: &[u8]) {
        let value = self.append(value);
        let record = &mut self.records[index];
        let logged = record.payload.replace(value);
        self.logged.entry(record.offset).or_insert(logged);
    }

    /// How large they are, about.
    pub fn header_bytes(&self, record: &RawRecord) -> usize {
        record.headers.len()
    }

    /// The headers of a record in their order.
    pub fn headers(&self, record: &RawRecord) -> Vec<(String, Option<Vec<u8>>)> {
        let mut rest = self.slice(&record.headers);
        let mut headers = Vec::new();
        while let Some(name) = take(&mut rest) {
            let value = take(&mut rest);
            headers.push((
                String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
                value.flatten().map(<[u8]>::to_vec),
            ));
        }
        headers
    }
}

/// Reads one length and value; none at the end.
fn take<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length);
    if length == u32::MAX {
        *rest = tail;
        return Some(None);
    }
    let (value, tail) = tail.split_at(length as usize);
    *rest = tail;
    Some(Some(value))
}

/// Bounds of a batch, and through them of what waits for one partition.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub max_records: usize,
    pub max_bytes: usize,
}

/// Chunks that the buffer holds before the partition is held: a batch for the worker, and the one after it, for which it
/// need not wait. More would only take memory: what else was fetched waits in librdkafka's queue.
const FULL_CHUNKS: usize = 2;

/// What follows from adding a record.
#[derive(Debug, Clone, Copy)]
pub struct Pushed {
    /// There is no room for another record.
    pub full: bool,
    /// The worker should look: the first record came, or its batch is full.
    pub wake: bool,
}

/// What waits for one partition's worker.
#[derive(Debug, Default)]
pub struct Buffer {
    chunks: VecDeque<Chunk>,
    /// Whether records are taken at all: not before the partition is claimed and the consumer stands at its fence.
    accepting: bool,
    /// Whether the poll thread keeps records back until it is told to resume.
    held: bool,
    /// First offset that has not been taken: where the next chunk continues.
    position: i64,
}

impl Buffer {
    /// Adds a record. One from before where the buffer stands is of no use: it was taken, or is not asked for.
    pub fn push(&mut self, record: Incoming<'_, '_>, bounds: Bounds) -> Pushed {
        if record.offset < self.position {
            return Pushed { full: self.held, wake: false };
        }
        let was_empty = self.chunks.is_empty();
        let open = self.chunks.back().is_some_and(|c| !is_full(c, bounds));
        if !open {
            self.chunks.push_back(Chunk::beginning_at(self.position));
        }
        let chunk = self.chunks.back_mut().expect("invariant: a chunk was just made sure of");
        self.position = record.offset + 1;
        chunk.push(record);
        self.held = self.chunks.len() >= FULL_CHUNKS && self.chunks.back().is_some_and(|c| is_full(c, bounds));
        Pushed { full: self.held, wake: was_empty || (self.chunks.len() == 1 && self.has_full_chunk(bounds)) }
    }

    /// Takes the next batch. The second value says that the poll thread should be told to resume.
    pub fn pop(&mut self) -> (Option<Chunk>, bool) {
        let chunk = self.chunks.pop_front();
        (chunk, std::mem::take(&mut self.held))
    }

    /// Whether the next batch has reached a bound already and need not wait for its age.
    pub fn has_full_chunk(&self, bounds: Bounds) -> bool {
        self.chunks.front().is_some_and(|c| is_full(c, bounds))
    }

    pub fn is_accepting(&self) -> bool {
        self.accepting
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes records from `offset` on; throws away what was read from an older place.
    pub fn accept(&mut self, offset: i64) {
        self.chunks.clear();
        self.held = false;
        self.accepting = true;
        self.position = offset;
    }

    /// Takes no record until the next [`Self::accept`].
    pub fn refuse(&mut self) {
        self.chunks.clear();
        self.held = false;
        self.accepting = false;
    }
}

fn is_full(chunk: &Chunk, bounds: Bounds) -> bool {
    chunk.records.len() >= bounds.max_records || chunk.bytes.len() >= bounds.max_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { max_records: 2, max_bytes: 1 << 20 };

    fn push(buffer: &mut Buffer, offset: i64) -> Pushed {
        let mut headers = [(HEADER_EVENT_ID, Some(&b"id"[..])), ("none", None)].into_iter();
        let record = Incoming { offset, timestamp: 7, key: Some(b"k"), payload: None, headers: &mut headers };
        buffer.push(record, BOUNDS)
    }

    #[test]
    fn a_record_comes_out_as_it_went_in() {
        let mut buffer = Buffer::default();
        push(&mut buffer, 41);
        let chunk = buffer.pop().0.unwrap();
        let record = &chunk.records[0];
        assert_eq!((record.offset, record.timestamp), (41, 7));
        assert_eq!((chunk.key(record), chunk.payload(record)), (Some(&b"k"[..]), None));
        assert_eq!(chunk.slice(record.event_id.as_ref().unwrap()), b"id");
        let headers = chunk.headers(record);
        assert_eq!(headers, [(HEADER_EVENT_ID.to_owned(), Some(b"id".to_vec())), ("none".to_owned(), None)]);
    }

    #[test]
    fn a_value_that_was_edited_hides_that_of_the_log_and_does_not_lose_it() {
        let mut chunk = Chunk::default();
        let (payload, headers) = (Some(&b"logged"[..]), &mut std::iter::empty());
        chunk.push(Incoming { offset: 7, timestamp: 0, key: None, payload, headers });
        assert_eq!(chunk.edited(&chunk.records[0]), None);
        for value in [&b"edited"[..], b"twice"] {
            chunk.edit(0, value);
            let record = &chunk.records[0];
            assert_eq!((chunk.payload(record), chunk.edited(record)), (Some(value), Some(value)));
            assert_eq!(chunk.logged(record), Some(&b"logged"[..]));
        }
    }

    #[test]
    fn a_chunk_knows_where_it_continues_from() {
        let mut buffer = Buffer::default();
        buffer.accept(10);
        for offset in [12, 13, 20] {
            push(&mut buffer, offset);
        }
        assert_eq!(buffer.pop().0.unwrap().from, 10);
        assert_eq!(buffer.pop().0.unwrap().from, 14);
    }

    #[test]
    fn a_record_from_before_the_buffers_place_is_left_out() {
        let mut buffer = Buffer::default();
        buffer.accept(10);
        for offset in [3, 10, 11, 11, 10] {
            push(&mut buffer, offset);
        }
        let chunk = buffer.pop().0.unwrap();
        assert_eq!(chunk.records.iter().map(|r| r.offset).collect::<Vec<_>>(), [10, 11]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_full_buffer_has_records_held_until_a_batch_is_taken() {
        let mut buffer = Buffer::default();
        let full: Vec<bool> = (0..4).map(|offset| push(&mut buffer, offset).full).collect();
        assert_eq!(full, [false, false, false, true]);
        let (chunk, resume) = buffer.pop();
        assert_eq!((chunk.unwrap().records.len(), resume), (2, true));
        assert!(!push(&mut buffer, 4).full && push(&mut buffer, 5).full);
        assert!(buffer.pop().1);
        assert!(!buffer.pop().1);
    }
}
