//! The role `serve`: reads of projections over HTTP, each with its position and age. Must not import `kafka`.
//!
//! A request becomes a tree (`grammar`), then one SQL statement over the tables of the version that is live
//! (`compile`, `catalog`), which runs on a connection that carries many at once (`connections`). The statement itself
//! answers which version is live and how far it is (`freshness`), from the snapshot that the rows come from: an answer
//! is never of two versions, and never says a position that its rows do not show. If the version has changed
//! meanwhile, the read is done again (`read`). A request that names a position waits for it (`wait`) or learns what
//! became of the record (`outcome`).

mod catalog;
mod compile;
mod connections;
mod cursor;
mod failure;
mod format;
mod freshness;
mod gather;
mod grammar;
mod listing;
mod outcome;
pub mod problem;
mod read;
mod routes;
mod types;
mod versions;
mod wait;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderValue;
use tokio::task::JoinSet;

use catalog::{Catalog, Projection, Snapshot};
use connections::Connections;
use freshness::Ends;
use problem::{NOT_LIVE, UNKNOWN_VIEW};

use crate::{domain::nearest, http::Problem};
pub use routes::router;
use wait::Waits;

/// Names of the headers of reads.
pub mod headers {
    use axum::http::HeaderName;

    /// How far the rows are: `topic/partition@offset`, joined by commas; empty before the first record.
    pub const POSITION: HeaderName = HeaderName::from_static("millpond-position");
    /// How old the rows may be, in seconds with milliseconds, or `unknown`.
    pub const AGE: HeaderName = HeaderName::from_static("millpond-age");
    /// Of a request: the position that the rows must show.
    pub const MIN_POSITION: HeaderName = HeaderName::from_static("millpond-min-position");
    /// `refused`: the record that was waited for is a command that its handler refused.
    pub const OUTCOME: HeaderName = HeaderName::from_static("millpond-outcome");
    /// Code and reason of that refusal.
    pub const OUTCOME_REASON: HeaderName = HeaderName::from_static("millpond-outcome-reason");
    /// RFC 7240.
    pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
    /// What of a request decides its answer.
    pub const VARY_ON: &str = "Accept, Prefer, Millpond-Min-Position, Authorization";
}

/// How often the ends of partitions are read; so much may an age be too large.
const ENDS_INTERVAL: Duration = Duration::from_millis(250);

/// Settings of the role.
#[derive(Clone)]
pub struct Options {
    /// `postgres://user@host:port/database`; an account that may read the schemas of projections and `millpond`.
    pub database_url: String,
    /// Connections to Postgres; half of them carry point reads only.
    pub connections: usize,
    /// Time after which Postgres stops a read.
    pub statement_timeout: Duration,
    /// How long a read waits for its `Millpond-Min-Position` when `Prefer: wait=` does not say.
    pub default_wait: Duration,
    /// Longest wait that a client may ask for.
    pub max_wait: Duration,
    /// Reads that may wait for a position at once.
    pub max_waiting: usize,
    /// Rows of a page when `limit` does not say.
    pub default_limit: u32,
    /// Largest `limit`.
    pub max_limit: u32,
    /// How often the catalog is read again; a swap is noticed at once by the read that meets it.
    pub catalog_interval: Duration,
    /// Scheme and authority put before links, such as `https://api.example.com`; relative links without.
    pub base_url: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            database_url: "postgres://millpond@127.0.0.1:5432/millpond".to_owned(),
            connections: 8,
            statement_timeout: Duration::from_secs(5),
            default_wait: Duration::from_secs(2),
            max_wait: Duration::from_secs(10),
            max_waiting: 1000,
            default_limit: 100,
            max_limit: 1000,
            catalog_interval: Duration::from_secs(1),
            base_url: None,
        }
    }
}

impl fmt::Debug for Options {
    /// Without the address: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("connections", &self.connections)
            .field("statement_timeout", &self.statement_timeout)
            .field("max_wait", &self.max_wait)
            .field("max_limit", &self.max_limit)
            .finish_non_exhaustive()
    }
}

/// Why the role cannot be started: the address of Postgres is at fault.
pub use crate::store::address::Error;

/// Everything that the routes share. Cheap to clone; the last one dropped closes the connections.
#[derive(Debug, Clone)]
pub struct ServeState(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    connections: Arc<Connections>,
    catalog: Arc<Catalog>,
    waits: Waits,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

/// Whether reads can be answered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// There is a connection, and the catalog has been read.
    pub ready: bool,
    pub connections_up: usize,
    pub connections: usize,
    pub catalog_loaded: bool,
    pub last_error: Option<String>,
}

impl ServeState {
    /// Starts connecting and keeping the catalog; does not wait for the database. Needs a running tokio runtime.
    pub fn start(options: Options) -> Result<ServeState, Error> {
        let address = crate::store::address::address(&options.database_url)?;
        let mut tasks = JoinSet::new();
        let connections = Connections::start(&address, options.connections, options.statement_timeout, &mut tasks);
        let catalog = Arc::new(Catalog::new(connections.clone()));
        tasks.spawn(keep_fresh(catalog.clone(), options.catalog_interval));
        tasks.spawn(keep_ends(catalog.clone()));
        let waits = Waits::new(connections.clone(), options.max_waiting);
        Ok(ServeState(Arc::new(Shared { options, connections, catalog, waits, _tasks: tasks })))
    }

    pub fn health(&self) -> Health {
        let (connections_up, connections) = self.0.connections.up();
        let catalog_loaded = self.0.catalog.current().is_some();
        Health {
            ready: connections_up > 0 && catalog_loaded,
            connections_up,
            connections,
            catalog_loaded,
            last_error: self.0.connections.last_error(),
        }
    }

    fn options(&self) -> &Options {
        &self.0.options
    }

    fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// The ends of the version's partitions, as last seen; `None` before they were.
    fn ends(&self, projection: &Projection) -> Option<Arc<Ends>> {
        self.0.catalog.ends(projection)
    }

    fn waits(&self) -> &Waits {
        &self.0.waits
    }

    /// The catalog as it is known, read now if it never was.
    async fn snapshot(&self) -> Result<Arc<Snapshot>, Problem> {
        match self.0.catalog.current() {
            Some(snapshot) => Ok(snapshot),
            None => self.refresh().await,
        }
    }

    async fn refresh(&self) -> Result<Arc<Snapshot>, Problem> {
        self.0.catalog.refresh().await.map_err(|error| failure::problem(&error, None))
    }

    /// A projection by name; one that is not known is looked for again, since it may be new.
    async fn find(&self, consumer: &str) -> Result<Arc<Projection>, Problem> {
        if let Some(found) = self.0.catalog.current().and_then(|snapshot| snapshot.projections.get(consumer).cloned()) {
            return Ok(found);
        }
        let snapshot = self.refresh().await?;
        if let Some(found) = snapshot.projections.get(consumer) {
            return Ok(found.clone());
        }
        if snapshot.not_live.iter().any(|name| name == consumer) {
            return Err(NOT_LIVE.problem(format!("`{consumer}` has no live version yet")).retry_after(2));
        }
        Err(unknown("consumer", consumer, snapshot.projections.keys().map(String::as_str)))
    }

    /// A table, as the index in its projection. Without a name it is the only one.
    async fn find_table(&self, consumer: &str, table: Option<&str>) -> Result<(Arc<Projection>, usize), Problem> {
        let projection = self.find(consumer).await?;
        let index = match table {
            None if projection.tables.len() == 1 => Some(0),
            None => None,
            Some(name) => projection.tables.iter().position(|table| table.info.name == name),
        };
        match index {
            Some(index) => Ok((projection, index)),
            None => {
                let names = projection.tables.iter().map(|table| table.info.name.as_str());
                Err(unknown("table", table.unwrap_or_default(), names).with("consumer", consumer))
            }
        }
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Problem {
    let nearest = nearest(name, known);
    UNKNOWN_VIEW
        .problem(format!("there is no {what} {} here", grammar::abbreviated(name)))
        .with("views", "/v1/views")
        .hint(nearest.map(|near| format!("did you mean `{near}`?")))
}

/// How long a failure lasts before it is worth a line: connections take a moment to come up.
const PATIENCE: Duration = Duration::from_secs(2);

async fn keep_fresh(catalog: Arc<Catalog>, interval: Duration) {
    let mut failing_since = None;
    let mut said = false;
    loop {
        match catalog.refresh().await {
            Ok(_) => {
                failing_since = None;
                said = false;
            }
            Err(error) => {
                let since: &mut Instant = failing_since.get_or_insert_with(Instant::now);
                if !said && since.elapsed() >= PATIENCE {
                    said = true;
                    tracing::warn!(%error, "cannot read which projections are live");
                }
            }
        }
        // Until the first load nobody can read, so it is tried more often.
        let early = Duration::from_millis(50).min(interval);
        tokio::time::sleep(if catalog.current().is_some() { interval } else { early }).await;
    }
}

async fn keep_ends(catalog: Arc<Catalog>) {
    loop {
        // A failure is the database's, and told by `keep_fresh`; the ages grow until it is over.
        let _ = catalog.refresh_ends().await;
        tokio::time::sleep(ENDS_INTERVAL).await;
    }
}

/// Header values come from names and reasons that may hold anything.
fn header_value(text: &str) -> HeaderValue {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return HeaderValue::from_str(text).expect("invariant: visible ASCII is a legal header value");
    }
    let visible: String = text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).collect();
    HeaderValue::try_from(visible).expect("invariant: visible ASCII is a legal header value")
}
