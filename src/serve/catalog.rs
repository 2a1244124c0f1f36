//! What is live: the projections that people may read, and the tables that stand behind them.
//!
//! A copy of `millpond.projections` and `millpond.versions`, at most a second old. It decides which tables a statement
//! names, never whether that is still right: each statement checks the live version itself.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, RwLock},
    time::Instant,
};

use tokio::sync::Mutex;

use super::{
    compile::Templates,
    connections::{self, Connections, Lane, Sql},
    freshness::{End, Ends},
    types::is_type,
};
use crate::domain::{TableInfo, ident};

static LOAD: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "\
    select p.projection, p.live_version, p.paused, v.hash, v.schema_name, v.topics, v.tables::text \
      from millpond.projections p \
      left join millpond.versions v on v.projection = p.projection and v.version = p.live_version \
     order by p.projection",
    )
});

static ENDS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "select e.projection, e.version, e.topic || '/' || e.partition, e.end_offset, e.observed_at \
           from millpond.ends e join millpond.projections p on p.projection = e.projection and p.live_version = e.version",
    )
});

/// The live version of one projection.
#[derive(Debug)]
pub struct Projection {
    pub name: Arc<str>,
    /// The same, as a parameter of statements.
    pub shared_name: String,
    pub version: i32,
    pub hash: String,
    pub paused: bool,
    pub topics: Vec<String>,
    pub tables: Vec<Table>,
    /// The row of `millpond.versions` that it was read from.
    described: Described,
}

/// What must be the same for a projection to be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Described {
    version: i32,
    hash: String,
    paused: bool,
    schema: String,
    topics: Vec<String>,
    tables: String,
}

/// One readable table of it.
#[derive(Debug)]
pub struct Table {
    pub projection: Arc<str>,
    pub info: TableInfo,
    /// Quoted `schema.table`.
    pub relation: String,
    pub templates: Templates,
}

impl Table {
    pub fn title(&self) -> String {
        if *self.info.name == *self.projection {
            format!("`{}`", self.projection)
        } else {
            format!("`{}/{}`", self.projection, self.info.name)
        }
    }
}

/// One state of the catalog.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub projections: BTreeMap<String, Arc<Projection>>,
    /// Known, but without a version to read yet.
    pub not_live: Vec<String>,
}

/// The shared copy.
#[derive(Debug)]
pub struct Catalog {
    connections: Arc<Connections>,
    current: RwLock<Option<Arc<Snapshot>>>,
    /// Held while loading; when the load before it ended.
    loading: Mutex<Option<Instant>>,
    ends: RwLock<Arc<AllEnds>>,
}

/// By projection and version.
type AllEnds = HashMap<String, (i32, Arc<Ends>)>;

impl Catalog {
    pub fn new(connections: Arc<Connections>) -> Self {
        Self { connections, current: RwLock::default(), loading: Mutex::default(), ends: RwLock::default() }
    }

    /// The newest copy; `None` before the first load.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.read().expect("invariant: no panic while the lock is held").clone()
    }

    /// Reads the catalog again. One load runs at a time: callers that come while it runs share the one after it, so that
    /// many who ask for a name that is not there cost no more than one.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, connections::Error> {
        let needed = Instant::now();
        let mut loaded = self.loading.lock().await;
        if let (Some(at), Some(current)) = (*loaded, self.current())
            && at >= needed
        {
            return Ok(current);
        }
        let began = Instant::now();
        let snapshot = Arc::new(self.load().await?);
        *self.current.write().expect("invariant: no panic while the lock is held") = Some(snapshot.clone());
        // What the load saw is at least as new as its beginning.
        *loaded = Some(began);
        Ok(snapshot)
    }

    async fn load(&self) -> Result<Snapshot, connections::Error> {
        let mut snapshot = Snapshot::default();
        let before = self.current();
        for row in self.connections.rows(Lane::Point, &LOAD, &[]).await? {
            let name: String = row.try_get(0)?;
            let (Some(version), Some(hash)) = (row.try_get(1)?, row.try_get::<_, Option<String>>(3)?) else {
                snapshot.not_live.push(name);
                continue;
            };
            let (paused, schema, topics, tables) = (row.try_get(2)?, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
            let described = Described { version, hash, paused, schema, topics, tables };
            let known = before.as_ref().and_then(|before| before.projections.get(&name));
            let projection = match known.filter(|known| known.described == described) {
                // Kept as it is, with what was compiled for it.
                Some(known) => known.clone(),
                None => Arc::new(Projection::new(&name, described)),
            };
            snapshot.projections.insert(name, projection);
        }
        Ok(snapshot)
    }

    /// Reads where the partitions of live versions end.
    pub async fn refresh_ends(&self) -> Result<(), connections::Error> {
        let mut all: HashMap<String, (i32, Ends)> = HashMap::new();
        for row in self.connections.rows(Lane::Point, &ENDS, &[]).await? {
            let of = all.entry(row.try_get(0)?).or_insert((row.try_get(1)?, Ends::new()));
            of.1.insert(row.try_get(2)?, End { offset: row.try_get(3)?, observed_at: row.try_get(4)? });
        }
        let all = all.into_iter().map(|(name, (version, ends))| (name, (version, Arc::new(ends)))).collect();
        *self.ends.write().expect("invariant: not poisoned") = Arc::new(all);
        Ok(())
    }

    pub fn ends(&self, of: &Projection) -> Option<Arc<Ends>> {
        let all = self.ends.read().expect("invariant: not poisoned");
        all.get(&of.shared_name).filter(|(version, _)| *version == of.version).map(|(_, ends)| ends.clone())
    }
}

impl Projection {
    fn new(name: &str, described: Described) -> Projection {
        let shared: Arc<str> = Arc::from(name);
        let tables: Vec<TableInfo> = serde_json::from_str(&described.tables).unwrap_or_else(|error| {
            let version = described.version;
            tracing::error!(consumer = name, version, %error, "tables of the live version are not described legibly");
            Vec::new()
        });
        let table = |info: TableInfo| Table {
            projection: shared.clone(),
            relation: format!("{}.{}", ident(&described.schema), ident(&info.name)),
            info,
            templates: Templates::default(),
        };
        Projection {
            name: shared.clone(),
            shared_name: name.to_owned(),
            version: described.version,
            hash: described.hash.clone(),
            paused: described.paused,
            topics: described.topics.clone(),
            tables: tables.into_iter().filter_map(readable).map(table).collect(),
            described,
        }
    }
}

/// Drops what must not be shown or cannot be written into SQL; a table without a key has no order to page by.
fn readable(mut info: TableInfo) -> Option<TableInfo> {
    info.columns.retain(|column| !column.name.starts_with('_') && is_type(&column.pg_type));
    let keyed = !info.key.is_empty() && info.key.iter().all(|key| info.columns.iter().any(|c| c.name == *key));
    if !keyed {
        tracing::error!(table = info.name, "table has no readable key; not served");
    }
    keyed.then_some(info)
}
