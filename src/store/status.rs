//! How projections are doing, and the switches an operator has: read by `status`, written by `consumer pause`.

use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::Error;
use crate::domain::TopicPartition;

/// One partition of one projection.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    pub next_offset: i64,
    /// As last seen by the consumer; none when it has not looked yet.
    pub end_offset: Option<i64>,
    pub state: String,
    pub halt_code: Option<String>,
    pub halt_reason: Option<String>,
    pub owned: bool,
    /// Seconds since the consumer last looked at the end of the partition.
    pub seen_seconds: Option<f64>,
    /// Seconds by which the projection's data is old.
    pub age_seconds: Option<f64>,
    /// Of this partition, within the last minute.
    pub last_error: Option<String>,
    /// Seconds since then.
    pub last_error_seconds: Option<f64>,
}

/// One projection.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectionStatus {
    pub projection: String,
    pub version: Option<i32>,
    pub paused: bool,
    /// Records that were set aside and hold nothing up.
    pub dead_letters: i64,
    /// Keys whose records wait for somebody to decide about the first, or for their turn.
    pub parked_keys: i64,
    /// Those records.
    pub parked_records: i64,
    /// Downstream events and mirrors of dead letters that wait to be sent, those of retired versions among them.
    pub outbox: i64,
    /// Seconds for which the oldest of them has waited.
    pub outbox_seconds: Option<f64>,
    pub partitions: Vec<PartitionStatus>,
}

/// Every projection that has ever been built, by name.
pub async fn projections(connection: &mut PgConnection) -> Result<Vec<ProjectionStatus>, Error> {
    let rows = sqlx::query(
        "select p.projection, p.live_version, p.paused,
                (select count(*) from millpond.dead_letters d
                  where d.projection = p.projection and d.version = p.live_version and d.parked_at is null) as dead_letters,
                k.keys as parked_keys, k.records as parked_records, o.rows as outbox, o.seconds as outbox_seconds,
                f.topic, f.partition, f.next_offset, f.state, f.halt_code, f.halt_reason, f.owner is not null as owned,
                e.end_offset, case when e.last_error_at > now() - interval '1 minute' then e.last_error end as last_error,
                extract(epoch from now() - e.last_error_at)::float8 as last_error_seconds,
                extract(epoch from now() - e.observed_at)::float8 as seen,
                case when e.end_offset is null then null
                     when f.next_offset >= e.end_offset then extract(epoch from now() - e.observed_at)::float8
                     when f.last_timestamp is null then null
                     else extract(epoch from now() - f.last_timestamp)::float8 end as age
           from millpond.projections p
           cross join lateral (select count(*) as rows, extract(epoch from now() - min(o.created_at))::float8 as seconds
                from millpond.outbox o join millpond.versions v on v.projection = o.projection and v.version = o.version
               where o.projection = p.projection and v.state <> 'building' and not o.held) o
           cross join lateral (select count(*) as keys, coalesce(sum(k.records), 0)::int8 as records
                from millpond.parked_keys k where k.projection = p.projection and k.version = p.live_version) k
           left join millpond.fences f on f.projection = p.projection and f.version = p.live_version
           left join millpond.ends e on e.projection = f.projection and e.version = f.version
                and e.topic = f.topic and e.partition = f.partition
          order by p.projection, f.topic, f.partition",
    )
    .fetch_all(connection)
    .await?;
    let mut found: Vec<ProjectionStatus> = Vec::new();
    for row in rows {
        let name: String = row.try_get("projection")?;
        if found.last().is_none_or(|p| p.projection != name) {
            found.push(ProjectionStatus {
                projection: name,
                version: row.try_get("live_version")?,
                paused: row.try_get("paused")?,
                dead_letters: row.try_get("dead_letters")?,
                parked_keys: row.try_get("parked_keys")?,
                parked_records: row.try_get("parked_records")?,
                outbox: row.try_get("outbox")?,
                outbox_seconds: row.try_get("outbox_seconds")?,
                partitions: Vec::new(),
            });
        }
        if let (Some(topic), Some(last)) = (row.try_get::<Option<String>, _>("topic")?, found.last_mut()) {
            last.partitions.push(PartitionStatus {
                topic,
                partition: row.try_get("partition")?,
                next_offset: row.try_get("next_offset")?,
                end_offset: row.try_get("end_offset")?,
                state: row.try_get("state")?,
                halt_code: row.try_get("halt_code")?,
                halt_reason: row.try_get("halt_reason")?,
                owned: row.try_get("owned")?,
                seen_seconds: row.try_get("seen")?,
                age_seconds: row.try_get("age")?,
                last_error: row.try_get("last_error")?,
                last_error_seconds: row.try_get("last_error_seconds")?,
            });
        }
    }
    Ok(found)
}

/// Seconds since a process that applies the projection has last reported; `None` when none ever has. Each does so every
/// second.
pub async fn silent_seconds(connection: &mut PgConnection, projection: &str) -> Result<Option<f64>, Error> {
    Ok(sqlx::query_scalar(
        "select extract(epoch from now() - max(observed_at))::float8 from millpond.ends where projection = $1",
    )
    .bind(projection)
    .fetch_one(connection)
    .await?)
}

/// Whether an operator has paused a projection.
pub async fn is_paused(connection: &mut PgConnection, projection: &str) -> Result<bool, Error> {
    let paused = sqlx::query_scalar("select paused from millpond.projections where projection = $1")
        .bind(projection)
        .fetch_optional(connection)
        .await?;
    Ok(paused.unwrap_or(false))
}

/// Sets or lifts the pause; false when there is no such projection.
pub async fn set_paused(connection: &mut PgConnection, projection: &str, paused: bool) -> Result<bool, Error> {
    let done = sqlx::query("update millpond.projections set paused = $2 where projection = $1")
        .bind(projection)
        .bind(paused)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// What operators have decided about a projection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Switches {
    pub paused: bool,
    /// Whether the version is one that is kept up to date: it is live, being built, or kept to go back to.
    pub wanted: bool,
    pub live: bool,
    /// Whether the breaker lets everything pass for now.
    pub breaker_rests: bool,
}

pub async fn switches(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Switches, Error> {
    let row = sqlx::query(
        "select p.paused, v.state <> 'retired' as wanted, v.state = 'live' as live, coalesce(p.breaker_rests_until > now(), false) as breaker_rests
           from millpond.projections p join millpond.versions v using (projection)
          where p.projection = $1 and v.version = $2",
    )
    .bind(projection)
    .bind(version)
    .fetch_optional(connection)
    .await?;
    match row {
        None => Ok(Switches::default()),
        Some(row) => Ok(Switches {
            paused: row.try_get("paused")?,
            wanted: row.try_get("wanted")?,
            live: row.try_get("live")?,
            breaker_rests: row.try_get("breaker_rests")?,
        }),
    }
}

/// Has the breaker let everything pass for ten minutes: enough for what is in the log, too short to be forgotten.
pub async fn rest_breaker(connection: &mut PgConnection, projection: &str) -> Result<(), Error> {
    sqlx::query(
        "update millpond.projections set breaker_rests_until = now() + interval '10 minutes' where projection = $1",
    )
    .bind(projection)
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends the halts of a projection, those of versions beside the live one among them; returns how many partitions had halted.
pub async fn end_halts(connection: &mut PgConnection, projection: &str) -> Result<u64, Error> {
    // What led to the halt is no error of the time after it.
    let done = sqlx::query(
        "with ended as (
            update millpond.fences f set state = 'running', halt_code = null, halt_reason = null
             where f.projection = $1 and f.state = 'halted'
            returning f.projection, f.version, f.topic, f.partition),
         forgotten as (
            update millpond.ends e set last_error = null, last_error_at = null from ended
             where (e.projection, e.version, e.topic, e.partition)
                 = (ended.projection, ended.version, ended.topic, ended.partition))
         select count(*) from ended",
    )
    .bind(projection)
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(done.try_get::<i64, _>(0)?).unwrap_or_default())
}

/// What a consumer saw of the end of a partition.
pub struct End {
    pub at: TopicPartition,
    pub end_offset: i64,
    /// What its worker has run into since the last time.
    pub error: Option<String>,
}

/// Notes the ends of partitions, seen just now.
pub async fn note_ends(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    ends: &[End],
) -> Result<(), Error> {
    sqlx::query(
        "insert into millpond.ends (projection, version, topic, partition, end_offset, observed_at, last_error, last_error_at)
         select $1, $2, s.topic, s.partition, s.end_offset, now(), s.error, case when s.error is null then null else now() end
           from unnest($3::text[], $4::int4[], $5::int8[], $6::text[]) as s(topic, partition, end_offset, error)
          order by s.topic, s.partition
         on conflict (projection, version, topic, partition) do update
            set end_offset = excluded.end_offset, observed_at = excluded.observed_at,
                last_error = case when excluded.last_error is not null then excluded.last_error
                                  when ends.last_error_at > now() - interval '1 minute' then ends.last_error end,
                last_error_at = coalesce(excluded.last_error_at, ends.last_error_at)",
    )
    .bind(projection)
    .bind(version)
    .bind(ends.iter().map(|e| e.at.topic.to_string()).collect::<Vec<_>>())
    .bind(ends.iter().map(|e| e.at.partition).collect::<Vec<_>>())
    .bind(ends.iter().map(|e| e.end_offset).collect::<Vec<_>>())
    .bind(ends.iter().map(|e| e.error.as_deref().map(|error| error.replace('\0', ""))).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that the ends of partitions cannot be had, and why. What was seen last stands, with its time.
pub async fn note_silence(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    partitions: &[TopicPartition],
    error: &str,
) -> Result<(), Error> {
    sqlx::query(
        "update millpond.ends e set last_error = $5, last_error_at = now()
           from unnest($3::text[], $4::int4[]) as s(topic, partition)
          where e.projection = $1 and e.version = $2 and e.topic = s.topic and e.partition = s.partition",
    )
    .bind(projection)
    .bind(version)
    .bind(partitions.iter().map(|at| at.topic.to_string()).collect::<Vec<_>>())
    .bind(partitions.iter().map(|at| at.partition).collect::<Vec<_>>())
    .bind(error.replace('\0', ""))
    .execute(connection)
    .await?;
    Ok(())
}

/// How a version is doing as a whole.
pub struct Vitals {
    pub halted_partitions: i64,
    /// Seconds by which the oldest partition's data is old; none while one of them is not known.
    pub age_seconds: Option<f64>,
    pub parked_keys: i64,
    pub parked_records: i64,
}

/// Reads the vitals of a version, over the partitions of all members.
pub async fn vitals(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vitals, Error> {
    let row = sqlx::query(
        "select count(*) filter (where f.state = 'halted') as halted,
                case when bool_and(e.end_offset is not null
                                   and (f.next_offset >= e.end_offset or f.last_timestamp is not null))
                     then max(extract(epoch from now() - case when f.next_offset >= e.end_offset then e.observed_at
                                                              else f.last_timestamp end))::float8 end as age,
                (select count(*) from millpond.parked_keys where projection = $1 and version = $2) as parked_keys,
                (select coalesce(sum(records), 0)::int8 from millpond.parked_keys
                  where projection = $1 and version = $2) as parked_records
           from millpond.fences f
           left join millpond.ends e on e.projection = f.projection and e.version = f.version
                and e.topic = f.topic and e.partition = f.partition
          where f.projection = $1 and f.version = $2",
    )
    .bind(projection)
    .bind(version)
    .fetch_one(connection)
    .await?;
    Ok(Vitals {
        halted_partitions: row.try_get("halted")?,
        age_seconds: row.try_get("age")?,
        parked_keys: row.try_get("parked_keys")?,
        parked_records: row.try_get("parked_records")?,
    })
}

/// What `doctor` wants to know of the server.
pub struct Server {
    /// As `server_version_num` gives it: 150018.
    pub version: i32,
    pub fsync: bool,
    /// Seconds since the Unix epoch.
    pub now: f64,
}

pub async fn server(connection: &mut PgConnection) -> Result<Server, Error> {
    let row = sqlx::query(
        "select current_setting('server_version_num')::int4 as version, current_setting('fsync') = 'on' as fsync,
                extract(epoch from clock_timestamp())::float8 as now",
    )
    .fetch_one(connection)
    .await?;
    Ok(Server { version: row.try_get("version")?, fsync: row.try_get("fsync")?, now: row.try_get("now")? })
}

/// Partitions of the live version that halted because the log was cut before they had applied it.
pub async fn cut_partitions(connection: &mut PgConnection, projection: &str) -> Result<Vec<TopicPartition>, Error> {
    let rows = sqlx::query(
        "select f.topic, f.partition from millpond.fences f
           join millpond.projections p on p.projection = f.projection and p.live_version = f.version
          where f.projection = $1 and f.state = 'halted' and f.halt_code = 'log_was_cut' order by 1, 2",
    )
    .bind(projection)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok(TopicPartition::new(row.try_get::<String, _>("topic")?, row.try_get("partition")?)))
        .collect()
}

/// Moves a halted fence forward to `to`, by an operator's decision; returns where it stood.
pub async fn skip_removed(
    connection: &mut PgConnection,
    projection: &str,
    at: &TopicPartition,
    to: i64,
) -> Result<i64, Error> {
    Ok(sqlx::query_scalar(
        "with before as (
            select f.projection, f.version, f.topic, f.partition, f.next_offset from millpond.fences f
              join millpond.projections p on p.projection = f.projection and p.live_version = f.version
             where f.projection = $1 and f.topic = $2 and f.partition = $3 and f.state = 'halted' for update of f)
         update millpond.fences f
            set next_offset = greatest(f.next_offset, $4), last_offset = null, last_timestamp = null, last_checksum = null
           from before b
          where f.projection = b.projection and f.version = b.version and f.topic = b.topic and f.partition = b.partition
        returning b.next_offset",
    )
    .bind(projection)
    .bind(&*at.topic)
    .bind(at.partition)
    .bind(to)
    .fetch_one(connection)
    .await?)
}
