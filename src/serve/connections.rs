//! A fixed set of connections to Postgres on which statements are pipelined.
//!
//! A read checks nothing out: it is sent behind those before it on the least busy connection. So that a point read
//! never stands behind a scan, the two go over different connections. Each connection prepares a statement once, is
//! read-only, bounded by a statement timeout, and comes back by itself after it is lost.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{sync::Notify, task::JoinSet};
use tokio_postgres::{
    Client, Row, Statement,
    error::SqlState,
    types::{ToSql, Type},
};

use crate::{store::address::Address, telemetry::metrics::serve as metrics};

/// Statements waiting on one connection; more are refused as busy, for they would time out.
const MAX_IN_FLIGHT: usize = 512;
/// Prepared statements of one connection, each a few dozen KiB in its backend.
const MAX_PREPARED: usize = 256;
/// What the network and the queue may take beyond the statement timeout.
const GRACE: Duration = Duration::from_secs(2);

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection to postgres{}", .0.as_ref().map(|last| format!(": {last}")).unwrap_or_default())]
    Unavailable(Option<String>),
    #[error("{MAX_IN_FLIGHT} statements are waiting on each connection")]
    Busy,
    #[error("no answer from postgres within {0:?}")]
    NoAnswer(Duration),
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
}

impl Error {
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Error::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// Whether a value of the statement is at fault: class 22, "data exception".
    pub fn is_of_value(&self) -> bool {
        self.code().is_some_and(|code| code.code().starts_with("22"))
    }

    /// Whether the session is lost, not the statement at fault. A read may be sent again.
    fn is_lost_session(&self) -> bool {
        let Error::Postgres(error) = self else { return false };
        let broken = std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>());
        // 57P01 to 57P03: the server ends sessions, or does not take any.
        broken || error.is_closed() || error.code().is_some_and(|code| code.code().starts_with("57P"))
    }
}

/// A statement that is run again and again. Each connection knows it by its number once it is prepared there.
#[derive(Debug)]
pub struct Sql {
    id: u64,
    text: Box<str>,
}

impl Sql {
    pub fn new(text: impl Into<Box<str>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), text: text.into() }
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Which connections a statement may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Answers from an index in microseconds.
    Point,
    /// May take as long as the statement timeout.
    Scan,
}

/// Parameters of a statement.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The connections, in two lanes of about half each; with one connection both lanes are that.
#[derive(Debug)]
pub struct Connections {
    slots: Vec<Arc<Slot>>,
    next: AtomicUsize,
    answer_within: Duration,
}

#[derive(Debug, Default)]
struct Slot {
    session: RwLock<Option<Arc<Session>>>,
    last_error: Mutex<Option<String>>,
}

struct Session {
    client: Client,
    prepared: Mutex<HashMap<u64, Statement>>,
    in_flight: AtomicUsize,
    last_answer: Mutex<Instant>,
    abandon: Notify,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Connections {
    /// Starts to connect, in tasks of `tasks`; does not wait for it.
    pub fn start(address: &Address, count: usize, statement_timeout: Duration, tasks: &mut JoinSet<()>) -> Arc<Self> {
        let mut address = address.clone();
        let config = &mut address.config;
        config.application_name("millpond serve").connect_timeout(Duration::from_secs(5));
        config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(30));
        let slots: Vec<Arc<Slot>> = (0..count.max(1)).map(|_| Arc::default()).collect();
        for slot in &slots {
            tasks.spawn(slot.clone().stay_connected(address.clone(), statement_timeout));
        }
        Arc::new(Self { slots, next: AtomicUsize::new(0), answer_within: statement_timeout + GRACE })
    }

    /// (connections that are up, connections there should be)
    pub fn up(&self) -> (usize, usize) {
        (self.slots.iter().filter(|slot| slot.session().is_some()).count(), self.slots.len())
    }

    /// Connections of a lane.
    pub fn count(&self, lane: Lane) -> usize {
        self.lane(lane).len()
    }

    /// After so long an answer is not waited for any more.
    pub fn answer_within(&self) -> Duration {
        self.answer_within
    }

    pub fn last_error(&self) -> Option<String> {
        self.slots.iter().find_map(|slot| slot.last_error.lock().expect("invariant: not poisoned").clone())
    }

    /// The only row, or none.
    pub async fn row(&self, lane: Lane, sql: &Sql, params: Params<'_>) -> Result<Option<Row>, Error> {
        Ok(self.rows(lane, sql, params).await?.into_iter().next())
    }

    /// Runs a statement that is not worth preparing; its one parameter is a text or a list of texts.
    pub async fn probe(&self, sql: &str, param: &(dyn ToSql + Sync), pg_type: Type) -> Result<(), Error> {
        let session = self.choose(Lane::Point)?;
        let _in_flight = InFlight::new(&session.in_flight);
        let params = [(param, pg_type)];
        let run = session.client.query_typed(sql, &params);
        match tokio::time::timeout(self.answer_within, run).await {
            Ok(answer) => answer.map(|_| ()).map_err(Error::from),
            Err(_) => Err(Error::NoAnswer(self.answer_within)),
        }
    }

    /// Runs a statement; once more on another connection if its session is lost, for it only reads.
    pub async fn rows(&self, lane: Lane, sql: &Sql, params: Params<'_>) -> Result<Vec<Row>, Error> {
        match self.choose(lane)?.rows(sql, params, self.answer_within).await {
            Err(error) if error.is_lost_session() => {
                tracing::debug!(%error, "session lost; reading again");
                self.choose(lane)?.rows(sql, params, self.answer_within).await.map_err(|error| {
                    if error.is_lost_session() { Error::Unavailable(Some(error.to_string())) } else { error }
                })
            }
            other => other,
        }
    }

    fn lane(&self, lane: Lane) -> &[Arc<Slot>] {
        let (points, scans) = self.slots.split_at(self.slots.len().div_ceil(2));
        if lane == Lane::Point || scans.is_empty() { points } else { scans }
    }

    /// The least busy session of the lane, in turn among equals; of the other lane if this one has none.
    fn choose(&self, lane: Lane) -> Result<Arc<Session>, Error> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let least_busy = |slots: &[Arc<Slot>]| {
            let sessions = (0..slots.len()).filter_map(|i| slots[(turn + i) % slots.len()].session());
            sessions.min_by_key(|session| session.in_flight.load(Ordering::Relaxed))
        };
        let session = least_busy(self.lane(lane))
            .or_else(|| least_busy(&self.slots))
            .ok_or_else(|| Error::Unavailable(self.last_error()))?;
        if session.in_flight.load(Ordering::Relaxed) >= MAX_IN_FLIGHT {
            return Err(Error::Busy);
        }
        Ok(session)
    }
}

impl Slot {
    fn session(&self) -> Option<Arc<Session>> {
        let session = self.session.read().expect("invariant: not poisoned").clone();
        session.filter(|session| !session.client.is_closed())
    }

    fn set(&self, session: Option<Arc<Session>>) {
        match session {
            Some(_) => metrics::CONNECTIONS.inc(),
            None => metrics::CONNECTIONS.dec(),
        }
        *self.session.write().expect("invariant: not poisoned") = session;
    }

    fn note(&self, error: Option<String>) {
        *self.last_error.lock().expect("invariant: not poisoned") = error;
    }

    async fn stay_connected(self: Arc<Self>, address: Address, statement_timeout: Duration) {
        let policy = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times();
        let mut delays = policy.build();
        loop {
            match self.connected(&address, statement_timeout).await {
                Ok(()) => delays = policy.build(),
                Err(error) => {
                    let text = with_sources(&error);
                    tracing::warn!(error = text, "cannot connect to postgres for reads");
                    self.note(Some(text));
                }
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(2))).await;
        }
    }

    /// Connects and stays until the session ends.
    async fn connected(&self, address: &Address, statement_timeout: Duration) -> Result<(), tokio_postgres::Error> {
        let (client, connection) = address.config.connect(address.tls.clone()).await?;
        let mut connection = std::pin::pin!(connection);
        let settings = session_settings(statement_timeout);
        tokio::select! {
            set = client.batch_execute(&settings) => set?,
            ended = &mut connection => return ended,
        }
        let session = Arc::new(Session {
            client,
            prepared: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            last_answer: Mutex::new(Instant::now()),
            abandon: Notify::new(),
        });
        self.set(Some(session.clone()));
        self.note(None);
        let reason = tokio::select! {
            ended = &mut connection => match ended {
                Ok(()) => "closed".to_owned(),
                Err(error) => with_sources(&error),
            },
            () = session.abandon.notified() => "no answer in time".to_owned(),
        };
        self.set(None);
        tracing::warn!(error = reason, "connection to postgres for reads is lost; connecting again");
        self.note(Some(reason));
        Ok(())
    }
}

/// By `set`, not by startup options, which connection poolers refuse. `float` digits so that a printed value reads back
/// as the same value: cursors depend on it.
fn session_settings(statement_timeout: Duration) -> String {
    format!(
        "set default_transaction_read_only = on; set statement_timeout = {}; set timezone = 'UTC'; \
         set datestyle = 'ISO, MDY'; set intervalstyle = 'iso_8601'; set extra_float_digits = 1; \
         set bytea_output = 'hex'; set search_path = pg_catalog, public",
        statement_timeout.as_millis()
    )
}

/// An error with its causes: tokio-postgres' own text is often only `db error`.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Session {
    async fn rows(&self, sql: &Sql, params: Params<'_>, within: Duration) -> Result<Vec<Row>, Error> {
        let _in_flight = InFlight::new(&self.in_flight);
        let run = async {
            let statement = self.statement(sql).await?;
            self.client.query(&statement, params).await
        };
        let Ok(answer) = tokio::time::timeout(within, run).await else {
            // Slow because of those before it, or dead? A session on which nothing at all came back is given up.
            let silent_for = self.last_answer.lock().expect("invariant: not poisoned").elapsed();
            if silent_for >= within {
                self.abandon.notify_one();
            }
            return Err(Error::NoAnswer(within));
        };
        *self.last_answer.lock().expect("invariant: not poisoned") = Instant::now();
        if answer.is_err() {
            // Whatever the reason, a statement that fails may be one whose table is no more.
            self.prepared.lock().expect("invariant: not poisoned").remove(&sql.id);
        }
        Ok(answer?)
    }

    async fn statement(&self, sql: &Sql) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.prepared.lock().expect("invariant: not poisoned").get(&sql.id) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&sql.text).await?;
        metrics::PREPARED.inc();
        let mut prepared = self.prepared.lock().expect("invariant: not poisoned");
        if prepared.len() >= MAX_PREPARED {
            // Shapes come from a few programs; if they do not, starting over is as good as any order of eviction.
            prepared.clear();
        }
        prepared.insert(sql.id, statement.clone());
        Ok(statement)
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
