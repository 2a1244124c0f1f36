//! Parked keys as their worker reads them: which there are, what is due, and the records that wait.
//!
//! Only the worker that owns a partition's fence writes them, in its batches; operators write wishes into the rows of
//! dead letters and nothing else.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{Error, dead_letters::IN_ORDER, fence::on_fence};
use crate::domain::TopicPartition;

/// One parked key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedKey {
    /// What it is known by: the offset at which it was parked.
    pub parked_at: i64,
    /// None for a record without a key, which waits alone.
    pub key: Option<Vec<u8>>,
    /// Attempts of applying its head, where a handler asked for more.
    pub attempts: i32,
}

/// Which records a worker drains: those of one parked key, or dead letters that hold nothing up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Key(i64),
    Dead,
}

/// What an operator wants done with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Apply,
    Edit,
    Discard,
}

impl Wish {
    /// As it stands in the table, and in verdicts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Edit => "edit",
            Self::Discard => "discard",
        }
    }

    fn read(text: &str) -> Self {
        match text {
            "discard" => Self::Discard,
            "edit" => Self::Edit,
            _ => Self::Apply,
        }
    }
}

/// A record that was set aside.
#[derive(Debug, Clone)]
pub struct SetAside {
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    /// `[[name, base64 value or null], …]`
    pub headers: serde_json::Value,
    pub payload: Option<Vec<u8>>,
    /// What takes the payload's place.
    pub edited: Option<Vec<u8>>,
    pub class: String,
    pub reason: String,
    pub wanted: Option<Wish>,
    pub wanted_by: Option<String>,
    pub revision: i64,
    /// Whether it is a head that its handler wants to be tried again by now.
    pub retry: bool,
    /// Offset of the next record that waits; none behind the last.
    pub next: Option<i64>,
    /// Whether that one can be applied as well, as far as is known: it only waited, or somebody has decided.
    pub next_goes_on: bool,
}

/// The parked keys of a partition, at most `most` and one more.
pub async fn load(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    at: &TopicPartition,
    most: usize,
) -> Result<Vec<ParkedKey>, Error> {
    let rows = on_fence(
        "select parked_at, key, attempts from millpond.parked_keys
          where projection = $1 and version = $2 and topic = $3 and partition = $4 order by parked_at limit $5",
        projection,
        version,
        at,
    )
    .bind(i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1))
    .fetch_all(connection)
    .await?;
    let read = |row: &sqlx::postgres::PgRow| {
        Ok(ParkedKey {
            parked_at: row.try_get("parked_at")?,
            key: row.try_get("key")?,
            attempts: row.try_get("attempts")?,
        })
    };
    rows.iter().map(read).collect()
}

/// The lanes of a partition in which there is something to do now: the head is wanted, or may be tried again, or was
/// only waiting for a record before it.
pub async fn due(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    at: &TopicPartition,
) -> Result<Vec<Lane>, Error> {
    let rows = on_fence(
        // `offset 0`: from keys to records, whatever Postgres thinks of tables that it has not analysed yet. The other way
        // round takes the square of the keys, half a minute for ten thousand.
        "select k.parked_at from millpond.parked_keys k
          cross join lateral (select d.wanted, d.reason_class from millpond.dead_letters d
                 where d.projection = k.projection and d.version = k.version and d.topic = k.topic
                   and d.partition = k.partition and d.\"offset\" = k.head offset 0) d
          where k.projection = $1 and k.version = $2 and k.topic = $3 and k.partition = $4
            and (d.wanted is not null or d.reason_class = 'waits' or k.retry_at <= now())
         union all
         select null where exists (select from millpond.dead_letters d
             where d.projection = $1 and d.version = $2 and d.topic = $3 and d.partition = $4
               and d.wanted is not null and d.parked_at is null)",
        projection,
        version,
        at,
    )
    .fetch_all(connection)
    .await?;
    let lane = |row: &sqlx::postgres::PgRow| {
        let parked_at: Option<i64> = row.try_get("parked_at")?;
        Ok(parked_at.map_or(Lane::Dead, Lane::Key))
    };
    rows.iter().map(lane).collect()
}

/// The partitions of a version in which something may be due, asked once for all of them.
pub async fn due_partitions(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
) -> Result<Vec<TopicPartition>, Error> {
    let rows: Vec<(String, i32)> = sqlx::query_as(
        "select topic, partition from millpond.dead_letters
          where projection = $1 and version = $2 and wanted is not null and reason_class <> 'waits'
         union
         select topic, partition from millpond.parked_keys
          where projection = $1 and version = $2 and (state = 'draining' or retry_at <= now())",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(topic, partition)| TopicPartition::new(topic, partition)).collect())
}

/// The first records of a lane in the order of their offsets, within both bounds but for the first.
pub async fn read(
    connection: &mut PgConnection,
    (projection, version): (&str, i32),
    at: &TopicPartition,
    lane: Lane,
    (most_records, most_bytes): (usize, usize),
) -> Result<Vec<SetAside>, Error> {
    let (of_lane, parked_at) = match lane {
        Lane::Key(parked_at) => ("d.parked_at = $5", parked_at),
        Lane::Dead => ("d.parked_at is null and d.wanted is not null and $5::int8 is not null", -1),
    };
    let sql = format!(
        "select d.*, (extract(epoch from d.recorded_at) * 1000)::int8 as timestamp,
                coalesce(k.head = d.\"offset\" and k.retry_at <= now(), false) as retry
           from (select d.*, lead(d.\"offset\") over (order by d.\"offset\") as next,
                        lead(d.reason_class = 'waits' or d.wanted is not null) over (order by d.\"offset\") as goes_on,
                        sum(coalesce(octet_length(d.payload), 0) + coalesce(octet_length(d.edited), 0))
                          over (order by d.\"offset\" rows between unbounded preceding and 1 preceding) as bytes_before
                   from (select * from millpond.dead_letters d
                          where d.projection = $1 and d.version = $2 and d.topic = $3 and d.partition = $4 and {of_lane}
                          order by d.\"offset\" limit $6) d) d
           left join millpond.parked_keys k on k.projection = d.projection and k.version = d.version
                and k.topic = d.topic and k.partition = d.partition and k.parked_at = d.parked_at
          where coalesce(d.bytes_before, 0) < $7
          order by d.\"offset\" limit $8"
    );
    let records = i64::try_from(most_records).unwrap_or(i64::MAX - 1).clamp(1, i64::MAX - 1);
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(projection)
        .bind(version)
        .bind(&*at.topic)
        .bind(at.partition)
        .bind(parked_at)
        .bind(records + 1)
        .bind(i64::try_from(most_bytes).unwrap_or(i64::MAX))
        .bind(records)
        .fetch_all(connection)
        .await?;
    rows.iter().map(read_row).collect()
}

fn read_row(row: &sqlx::postgres::PgRow) -> Result<SetAside, Error> {
    let wanted: Option<String> = row.try_get("wanted")?;
    Ok(SetAside {
        offset: row.try_get("offset")?,
        timestamp: row.try_get("timestamp")?,
        key: row.try_get("key")?,
        headers: row.try_get("headers")?,
        payload: row.try_get("payload")?,
        edited: row.try_get("edited")?,
        class: row.try_get("reason_class")?,
        reason: row.try_get("reason")?,
        wanted: wanted.as_deref().map(Wish::read),
        wanted_by: row.try_get("wanted_by")?,
        revision: row.try_get("revision")?,
        retry: row.try_get("retry")?,
        next: row.try_get("next")?,
        next_goes_on: row.try_get::<Option<bool>, _>("goes_on")?.unwrap_or(false),
    })
}

/// Wants of a version's records what is wanted of them in the one that was live until now, which will do it as well.
pub(super) async fn follow_wishes(
    connection: &mut PgConnection,
    projection: &str,
    (from, to): (i32, i32),
) -> Result<(), Error> {
    sqlx::query(AssertSqlSafe(format!(
        "update millpond.dead_letters d
            set wanted = o.wanted, edited = coalesce(o.edited, d.edited), wanted_by = o.wanted_by, wanted_at = o.wanted_at,
                revision = d.revision + 1
           from millpond.dead_letters o, millpond.versions v
          where d.projection = $1 and d.version = $3 and d.wanted is null
            and (d.wanted_at is null or d.wanted_at < o.wanted_at) and o.projection = $1 and o.version = $2 and o.wanted is not null
            and (o.topic, o.partition, o.\"offset\") = (d.topic, d.partition, d.\"offset\")
            and v.projection = d.projection and v.version = d.version and (o.wanted = 'discard' or {IN_ORDER})"
    )))
    .bind(projection)
    .bind(from)
    .bind(to)
    .execute(connection)
    .await?;
    Ok(())
}

/// Wants of a version's records what was decided about them through another version. Once: what fails all the same in this
/// version waits for somebody to look.
pub async fn follow_verdicts(connection: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    sqlx::query(AssertSqlSafe(format!(
        "update millpond.dead_letters d
            set wanted = x.what, edited = coalesce(x.payload, d.edited), wanted_by = x.decided_by,
                wanted_at = x.decided_at, revision = d.revision + 1
           from millpond.verdicts x, millpond.versions v
          where d.projection = $1 and d.version = $2 and d.wanted is null
            and (d.wanted_at is null or d.wanted_at < x.decided_at)
            and (x.projection, x.topic, x.partition, x.\"offset\") = (d.projection, d.topic, d.partition, d.\"offset\")
            and x.what in ('apply', 'edit', 'discard') and not x.void
            and v.projection = d.projection and v.version = d.version and v.state <> 'scratch'
            and (x.what = 'discard' or {IN_ORDER})"
    )))
    .bind(projection)
    .bind(version)
    .execute(connection)
    .await?;
    Ok(())
}
