//! Who the relay is to Kafka, and how it sends: one row per database.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Error;

/// What sets this database's relay apart from those of others on the same Kafka. Made when it is first asked for.
pub async fn installation(connection: &mut PgConnection) -> Result<Uuid, Error> {
    sqlx::query("insert into millpond.relay default values on conflict do nothing").execute(&mut *connection).await?;
    Ok(sqlx::query_scalar("select installation from millpond.relay").fetch_one(connection).await?)
}

/// Notes how the relay that leads now sends.
pub async fn note(connection: &mut PgConnection, delivery: &Delivery) -> Result<(), Error> {
    let (exactly_once, reason) = match delivery {
        Delivery::ExactlyOnce => (Some(true), None),
        Delivery::AtLeastOnce(why) => (Some(false), Some(why)),
        Delivery::NotAtAll(why) => (None, Some(why)),
    };
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
    /// And why; a person has to mend it.
    NotAtAll(String),
}

/// How downstream events are sent; none before a relay has led.
pub async fn delivery(connection: &mut PgConnection) -> Result<Option<Delivery>, Error> {
    // Whoever only looks may come before those who migrate.
    let is_there: bool =
        sqlx::query_scalar("select to_regclass('millpond.relay') is not null").fetch_one(&mut *connection).await?;
    if !is_there {
        return Ok(None);
    }
    let found = sqlx::query("select exactly_once, reason from millpond.relay").fetch_optional(connection).await?;
    let Some(row) = found else { return Ok(None) };
    let reason: Option<String> = row.try_get("reason")?;
    Ok(match row.try_get("exactly_once")? {
        Some(true) => Some(Delivery::ExactlyOnce),
        Some(false) => Some(Delivery::AtLeastOnce(reason.unwrap_or_default())),
        None => reason.map(Delivery::NotAtAll),
    })
}
