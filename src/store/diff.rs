//! The difference between two versions of a projection at the same offsets: exact, and found by Postgres.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::{Error, builds, fence, run};
use crate::domain::{TableInfo, TopicPartition, ident, schema_name};

/// How long the live version may be held while the other one comes to where it stands.
const HOLD: Duration = Duration::from_secs(2);
/// How long a bound holds whose owner is gone.
const BOUND: &str = "10 seconds";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// How long the two may take to be near each other.
const NEAR: Duration = Duration::from_secs(60);
/// The first statement is what takes the snapshot.
const SNAPSHOT: &str = "begin isolation level repeatable read; select 1 from millpond.fences limit 1";

/// What differs in one table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TableDiff {
    pub table: String,
    /// Rows that both versions have.
    pub same: i64,
    pub added: i64,
    pub removed: i64,
    pub changed: i64,
    /// How many of the changed rows differ in each column; those without any are not listed.
    pub columns: Vec<(String, i64)>,
    /// Columns that only one of them has.
    pub only_new: Vec<String>,
    pub only_old: Vec<String>,
    pub samples: Vec<Sample>,
    /// Why it could not be compared.
    pub not_compared: Option<String>,
}

/// One row that differs.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// `added`, `removed` or `changed`.
    pub kind: String,
    pub key: serde_json::Value,
    pub old: Option<serde_json::Value>,
    pub new: Option<serde_json::Value>,
}

/// Two versions, compared.
#[derive(Debug, Clone, Serialize)]
pub struct Diff {
    pub projection: String,
    pub old_version: i32,
    pub new_version: i32,
    /// Where both stood.
    pub position: String,
    /// How long the live version was held.
    pub held_ms: u64,
    /// Whether the live version stood there, too.
    pub aligned: bool,
    /// Whether only rows were compared whose key the new version has.
    pub touched: bool,
    pub tables: Vec<TableDiff>,
}

impl Diff {
    /// Rows that differ, over all tables.
    pub fn rows(&self) -> i64 {
        self.tables.iter().map(|table| table.added + table.removed + table.changed).sum()
    }
}

/// What of two versions is compared, and when.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Rows to show of each kind and table.
    pub samples: usize,
    /// Only rows whose key the new version has: it has seen a part of the records.
    pub touched: bool,
    /// At the same offsets; else each where it is.
    pub aligned: bool,
}

impl Scope {
    /// All rows, at the same offsets.
    pub fn whole(samples: usize) -> Self {
        Self { samples, touched: false, aligned: true }
    }
}

/// Compares a version with the live one. The two have to be followed meanwhile, by whomever, to stand at the same offsets.
///
/// # Errors
/// [`Error::Refused`] when they do not come to stand at the same offsets: one of them is halted, paused or far behind.
pub async fn compare(url: &str, projection: &str, (old, new): (i32, i32), scope: Scope) -> Result<Diff, Error> {
    let mut holder = super::connect(url, "millpond diff").await?;
    let mut reader = super::connect(url, "millpond diff").await?;
    // A table of many millions of rows takes its time; whoever asks can end us.
    run(&mut reader, "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0").await?;
    // One that has halted, or was paused, comes nowhere: each is compared as it is.
    let aligned = scope.aligned && !stands_still(&mut holder, projection, old).await?;
    let (position, held) = if aligned {
        let held = align(&mut holder, &mut reader, projection, (old, new)).await;
        // Also after an error: the other version goes on.
        free(&mut holder, projection, new).await?;
        held?
    } else {
        run(&mut reader, SNAPSHOT).await?;
        (shown(&offsets(&mut reader, projection, new).await?), Duration::ZERO)
    };
    let (before, after) = (tables(&mut reader, projection, old).await?, tables(&mut reader, projection, new).await?);
    let mut found = Vec::new();
    for table in &after {
        let Some(earlier) = before.iter().find(|earlier| earlier.name == table.name) else {
            found.push(not_compared(&table.name, "only the new version has it"));
            continue;
        };
        found.push(table_diff(&mut reader, projection, (old, earlier), (new, table), scope).await?);
    }
    for table in before.iter().filter(|table| after.iter().all(|later| later.name != table.name)) {
        found.push(not_compared(&table.name, "the new version does not have it"));
    }
    run(&mut reader, "rollback").await?;
    let held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
    Ok(Diff {
        projection: projection.to_owned(),
        old_version: old,
        new_version: new,
        position,
        held_ms,
        aligned,
        touched: scope.touched,
        tables: found,
    })
}

fn not_compared(table: &str, why: &str) -> TableDiff {
    TableDiff { table: table.to_owned(), not_compared: Some(why.to_owned()), ..TableDiff::default() }
}

/// Brings both versions to the same offsets, and leaves `reader` in a snapshot of that moment. First the new one is bound
/// to where it is, and the live one comes there or beyond; then the live one is held, and the new one is let go up to it.
async fn align(
    holder: &mut PgConnection,
    reader: &mut PgConnection,
    projection: &str,
    (old, new): (i32, i32),
) -> Result<(String, Duration), Error> {
    let near = Instant::now() + NEAR;
    // Only one that is near is worth holding the live version for.
    if !builds::comes_near(holder, projection, (old, new), NEAR).await? {
        let (live, other) = (offsets(holder, projection, old).await?, offsets(holder, projection, new).await?);
        return Err(apart(projection, &live, &other));
    }
    loop {
        bind(holder, projection, new, None).await?;
        let (live, other) = (offsets(holder, projection, old).await?, offsets(holder, projection, new).await?);
        if !reaches(&live, &other) {
            if Instant::now() > near {
                return Err(apart(projection, &live, &other));
            }
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let mut tx = holder.begin().await?;
        let began = Instant::now();
        let live = fence::hold(&mut tx, projection, old).await?;
        bind(reader, projection, new, Some(&live)).await?;
        loop {
            let other = offsets(reader, projection, new).await?;
            if other == live {
                run(reader, SNAPSHOT).await?;
                tx.rollback().await?;
                return Ok((shown(&live), began.elapsed()));
            }
            if began.elapsed() > HOLD {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        tx.rollback().await?;
        if Instant::now() > near {
            let (live, other) = (offsets(holder, projection, old).await?, offsets(holder, projection, new).await?);
            return Err(apart(projection, &live, &other));
        }
        // It goes on for a while, nearer to the live one.
        free(holder, projection, new).await?;
        tokio::time::sleep(HOLD / 4).await;
    }
}

/// Whether a version is halted on some partition, or paused by an operator.
async fn stands_still(connection: &mut PgConnection, projection: &str, version: i32) -> Result<bool, Error> {
    Ok(sqlx::query_scalar(
        "select p.paused or exists (select from millpond.fences f
                 where f.projection = p.projection and f.version = $2 and f.state = 'halted')
           from millpond.projections p where p.projection = $1",
    )
    .bind(projection)
    .bind(version)
    .fetch_one(connection)
    .await?)
}

/// As a position is written.
fn shown(offsets: &[(TopicPartition, i64)]) -> String {
    let parts: Vec<String> = offsets.iter().map(|(at, next)| format!("{at}@{next}")).collect();
    parts.join(",")
}

fn apart(projection: &str, live: &[(TopicPartition, i64)], other: &[(TopicPartition, i64)]) -> Error {
    let far: Vec<String> = live
        .iter()
        .map(|(at, next)| (at, next, other.iter().find(|(place, _)| place == at).map_or(0, |(_, next)| *next)))
        .filter(|(_, next, other)| *next != other)
        .map(|(at, next, other)| format!("{at} ({next} and {other})"))
        .collect();
    Error::Refused(format!(
        "the versions of {projection} do not come to stand at the same offsets: {}; is one of them paused or halted, or is \
         nobody at work on it? see `millpond status`",
        far.join(", ")
    ))
}

async fn offsets(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
) -> Result<Vec<(TopicPartition, i64)>, Error> {
    let places = builds::places(connection, projection, version).await?;
    Ok(places.into_iter().map(|place| (place.at, place.next_offset)).collect())
}

/// Whether `live` is on every partition where `other` is, or beyond.
fn reaches(live: &[(TopicPartition, i64)], other: &[(TopicPartition, i64)]) -> bool {
    other.iter().all(|(at, next)| live.iter().any(|(place, reached)| place == at && reached >= next))
}

/// Keeps a version where it is, or lets it go as far as `to`.
async fn bind(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    to: Option<&[(TopicPartition, i64)]>,
) -> Result<(), Error> {
    let to = to.unwrap_or_default();
    sqlx::query(AssertSqlSafe(format!(
        "update millpond.fences f
            set bound = coalesce((select s.next from unnest($3::text[], $4::int4[], $5::int8[]) as s(topic, partition, next)
                                   where s.topic = f.topic and s.partition = f.partition), f.next_offset),
                bound_until = clock_timestamp() + interval '{BOUND}'
          where f.projection = $1 and f.version = $2"
    )))
    .bind(projection)
    .bind(version)
    .bind(to.iter().map(|(at, _)| at.topic.to_string()).collect::<Vec<_>>())
    .bind(to.iter().map(|(at, _)| at.partition).collect::<Vec<_>>())
    .bind(to.iter().map(|(_, next)| *next).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn free(connection: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    sqlx::query("update millpond.fences set bound = null, bound_until = null where projection = $1 and version = $2")
        .bind(projection)
        .bind(version)
        .execute(connection)
        .await?;
    Ok(())
}

async fn tables(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<TableInfo>, Error> {
    let tables: sqlx::types::Json<Vec<TableInfo>> =
        sqlx::query_scalar("select tables from millpond.versions where projection = $1 and version = $2")
            .bind(projection)
            .bind(version)
            .fetch_one(connection)
            .await?;
    Ok(tables.0)
}

async fn table_diff(
    reader: &mut PgConnection,
    projection: &str,
    (old, before): (i32, &TableInfo),
    (new, after): (i32, &TableInfo),
    scope: Scope,
) -> Result<TableDiff, Error> {
    let table = &after.name;
    if before.key != after.key || after.key.is_empty() {
        return Ok(not_compared(table, "its key is not the same in both versions"));
    }
    let has = |info: &TableInfo, name: &str| info.columns.iter().any(|column| column.name == name);
    let only = |a: &TableInfo, b: &TableInfo| {
        a.columns.iter().map(|c| c.name.clone()).filter(|name| !has(b, name)).collect::<Vec<_>>()
    };
    let type_of = |info: &TableInfo, name: &str| {
        info.columns.iter().find(|column| column.name == name).map(|column| column.pg_type.clone())
    };
    if let Some(key) = after.key.iter().find(|key| type_of(before, key) != type_of(after, key)) {
        return Ok(not_compared(table, &format!("`{key}` of its key has another type in each")));
    }
    // What has no equality, or another type in each, is compared as text.
    let as_text = |name: &str| {
        let (old, new) = (type_of(before, name), type_of(after, name));
        old != new || new.is_some_and(|pg_type| matches!(pg_type.as_str(), "json" | "xml"))
    };
    let values: Vec<(&str, bool)> = after
        .columns
        .iter()
        .map(|column| (column.name.as_str(), as_text(&column.name)))
        .filter(|(name, _)| has(before, name) && !after.key.iter().any(|key| key == name))
        .collect();
    let joined = Joined::new(projection, (old, new), table, &after.key, &values, scope.touched);
    let row = sqlx::query(AssertSqlSafe(joined.count())).fetch_one(&mut *reader).await?;
    let mut columns = Vec::new();
    for (index, (name, _)) in values.iter().enumerate() {
        columns.push(((*name).to_owned(), row.try_get::<i64, _>(4 + index)?));
    }
    columns.retain(|(_, changed)| *changed > 0);
    let mut found = TableDiff {
        table: table.clone(),
        same: row.try_get(0)?,
        added: row.try_get(1)?,
        removed: row.try_get(2)?,
        changed: row.try_get(3)?,
        columns,
        only_new: only(after, before),
        only_old: only(before, after),
        ..TableDiff::default()
    };
    for kind in ["added", "removed", "changed"] {
        let rows = sqlx::query(AssertSqlSafe(joined.sample(kind, scope.samples))).fetch_all(&mut *reader).await?;
        for row in rows {
            found.samples.push(Sample {
                kind: kind.to_owned(),
                key: row.try_get(0)?,
                old: row.try_get(1)?,
                new: row.try_get(2)?,
            });
        }
    }
    Ok(found)
}

/// The rows of two tables, side by side.
struct Joined {
    from: String,
    key: Vec<String>,
    values: Vec<String>,
    /// Of each value, how it is compared: as it is, or as text.
    casts: Vec<&'static str>,
}

impl Joined {
    fn new(
        projection: &str,
        (old, new): (i32, i32),
        table: &str,
        key: &[String],
        values: &[(&str, bool)],
        touched: bool,
    ) -> Self {
        let relation = |version| format!("{}.{}", ident(&schema_name(projection, version)), ident(table));
        let key: Vec<String> = key.iter().map(|name| ident(name)).collect();
        let casts = values.iter().map(|(_, as_text)| if *as_text { "::text" } else { "" }).collect();
        let values: Vec<String> = values.iter().map(|(name, _)| ident(name)).collect();
        let join = if touched { "right" } else { "full" };
        let from = format!("{} o {join} join {} n using ({})", relation(old), relation(new), key.join(", "));
        Self { from, key, values, casts }
    }

    /// Whether a row is in one of them: a column of the key is never null there.
    fn kind(&self, kind: &str) -> String {
        let (missing_old, missing_new) = (format!("o.{} is null", self.key[0]), format!("n.{} is null", self.key[0]));
        match kind {
            "added" => missing_old,
            "removed" => missing_new,
            _ => format!("(not {missing_old} and not {missing_new} and {})", self.differs()),
        }
    }

    fn differs(&self) -> String {
        if self.values.is_empty() {
            return "false".to_owned();
        }
        let side = |side: &str| {
            let values = self.values.iter().zip(&self.casts);
            values.map(|(name, cast)| format!("{side}.{name}{cast}")).collect::<Vec<_>>().join(", ")
        };
        format!("(({}) is distinct from ({}))", side("o"), side("n"))
    }

    fn count(&self) -> String {
        let changed = self.kind("changed");
        let columns: String = self
            .values
            .iter()
            .zip(&self.casts)
            .map(|(name, cast)| {
                format!(", count(*) filter (where {changed} and o.{name}{cast} is distinct from n.{name}{cast})")
            })
            .collect();
        format!(
            "select count(*) filter (where not o.{key} is null and not n.{key} is null and not {differs}),
                    count(*) filter (where {added}), count(*) filter (where {removed}), count(*) filter (where {changed})
                    {columns} from {from}",
            key = self.key[0],
            differs = self.differs(),
            added = self.kind("added"),
            removed = self.kind("removed"),
            from = self.from,
        )
    }

    fn sample(&self, kind: &str, limit: usize) -> String {
        let object = |names: &[String], side: &str| {
            let pairs: Vec<String> = names.iter().map(|name| format!("{side}{name}")).collect();
            format!("to_jsonb((select r from (select {}) r))", pairs.join(", "))
        };
        let shown = |side: &str| {
            if self.values.is_empty() {
                return "null::jsonb".to_owned();
            }
            object(&self.values, &format!("{side}."))
        };
        let (old, new) = (shown("o"), shown("n"));
        format!(
            "select {}, case when o.{first} is null then null else {old} end,
                    case when n.{first} is null then null else {new} end
               from {} where {} order by {} limit {limit}",
            object(&self.key, ""),
            self.from,
            self.kind(kind),
            self.key.join(", "),
            first = self.key[0],
        )
    }
}
