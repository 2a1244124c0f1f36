//! Faults for what few others meet: a promise is broken for a moment only, and this is that moment.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::Row as _;

use super::consumer::Flush;
use super::kafka::{CLIENTS, a_leader, kill, moved, restart, wait_until};
use super::{Fault, Field, SHOWS_WITHIN};
use crate::proxy::{Direction, Effect};

/// How long a table is not written, and a row of it then held: each is less than a batch waits for a lock.
const PILING_UP: Duration = Duration::from_millis(3500);
const HELD: Duration = Duration::from_millis(2000);

/// C13: a consumer is frozen with a batch staged and the message that commits it on its way; that arrives when somebody else
/// has claimed the partition and not yet moved its fence. Only the owner tells the two apart.
pub async fn message_before_the_first(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("consume")?;
    let (trap, flush) = Flush::catch(field, slot).await?;
    let name = field.arena.slots[slot].name.clone();
    let injected =
        field.begin(format!("SIGSTOP of {name} with a flush on its way, which arrives after a claim")).await?;
    let (epoch, _) = fence(field, &flush).await.context("Postgres is there")?;
    field.arena.slots[slot].process.as_ref().context("it runs")?.pause();
    let begun = Instant::now();
    let mut between = None;
    while between.is_none() && begun.elapsed() < SHOWS_WITHIN {
        between = fence(field, &flush).await.filter(|(now, _)| *now > epoch);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    trap.release();
    let after = begun.elapsed().as_secs_f64();
    let recovery = field.recovery(injected.at).await;
    field.arena.slots[slot].process.as_ref().context("it runs")?.cont();
    field.arena.slots[slot].postgres.heal();
    let observed = between.filter(|(_, at)| *at == flush.from).map(|(now, at)| {
        let Flush { projection, partition, .. } = &flush;
        format!("{projection} on {partition} was claimed in epoch {now} after {after:.1} s and stood at {at} when it arrived")
    });
    Ok(field.end(injected, observed, recovery))
}

/// Epoch and place of the fence that a flush is to move.
async fn fence(field: &Field<'_>, flush: &Flush) -> Option<(i64, i64)> {
    let sql = "select epoch, next_offset from millpond.fences where projection = $1 and topic = $2 and partition = $3";
    let mut connection = field.arena.connect().await.ok()?;
    let query = sqlx::query(sql).bind(&flush.projection).bind(&flush.topic).bind(flush.partition);
    let row = query.fetch_one(&mut connection).await.ok()?;
    Some((row.get(0), row.get(1)))
}

/// K16: both followers are frozen, for less than it takes to be taken out of the in-sync replicas; then their leader dies
/// and they thaw. Whatever the leader had alone is gone.
pub async fn leader_alone(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (node, partitions) = a_leader(field).await?;
    let followers: Vec<i32> = (1..=3).filter(|other| *other != node).collect();
    let frozen = field.outage(2, 3).min(Duration::from_secs(4));
    let outage = field.outage(4, 6);
    let what =
        format!("SIGSTOP of brokers {followers:?} for {frozen:?}, then kill -9 of {node}, which leads {partitions:?}");
    let injected = field.begin(what).await?;
    for follower in &followers {
        field.servers.kafka.node(*follower).context("a node")?.pause()?;
    }
    tokio::time::sleep(frozen).await;
    kill(field, &[node])?;
    for follower in &followers {
        field.servers.kafka.node(*follower).context("a node")?.cont()?;
    }
    let observed = moved(field, &field.arena.topics.appends, injected.at, node, &partitions).await;
    wait_until(field, injected.at, outage).await;
    restart(field, &[node])?;
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// I8: an ingest node dies while nothing of what it sends reaches Kafka.
pub async fn ingest_gone_unheard(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("ingest")?;
    let name = field.arena.slots[slot].name.clone();
    // Less than members of groups may be silent.
    let unheard = Duration::from_millis(field.random.between(600, 1200));
    let injected = field.begin(format!("nothing reaches Kafka for {unheard:?}, then kill -9 of {name}")).await?;
    let rules: Vec<_> =
        field.servers.nodes.iter().map(|proxy| proxy.apply(CLIENTS, Effect::Drop(Direction::ToServer))).collect();
    tokio::time::sleep(unheard).await;
    field.arena.kill_9(slot);
    let touched: u64 = rules.iter().map(|rule| rule.touched()).sum();
    for (proxy, rule) in field.servers.nodes.iter().zip(&rules) {
        // What was thrown away leaves connections out of step: they go before anything passes again.
        proxy.cut(CLIENTS);
        proxy.lift(rule);
    }
    let outage = field.outage(1, 2);
    tokio::time::sleep(outage).await;
    field.start(slot)?;
    let recovery = field.recovery(injected.at).await;
    let observed = (touched > 0).then(|| format!("{touched} pieces thrown away, and it was gone for {outage:.1?}"));
    Ok(field.end(injected, observed, recovery))
}

/// O3: the relay dies with events on their way, at any moment, so mostly inside a transaction.
pub async fn relay_killed_anywhere(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("publish")?;
    let begun = Instant::now();
    let mut pending = 0;
    while pending == 0 && begun.elapsed() < SHOWS_WITHIN {
        pending = super::outbox::pending(field).await;
    }
    let pause = Duration::from_millis(field.random.below(250));
    tokio::time::sleep(pause).await;
    let injected = field.begin(format!("kill -9 of the relay {pause:?} after events began to wait")).await?;
    field.arena.kill_9(slot);
    let left = super::outbox::pending(field).await;
    field.start(slot)?;
    let recovery = field.recovery(injected.at).await;
    let observed = (pending > 0).then(|| format!("{pending} events waited before, {left} after"));
    Ok(field.end(injected, observed, recovery))
}

/// P13: a stranger holds a row that partitions share, so that batches of several partitions wait at once, each with about
/// half of its rows written. Written in one order, they wait for each other, and never in a circle. Before that nobody may
/// write for a while: records pile up, so that each batch has nearly every row.
pub async fn shared_rows_held(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let rounds = field.random.between(2, 3);
    let what =
        format!("{rounds} times a table is not written for {PILING_UP:?}, then a row of it is held for {HELD:?}");
    let injected = field.begin(what).await?;
    let mut most = 0;
    for _ in 0..rounds {
        let mut all = field.arena.connect().await?;
        sqlx::raw_sql("begin; lock table p_amounts_v1.amounts in share mode").execute(&mut all).await?;
        tokio::time::sleep(PILING_UP).await;
        let mut one = field.arena.connect().await?;
        sqlx::raw_sql("begin; select 1 from p_amounts_v1.amounts where amount = 50 for update")
            .execute(&mut one)
            .await?;
        sqlx::raw_sql("commit").execute(&mut all).await?;
        most = most.max(super::postgres::waiting_for_locks(field, HELD).await);
        sqlx::raw_sql("commit").execute(&mut one).await?;
    }
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, (most > 1).then(|| format!("{most} sessions waited at once")), recovery))
}
