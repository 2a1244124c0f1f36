//! Faults of the relay between the outbox and Kafka.

use std::time::Duration;

use super::{Fault, Field};
use crate::proxy::{Action, Pattern, Trap};

/// The relay's connection, and how it says that events have left.
const RELAY: &str = "millpond publish";
const REMOVAL: &str = "delete from millpond.outbox";

/// O1: the relay dies when Kafka has acknowledged its events and the outbox still has them.
pub async fn relay_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("publish")?;
    let trap = Trap::new(RELAY, Pattern::Sent(REMOVAL), Action::Hold);
    field.arena.slots[slot].postgres.set(&trap);
    let sprung = trap.sprung(Duration::from_secs(20)).await;
    let injected = field.begin("kill -9 of the relay: acknowledged by Kafka, still in the outbox").await?;
    field.arena.kill_9(slot);
    let left = pending(field).await;
    field.start(slot)?;
    let recovery = field.recovery(injected.at).await;
    let observed = (sprung && left > 0).then(|| format!("{left} events in the outbox, some of them sent"));
    Ok(field.end(injected, observed, recovery))
}

pub(super) async fn pending(field: &Field<'_>) -> i64 {
    let Ok(mut connection) = field.arena.connect().await else { return 0 };
    sqlx::query_scalar("select count(*) from millpond.outbox").fetch_one(&mut connection).await.unwrap_or(0)
}
