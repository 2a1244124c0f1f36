//! Clients: they append, move money and read, each one thing after another, and remember what they were told. One request
//! in some carries an id of the client's, and such requests go out again: to two nodes at once, later, after whatever was
//! restarted meanwhile, and until they are acknowledged. Beside them an operator decides about what was set aside.

mod answers;
mod batch;
pub mod history;
pub mod operator;
mod readers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use self::batch::{Batch, Sent};
use self::history::{History, Kind, Outcome, Request};
use self::operator::{Desk, Operator};
use crate::arguments::Runs;
use crate::random::{Random, hash};
use crate::web::Web;

/// Clients that append. Together they send so many requests a second, of as many values as the rate wants, or of so many at
/// most and more requests: what a request costs the machine is not to be what limits a run.
const APPENDERS: i32 = 8;
const APPENDS_A_SECOND: u64 = 12;
const MOST_APPENDS: u64 = 600;
/// Clients that move money, and commands in one of their requests.
const TELLERS: i32 = 2;
const COMMANDS: usize = 20;
/// How often a teller comes.
const TELLER_PERIOD: Duration = Duration::from_millis(150);
/// Clients that put values into lanes, as many as an operator can keep up with.
const PORTERS: i32 = 2;
const PUTS: usize = 40;
const PORTER_PERIOD: Duration = Duration::from_millis(250);
/// The client of a storm of repeats, how many of its values go out in one request, and how often each of these does.
const STORMER: i32 = 70;
const STORM_VALUES: usize = 100;
const STORM_REPEATS: usize = 10;
/// After an answer that was no 202.
const PATIENCE: Duration = Duration::from_millis(100);
/// Shorter than what the server takes to give up, so that clients see timeouts of their own, too; every other client waits
/// for what the server says when it does.
const DEADLINE: Duration = Duration::from_secs(10);
const PATIENT_DEADLINE: Duration = Duration::from_secs(25);
/// How often a request with an id is sent before its client gives up.
const ATTEMPTS: usize = 40;

/// Where processes of a role are to be reached.
pub type Addresses = Vec<watch::Receiver<Option<Web>>>;

/// The clients of a run.
pub struct Workload {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    operator: Operator,
}

struct Shared {
    seed: u64,
    history: Arc<History>,
    ingest: Addresses,
    serve: Addresses,
    stop: AtomicBool,
    in_flight: AtomicUsize,
    acknowledged: AtomicU64,
    /// Number of the next value of a burst, and of a storm.
    bursts: AtomicI64,
    storms: AtomicI64,
    /// Number of the first value of the first client's request that is out, or was last.
    recent: AtomicI64,
    /// Position of the last acknowledged append, and of the last value for a lane.
    last: watch::Sender<String>,
    last_of_lanes: watch::Sender<String>,
    /// How far tables are behind, as last seen, and when clients wait for them.
    lag: Arc<AtomicI64>,
    most_lag: i64,
    /// Values in a request of a client that appends.
    appends: usize,
}

/// One client that writes.
#[derive(Clone, Copy)]
struct Writer {
    kind: Kind,
    client: i32,
    /// Values in a request.
    most: usize,
    period: Duration,
}

impl Workload {
    /// Lets clients begin: so many appended values a second in all, as long as servers and tables keep up.
    pub fn start(
        seed: u64,
        runs: &Runs,
        history: Arc<History>,
        ingest: Addresses,
        serve: Addresses,
        desk: Desk,
    ) -> Self {
        let operator = Operator::start(seed, desk, Arc::clone(&history));
        let appends = usize::try_from((runs.rate / APPENDS_A_SECOND).clamp(1, MOST_APPENDS)).expect("few");
        let shared = Arc::new(Shared {
            seed,
            history,
            ingest,
            serve,
            stop: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            acknowledged: AtomicU64::new(0),
            bursts: AtomicI64::new(1),
            recent: AtomicI64::new(1),
            storms: AtomicI64::new(1),
            last: watch::Sender::new(String::new()),
            last_of_lanes: watch::Sender::new(String::new()),
            lag: Arc::default(),
            most_lag: runs.lag,
            appends,
        });
        let mut clients = JoinSet::new();
        let per_client = runs.rate.max(1) / u64::from(APPENDERS.unsigned_abs());
        let period = Duration::from_secs_f64(appends as f64 / per_client.max(1) as f64);
        let appender = |client| Writer { kind: Kind::Append, client, most: appends, period };
        let teller = |client| Writer { kind: Kind::Money, client: 100 + client, most: COMMANDS, period: TELLER_PERIOD };
        let porter = |client| Writer { kind: Kind::Lane, client: 200 + client, most: PUTS, period: PORTER_PERIOD };
        let writers = (0..APPENDERS).map(appender).chain((0..TELLERS).map(teller)).chain((0..PORTERS).map(porter));
        for writer in writers {
            clients.spawn(Arc::clone(&shared).client(writer));
        }
        Arc::clone(&shared).spawn_readers(&mut clients);
        Self { shared, clients, operator }
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
        let batch = Batch::new(self.shared.seed, kind, client, first, count);
        self.shared.send(&web, &batch).await
    }

    /// Begins to send a request under an id again and again, to one node and the other, over so long a time; what comes
    /// out is how often it was acknowledged.
    pub fn storm(&self, mut random: Random, within: Duration) -> impl Future<Output = usize> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        let values = i64::try_from(STORM_VALUES).expect("few");
        let first = shared.storms.fetch_add(values, Ordering::Relaxed);
        let kind = *random.pick(&[Kind::Append, Kind::Append, Kind::Lane]);
        let batch = Batch::new(shared.seed, kind, STORMER, first, STORM_VALUES).with_id();
        let mut sends = JoinSet::new();
        for repeat in 0..STORM_REPEATS {
            let after = within.mul_f64(random.below(1000) as f64 / 1e3);
            let (shared, batch) = (Arc::clone(&shared), batch.clone());
            // One of them says something else, and comes at any time.
            let batch = if repeat == STORM_REPEATS / 2 { batch.altered() } else { batch };
            sends.spawn(async move {
                tokio::time::sleep(after).await;
                match shared.choose(&shared.ingest, repeat) {
                    Some(web) => shared.send(&web, &batch).await,
                    None => false,
                }
            });
        }
        async move {
            let mut acknowledged = 0;
            while let Some(sent) = sends.join_next().await {
                acknowledged += usize::from(sent.expect("sending does not panic"));
            }
            acknowledged
        }
    }

    /// [`Self::acknowledged`], for those who outlive the clients.
    pub fn counter(&self) -> impl Fn() -> u64 + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the clients once each has its answer. The operator stays, and decides about everything that still waits.
    pub async fn finish(mut self) -> Operator {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client does not panic");
        }
        self.operator.tidy_up();
        self.operator
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

    /// Writes its values in their order, so many a request, one request after another, and some of them again.
    async fn client(self: Arc<Self>, writer: Writer) {
        let Writer { kind, client, most, period } = writer;
        let mut ticks = tokio::time::interval(period);
        // What could not be sent during an outage is sent after it, as fast as answers come: no longer than a request may
        // take, for while nobody is there and while clients wait for the tables time goes by unused.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut random = Random::new(hash(self.seed, kind as u64, client.unsigned_abs().into()));
        let (mut first, mut sent) = (1, Sent::default());
        while !self.stopped() {
            ticks.tick().await;
            if self.lag.load(Ordering::Relaxed) > self.most_lag {
                continue;
            }
            let own = client.unsigned_abs() as usize;
            let Some(web) = self.choose(&self.ingest, own) else { continue };
            if let Some(batch) = sent.again(&mut random) {
                let Some(web) = self.choose(&self.ingest, usize::from(random.below(2) == 0)) else { continue };
                self.send(&web, &batch).await;
                continue;
            }
            if client == 0 {
                self.recent.store(first, Ordering::Relaxed);
            }
            let batch = Batch::new(self.seed, kind, client, first, most);
            first += i64::try_from(batch.count).expect("few");
            if Sent::wants_id(&mut random) {
                let batch = batch.with_id();
                self.send_with_id(own, &batch, &mut random).await;
                sent.remember(&batch);
            } else if !self.send(&web, &batch).await {
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }

    /// Sends a request with an id until it is acknowledged, at first sometimes to both nodes at once.
    async fn send_with_id(&self, own: usize, batch: &Batch, random: &mut Random) {
        let both = (self.choose(&self.ingest, own), self.choose(&self.ingest, own + 1));
        let mut good = match (both, random.below(4)) {
            ((Some(one), Some(other)), 0) => {
                let (one, other) = tokio::join!(self.send(&one, batch), self.send(&other, batch));
                one || other
            }
            // Whoever comes first stands, and the other is another record under its id.
            ((Some(one), Some(other)), 1) => {
                let altered = batch.clone().altered();
                tokio::join!(self.send(&one, batch), self.send(&other, &altered)).0
            }
            ((Some(one), _), _) => self.send(&one, batch).await,
            _ => false,
        };
        for attempt in 1..ATTEMPTS {
            if good || self.stopped() {
                return;
            }
            tokio::time::sleep(PATIENCE).await;
            if let Some(web) = self.choose(&self.ingest, own + attempt) {
                good = self.send(&web, batch).await;
            }
        }
    }

    /// Sends one request and writes down what came of it; whether all of it was acknowledged.
    async fn send(&self, web: &Web, batch: &Batch) -> bool {
        let request = self.request(web, batch).await;
        let good = request.outcome == Outcome::Ok && request.others.is_empty();
        if request.outcome == Outcome::Ok {
            self.acknowledged.fetch_add(request.count as u64, Ordering::Relaxed);
        }
        if let (true, false, Some(position)) = (good, batch.altered, &request.position) {
            match batch.kind {
                Kind::Append => drop(self.last.send_replace(position.clone())),
                Kind::Lane => drop(self.last_of_lanes.send_replace(position.clone())),
                Kind::Money => {}
            }
        }
        self.history.request(request);
        good
    }

    async fn request(&self, web: &Web, batch: &Batch) -> Request {
        let (path, headers, body) = batch.request(self.seed);
        let invoked = self.history.now();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let deadline = if batch.client % 2 == 0 { DEADLINE } else { PATIENT_DEADLINE };
        let answer = tokio::time::timeout(deadline, web.try_post_bytes(path, &headers, body)).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let completed = self.history.now();
        let (outcome, others, answer, position) = match answer {
            Err(_) => (Outcome::Info, Vec::new(), "no answer in time".to_owned(), None),
            // Nobody was there to read it.
            Ok(Err(error)) if error.contains("Connect") => (Outcome::Fail, Vec::new(), error, None),
            Ok(Err(error)) => (Outcome::Info, Vec::new(), error, None),
            Ok(Ok(answer)) => answers::told(&answer, batch.count),
        };
        let Batch { kind, client, first, count, id, altered } = batch.clone();
        Request { kind, client, first, count, id, altered, outcome, others, invoked, completed, answer, position }
    }
}
