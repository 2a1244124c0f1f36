//! Fences: the rows that say how far a version is on a partition, and who may write it.
//!
//! The claim raises the epoch and so shuts out every earlier owner; its UPDATE waits for a transaction that an
//! earlier owner has in flight, and therefore reads the offset that transaction leaves behind.

use std::time::Duration;

use sqlx::{
    PgConnection, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use super::{Error, run};
use crate::domain::{TopicPartition, literal};

/// What a claim found and took.
#[derive(Debug, Clone)]
pub struct Claim {
    pub at: TopicPartition,
    /// What the fence is called in the tables that have a row per record.
    pub number: i64,
    pub owner: Uuid,
    pub epoch: i64,
    pub next_offset: i64,
    /// Number of the last row put into the outbox for this partition.
    pub out_seq: i64,
    pub last: Option<LastApplied>,
    /// Greatest timestamp of a record that is applied, in milliseconds since the Unix epoch.
    pub log_time: Option<i64>,
    /// Who held the fence before and has not released it.
    pub previous_owner: Option<Uuid>,
}

/// The last applied record, to be compared with what Kafka holds at that offset now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastApplied {
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    pub checksum: i64,
}

/// Result of claiming one partition.
#[derive(Debug)]
pub enum Claimed {
    Mine(Claim),
    /// Halted or retired.
    Closed {
        state: String,
        reason: String,
    },
}

/// How long a claim may wait for a transaction of an earlier owner before that backend is terminated.
const BLOCKED_FOR: Duration = Duration::from_secs(4);

/// A statement on one fence, which its first four parameters name.
pub(super) fn on_fence<'q>(
    sql: &'static str,
    projection: &'q str,
    version: i32,
    at: &'q TopicPartition,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).bind(projection).bind(version).bind(&*at.topic).bind(at.partition)
}

/// Claims one partition for `owner`. `observer` is a second connection, used only to end a backend that has
/// blocked the claim for four seconds: a client that was stopped inside its transaction would hold the row for long.
pub async fn claim(
    connection: &mut PgConnection,
    observer_url: &str,
    projection: &str,
    version: i32,
    at: &TopicPartition,
    owner: Uuid,
) -> Result<Claimed, Error> {
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *connection).await?;
    let claiming = try_claim(connection, projection, version, at, owner);
    tokio::pin!(claiming);
    tokio::select! {
        result = &mut claiming => return result,
        () = tokio::time::sleep(BLOCKED_FOR) => {}
    }
    terminate_blockers(observer_url, pid).await?;
    claiming.await
}

async fn try_claim(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    at: &TopicPartition,
    owner: Uuid,
) -> Result<Claimed, Error> {
    on_fence(
        "insert into millpond.fences (projection, version, topic, partition, next_offset)
         values ($1, $2, $3, $4, 0) on conflict do nothing",
        projection,
        version,
        at,
    )
    .execute(&mut *connection)
    .await?;
    run(connection, "set lock_timeout = '8s'").await?;
    let row = on_fence(
        "update millpond.fences
            set epoch = epoch + 1, owner = $5, previous_owner = owner
          where projection = $1 and version = $2 and topic = $3 and partition = $4 and state = 'running'
        returning number, epoch, next_offset, out_seq, previous_owner, log_time, last_offset,
                  (extract(epoch from last_timestamp) * 1000)::int8 as last_timestamp, last_checksum",
        projection,
        version,
        at,
    )
    .bind(owner)
    .fetch_optional(&mut *connection)
    .await;
    run(connection, "set lock_timeout = '5s'").await?;
    let Some(row) = row? else { return closed(connection, projection, version, at).await };
    let last = match row.try_get::<Option<i64>, _>("last_offset")? {
        None => None,
        Some(offset) => Some(LastApplied {
            offset,
            timestamp: row.try_get::<Option<i64>, _>("last_timestamp")?.unwrap_or_default(),
            checksum: row.try_get::<Option<i64>, _>("last_checksum")?.unwrap_or_default(),
        }),
    };
    Ok(Claimed::Mine(Claim {
        at: at.clone(),
        number: row.try_get("number")?,
        owner,
        epoch: row.try_get("epoch")?,
        next_offset: row.try_get("next_offset")?,
        out_seq: row.try_get("out_seq")?,
        last,
        log_time: row.try_get("log_time")?,
        previous_owner: row.try_get("previous_owner")?,
    }))
}

/// Why a fence cannot be claimed.
async fn closed(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    at: &TopicPartition,
) -> Result<Claimed, Error> {
    let row = on_fence(
        "select state, coalesce(halt_reason, '') as reason from millpond.fences
          where projection = $1 and version = $2 and topic = $3 and partition = $4",
        projection,
        version,
        at,
    )
    .fetch_one(connection)
    .await?;
    Ok(Claimed::Closed { state: row.try_get("state")?, reason: row.try_get("reason")? })
}

async fn terminate_blockers(url: &str, pid: i32) -> Result<(), Error> {
    let mut observer = super::connect(url, "millpond claim").await?;
    let ended: i64 = sqlx::query_scalar(
        "select count(*) filter (where pg_terminate_backend(b)) from unnest(pg_blocking_pids($1)) b",
    )
    .bind(pid)
    .fetch_one(&mut observer)
    .await?;
    if ended > 0 {
        tracing::warn!(backends = ended, "ended a Postgres backend that blocked a claim for 4 s");
    }
    Ok(())
}

/// A statement on the fence of a claim, which its first six parameters name: it finds no row once the fence is another's.
fn on_claim<'q>(
    sql: &'static str,
    projection: &'q str,
    version: i32,
    claim: &'q Claim,
) -> Query<'q, Postgres, PgArguments> {
    on_fence(sql, projection, version, &claim.at).bind(claim.owner).bind(claim.epoch)
}

/// Gives a partition back, if it is still ours.
pub async fn release(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    claim: &Claim,
) -> Result<(), Error> {
    on_claim(
        "update millpond.fences set owner = null
          where projection = $1 and version = $2 and topic = $3 and partition = $4 and owner = $5 and epoch = $6",
        projection,
        version,
        claim,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that what begins at `from` is being applied; how often that was begun, this time included, and never ended.
/// `anew` counts from one: an attempt of this process has ended, whatever became of it.
pub async fn note_attempt(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    claim: &Claim,
    (from, anew): (i64, bool),
) -> Result<i32, Error> {
    let attempts = on_claim(
        "update millpond.fences
            set attempts = case when attempts_at = $7 and not $8 then attempts + 1 else 1 end, attempts_at = $7
          where projection = $1 and version = $2 and topic = $3 and partition = $4 and owner = $5 and epoch = $6
        returning attempts",
        projection,
        version,
        claim,
    )
    .bind(from)
    .bind(anew)
    .fetch_optional(connection)
    .await?;
    // Whoever has the fence now counts for himself.
    attempts.map_or(Ok(1), |row| Ok(row.try_get("attempts")?))
}

/// Adds to the count of attempts; never below none.
pub async fn count_attempts(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    claim: &Claim,
    by: i32,
) -> Result<(), Error> {
    on_claim(
        "update millpond.fences set attempts = greatest(attempts + $7, 0)
          where projection = $1 and version = $2 and topic = $3 and partition = $4 and owner = $5 and epoch = $6",
        projection,
        version,
        claim,
    )
    .bind(by)
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks the fences of a version until the transaction ends, so that nothing of it is applied; where they stand.
pub async fn hold(tx: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<(TopicPartition, i64)>, Error> {
    let rows = sqlx::query(
        "select topic, partition, next_offset from millpond.fences where projection = $1 and version = $2
          order by topic, partition for update",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(tx)
    .await?;
    let place = |row: &PgRow| Ok((TopicPartition::new(row.try_get::<String, _>(0)?, row.try_get(1)?), row.try_get(2)?));
    rows.iter().map(place).collect()
}

/// How far the fence of a claim may go at present; none when as far as it likes.
pub async fn bound(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    claim: &Claim,
) -> Result<Option<i64>, Error> {
    let row = on_fence(
        "select bound from millpond.fences
          where projection = $1 and version = $2 and topic = $3 and partition = $4 and bound_until >= clock_timestamp()",
        projection,
        version,
        &claim.at,
    )
    .fetch_optional(connection)
    .await?;
    row.map_or(Ok(None), |row| Ok(row.try_get("bound")?))
}

/// Why a fence stopped: a stable code and a sentence that ends with the command to run.
#[derive(Debug, Clone)]
pub struct Halt {
    pub code: &'static str,
    pub reason: String,
}

/// Halts a partition, if it is still ours; it stays halted until `consumer restart`.
pub async fn halt(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    claim: &Claim,
    halt: &Halt,
) -> Result<(), Error> {
    on_claim(
        "update millpond.fences set state = 'halted', halt_code = $7, halt_reason = $8, owner = null
          where projection = $1 and version = $2 and topic = $3 and partition = $4 and owner = $5 and epoch = $6",
        projection,
        version,
        claim,
    )
    .bind(halt.code)
    .bind(&halt.reason)
    .execute(connection)
    .await?;
    Ok(())
}

/// How a batch moves its fence.
pub struct Advance<'a> {
    pub projection: &'a str,
    pub version: i32,
    pub claim: &'a Claim,
    pub from: i64,
    pub to: i64,
    /// The last record of the batch; none when the batch only passes over offsets without records.
    pub last: Option<LastApplied>,
    /// Rows this batch adds to the outbox.
    pub emitted: i64,
    /// Greatest timestamp among its records.
    pub log_time: Option<i64>,
}

impl Advance<'_> {
    /// The compare-and-set as text for the batch's one flush. It raises `MP001` when it hits no row.
    pub fn sql(&self) -> String {
        let last = self.last.map_or("null, null, null".to_owned(), |last| {
            format!("{}, to_timestamp({} / 1000.0), {}", last.offset, last.timestamp, last.checksum)
        });
        let log_time = self.log_time.map_or("null".to_owned(), |time| time.to_string());
        format!(
            "select millpond.advance_fence({}, {}, {}, {}, '{}', {}, {}, {}, {last}, {}, {log_time});",
            literal(self.projection),
            self.version,
            literal(&self.claim.at.topic),
            self.claim.at.partition,
            self.claim.owner,
            self.claim.epoch,
            self.from,
            self.to,
            self.emitted,
        )
    }
}
