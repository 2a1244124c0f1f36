//! What is live: the projections that people may read, and the tables that stand behind them.
//!
//! A copy of `millpond.projections` and `millpond.versions`, at most a second old. It decides which tables a statement
//! names, never whether that is still right: each statement checks the live version itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
    time::Instant,
};

use tokio::sync::Mutex;

use super::{
    connections::{self, Connections, Lane},
    names::{is_type, quoted},
};
use crate::domain::TableInfo;

const LOAD: &str = "\
    select p.projection, p.live_version, p.paused, v.hash, v.schema_name, v.topics, v.tables::text \
      from millpond.projections p \
      left join millpond.versions v on v.projection = p.projection and v.version = p.live_version \
     order by p.projection";

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
}

/// One readable table of it.
#[derive(Debug)]
pub struct Table {
    pub projection: Arc<str>,
    pub info: TableInfo,
    /// Quoted `schema.table`.
    pub relation: String,
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

impl Snapshot {
    fn has(&self, name: &str, version: i32) -> bool {
        self.projections.get(name).is_some_and(|projection| projection.version == version)
    }
}

/// The shared copy.
#[derive(Debug)]
pub struct Catalog {
    connections: Arc<Connections>,
    current: RwLock<Option<Arc<Snapshot>>>,
    /// Held while loading; when the load before it ended.
    loading: Mutex<Option<Instant>>,
}

impl Catalog {
    pub fn new(connections: Arc<Connections>) -> Self {
        Self { connections, current: RwLock::default(), loading: Mutex::default() }
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
        for row in self.connections.rows(Lane::Point, LOAD, &[]).await? {
            let name: String = row.try_get(0)?;
            let (Some(version), Some(hash)) = (row.try_get(1)?, row.try_get::<_, Option<String>>(3)?) else {
                snapshot.not_live.push(name);
                continue;
            };
            // A fault of a description is told once per version, not at every load.
            let known = before.as_ref().is_some_and(|before| before.has(&name, version));
            let schema: String = row.try_get(4)?;
            let shared: Arc<str> = Arc::from(name.as_str());
            let tables: Vec<TableInfo> = match serde_json::from_str(row.try_get::<_, &str>(6)?) {
                Ok(tables) => tables,
                Err(error) => {
                    if !known {
                        tracing::error!(consumer = name, version, %error, "tables of the live version are not described legibly");
                    }
                    Vec::new()
                }
            };
            let table = |info: TableInfo| Table {
                projection: shared.clone(),
                relation: format!("{}.{}", quoted(&schema), quoted(&info.name)),
                info,
            };
            let (paused, topics) = (row.try_get(2)?, row.try_get(5)?);
            let tables = tables.into_iter().filter_map(|info| readable(info, !known)).map(table).collect();
            let projection =
                Projection { name: shared.clone(), shared_name: name.clone(), version, hash, paused, topics, tables };
            snapshot.projections.insert(name, Arc::new(projection));
        }
        Ok(snapshot)
    }
}

/// Drops what must not be shown or cannot be written into SQL; a table without a key has no order to page by.
fn readable(mut info: TableInfo, tell: bool) -> Option<TableInfo> {
    info.columns.retain(|column| !column.name.starts_with('_') && is_type(&column.pg_type));
    let keyed = !info.key.is_empty() && info.key.iter().all(|key| info.columns.iter().any(|c| c.name == *key));
    if !keyed && tell {
        tracing::error!(table = info.name, "table has no readable key; not served");
    }
    keyed.then_some(info)
}
