//! Everything the workers of one consumer share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    breaker::Breaker,
    buffer::Bounds,
    handler::{Emitted, Handler},
    pace::Pace,
    prepare::{Fault, Preparer},
    sessions::Sessions,
};
use crate::{
    domain::TopicPartition,
    kafka::{self, Reader},
    projection::Compiled,
    schema::{
        encode::{Captured, Encoder},
        framing,
    },
    store::{
        self,
        fence::{self, Claim, Claimed},
    },
};

/// What becomes of a record that cannot be applied.
pub use crate::spec::OnError;

/// Ten missed reports: longer than a restart of Postgres, shorter than people wait to be told.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a partition may take to tell its ends before those that wait for the reader have their turn.
const PATIENCE_WITH_LEADER: Duration = Duration::from_secs(1);

pub struct Engine {
    pub projection: String,
    pub version: i32,
    /// Hash of everything that decides the rows.
    pub definition: String,
    /// Schema of the version's tables.
    pub schema: String,
    pub compiled: Arc<Compiled>,
    pub handler: Option<Arc<dyn Handler>>,
    pub preparer: Preparer,
    pub sessions: Sessions,
    pub bounds: Bounds,
    pub pace: Pace,
    pub max_age: Duration,
    pub on_error: OnError,
    /// How long ids of clients are remembered, in the time of the log; none where repeats are new records.
    pub dedupe_window: Option<Duration>,
    /// How the events of a handler are encoded, by record type.
    pub emitters: HashMap<String, Emitter>,
    /// Longest record that may be sent, in bytes.
    pub max_record_bytes: usize,
    /// How many partitions each topic has, as the project declares them.
    pub declared_partitions: BTreeMap<String, u32>,
    /// The log, to compare fences with; none in a trial, whose records come from elsewhere.
    pub reader: Option<Arc<Mutex<Reader>>>,
    pub vitals: Vitals,
}

/// What changes while an engine runs, told between its workers and its reporter.
pub struct Vitals {
    paused: AtomicBool,
    beside: AtomicBool,
    breaker_rests: AtomicBool,
    superseded: AtomicBool,
    appends: AtomicBool,
    yields: AtomicBool,
    reported: Mutex<Instant>,
    breaker: Mutex<Breaker>,
    panic: Mutex<Option<String>>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            paused: AtomicBool::new(false),
            beside: AtomicBool::new(false),
            breaker_rests: AtomicBool::new(false),
            superseded: AtomicBool::new(false),
            appends: AtomicBool::new(false),
            yields: AtomicBool::new(false),
            reported: Mutex::new(Instant::now()),
            breaker: Mutex::default(),
            panic: Mutex::default(),
        }
    }
}

/// Where an emitted record type goes and how it is written.
pub struct Emitter {
    pub topic: String,
    pub schema_id: u32,
    pub encoder: Encoder,
}

/// An emitted event, ready for the outbox.
pub struct EncodedEvent {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// What Kafka holds where a fence stands.
pub struct Inspected {
    pub low: i64,
    pub high: i64,
    /// The last applied record, if it is still there.
    pub last: Option<kafka::Record>,
}

impl Engine {
    /// What the version is called in metrics: the projection's name, or that and the number while another one is live.
    pub fn label(&self) -> String {
        if self.vitals.is_beside() { format!("{}.v{}", self.projection, self.version) } else { self.projection.clone() }
    }

    pub async fn claim(&self, at: &TopicPartition, owner: Uuid) -> Result<Claimed, store::Error> {
        let mut lease = self.sessions.control().await?;
        let url = self.sessions.url();
        let claiming = fence::claim(&mut lease.connection, url, &self.projection, self.version, at, owner);
        let claimed = store::bounded(claiming).await?;
        lease.give_back();
        Ok(claimed)
    }

    /// Looks at the log where a claim stands.
    pub async fn inspect(&self, claim: &Claim) -> Result<Inspected, String> {
        let reader = self.reader.clone().ok_or("there is no log to compare the fence with")?;
        let (at, last) = (claim.at.clone(), claim.last);
        let look = move || -> Result<Inspected, kafka::Error> {
            let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            // The reader is shared: one partition without a leader must not hold up the claims of all.
            let (low, high) = reader.watermarks_within(&at.topic, at.partition, PATIENCE_WITH_LEADER)?;
            let last = match last {
                Some(last) if last.offset >= low && last.offset < high => {
                    reader.read_record(&at.topic, at.partition, last.offset)?
                }
                _ => None,
            };
            Ok(Inspected { low, high, last })
        };
        let looked = tokio::task::spawn_blocking(look).await.map_err(|e| e.to_string())?;
        looked.map_err(|e| format!("cannot compare the fence with the log: {e}"))
    }

    /// Encodes an event that a handler emitted.
    pub(super) fn emit(&self, event: &Emitted) -> Result<EncodedEvent, Fault> {
        let refuse = |reason: String| Fault { class: "handler", reason, record_type: Some(event.record_type.clone()) };
        let emitter = self.emitters.get(&event.record_type).ok_or_else(|| {
            refuse(format!("emitted {}, which consumer.toml does not declare under [emits]", event.record_type))
        })?;
        let mut payload = Vec::with_capacity(event.json.len());
        framing::write_header(emitter.schema_id, &mut payload);
        let mut captured = Captured::default();
        emitter.encoder.encode(event.json.as_bytes(), &mut payload, &mut captured).map_err(|faults| {
            let first = faults.first().map(|f| format!("{}: expected {}, got {}", f.pointer, f.expected, f.got));
            refuse(format!(
                "emitted a {} that does not fit its schema: {}",
                event.record_type,
                first.unwrap_or_default()
            ))
        })?;
        if payload.len() > self.max_record_bytes {
            let (have, most) = (payload.len(), self.max_record_bytes);
            return Err(refuse(format!("emitted a {} of {have} bytes, where {most} are allowed", event.record_type)));
        }
        Ok(EncodedEvent { topic: emitter.topic.clone(), payload })
    }
}

impl Vitals {
    /// Says whether another version is the live one.
    pub fn set_beside(&self, beside: bool) {
        self.beside.store(beside, Ordering::Relaxed);
    }

    pub fn is_beside(&self) -> bool {
        self.beside.load(Ordering::Relaxed)
    }

    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Says whether an operator lets everything pass the breaker for now.
    pub fn set_breaker_rests(&self, rests: bool) {
        self.breaker_rests.store(rests, Ordering::Relaxed);
    }

    /// Counts a batch of any partition; records and failures of the last minute when the breaker trips.
    pub fn count(&self, records: usize, failures: usize) -> Option<(usize, usize)> {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if self.breaker_rests.load(Ordering::Relaxed) {
            // It begins anew when it is on again.
            *breaker = Breaker::default();
            return None;
        }
        breaker.count(Instant::now(), records, failures)
    }

    /// Says that nobody wants the version any more.
    pub fn supersede(&self) {
        self.superseded.store(true, Ordering::Relaxed);
    }

    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }

    /// Says that the tables are being filled: keys are taken for new, and rows appended, until one turns out not to be.
    pub fn append(&self) {
        self.appends.store(true, Ordering::Relaxed);
    }

    pub fn appends(&self) -> bool {
        self.appends.load(Ordering::Relaxed)
    }

    /// Has rows merged from now on.
    pub fn stop_appending(&self) {
        self.appends.store(false, Ordering::Relaxed);
    }

    /// Has each partition given up as soon as another member claims its fence.
    pub fn yield_fences(&self) {
        self.yields.store(true, Ordering::Relaxed);
    }

    pub fn yields_fences(&self) -> bool {
        self.yields.load(Ordering::Relaxed)
    }

    /// Says that polling has panicked, or that it goes on.
    pub fn note_panic(&self, message: Option<String>) {
        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }

    /// The panic since which no partition was assigned.
    pub fn panic(&self) -> Option<String> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that both servers answered just now.
    pub fn note_report(&self) {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether both servers have answered lately.
    pub fn has_reported(&self) -> bool {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < SILENCE
    }
}
