//! Clients: they append, move money and read, each one thing after another, and remember what they were told.

pub mod history;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use self::history::{History, Kind, Outcome, Read, Request};
use crate::arguments::Runs;
use crate::harness::Answer;
use crate::random::Random;
use crate::values;
use crate::web::Web;

/// Clients that append, and values in one of their requests.
const APPENDERS: i32 = 8;
const APPENDS: usize = 150;
/// Clients that move money, and commands in one of their requests.
const TELLERS: i32 = 2;
const COMMANDS: usize = 20;
/// How often a teller comes.
const TELLER_PERIOD: Duration = Duration::from_millis(150);
const READERS: u64 = 3;
const READER_PERIOD: Duration = Duration::from_millis(120);
/// After an answer that was no 202.
const PATIENCE: Duration = Duration::from_millis(100);
/// Shorter than what the server takes to give up, so that clients see timeouts of their own, too.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where processes of a role are to be reached.
pub type Addresses = Vec<watch::Receiver<Option<Web>>>;

/// The clients of a run.
pub struct Workload {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

struct Shared {
    seed: u64,
    history: Arc<History>,
    ingest: Addresses,
    serve: Addresses,
    stop: AtomicBool,
    in_flight: AtomicUsize,
    acknowledged: AtomicU64,
    /// Number of the next value of a burst.
    bursts: AtomicI64,
    /// Position of the last acknowledged append.
    last: watch::Sender<String>,
    /// How far tables are behind, as last seen, and when clients wait for them.
    lag: Arc<AtomicI64>,
    most_lag: i64,
}

impl Workload {
    /// Lets clients begin: so many appended values a second in all, as long as servers and tables keep up.
    pub fn start(seed: u64, runs: &Runs, history: Arc<History>, ingest: Addresses, serve: Addresses) -> Self {
        let shared = Arc::new(Shared {
            seed,
            history,
            ingest,
            serve,
            stop: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            acknowledged: AtomicU64::new(0),
            bursts: AtomicI64::new(1),
            last: watch::Sender::new(String::new()),
            lag: Arc::default(),
            most_lag: runs.lag,
        });
        let mut clients = JoinSet::new();
        let per_client = runs.rate.max(1) / u64::from(APPENDERS.unsigned_abs());
        let period = Duration::from_secs_f64(APPENDS as f64 / per_client.max(1) as f64);
        for client in 0..APPENDERS {
            clients.spawn(Arc::clone(&shared).client(Kind::Append, client, APPENDS, period));
        }
        for client in 0..TELLERS {
            clients.spawn(Arc::clone(&shared).client(Kind::Money, 100 + client, COMMANDS, TELLER_PERIOD));
        }
        for reader in 0..READERS {
            clients.spawn(Arc::clone(&shared).reader(Random::new(seed ^ (reader << 40))));
        }
        Self { shared, clients }
    }

    /// Where to write how far tables are behind.
    pub fn lag(&self) -> Arc<AtomicI64> {
        Arc::clone(&self.shared.lag)
    }

    /// Requests that are out now.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Values acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Sends so many values of a client that sends nothing else, in one request; whether all were acknowledged.
    pub async fn burst(&self, kind: Kind, client: i32, count: usize) -> bool {
        let Some(web) = self.shared.choose(&self.shared.ingest, 0) else { return false };
        let first = self.shared.bursts.fetch_add(i64::try_from(count).expect("few"), Ordering::Relaxed);
        let request = self.shared.request(&web, kind, client, first, count).await;
        let good = request.outcome == Outcome::Ok;
        self.shared.history.request(request);
        good
    }

    /// [`Self::acknowledged`], for those who outlive the clients.
    pub fn counter(&self) -> impl Fn() -> u64 + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the clients once each has its answer.
    pub async fn finish(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client does not panic");
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A process that is there, the client's own one first.
    fn choose(&self, of: &Addresses, preferred: usize) -> Option<Web> {
        (0..of.len()).find_map(|next| of[(preferred + next) % of.len()].borrow().clone())
    }

    /// Writes its values in their order, `count` a request, one request after another.
    async fn client(self: Arc<Self>, kind: Kind, client: i32, count: usize, period: Duration) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = 1;
        while !self.stopped() {
            ticks.tick().await;
            if self.lag.load(Ordering::Relaxed) > self.most_lag {
                continue;
            }
            let Some(web) = self.choose(&self.ingest, client.unsigned_abs() as usize) else { continue };
            let request = self.request(&web, kind, client, first, count).await;
            first += i64::try_from(request.count).expect("few");
            let good = request.outcome == Outcome::Ok;
            if good {
                self.acknowledged.fetch_add(request.count as u64, Ordering::Relaxed);
                if let (Kind::Append, Some(position)) = (kind, &request.position) {
                    self.last.send_replace(position.clone());
                }
            }
            self.history.request(request);
            if !good {
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }

    async fn request(&self, web: &Web, kind: Kind, client: i32, first: i64, most: usize) -> Request {
        let (path, bodies) = self.bodies(kind, client, first, most);
        let (count, body) = (bodies.len(), bodies.join("\n"));
        let invoked = self.history.now();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let post = web.try_post(path, &[("content-type", "application/x-ndjson")], &body);
        let answer = tokio::time::timeout(DEADLINE, post).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let completed = self.history.now();
        let (outcome, others, said, position) = match answer {
            Err(_) => (Outcome::Info, Vec::new(), "no answer in time".to_owned(), None),
            // Nobody was there to read it.
            Ok(Err(error)) if error.contains("Connect") => (Outcome::Fail, Vec::new(), error, None),
            Ok(Err(error)) => (Outcome::Info, Vec::new(), error, None),
            Ok(Ok(answer)) => told(&answer),
        };
        Request { kind, client, first, count, outcome, others, invoked, completed, answer: said, position }
    }

    /// Path and records of a request. Money goes out in runs of one type, for a request has one.
    fn bodies(&self, kind: Kind, client: i32, first: i64, most: usize) -> (&'static str, Vec<String>) {
        let numbers = first..first + i64::try_from(most).expect("few");
        match kind {
            Kind::Append => {
                ("/v1/commands/Append", numbers.map(|n| values::append(self.seed, client, n).json()).collect())
            }
            Kind::Money => {
                let commands: Vec<_> = numbers.map(|n| values::money(self.seed, client, n)).collect();
                let run = commands.chunk_by(|a, b| a.target.is_some() == b.target.is_some()).next().unwrap_or_default();
                let transfers = run.first().is_some_and(|command| command.target.is_some());
                let path = if transfers { "/v1/commands/Transfer" } else { "/v1/commands/Deposit" };
                (path, run.iter().map(values::Money::json).collect())
            }
        }
    }

    /// Reads lists, each at the position of a write that was acknowledged before.
    async fn reader(self: Arc<Self>, mut random: Random) {
        let mut ticks = tokio::time::interval(READER_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stopped() {
            ticks.tick().await;
            let wanted = self.last.borrow().clone();
            let Some(web) = self.choose(&self.serve, 0).filter(|_| !wanted.is_empty()) else { continue };
            let key = values::key(random.below(values::KEYS));
            let (path, invoked) = (format!("/v1/views/chains?key=eq.{key}"), self.history.now());
            let headers = [("millpond-min-position", wanted.as_str()), ("prefer", "wait=5")];
            let begun = Instant::now();
            let answer = tokio::time::timeout(DEADLINE, web.try_get(&path, &headers)).await;
            let read = match answer {
                Ok(Ok(answer)) => self.shown(key, &wanted, invoked, &answer),
                _ => self.unread(key, &wanted, invoked),
            };
            self.history.read(read);
            // A server that is away is not asked in a busy loop.
            tokio::time::sleep_until(begun + READER_PERIOD / 2).await;
        }
    }

    fn unread(&self, key: String, wanted: &str, invoked: u64) -> Read {
        let (completed, wanted) = (self.history.now(), wanted.to_owned());
        Read { key, wanted, invoked, completed, status: 0, position: String::new(), length: 0, chain: String::new() }
    }

    fn shown(&self, key: String, wanted: &str, invoked: u64, answer: &Answer) -> Read {
        #[derive(Default, Deserialize)]
        struct Row {
            length: i64,
            chain: String,
        }
        let mut read = self.unread(key, wanted, invoked);
        read.status = answer.status;
        if answer.status == 200 {
            let rows: Vec<Row> = serde_json::from_str(&answer.text).unwrap_or_default();
            let Row { length, chain } = rows.into_iter().next().unwrap_or_default();
            let position = answer.header("millpond-position").unwrap_or_default().to_owned();
            read = Read { length, chain, position, ..read };
        }
        read
    }
}

/// What an answer says of each value.
fn told(answer: &Answer) -> (Outcome, Vec<(usize, Outcome)>, String, Option<String>) {
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        outcome: Option<String>,
        #[serde(default)]
        records: Vec<Record>,
        #[serde(default)]
        records_omitted: usize,
    }
    #[derive(Deserialize)]
    struct Record {
        index: usize,
        outcome: String,
    }
    let position = answer.header("millpond-position").map(str::to_owned);
    if answer.status == 202 {
        return (Outcome::Ok, Vec::new(), "202".into(), position);
    }
    let Ok(problem) = serde_json::from_str::<Problem>(&answer.text) else {
        return (Outcome::Info, Vec::new(), format!("{} {}", answer.status, answer.text), None);
    };
    let said = format!("{} {} {}", answer.status, problem.code, problem.outcome.as_deref().unwrap_or("-"));
    let of = |outcome: &str| match outcome {
        "written" => Outcome::Ok,
        "not_written" => Outcome::Fail,
        _ => Outcome::Info,
    };
    match problem.outcome.as_deref() {
        Some("not_written") => (Outcome::Fail, Vec::new(), said, None),
        // Those that are not listed are written, when all others are listed.
        Some("partly_written" | "unknown") if problem.records_omitted == 0 && !problem.records.is_empty() => {
            let others = problem.records.iter().map(|record| (record.index, of(&record.outcome))).collect();
            (Outcome::Ok, others, said, None)
        }
        None if answer.status < 500 && answer.status != 408 => (Outcome::Fail, Vec::new(), said, None),
        _ => (Outcome::Info, Vec::new(), said, None),
    }
}
