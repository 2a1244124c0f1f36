//! Faults of Postgres and of the way to it.

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Fault, Field};
use crate::proxy::{Action, Pattern, Trap};

/// Whose connections apply batches.
const APPLYING: &str = "millpond consume";
const FLUSH: &str = "millpond.advance_fence(";

/// P1: the whole server dies, or one backend, which takes all others with it.
pub async fn killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let before = field.epochs().await.context("Postgres is there")?;
    if field.random.below(2) == 0 {
        let injected = field.begin("kill -9 of Postgres with all its backends").await?;
        tokio::task::block_in_place(|| field.servers.postgres.kill_9())?;
        let outage = field.outage(0, 2);
        tokio::time::sleep(outage).await;
        tokio::task::block_in_place(|| field.servers.postgres.restart())?;
        let observed = field.claimed_since(before).await;
        let recovery = field.recovery(injected.at).await;
        return Ok(field.end(injected, observed, recovery));
    }
    let pid = backend(field).await?;
    let injected = field.begin("kill -9 of a backend that applies batches").await?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let observed = field.claimed_since(before).await;
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// A backend at work for a consumer, else one that idles for it.
async fn backend(field: &Field<'_>) -> anyhow::Result<i32> {
    let sql = "select pid from pg_stat_activity
                where datname = current_database() and application_name like 'millpond consume %'
                order by (state = 'active') desc, random() limit 1";
    let mut connection = field.arena.connect().await?;
    Ok(sqlx::query_scalar(sql).fetch_one(&mut connection).await?)
}

/// P2: around a batch's COMMIT the connection is lost, so that nobody knows what became of it.
pub async fn commit_lost(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let ways = [
        ("the answer of a COMMIT is swallowed", Pattern::Done { tag: "COMMIT", of: FLUSH }, Action::SwallowAndCut),
        ("a flush with its COMMIT is swallowed", Pattern::Sent(FLUSH), Action::SwallowAndCut),
        ("the connection is cut behind a flush", Pattern::Sent(FLUSH), Action::PassAndCut),
    ];
    let (what, pattern, action) = field.random.pick(&ways).clone();
    let before = field.epochs().await.context("Postgres is there")?;
    let slots = field.arena.of_role("consume");
    let injected = field.begin(what).await?;
    let traps: Vec<Trap> = slots
        .iter()
        .map(|slot| {
            let trap = Trap::new(APPLYING, pattern.clone(), action);
            field.arena.slots[*slot].postgres.set(&trap);
            trap
        })
        .collect();
    let claimed = field.claimed_since(before).await;
    let sprung = traps.iter().filter(|trap| trap.has_sprung()).count();
    for slot in slots {
        field.arena.slots[slot].postgres.heal();
    }
    let observed = claimed.filter(|_| sprung > 0).map(|claimed| format!("{sprung} connections cut, {claimed}"));
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// P3: Postgres is stopped in good order, at once or for a while; writes go on.
pub async fn restarted(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let before = field.epochs().await.context("Postgres is there")?;
    let outage = if field.random.below(2) == 0 { Duration::ZERO } else { field.outage(5, 10) };
    let injected = field.begin(format!("Postgres is stopped for {outage:?}")).await?;
    tokio::task::block_in_place(|| field.servers.postgres.stop())?;
    let acknowledged = field.workload.acknowledged();
    tokio::time::sleep(outage).await;
    let meanwhile = field.workload.acknowledged() - acknowledged;
    tokio::task::block_in_place(|| field.servers.postgres.restart())?;
    let claimed = field.claimed_since(before).await;
    let observed = claimed.map(|claimed| format!("{meanwhile} values acknowledged meanwhile, {claimed}"));
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}
