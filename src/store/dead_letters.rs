//! Dead letters, as an operator looks at them.

use serde::Serialize;
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::Error;

#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    pub consumer: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub record_type: Option<String>,
    pub key: Option<String>,
    pub class: String,
    pub reason: String,
    pub recorded_at: String,
    pub created_at: String,
    #[serde(skip)]
    pub payload: Option<Vec<u8>>,
    pub headers: serde_json::Value,
}

const COLUMNS: &str =
    "d.projection, d.topic, d.partition, d.\"offset\", d.record_type, d.key, d.reason_class, d.reason,
    to_char(d.recorded_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as recorded_at,
    to_char(d.created_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as created_at, d.payload, d.headers";

fn read(row: &PgRow) -> Result<DeadLetter, Error> {
    let key: Option<Vec<u8>> = row.try_get("key")?;
    Ok(DeadLetter {
        consumer: row.try_get("projection")?,
        topic: row.try_get("topic")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        record_type: row.try_get("record_type")?,
        key: key.map(|k| String::from_utf8_lossy(&k).into_owned()),
        class: row.try_get("reason_class")?,
        reason: row.try_get("reason")?,
        recorded_at: row.try_get("recorded_at")?,
        created_at: row.try_get("created_at")?,
        payload: row.try_get("payload")?,
        headers: row.try_get("headers")?,
    })
}

/// The newest dead letters of live versions.
pub async fn list(connection: &mut PgConnection, consumer: Option<&str>, limit: i64) -> Result<Vec<DeadLetter>, Error> {
    let sql = format!(
        "select {COLUMNS} from millpond.dead_letters d
           join millpond.projections p on p.projection = d.projection and p.live_version = d.version
          where $1::text is null or d.projection = $1
          order by d.created_at desc, d.projection, d.topic, d.partition, d.\"offset\" desc limit $2"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(consumer).bind(limit).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// How many there are per consumer, class and record type.
pub async fn counts(
    connection: &mut PgConnection,
    consumer: Option<&str>,
) -> Result<Vec<(String, String, Option<String>, i64)>, Error> {
    Ok(sqlx::query_as(
        "select d.projection, d.reason_class, d.record_type, count(*)
           from millpond.dead_letters d
           join millpond.projections p on p.projection = d.projection and p.live_version = d.version
          where $1::text is null or d.projection = $1 group by 1, 2, 3 order by 1, 4 desc, 2, 3",
    )
    .bind(consumer)
    .fetch_all(connection)
    .await?)
}

/// One dead letter by its coordinates.
pub async fn find(
    connection: &mut PgConnection,
    consumer: &str,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<Option<DeadLetter>, Error> {
    let sql = format!(
        "select {COLUMNS} from millpond.dead_letters d
          where d.projection = $1 and d.topic = $2 and d.partition = $3 and d.\"offset\" = $4
          order by d.version desc limit 1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(consumer)
        .bind(topic)
        .bind(partition)
        .bind(offset)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}
