//! Faults of the relay between the outbox and Kafka.

use std::time::{Duration, Instant};

use super::kafka::wait_until;
use super::{Fault, Field};
use crate::proxy::{Action, Effect, Pattern, Trap};

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

/// What brokers and the proxy before them call the relay's clients.
const RELAY_CLIENTS: &str = "millpond-relay";
/// Rows that wait when the relay keeps up: what comes within a transaction's time.
const KEPT_UP: i64 = 100;
/// When what waits is counted, at the latest, also while the relay waits for something else.
const COUNTS_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to bring away what has waited.
const DRAINS_WITHIN: Duration = Duration::from_secs(60);

/// O2: the relay cannot reach Kafka, and everybody else can. The outbox grows by what is emitted, says so, and empties.
pub async fn relay_cut_off(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let outage = field.outage(20, 28);
    let before = pending(field).await;
    let injected = field.begin(format!("Kafka is away for the relay alone, for {outage:?}")).await?;
    let acknowledged = field.workload.acknowledged();
    let rules: Vec<_> = field.servers.nodes.iter().map(|node| node.apply(RELAY_CLIENTS, Effect::Refuse)).collect();
    for node in &field.servers.nodes {
        node.cut(RELAY_CLIENTS);
    }
    wait_until(field, injected.at, outage).await;
    let (waiting, told) = (pending(field).await, metric(field).await);
    let meanwhile = field.workload.acknowledged() - acknowledged;
    for (node, rule) in field.servers.nodes.iter().zip(&rules) {
        node.lift(rule);
    }
    let lifted = Instant::now();
    let mut left = waiting;
    while left > KEPT_UP && lifted.elapsed() < DRAINS_WITHIN {
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = pending(field).await;
    }
    let took = lifted.elapsed();
    let rate = (waiting - left) as f64 / took.as_secs_f64();
    let observed = format!(
        "{before} rows grew to {waiting} ({told:?} by the metric), {meanwhile} values acknowledged meanwhile; \
         drained in {took:.1?}, {rate:.0} rows a second"
    );
    let mut wrong = Vec::new();
    if left > KEPT_UP {
        wrong.push(format!("{left} rows still wait {took:.1?} after Kafka was back"));
    }
    if meanwhile == 0 {
        wrong.push("nothing was acknowledged while only the relay was cut off".to_owned());
    }
    if outage > COUNTS_WITHIN && told.is_none_or(|told| told < waiting as f64 / 4.0) {
        wrong.push(format!("{waiting} rows waited, and the metric said {told:?}"));
    }
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, (waiting > before + KEPT_UP).then_some(observed), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// How many rows the relay itself says that wait.
async fn metric(field: &Field<'_>) -> Option<f64> {
    let slot = *field.arena.of_role("publish").first()?;
    let web = field.arena.slots[slot].web.borrow().clone()?;
    let answer = web.try_get("/metrics", &[]).await.ok()?;
    let line = answer.text.lines().find(|line| line.starts_with("millpond_outbox_pending_messages"))?;
    line.rsplit(' ').next()?.parse().ok()
}
