//! Versions that are built beside the live one: begun, found again after a crash, given up.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::{Connection, PgConnection, Row};

use super::{
    Error, run,
    versions::{self, Definition},
};
use crate::domain::{TopicPartition, literal};

/// A version that is being built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    pub version: i32,
    /// The one that people read meanwhile.
    pub live: i32,
    /// Whether it was begun before.
    pub resumed: bool,
}

/// Takes the right to build versions of a projection, for as long as the connection is open; false while another
/// process has it.
pub async fn reserve(connection: &mut PgConnection, projection: &str) -> Result<bool, Error> {
    Ok(sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('millpond.build.' || $1, 0))")
        .bind(projection)
        .fetch_one(connection)
        .await?)
}

/// Finds the version that is being built of a definition, or begins one. One of another definition is given up: its folder
/// has changed since. Only who has reserved the projection may ask.
///
/// It is not [loaded](note_loaded) from here on.
pub async fn begin(connection: &mut PgConnection, definition: &Definition<'_>) -> Result<Build, Error> {
    let mut tx = connection.begin().await?;
    let next = versions::lock_to_make(&mut tx, definition.projection).await?;
    let Some(live) = versions::live(&mut tx, definition.projection).await? else {
        return Err(Error::Refused(format!(
            "{0} has no live version that another could be built beside: start a process with the role consume, which reads \
             the log from its start",
            definition.projection
        )));
    };
    let found = keep_only(&mut tx, definition.projection, definition.hash).await?;
    let version = open(&mut tx, definition, found, next).await?;
    tx.commit().await?;
    Ok(Build { version, live, resumed: found.is_some() })
}

/// Notes that a version has been at the end of the log, and has its indexes: now it may be made the live one.
pub async fn note_loaded(connection: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    set_loaded(connection, projection, version, true).await
}

async fn set_loaded(connection: &mut PgConnection, projection: &str, version: i32, loaded: bool) -> Result<(), Error> {
    let of = format!("where projection = {} and version = {version}", literal(projection));
    run(connection, format!("update millpond.versions set loaded = {loaded} {of}")).await
}

/// Goes on with a version that is being built, or makes one of that number.
pub(super) async fn open(
    tx: &mut PgConnection,
    definition: &Definition<'_>,
    found: Option<i32>,
    next: i32,
) -> Result<i32, Error> {
    let Some(version) = found else {
        versions::create(tx, definition, next, "building").await?;
        set_loaded(tx, definition.projection, next, false).await?;
        return Ok(next);
    };
    // Whoever goes on with it means to try again.
    let of = format!("where projection = {} and version = {version}", literal(definition.projection));
    let ended = "set state = 'running', halt_code = null, halt_reason = null";
    run(tx, format!("update millpond.fences {ended} {of} and state = 'halted'")).await?;
    // The log has grown since its ends were seen.
    run(tx, format!("delete from millpond.ends {of}")).await?;
    set_loaded(tx, definition.projection, version, false).await?;
    versions::note_sources(tx, definition, version).await?;
    Ok(version)
}

/// Gives up the versions that are being built, but for one of this definition, if there is one.
pub(super) async fn keep_only(tx: &mut PgConnection, projection: &str, hash: &str) -> Result<Option<i32>, Error> {
    let building =
        sqlx::query("select version, hash from millpond.versions where projection = $1 and state = 'building'")
            .bind(projection)
            .fetch_all(&mut *tx)
            .await?;
    let mut found = None;
    for row in building {
        let version: i32 = row.try_get("version")?;
        if row.try_get::<&str, _>("hash")? == hash && found.is_none() {
            found = Some(version);
        } else {
            give_up(tx, projection, version).await?;
        }
    }
    Ok(found)
}

/// Gives up whatever is being built of a projection; returns which versions that were.
pub async fn give_up_all(connection: &mut PgConnection, projection: &str) -> Result<Vec<i32>, Error> {
    let mut tries = 1;
    loop {
        match try_give_up_all(connection, projection).await {
            // Who appends to its tables has locked them in another order, and we were ended for it: nothing is lost.
            Err(error) if error.sqlstate() == Some("40P01") && tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

/// How often what loses against others is tried.
const TRIES: u32 = 5;

async fn try_give_up_all(connection: &mut PgConnection, projection: &str) -> Result<Vec<i32>, Error> {
    let mut tx = connection.begin().await?;
    versions::lock(&mut tx, projection).await?;
    let building: Vec<i32> = sqlx::query_scalar(
        "select version from millpond.versions where projection = $1 and state = 'building' order by version",
    )
    .bind(projection)
    .fetch_all(&mut *tx)
    .await?;
    for version in &building {
        give_up(&mut tx, projection, *version).await?;
    }
    tx.commit().await?;
    Ok(building)
}

/// Drops a version that was never live, with all that it has set aside or would have sent.
pub async fn give_up(tx: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    versions::retire(tx, projection, version).await?;
    let of = format!("where projection = {} and version = {version}", literal(projection));
    let tables = ["outbox", "dead_letters", "refusals", "fences", "versions"];
    run(tx, tables.map(|table| format!("delete from millpond.{table} {of}")).join(";")).await
}

/// How far a version is on a partition.
#[derive(Debug, Clone)]
pub struct Place {
    pub at: TopicPartition,
    pub next_offset: i64,
    /// As last seen; none before the first look.
    pub end_offset: Option<i64>,
    /// Where it ends; none for one that goes on with the log.
    pub until: Option<i64>,
    pub halted: Option<String>,
}

impl Place {
    /// Where it has to get to, as far as that is known.
    pub fn end(&self) -> Option<i64> {
        self.until.or(self.end_offset)
    }
}

/// Where a version stands on each partition that it has begun with.
pub async fn places(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<Place>, Error> {
    let rows = sqlx::query(
        "select f.topic, f.partition, f.next_offset, e.end_offset,
                case when f.bound_until = 'infinity' then f.bound end as until,
                case when f.state = 'halted' then coalesce(f.halt_reason, f.halt_code, '') end as halted
           from millpond.fences f left join millpond.ends e using (projection, version, topic, partition)
          where f.projection = $1 and f.version = $2 order by f.topic, f.partition",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(connection)
    .await?;
    let place = |row: &sqlx::postgres::PgRow| {
        Ok(Place {
            at: TopicPartition::new(row.try_get::<String, _>("topic")?, row.try_get("partition")?),
            next_offset: row.try_get("next_offset")?,
            end_offset: row.try_get("end_offset")?,
            until: row.try_get("until")?,
            halted: row.try_get("halted")?,
        })
    };
    rows.iter().map(place).collect()
}

/// The epoch of each fence of a version: it grows with every claim.
pub async fn epochs(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
) -> Result<BTreeMap<TopicPartition, i64>, Error> {
    let rows = sqlx::query(
        "select topic, partition, epoch from millpond.fences where projection = $1 and version = $2 and state = 'running'",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(connection)
    .await?;
    let epoch = |row: &sqlx::postgres::PgRow| {
        let at = TopicPartition::new(row.try_get::<String, _>("topic")?, row.try_get("partition")?);
        Ok((at, row.try_get("epoch")?))
    };
    rows.iter().map(epoch).collect()
}

/// The version that is being built of a projection, and the live one.
pub async fn candidate(connection: &mut PgConnection, projection: &str) -> Result<Option<(i32, i32)>, Error> {
    let row = sqlx::query(
        "select p.live_version, max(v.version) as version from millpond.projections p
           join millpond.versions v on v.projection = p.projection and v.state = 'building'
          where p.projection = $1 and p.live_version is not null group by 1",
    )
    .bind(projection)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok((row.try_get("version")?, row.try_get("live_version")?))).transpose()
}

/// Whether a version is being built, or is one to try things with.
pub async fn is_open(connection: &mut PgConnection, projection: &str, version: i32) -> Result<bool, Error> {
    let found = sqlx::query(
        "select from millpond.versions where projection = $1 and version = $2 and state in ('building', 'scratch')",
    )
    .bind(projection)
    .bind(version)
    .fetch_optional(connection)
    .await?;
    Ok(found.is_some())
}

/// Writes down how fast a version was built, for who plans the next.
pub async fn note_rate(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    per_second: f64,
) -> Result<(), Error> {
    sqlx::query("update millpond.versions set build_rate = $3 where projection = $1 and version = $2")
        .bind(projection)
        .bind(version)
        .bind(per_second)
        .execute(connection)
        .await?;
    Ok(())
}

/// The live projection that is the furthest behind, of those at work on records that came so many seconds ago or
/// earlier.
pub async fn furthest_behind(connection: &mut PgConnection, seconds: f64) -> Result<Option<String>, Error> {
    Ok(sqlx::query_scalar(
        "select p.projection
           from millpond.projections p
           join millpond.fences f on f.projection = p.projection and f.version = p.live_version
           join millpond.ends e on e.projection = f.projection and e.version = f.version and e.topic = f.topic
                and e.partition = f.partition
          where f.state = 'running' and f.owner is not null and not p.paused and e.end_offset > f.next_offset
            and f.last_timestamp < now() - make_interval(secs => $1) and f.applied_at > now() - interval '10 s'
          order by f.last_timestamp limit 1",
    )
    .bind(seconds)
    .fetch_optional(connection)
    .await?)
}

/// A version beside the live one, as `status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Beside {
    #[serde(skip)]
    pub projection: String,
    pub version: i32,
    /// `building`, `standby` or `scratch`.
    pub state: String,
    /// Records between its fences and the ends of its partitions, as last seen.
    pub lag: Option<i64>,
    /// Records that lie behind its fences.
    #[serde(skip)]
    pub passed: i64,
    #[serde(skip)]
    pub halted: i64,
    /// When a standby or scratch version is removed.
    pub kept_until: Option<String>,
    pub halt_reason: Option<String>,
}

/// All of them, by projection and version.
pub async fn beside(connection: &mut PgConnection) -> Result<Vec<Beside>, Error> {
    let rows = sqlx::query(
        "select v.projection, v.version, v.state,
                case when bool_and(e.end_offset is not null) then sum(greatest(e.end_offset - f.next_offset, 0))::int8 end as lag,
                coalesce(sum(f.next_offset), 0)::int8 as passed, count(*) filter (where f.state = 'halted') as halted,
                to_char(v.kept_until, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as kept_until, min(f.halt_reason) as halt_reason
           from millpond.versions v
           left join millpond.fences f on f.projection = v.projection and f.version = v.version
           left join millpond.ends e on e.projection = f.projection and e.version = f.version and e.topic = f.topic
                and e.partition = f.partition
          where v.state in ('building', 'standby', 'scratch') group by v.projection, v.version order by 1, 2",
    )
    .fetch_all(connection)
    .await?;
    let beside = |row: &sqlx::postgres::PgRow| {
        Ok(Beside {
            projection: row.try_get("projection")?,
            version: row.try_get("version")?,
            state: row.try_get("state")?,
            lag: row.try_get("lag")?,
            passed: row.try_get("passed")?,
            halted: row.try_get("halted")?,
            kept_until: row.try_get("kept_until")?,
            halt_reason: row.try_get("halt_reason")?,
        })
    };
    rows.iter().map(beside).collect()
}
