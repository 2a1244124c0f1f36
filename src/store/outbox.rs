//! The outbox as the relay sees it: rows in the order in which they were committed, removed once they are in the log.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{Error, run};
use crate::planted::{self, Bug};

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
    /// When the version was made, in microseconds since 1970: one that is made anew under the same number is another.
    pub made: i64,
    pub out_seq: i64,
    pub event_id: Uuid,
    pub target_topic: String,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    /// `[[name, base64 value or null], …]`
    pub headers: serde_json::Value,
}

/// How much is fetched at once: memory of the relay. Bytes do not count the last row of a source partition.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of one source partition.
    pub rows: i64,
    pub bytes: i64,
    /// Of all together, which each has an equal share of, and at least a row.
    pub all_rows: i64,
    pub all_bytes: i64,
}

/// Which source partitions are asked for.
#[derive(Debug, Clone, Copy)]
pub enum Lanes<'a> {
    But(&'a [&'a Lane]),
    Only(&'a Lane),
}

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

/// Says that the relay is still there, while it waits for something else than Postgres.
pub async fn ping(connection: &mut PgConnection) -> Result<(), Error> {
    run(connection, "select 1").await
}

/// The oldest rows of every source partition that is asked for and has some, in order.
///
/// Rows of versions that have been live in turn go in the order of their records in the log, those of one version in the
/// order in which they were committed. Rows stay that were held from the start, and those of a version that is still being
/// built. From one source partition to the next the query goes by index, so that it costs what there are of them, however
/// many rows wait.
pub async fn pending(
    connection: &mut PgConnection,
    asked: Lanes<'_>,
    bounds: Bounds,
) -> Result<Vec<Vec<OutboxRow>>, Error> {
    let (named, only): (&[&Lane], bool) = match &asked {
        Lanes::But(lanes) => (lanes, false),
        Lanes::Only(lane) => (std::slice::from_ref(lane), true),
    };
    let rows = sqlx::query(
        "with recursive lanes as (
            (select projection, version, topic, partition from millpond.outbox where not held
              order by projection, version, topic, partition limit 1)
            union all
            select next.* from lanes l cross join lateral (
                select o.projection, o.version, o.topic, o.partition from millpond.outbox o
                 where (o.projection, o.version, o.topic, o.partition) > (l.projection, l.version, l.topic, l.partition)
                   and not o.held
                 order by o.projection, o.version, o.topic, o.partition limit 1) next),
         turns as (
            select l.*, v.state = 'live' as is_live, (extract(epoch from v.created_at) * 1000000)::int8 as made
              from lanes l join millpond.versions v on v.projection = l.projection and v.version = l.version
             where v.state <> 'building' and ((l.projection, l.topic, l.partition) in
                   (select * from unnest($1::text[], $2::text[], $3::int4[]))) = $4),
         share as (
            select greatest(1, least($5, $7 / greatest(1, count(*)))) as rows,
                   greatest(1, least($6, $8 / greatest(1, count(*)))) as bytes
              from (select distinct projection, topic, partition from turns) all_lanes)
         select * from (
            select o.projection, o.version, t.made, o.topic, o.partition, o.out_seq, o.event_id, o.target_topic, o.key,
                   o.payload, o.headers, row_number() over lane as number,
                   sum(coalesce(octet_length(o.payload), 0) + coalesce(octet_length(o.key), 0) + octet_length(o.headers::text))
                     over (lane rows between unbounded preceding and 1 preceding) as bytes_before
              from turns t
             cross join lateral (
                  select *, max(source_offset) over (order by out_seq) as reached
                    from (select * from millpond.outbox o
                           where o.projection = t.projection and o.version = t.version and o.topic = t.topic
                             and o.partition = t.partition and not o.held
                           order by o.out_seq limit (select rows from share)) o) o
            window lane as (partition by o.projection, o.topic, o.partition
                            order by o.reached, t.is_live, o.version, o.out_seq)) o
          where number <= (select rows from share) and coalesce(bytes_before, 0) < (select bytes from share)
          order by projection, topic, partition, number",
    )
    .bind(named.iter().map(|lane| lane.projection.as_str()).collect::<Vec<_>>())
    .bind(named.iter().map(|lane| lane.topic.as_str()).collect::<Vec<_>>())
    .bind(named.iter().map(|lane| lane.partition).collect::<Vec<_>>())
    .bind(only)
    .bind(bounds.rows)
    .bind(bounds.bytes)
    .bind(bounds.all_rows)
    .bind(bounds.all_bytes)
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
            made: row.try_get("made")?,
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

/// Removes rows that are in the log.
pub async fn remove(connection: &mut PgConnection, rows: &[&OutboxRow]) -> Result<(), Error> {
    if planted::is(Bug::SharedSequence) {
        let last = rows.iter().map(|row| row.out_seq).max().unwrap_or_default();
        return run(connection, format!("delete from millpond.outbox where out_seq <= {last}")).await;
    }
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

/// Removes rows by the ids of their events; returns how many.
pub async fn remove_events(
    connection: &mut PgConnection,
    lane: &Lane,
    version: i32,
    ids: &[Uuid],
) -> Result<u64, Error> {
    let removed = sqlx::query(
        "delete from millpond.outbox where projection = $1 and version = $2 and topic = $3 and partition = $4
            and event_id = any($5)",
    )
    .bind(&lane.projection)
    .bind(version)
    .bind(&lane.topic)
    .bind(lane.partition)
    .bind(ids)
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}

/// How many rows wait. Those of a version that is being built do not: they leave if it is swapped in.
pub async fn depth(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar(
        "select count(*) from millpond.outbox o join millpond.versions v using (projection, version)
          where not o.held and v.state <> 'building'",
    )
    .fetch_one(connection)
    .await?)
}
