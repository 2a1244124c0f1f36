//! Verdicts: what was decided about single records, for whoever reads the log again.

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::Error;
use crate::domain::TopicPartition;

/// A verdict that changes what a record does when it is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This framed Avro stands in the place of its value.
    Edit(Vec<u8>),
    /// It has no effect.
    Discard,
    /// It is applied, though its id stands for another record.
    Apply,
    /// It is set aside, undecoded.
    DeadLetter { class: String, reason: String },
}

/// Of a record that was applied after all nothing has to be known when it is read again: what was mended is mended. But that
/// an id stands for another record is found again.
const ACTS: &str = "(what <> 'apply' or class = 'id_conflict')";

/// The greatest offset of a partition about which something was decided that changes what its record does.
pub async fn greatest(
    connection: &mut PgConnection,
    projection: &str,
    at: &TopicPartition,
) -> Result<Option<i64>, Error> {
    let sql = format!(
        "select max(\"offset\") from millpond.verdicts
          where projection = $1 and topic = $2 and partition = $3 and {ACTS}"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(projection)
        .bind(&*at.topic)
        .bind(at.partition)
        .fetch_one(connection)
        .await?)
}

/// What was decided about one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    pub offset: i64,
    /// Of the record, as the log had it.
    pub checksum: Vec<u8>,
    /// Whether a reading of the log since then has found another record there.
    pub void: bool,
    pub verdict: Verdict,
}

/// What was decided about the records from offset `from` to `to`, both included.
pub async fn between(
    connection: &mut PgConnection,
    projection: &str,
    at: &TopicPartition,
    (from, to): (i64, i64),
) -> Result<Vec<Decided>, Error> {
    let sql = format!(
        "select \"offset\", checksum, void, what, payload, class, reason from millpond.verdicts
          where projection = $1 and topic = $2 and partition = $3 and \"offset\" between $4 and $5 and {ACTS}
          order by \"offset\""
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(projection)
        .bind(&*at.topic)
        .bind(at.partition)
        .bind(from)
        .bind(to)
        .fetch_all(connection)
        .await?;
    let read = |row: &sqlx::postgres::PgRow| {
        let what: String = row.try_get("what")?;
        let verdict = match what.as_str() {
            "edit" => Verdict::Edit(row.try_get::<Option<Vec<u8>>, _>("payload")?.unwrap_or_default()),
            "discard" => Verdict::Discard,
            "apply" => Verdict::Apply,
            _ => Verdict::DeadLetter {
                class: row.try_get::<Option<String>, _>("class")?.unwrap_or_default(),
                reason: row.try_get::<Option<String>, _>("reason")?.unwrap_or_default(),
            },
        };
        let (offset, checksum) = (row.try_get("offset")?, row.try_get("checksum")?);
        Ok(Decided { offset, checksum, void: row.try_get("void")?, verdict })
    };
    rows.iter().map(read).collect()
}

/// A verdict as an operator looks at it.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    pub what: String,
    pub class: Option<String>,
    pub reason: Option<String>,
    pub decided_by: String,
    pub decided_at: String,
    /// The log has another record there now: nobody acts by it any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub void: bool,
}

/// What was decided about one record.
pub async fn find(
    connection: &mut PgConnection,
    projection: &str,
    at: &TopicPartition,
    offset: i64,
) -> Result<Option<Shown>, Error> {
    let row = sqlx::query(
        "select what, class, reason, decided_by, void,
                to_char(decided_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as decided_at
           from millpond.verdicts where projection = $1 and topic = $2 and partition = $3 and \"offset\" = $4",
    )
    .bind(projection)
    .bind(&*at.topic)
    .bind(at.partition)
    .bind(offset)
    .fetch_optional(connection)
    .await?;
    let read = |row: sqlx::postgres::PgRow| {
        Ok(Shown {
            what: row.try_get("what")?,
            class: row.try_get("class")?,
            reason: row.try_get("reason")?,
            decided_by: row.try_get("decided_by")?,
            decided_at: row.try_get("decided_at")?,
            void: row.try_get("void")?,
        })
    };
    row.map(read).transpose()
}
