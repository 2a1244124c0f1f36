//! The outbox as the relay sees it: rows in order of `out_seq`, removed once Kafka has acknowledged them.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Error;

/// One row: a downstream event, or the mirror of a dead letter.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    pub projection: String,
    pub version: i32,
    pub topic: String,
    pub partition: i32,
    pub out_seq: i64,
    pub event_id: Uuid,
    pub target_topic: String,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    /// `[[name, base64 value or null], …]`
    pub headers: serde_json::Value,
}

/// Takes the right to relay, for as long as the connection lives. One relay at a time keeps the order.
pub async fn try_lead(connection: &mut PgConnection) -> Result<bool, Error> {
    Ok(sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('millpond.relay', 0))")
        .fetch_one(connection)
        .await?)
}

/// The oldest rows of every source partition of the live versions, in order; at most `limit` of each, so that none
/// keeps the others from leaving.
pub async fn pending(connection: &mut PgConnection, limit: i64) -> Result<Vec<OutboxRow>, Error> {
    let rows = sqlx::query(
        "select o.projection, o.version, o.topic, o.partition, o.out_seq, o.event_id, o.target_topic, o.key,
                o.payload, o.headers
           from millpond.fences f
           join millpond.projections p on p.projection = f.projection and p.live_version = f.version
          cross join lateral (
               select * from millpond.outbox o
                where o.projection = f.projection and o.version = f.version and o.topic = f.topic
                  and o.partition = f.partition
                order by o.out_seq limit $1) o
          order by o.projection, o.version, o.topic, o.partition, o.out_seq",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(OutboxRow {
                projection: row.try_get("projection")?,
                version: row.try_get("version")?,
                topic: row.try_get("topic")?,
                partition: row.try_get("partition")?,
                out_seq: row.try_get("out_seq")?,
                event_id: row.try_get("event_id")?,
                target_topic: row.try_get("target_topic")?,
                key: row.try_get("key")?,
                payload: row.try_get("payload")?,
                headers: row.try_get("headers")?,
            })
        })
        .collect()
}

/// Removes rows that Kafka has acknowledged.
pub async fn remove(connection: &mut PgConnection, rows: &[OutboxRow]) -> Result<(), Error> {
    let column = |f: fn(&OutboxRow) -> i64| rows.iter().map(f).collect::<Vec<i64>>();
    sqlx::query(
        "delete from millpond.outbox o using
           unnest($1::text[], $2::int4[], $3::text[], $4::int4[], $5::int8[]) as s(projection, version, topic, partition, out_seq)
          where o.projection = s.projection and o.version = s.version and o.topic = s.topic
            and o.partition = s.partition and o.out_seq = s.out_seq",
    )
    .bind(rows.iter().map(|r| r.projection.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.version).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.topic.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.partition).collect::<Vec<_>>())
    .bind(column(|r| r.out_seq))
    .execute(connection)
    .await?;
    Ok(())
}

/// How many rows wait.
pub async fn depth(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar("select count(*) from millpond.outbox").fetch_one(connection).await?)
}
