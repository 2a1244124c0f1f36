//! What goes out in one request, and which of it goes out again.

use std::collections::VecDeque;
use std::io::Write as _;

use super::history::Kind;
use crate::random::{Random, hash};
use crate::values;

/// One request in so many of a client carries an id of its own. Not more, for ids cost.
const WITH_ID: u64 = 16;
/// One request in so many is a repeat of an earlier one, and one repeat in so many says something else.
const AGAIN: u64 = 24;
const ALTERED: u64 = 4;
/// Requests with ids that a client remembers.
const REMEMBERED: usize = 60;

/// One request in so many is not lines of JSON that are taken or refused together.
const SHAPES: u64 = 16;

/// How a request is written. A repeat is written as the request that it repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Lines,
    /// Taken as it comes: what was sent when something fails is written, the rest is not.
    Lenient,
    Array,
    Compressed,
}

/// Values of one client, as one request carries them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub kind: Kind,
    pub client: i32,
    pub first: i64,
    pub count: usize,
    pub id: Option<String>,
    /// Whether some values are others than those that the id stands for.
    pub altered: bool,
}

impl Batch {
    /// The values from `first` on, at most so many. Money goes out in runs of one type, for a request has one.
    pub fn new(seed: u64, kind: Kind, client: i32, first: i64, most: usize) -> Self {
        let transfers = |n| values::money(seed, client, n).target.is_some();
        let last = first + i64::try_from(most).expect("few");
        let count = match kind {
            Kind::Append | Kind::Lane => most,
            Kind::Money => (first..last).take_while(|n| transfers(*n) == transfers(first)).count(),
        };
        Self { kind, client, first, count, id: None, altered: false }
    }

    /// The same under an id.
    pub fn with_id(self) -> Self {
        let id = format!("{:?}-{}-{}", self.kind, self.client, self.first);
        Self { id: Some(id), ..self }
    }

    /// As it goes out when somebody has mistaken its id for that of something else.
    pub fn altered(self) -> Self {
        Self { altered: true, ..self }
    }

    fn shape(&self, seed: u64) -> Shape {
        match hash(seed, self.client.unsigned_abs().into(), self.first.unsigned_abs()) % SHAPES {
            0 | 1 => Shape::Lenient,
            2 => Shape::Array,
            3 => Shape::Compressed,
            _ => Shape::Lines,
        }
    }

    /// Path, header fields and body of its request.
    pub fn request(&self, seed: u64) -> (&'static str, Vec<(&'static str, &str)>, Vec<u8>) {
        let (path, lines) = self.lines(seed);
        let mut headers = vec![("content-type", "application/x-ndjson")];
        let body = match self.shape(seed) {
            Shape::Lines => lines.join("\n").into_bytes(),
            Shape::Lenient => {
                headers.push(("prefer", "handling=lenient"));
                lines.join("\n").into_bytes()
            }
            Shape::Array => {
                headers[0].1 = "application/json";
                format!("[{}]", lines.join(",")).into_bytes()
            }
            Shape::Compressed => {
                headers.push(("content-encoding", "gzip"));
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(lines.join("\n").as_bytes()).and_then(|()| gzip.finish()).expect("memory takes it")
            }
        };
        headers.extend(self.id.as_deref().map(|id| ("idempotency-key", id)));
        (path, headers, body)
    }

    fn lines(&self, seed: u64) -> (&'static str, Vec<String>) {
        let numbers = (self.first..).take(self.count);
        let numbers = numbers.map(|n| if self.altered { values::altered(n) } else { n });
        let client = self.client;
        match self.kind {
            Kind::Append => ("/v1/commands/Append", numbers.map(|n| values::append(seed, client, n).json()).collect()),
            Kind::Lane => ("/v1/commands/Enqueue", numbers.map(|n| values::enqueue(seed, client, n).json()).collect()),
            Kind::Money => {
                let transfers = values::money(seed, client, self.first).target.is_some();
                let path = if transfers { "/v1/commands/Transfer" } else { "/v1/commands/Deposit" };
                (path, numbers.map(|n| values::money(seed, client, n).json()).collect())
            }
        }
    }
}

/// What of a client's requests went out under ids, the last of them.
#[derive(Debug, Default)]
pub struct Sent(VecDeque<Batch>);

impl Sent {
    /// Whether the next request of a client is to carry an id.
    pub fn wants_id(random: &mut Random) -> bool {
        random.below(WITH_ID) == 0
    }

    pub fn remember(&mut self, batch: &Batch) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(batch.clone());
    }

    /// A request that goes out once more now, if one does: any of those that are remembered, and sometimes as another.
    pub fn again(&self, random: &mut Random) -> Option<Batch> {
        if self.0.is_empty() || random.below(AGAIN) != 0 {
            return None;
        }
        let batch = self.0[usize::try_from(random.below(self.0.len() as u64)).expect("few")].clone();
        Some(if random.below(ALTERED) == 0 { batch.altered() } else { batch })
    }
}
