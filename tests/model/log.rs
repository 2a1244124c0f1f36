//! The log that is applied: records of a few keys on two partitions, some with ids, some that fail, with gaps between.

use crate::random::Random;

pub const PARTITIONS: usize = 2;
/// Keys of each partition.
const KEYS: u64 = 3;
/// Records that a partition can get.
const RECORDS: usize = 40;

/// What becomes of a record when it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Good,
    /// Decoding finds out, record by record.
    Undecodable,
    /// Postgres finds out, and says nothing of which record of the batch it was.
    Refused,
    /// It ends the process that decodes it.
    Deadly,
}

#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub offset: i64,
    pub key: u8,
    /// The client's id, when it gave one.
    pub id: Option<u8>,
    /// Stands for the event and for its fingerprint.
    pub payload: u32,
    pub time: i64,
    pub kind: Kind,
    /// Whether something follows from it downstream.
    pub emits: bool,
}

#[derive(Debug, Clone)]
pub struct Log {
    records: [Vec<Record>; PARTITIONS],
    written: [usize; PARTITIONS],
}

impl Log {
    /// A log whose records are not written yet.
    pub fn generate(random: &mut Random) -> Self {
        let records = [0, 1].map(|partition| {
            let mut records: Vec<Record> = Vec::new();
            let (mut offset, mut time) = (0, 0);
            for n in 0..RECORDS {
                // A marker or something aborted lies before one in ten.
                offset += i64::from(random.below(10) == 0);
                time += i64::try_from(random.below(5)).expect("few");
                let mut record = fresh(random, partition, n);
                (record.offset, record.time) = (offset, time - i64::try_from(random.below(3)).expect("few"));
                let repeated = (!records.is_empty() && random.below(4) == 0).then(|| *random.pick(&records));
                if let Some(earlier) = repeated.filter(|earlier| earlier.id.is_some()) {
                    // A client repeats itself, or gives an id to another event.
                    record = Record { offset, time: record.time, ..earlier };
                    record.payload += u32::from(random.below(4) == 0) * 500;
                }
                records.push(record);
                offset += 1;
            }
            records
        });
        Self { records, written: [0; PARTITIONS] }
    }

    pub fn append(&mut self, partition: usize) -> Option<Record> {
        let next = self.records[partition].get(self.written[partition]).copied()?;
        self.written[partition] += 1;
        Some(next)
    }

    pub fn written(&self, partition: usize) -> &[Record] {
        &self.records[partition][..self.written[partition]]
    }

    /// The records from an offset on.
    pub fn from(&self, partition: usize, offset: i64) -> &[Record] {
        let written = self.written(partition);
        &written[written.partition_point(|record| record.offset < offset)..]
    }

    /// The offset of the next record.
    pub fn end(&self, partition: usize) -> i64 {
        self.written(partition).last().map_or(0, |record| record.offset + 1)
    }

    pub fn at(&self, partition: usize, offset: i64) -> Record {
        self.from(partition, offset)[0]
    }
}

fn fresh(random: &mut Random, partition: usize, n: usize) -> Record {
    let kind = match random.below(40) {
        0..=2 => Kind::Undecodable,
        3..=5 => Kind::Refused,
        6 => Kind::Deadly,
        _ => Kind::Good,
    };
    let id = (random.below(2) == 0).then(|| u8::try_from(n).expect("few"));
    let payload = u32::try_from(1000 * (partition + 1) + n).expect("few");
    let key = u8::try_from(random.below(KEYS)).expect("few");
    Record { offset: 0, key, id, payload, time: 0, kind, emits: random.below(2) == 0 }
}
