//! The difference between two versions of a projection at the same offsets: exact, and found by Postgres.

mod tables;

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    Error, builds, fence,
    near::{self, Topics},
    run,
};
use crate::domain::{TableInfo, TopicPartition};

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
    /// None where it is not known: the new version has read a part of the log only.
    pub removed: Option<i64>,
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
    /// Objects as Postgres writes them: a number has all of its digits.
    pub key: Box<RawValue>,
    pub old: Option<Box<RawValue>>,
    pub new: Option<Box<RawValue>>,
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
    /// Topics that only one of them reads.
    pub only_new_topics: Vec<String>,
    pub only_old_topics: Vec<String>,
    pub tables: Vec<TableDiff>,
}

impl Diff {
    /// Rows that differ, over all tables.
    pub fn rows(&self) -> i64 {
        self.tables.iter().map(|table| table.added + table.removed.unwrap_or(0) + table.changed).sum()
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
    let topics = near::shared_topics(&mut holder, projection, (old, new)).await?;
    let aligned = scope.aligned && !stands_still(&mut holder, projection, old).await?;
    let (position, held) = if aligned {
        take_turn(&mut holder, projection).await?;
        let held = align(&mut holder, &mut reader, projection, (old, new), &topics).await;
        // Also after an error: the other version goes on.
        free(&mut holder, projection, new).await?;
        held?
    } else {
        run(&mut reader, SNAPSHOT).await?;
        (shown(&offsets(&mut reader, projection, new).await?), Duration::ZERO)
    };
    // It is the next one's turn.
    let _ = holder.close().await;
    let (before, after) = (tables(&mut reader, projection, old).await?, tables(&mut reader, projection, new).await?);
    let mut found = Vec::new();
    for table in &after {
        let Some(earlier) = before.iter().find(|earlier| earlier.name == table.name) else {
            found.push(not_compared(&table.name, "only the new version has it"));
            continue;
        };
        found.push(tables::compare(&mut reader, projection, (old, earlier), (new, table), scope).await?);
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
        only_new_topics: topics.only_new,
        only_old_topics: topics.only_old,
        tables: found,
    })
}

fn not_compared(table: &str, why: &str) -> TableDiff {
    TableDiff { table: table.to_owned(), not_compared: Some(why.to_owned()), ..TableDiff::default() }
}

/// Comparisons of one projection take turns until each has its snapshot: each binds the new version to where it wants it.
async fn take_turn(holder: &mut PgConnection, projection: &str) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let turn: bool = sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('millpond.diff.' || $1, 0))")
            .bind(projection)
            .fetch_one(&mut *holder)
            .await?;
        if turn {
            return Ok(());
        }
        if began.elapsed() > NEAR {
            return Err(Error::Refused(format!(
                "the versions of {projection} are being compared by somebody else since more than {} s; try again when that is done",
                NEAR.as_secs()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Brings both versions to the same offsets of the topics that both read, and leaves `reader` in a snapshot of that moment. First the new one is bound
/// to where it is, and the live one comes there or beyond; then the live one is held, and the new one is let go up to it.
async fn align(
    holder: &mut PgConnection,
    reader: &mut PgConnection,
    projection: &str,
    (old, new): (i32, i32),
    topics: &Topics,
) -> Result<(String, Duration), Error> {
    let near = Instant::now() + NEAR;
    // Only one that is near is worth holding the live version for.
    if !near::comes_near(holder, projection, (old, new), NEAR).await? {
        let (live, other) =
            (shared(holder, projection, old, topics).await?, shared(holder, projection, new, topics).await?);
        return Err(apart(projection, &live, &other));
    }
    loop {
        bind(holder, projection, new, None).await?;
        let (live, other) =
            (shared(holder, projection, old, topics).await?, shared(holder, projection, new, topics).await?);
        if !reaches(&live, &other) {
            if Instant::now() > near {
                return Err(apart(projection, &live, &other));
            }
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let mut tx = holder.begin().await?;
        let began = Instant::now();
        let mut live = fence::hold(&mut tx, projection, old).await?;
        live.retain(|(at, _)| topics.has(at));
        bind(reader, projection, new, Some(&live)).await?;
        loop {
            let other = shared(reader, projection, new, topics).await?;
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
            let (live, other) =
                (shared(holder, projection, old, topics).await?, shared(holder, projection, new, topics).await?);
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

/// Where a version stands on those partitions that both versions read.
async fn shared(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    topics: &Topics,
) -> Result<Vec<(TopicPartition, i64)>, Error> {
    let mut offsets = offsets(connection, projection, version).await?;
    offsets.retain(|(at, _)| topics.has(at));
    Ok(offsets)
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
