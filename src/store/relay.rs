//! Who the relay is to Kafka, and how it sends: one row per database.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Error;

/// What sets this database's relay apart from those of others on the same Kafka. Made when it is first asked for.
pub async fn installation(connection: &mut PgConnection) -> Result<Uuid, Error> {
    sqlx::query("insert into millpond.relay default values on conflict do nothing").execute(&mut *connection).await?;
    Ok(sqlx::query_scalar("select installation from millpond.relay").fetch_one(connection).await?)
}

/// Notes how the relay that leads now sends; `reason` says why it is at least once.
pub async fn note(connection: &mut PgConnection, exactly_once: bool, reason: Option<&str>) -> Result<(), Error> {
    // A relay without transactions has not asked who it is.
    sqlx::query(
        "insert into millpond.relay (exactly_once, reason, since) values ($1, $2, now())
         on conflict (one) do update set exactly_once = excluded.exactly_once, reason = excluded.reason, since = now()",
    )
    .bind(exactly_once)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(())
}

/// How the relay that led last has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    ExactlyOnce,
    /// And why.
    AtLeastOnce(String),
}

/// How downstream events are sent; none before a relay has led.
pub async fn delivery(connection: &mut PgConnection) -> Result<Option<Delivery>, Error> {
    // Whoever only looks may come before those who migrate.
    let is_there: bool =
        sqlx::query_scalar("select to_regclass('millpond.relay') is not null").fetch_one(&mut *connection).await?;
    if !is_there {
        return Ok(None);
    }
    let found = sqlx::query("select exactly_once, reason from millpond.relay where exactly_once is not null")
        .fetch_optional(connection)
        .await?;
    let Some(row) = found else { return Ok(None) };
    if row.try_get("exactly_once")? {
        return Ok(Some(Delivery::ExactlyOnce));
    }
    Ok(Some(Delivery::AtLeastOnce(row.try_get::<Option<String>, _>("reason")?.unwrap_or_default())))
}
