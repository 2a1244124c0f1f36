//! What clients did and were told: every request, every read and every decision of the operator, with when it began and when
//! it was answered.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::values;

/// What a client knows of a value after its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered 202: it is in the log.
    Ok,
    /// Refused for certain: it is not in the log.
    Fail,
    /// Nobody told: it may be in the log.
    Info,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Append,
    Money,
    Lane,
}

/// One request of values that a client numbered one after another.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    pub kind: Kind,
    pub client: i32,
    /// Number of its first value.
    pub first: i64,
    pub count: usize,
    /// The id of the client's under which it went out. Under one id it may go out again, and is to have its effect once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether some of its values are others than those that its id stands for.
    pub altered: bool,
    /// Of all values but those in `others`.
    pub outcome: Outcome,
    /// Places in the request that fared otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<(usize, Outcome)>,
    /// Nanoseconds since the run began.
    pub invoked: u64,
    pub completed: u64,
    /// Status, or why there was none.
    pub answer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

impl Request {
    /// The number in the value at a place.
    pub fn number(&self, place: usize) -> i64 {
        let n = self.first + i64::try_from(place).expect("few");
        if self.altered { values::altered(n) } else { n }
    }

    /// What became of the value at a place.
    pub fn outcome_at(&self, place: usize) -> Outcome {
        self.others.iter().find(|(other, _)| *other == place).map_or(self.outcome, |(_, outcome)| *outcome)
    }

    /// How many values had an outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        let others = self.others.iter().filter(|(_, other)| *other == outcome).count();
        if self.outcome == outcome { self.count - self.others.len() + others } else { others }
    }
}

/// Where a list is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    Chains,
    Lanes,
}

/// One read of a list.
#[derive(Debug, Clone, Serialize)]
pub struct Read {
    pub view: View,
    pub key: String,
    /// The position that it asked for.
    pub wanted: String,
    pub invoked: u64,
    pub completed: u64,
    pub status: u16,
    /// Of the problem, when it was answered with one.
    pub code: String,
    /// The position of what it was shown.
    pub position: String,
    pub length: i64,
    pub chain: String,
}

/// One decision of the operator about records that were set aside.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    pub consumer: &'static str,
    /// Partition and offset of the record; none for all of those that cannot be applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<(i32, i64)>,
    pub what: Choice,
    /// Whether a record can be applied, or passed over, when this is done with it.
    pub mends: bool,
    /// Its own name, which the verdict has to bear.
    pub by: String,
    pub invoked: u64,
    pub completed: u64,
    pub outcome: Outcome,
    pub answer: String,
}

/// What is wanted of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    Redrive,
    Edit,
    Discard,
}

/// All requests and reads of a run, in memory and in a file.
pub struct History {
    begun: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    requests: Vec<Request>,
    reads: Vec<Read>,
    decisions: Vec<Decision>,
    file: BufWriter<File>,
}

impl History {
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let inner = Inner { requests: Vec::new(), reads: Vec::new(), decisions: Vec::new(), file };
        let inner = Mutex::new(inner);
        Ok(Self { begun: Instant::now(), inner })
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).expect("a run is shorter than five hundred years")
    }

    pub fn request(&self, request: Request) {
        let mut inner = self.lock();
        write(&mut inner.file, &request);
        inner.requests.push(request);
    }

    pub fn read(&self, read: Read) {
        let mut inner = self.lock();
        write(&mut inner.file, &read);
        inner.reads.push(read);
    }

    pub fn decision(&self, decision: Decision) {
        let mut inner = self.lock();
        write(&mut inner.file, &decision);
        inner.decisions.push(decision);
    }

    /// Looks at the requests so far.
    pub fn look<T>(&self, look: impl FnOnce(&[Request]) -> T) -> T {
        look(&self.lock().requests)
    }

    /// What the operator has decided, once there is nothing left to decide.
    pub fn decisions(&self) -> Vec<Decision> {
        std::mem::take(&mut self.lock().decisions)
    }

    /// All requests and reads, once all clients have ended.
    pub fn take(&self) -> (Vec<Request>, Vec<Read>) {
        let mut inner = self.lock();
        inner.file.flush().expect("the history can be written");
        (std::mem::take(&mut inner.requests), std::mem::take(&mut inner.reads))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(file: &mut BufWriter<File>, entry: &impl Serialize) {
    serde_json::to_writer(&mut *file, entry).expect("the history can be written");
    file.write_all(b"\n").expect("the history can be written");
}
