//! The one client of the small Millpond: it writes notes, a request after another, and remembers what it was told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::web::Web;
use crate::workload::history::Outcome;

/// Notes in a request, and how often one goes out.
const NOTES: i64 = 12;
const PERIOD: Duration = Duration::from_millis(60);
/// Keys that notes have, in turn.
const KEYS: i64 = 24;

/// A request, and what became of its notes.
#[derive(Debug, Clone)]
pub struct Sent {
    pub first: i64,
    pub count: i64,
    pub outcome: Outcome,
    pub invoked: Instant,
    /// Position of what was acknowledged.
    pub position: String,
    /// Whether its notes have the field of the newer schema.
    pub newer: bool,
}

#[derive(Default)]
struct Shared {
    reach: Mutex<BTreeMap<String, Web>>,
    sent: Mutex<Vec<Sent>>,
    stop: AtomicBool,
}

/// The client at work.
pub struct Writer {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

impl Writer {
    /// Begins once there is a process to write to.
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(write(Arc::clone(&shared)));
        Self { shared, task: Some(task) }
    }

    /// Where a process is to be reached now.
    pub fn reach(&self, name: &str, web: Option<Web>) {
        let mut reach = self.shared.reach.lock().unwrap_or_else(PoisonError::into_inner);
        match web {
            Some(web) => drop(reach.insert(name.to_owned(), web)),
            None => drop(reach.remove(name)),
        }
    }

    /// All that was sent and answered so far.
    pub fn sent(&self) -> Vec<Sent> {
        self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes acknowledged so far.
    pub fn acknowledged(&self) -> i64 {
        self.sent().iter().filter(|sent| sent.outcome == Outcome::Ok).map(|sent| sent.count).sum()
    }

    /// Ends once the last request is answered.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            task.await.expect("the client does not panic");
        }
    }

    /// Waits until so many notes more are acknowledged; whether they were.
    pub async fn more(&self, notes: i64, within: Duration) -> bool {
        let (begun, before) = (Instant::now(), self.acknowledged());
        while self.acknowledged() < before + notes {
            if begun.elapsed() > within {
                return false;
            }
            tokio::time::sleep(PERIOD).await;
        }
        true
    }
}

/// The key of a note.
pub fn key(n: i64) -> String {
    format!("k{}", n % KEYS)
}

/// What the newer schema has of a note.
pub fn extra(n: i64) -> String {
    format!("x{n}")
}

async fn write(shared: Arc<Shared>) {
    let mut first = 1;
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let turn = (first / NOTES) % 2 == 1;
        let (web, newer) = {
            let reach = shared.reach.lock().unwrap_or_else(PoisonError::into_inner);
            let newer = reach.get("newer").filter(|_| turn).cloned();
            let is_newer = newer.is_some();
            (newer.or_else(|| reach.get("ingest").cloned()), is_newer)
        };
        let Some(web) = web else { continue };
        let sent = request(&web, first, newer).await;
        first += NOTES;
        shared.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
    }
}

async fn request(web: &Web, first: i64, newer: bool) -> Sent {
    let note = |n: i64| {
        let more = if newer { format!(r#","extra":"{}""#, extra(n)) } else { String::new() };
        format!(r#"{{"key":"{}","n":{n}{more}}}"#, key(n))
    };
    let body: Vec<String> = (first..first + NOTES).map(note).collect();
    let invoked = Instant::now();
    let post = web.try_post("/v1/events/Note", &[("content-type", "application/x-ndjson")], &body.join("\n")).await;
    let (outcome, position) = match post {
        Ok(answer) if answer.status == 202 => {
            (Outcome::Ok, answer.header("millpond-position").unwrap_or_default().to_owned())
        }
        Ok(answer) if answer.text.contains(r#""outcome":"not_written""#) => (Outcome::Fail, String::new()),
        Ok(answer) if answer.status < 500 && answer.status != 408 => (Outcome::Fail, answer.text),
        Err(error) if error.contains("Connect") => (Outcome::Fail, String::new()),
        Ok(_) | Err(_) => (Outcome::Info, String::new()),
    };
    Sent { first, count: NOTES, outcome, invoked, position, newer }
}
