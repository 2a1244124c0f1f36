//! The outbox as the relay sees it: rows in the order in which they were committed, removed once Kafka has
//! acknowledged them.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{Error, run};

/// A source partition of a projection: what order is kept of, over all versions of the projection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane {
    pub projection: String,
    pub topic: String,
    pub partition: i32,
}

/// One row: a downstream event, or the mirror of a dead letter.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    pub lane: Lane,
    pub version: i32,
    pub out_seq: i64,
    pub event_id: Uuid,
    pub target_topic: String,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    /// `[[name, base64 value or null], …]`
    pub headers: serde_json::Value,
}

/// Rows of one source partition that are fetched at once.
const ROWS: i64 = 500;
/// Bytes of them, but for the last: what all source partitions hold together is memory of the relay.
const BYTES: i64 = 1 << 20;

/// A connection for the relay. A relay that was stopped in its tracks loses it, and with it the lead, after 30 s: longer
/// than any row is waited for.
pub async fn connect(url: &str) -> Result<PgConnection, Error> {
    let mut connection = super::connect(url, "millpond publish").await?;
    run(&mut connection, "set idle_session_timeout = '30s'").await?;
    Ok(connection)
}

/// Takes the right to relay, for as long as the connection lives. One relay at a time keeps the order.
pub async fn try_lead(connection: &mut PgConnection) -> Result<bool, Error> {
    Ok(sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('millpond.relay', 0))")
        .fetch_one(connection)
        .await?)
}

/// The oldest rows of every source partition that has some, in order, but for those `without`.
///
/// They are of one version each: a version that was retired has to leave whole before the next one begins. Rows of a
/// version that is still being built stay. From one source partition to the next the query goes by index, so that it
/// costs what there are of them, however many rows wait.
pub async fn pending(connection: &mut PgConnection, without: &[&Lane]) -> Result<Vec<Vec<OutboxRow>>, Error> {
    let rows = sqlx::query(
        "with recursive lanes as (
            (select projection, version, topic, partition from millpond.outbox
              order by projection, version, topic, partition limit 1)
            union all
            select next.* from lanes l cross join lateral (
                select o.projection, o.version, o.topic, o.partition from millpond.outbox o
                 where (o.projection, o.version, o.topic, o.partition) > (l.projection, l.version, l.topic, l.partition)
                 order by o.projection, o.version, o.topic, o.partition limit 1) next),
         oldest as (
            select distinct on (l.projection, l.topic, l.partition) l.* from lanes l
              join millpond.versions v on v.projection = l.projection and v.version = l.version
             where v.state <> 'building' and (l.projection, l.topic, l.partition) not in
                   (select * from unnest($1::text[], $2::text[], $3::int4[]))
             order by l.projection, l.topic, l.partition, l.version)
         select o.projection, o.version, o.topic, o.partition, o.out_seq, o.event_id, o.target_topic, o.key, o.payload,
                o.headers
           from oldest l
          cross join lateral (
               select *, sum(octet_length(payload)) over (order by out_seq rows between unbounded preceding
                                                            and 1 preceding) as bytes_before
                 from (select * from millpond.outbox o
                        where o.projection = l.projection and o.version = l.version and o.topic = l.topic
                          and o.partition = l.partition
                        order by o.out_seq limit $4) o) o
          where coalesce(o.bytes_before, 0) < $5
          order by o.projection, o.topic, o.partition, o.out_seq",
    )
    .bind(without.iter().map(|lane| lane.projection.as_str()).collect::<Vec<_>>())
    .bind(without.iter().map(|lane| lane.topic.as_str()).collect::<Vec<_>>())
    .bind(without.iter().map(|lane| lane.partition).collect::<Vec<_>>())
    .bind(ROWS)
    .bind(BYTES)
    .fetch_all(connection)
    .await?;
    let mut lanes: BTreeMap<Lane, Vec<OutboxRow>> = BTreeMap::new();
    for row in &rows {
        let lane = Lane {
            projection: row.try_get("projection")?,
            topic: row.try_get("topic")?,
            partition: row.try_get("partition")?,
        };
        lanes.entry(lane.clone()).or_default().push(OutboxRow {
            lane,
            version: row.try_get("version")?,
            out_seq: row.try_get("out_seq")?,
            event_id: row.try_get("event_id")?,
            target_topic: row.try_get("target_topic")?,
            key: row.try_get("key")?,
            payload: row.try_get("payload")?,
            headers: row.try_get("headers")?,
        });
    }
    Ok(lanes.into_values().collect())
}

/// Removes rows that Kafka has acknowledged.
pub async fn remove(connection: &mut PgConnection, rows: &[&OutboxRow]) -> Result<(), Error> {
    sqlx::query(
        "delete from millpond.outbox o using
           unnest($1::text[], $2::int4[], $3::text[], $4::int4[], $5::int8[]) as s(projection, version, topic, partition, out_seq)
          where o.projection = s.projection and o.version = s.version and o.topic = s.topic
            and o.partition = s.partition and o.out_seq = s.out_seq",
    )
    .bind(rows.iter().map(|r| r.lane.projection.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.version).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.lane.topic.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.lane.partition).collect::<Vec<_>>())
    .bind(rows.iter().map(|r| r.out_seq).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// How many rows wait.
pub async fn depth(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar("select count(*) from millpond.outbox").fetch_one(connection).await?)
}
