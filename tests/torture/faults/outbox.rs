//! Faults of the relay between the outbox and Kafka.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::kafka::wait_until;
use super::{Fault, Field, SHOWS_WITHIN};
use crate::proxy::{Action, Effect, Pattern, Trap};

/// The relay's connection, and how it says that events have left.
const RELAY: &str = "millpond publish";
const REMOVAL: &str = "delete from millpond.outbox";
/// What the second relay is called.
const SECOND: &str = "publish-2";

/// O1: the relay dies when Kafka has acknowledged its events and the outbox still has them; or it is frozen there, another
/// one takes over, and it wakes.
pub async fn relay_gone(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    if field.way(&[true, false]) { relay_killed(field).await } else { relay_frozen(field).await }
}

/// The relay that leads, caught when Kafka has acknowledged its events.
async fn caught(field: &mut Field<'_>) -> anyhow::Result<usize> {
    let slots = field.arena.of_role("publish");
    let traps: Vec<Trap> = slots.iter().map(|_| Trap::new(RELAY, Pattern::Sent(REMOVAL), Action::Hold)).collect();
    for (slot, trap) in slots.iter().zip(&traps) {
        field.arena.slots[*slot].postgres.set(trap);
    }
    let begun = Instant::now();
    loop {
        if let Some(at) = traps.iter().position(Trap::has_sprung) {
            for slot in slots.iter().filter(|slot| **slot != slots[at]) {
                field.arena.slots[*slot].postgres.heal();
            }
            return Ok(slots[at]);
        }
        ensure!(begun.elapsed() < COUNTS_WITHIN * 2, "no relay has sent anything within {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn relay_frozen(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let known = field.arena.slots.iter().position(|slot| slot.name == SECOND);
    match known {
        Some(slot) if field.arena.slots[slot].process.is_some() => {}
        Some(slot) => field.start(slot)?,
        None => drop(field.arena.add(field.servers, SECOND, "publish", &["kafka.client_id=millpond-relay"]).await?),
    }
    field.note_pids();
    let slot = caught(field).await?;
    let other = field.arena.of_role("publish").into_iter().find(|other| *other != slot).context("another relay")?;
    let what = format!("SIGSTOP of {}: acknowledged by Kafka, still in the outbox", field.arena.slots[slot].name);
    let injected = field.begin(what).await?;
    field.arena.slots[slot].process.as_ref().context("it runs")?.pause();
    // As a network does that goes away: its session ends, and with it its right to lead.
    field.arena.slots[slot].postgres.cut("");
    let left = pending(field).await;
    let begun = Instant::now();
    let mut led = None;
    while led.is_none() && begun.elapsed() < SHOWS_WITHIN {
        led = value(field, other, "millpond_outbox_leading").await.filter(|leads| *leads > 0.0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = begun.elapsed();
    let recovery = field.recovery(injected.at).await;
    field.arena.slots[slot].process.as_ref().context("it runs")?.cont();
    field.arena.slots[slot].postgres.heal();
    let observed =
        led.map(|_| format!("{left} events in the outbox, some of them sent; another led after {after:.1?}"));
    Ok(field.end(injected, observed.filter(|_| left > 0), recovery))
}

async fn relay_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = caught(field).await?;
    let injected = field.begin("kill -9 of the relay: acknowledged by Kafka, still in the outbox").await?;
    field.arena.kill_9(slot);
    let left = pending(field).await;
    field.start(slot)?;
    let recovery = field.recovery(injected.at).await;
    let observed = (left > 0).then(|| format!("{left} events in the outbox, some of them sent"));
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
    value(field, *field.arena.of_role("publish").first()?, "millpond_outbox_pending_messages").await
}

/// The value of a metric without labels.
pub(super) async fn value(field: &Field<'_>, slot: usize, name: &str) -> Option<f64> {
    let web = field.arena.slots[slot].web.borrow().clone()?;
    let answer = web.try_get("/metrics", &[]).await.ok()?;
    let line = answer.text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}
