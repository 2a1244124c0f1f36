//! Scratch versions: a part of the log applied to tables that nobody reads. Never swapped, and gone after a while.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

use super::{
    Error, builds,
    versions::{self, Definition},
};
use crate::domain::TopicPartition;

/// What is read of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub at: TopicPartition,
    pub from: i64,
    /// First offset that is not read any more; none to go on with the log.
    pub until: Option<i64>,
}

/// What is left by somebody who was interrupted goes after so long.
const LEFT: Duration = Duration::from_secs(86_400);

/// Makes a version whose fences stand where the parts begin and go no further than they end.
pub async fn begin(connection: &mut PgConnection, definition: &Definition<'_>, parts: &[Part]) -> Result<i32, Error> {
    let mut tx = connection.begin().await?;
    let version = versions::lock_to_make(&mut tx, definition.projection).await?;
    versions::create(&mut tx, definition, version, "scratch").await?;
    sqlx::query(
        "with kept as (update millpond.versions set kept_until = now() + make_interval(secs => $3)
                        where projection = $1 and version = $2)
         insert into millpond.fences (projection, version, topic, partition, next_offset, bound, bound_until)
         select $1, $2, p.topic, p.partition, p.first, p.bound, case when p.bound is not null then 'infinity'::timestamptz end
           from unnest($4::text[], $5::int4[], $6::int8[], $7::int8[]) as p(topic, partition, first, bound)",
    )
    .bind(definition.projection)
    .bind(version)
    .bind(LEFT.as_secs_f64())
    .bind(parts.iter().map(|part| part.at.topic.to_string()).collect::<Vec<_>>())
    .bind(parts.iter().map(|part| part.at.partition).collect::<Vec<_>>())
    .bind(parts.iter().map(|part| part.from).collect::<Vec<_>>())
    .bind(parts.iter().map(|part| part.until).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(version)
}

/// Says for how long a version stays from now on.
pub async fn keep(connection: &mut PgConnection, projection: &str, version: i32, keep: Duration) -> Result<(), Error> {
    sqlx::query(
        "update millpond.versions set kept_until = now() + make_interval(secs => $3)
          where projection = $1 and version = $2 and state = 'scratch'",
    )
    .bind(projection)
    .bind(version)
    .bind(keep.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(())
}

/// The scratch versions of a projection.
pub async fn scratch(connection: &mut PgConnection, projection: &str) -> Result<Vec<i32>, Error> {
    Ok(sqlx::query_scalar(
        "select version from millpond.versions where projection = $1 and state = 'scratch' order by version",
    )
    .bind(projection)
    .fetch_all(connection)
    .await?)
}

/// Removes one of them.
///
/// # Errors
/// [`Error::NeededByOthers`] where something of somebody else's depends on it; a lock timeout while somebody reads it.
pub async fn remove(connection: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    let mut tx = connection.begin().await?;
    versions::lock(&mut tx, projection).await?;
    builds::give_up(&mut tx, projection, version).await?;
    Ok(tx.commit().await?)
}

/// What a version would have sent, by record type; mirrors of dead letters left out.
pub async fn emitted(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
) -> Result<Vec<(String, i64)>, Error> {
    let rows = sqlx::query(
        "select record_type, count(*) from millpond.outbox
          where projection = $1 and version = $2 and index >= 0 group by 1 order by 1",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// What a version has set aside, by class.
pub async fn set_aside(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
) -> Result<Vec<(String, i64)>, Error> {
    let rows = sqlx::query(
        "select reason_class, count(*) from millpond.dead_letters where projection = $1 and version = $2 group by 1 order by 1",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// How many rows a table of a version has.
pub async fn rows(connection: &mut PgConnection, table: &str) -> Result<i64, Error> {
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}"))).fetch_one(connection).await?)
}
