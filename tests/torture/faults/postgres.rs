//! Faults of Postgres and of the way to it.

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::AssertSqlSafe;

use super::measure::Mark;
use super::{Fault, Field};
use crate::proxy::{Action, Direction, Effect, Pattern, Trap};

/// Whose connections apply batches.
const APPLYING: &str = "millpond consume";
const FLUSH: &str = "millpond.advance_fence(";
/// A port on which nobody listens.
const NOBODY: u16 = 1;
/// Deadlocks that a stranger has brought about are not Millpond's: check 13 finds the others.
const FORGET_DEADLOCKS: &str = "select pg_stat_reset()";

/// P1: the whole server dies, or one backend, which takes all others with it.
pub async fn killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let before = field.epochs().await.context("Postgres is there")?;
    if field.way(&[true, false]) {
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
    let (what, pattern, action) = field.way(&[&ways[0], &ways[1], &ways[2]]).clone();
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
    let outage = if field.way(&[true, false]) { Duration::ZERO } else { field.outage(5, 10) };
    let injected = field.begin(format!("Postgres is stopped for {outage:?}")).await?;
    tokio::task::block_in_place(|| field.servers.postgres.stop())?;
    let acknowledged = field.workload.acknowledged();
    tokio::time::sleep(outage).await;
    let meanwhile = field.workload.acknowledged() - acknowledged;
    tokio::task::block_in_place(|| field.servers.postgres.restart())?;
    let claimed = field.claimed_since(before).await;
    let observed = claimed.map(|claimed| format!("{meanwhile} values acknowledged meanwhile, {claimed}"));
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, observed, recovery);
    if meanwhile == 0 && outage > Duration::from_secs(3) {
        fault.wrong.push("nothing was acknowledged while only Postgres was away".to_owned());
    }
    Ok(fault)
}

/// P5: the primary dies and a standby that lags takes its place. What it had not received is gone, and is applied again.
pub async fn failed_over(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    field.servers.ensure_standby()?;
    let lag = field.outage(1, 4);
    let stall = field.servers.replication.apply("", Effect::Stall(Direction::ToClient));
    tokio::time::sleep(lag).await;
    let injected = field.begin(format!("failover to a standby that lags by {lag:?}")).await?;
    let before = applied(field).await?;
    field.servers.fail_over().await?;
    let after = applied(field).await?;
    field.servers.replication.lift(&stall);
    let epochs = field.epochs().await.context("the standby is there")?;
    field.arena.follow_primary(field.servers)?;
    let claimed = field.claimed_since(epochs).await;
    let lost = before - after;
    let observed = claimed.filter(|_| lost > 0).map(|claimed| format!("{lost} steps of fences lost, {claimed}"));
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// How far all fences are, together.
async fn applied(field: &Field<'_>) -> anyhow::Result<i64> {
    let mut connection = field.arena.connect().await?;
    let sql = "select coalesce(sum(next_offset), 0)::int8 from millpond.fences";
    Ok(sqlx::query_scalar(sql).fetch_one(&mut connection).await?)
}

/// P4: Postgres acknowledges commits before they are on disk, and dies: rows and fences go back together.
pub async fn unflushed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let mut connection = field.arena.connect().await?;
    // The server's command line says otherwise; of a database it is believed, by new sessions.
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&mut connection).await?;
    let setting = format!("alter database {database} set synchronous_commit = off");
    let anew = "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and application_name like 'millpond %'";
    for sql in [setting.as_str(), anew] {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
    }
    field.recovery(field.history.now()).await;
    // Whoever commits wakes the one that writes; what the kernel was given would outlive the death of processes.
    let writer = "select pid from pg_stat_activity where backend_type = 'walwriter'";
    let writer: i32 = sqlx::query_scalar(writer).fetch_one(&mut connection).await?;
    drop(connection);
    kill(Pid::from_raw(writer), Signal::SIGSTOP)?;
    let pause = field.outage(1, 3);
    tokio::time::sleep(pause).await;
    let injected = field.begin("kill -9 of Postgres with commits that are not on disk").await?;
    let (before, epochs) = (applied(field).await?, field.epochs().await.context("Postgres is there")?);
    tokio::task::block_in_place(|| field.servers.postgres.kill_9())?;
    // What was lost is done again at once: it is looked at before anybody can.
    field.arena.slots.iter().for_each(|slot| slot.postgres.forward_to(NOBODY));
    tokio::task::block_in_place(|| field.servers.postgres.restart())?;
    let lost = before - applied(field).await?;
    field.arena.follow_primary(field.servers)?;
    let claimed = field.claimed_since(epochs).await;
    // Unless something was lost this was P1.
    let observed = claimed.filter(|_| lost > 0).map(|claimed| format!("{lost} steps of fences lost, {claimed}"));
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// P6: Postgres answers late, or not at all for a while, though nothing is broken: locked tables, a slow way.
pub async fn slow(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let outage = field.outage(6, 12);
    let dead = dead_letters(field).await?;
    if field.way(&[true, false]) {
        let injected = field.begin(format!("a table is locked for {outage:?}")).await?;
        let mut holder = field.arena.connect().await?;
        // Not the fences: who holds these for four seconds is ended by the next claim, as it should be.
        sqlx::raw_sql("begin; lock table p_chains_v1.chains in access exclusive mode").execute(&mut holder).await?;
        let waiting = waiting_for_locks(field, outage).await;
        sqlx::raw_sql("commit").execute(&mut holder).await?;
        let recovery = field.recovery(injected.at).await;
        let added = dead_letters(field).await? - dead;
        let observed = (waiting > 0).then(|| format!("{waiting} sessions waited, {added} dead letters meanwhile"));
        return Ok(field.end(injected, observed, recovery));
    }
    let injected = field.begin(format!("every answer of Postgres is 100 to 300 ms late for {outage:?}")).await?;
    let (least, most) = (Duration::from_millis(100), Duration::from_millis(300));
    let slots = &field.arena.slots;
    let rules: Vec<_> = slots.iter().map(|slot| slot.postgres.apply("", Effect::Latency { least, most })).collect();
    tokio::time::sleep(outage).await;
    for (slot, rule) in field.arena.slots.iter().zip(&rules) {
        slot.postgres.lift(rule);
    }
    let touched: u64 = rules.iter().map(|rule| rule.touched()).sum();
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, (touched > 0).then(|| format!("{touched} pieces late")), recovery))
}

/// Most sessions that were seen to wait for a lock while time went by.
pub(super) async fn waiting_for_locks(field: &Field<'_>, during: Duration) -> i64 {
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let (begun, mut most) = (std::time::Instant::now(), 0);
    while begun.elapsed() < during {
        if let Ok(mut connection) = field.arena.connect().await {
            let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap_or(0);
            most = most.max(waiting);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    most
}

/// How many appended values Postgres has refused, those that an operator has decided about since among them.
pub(super) async fn dead_letters(field: &Field<'_>) -> anyhow::Result<i64> {
    let sql = "select (select count(*) from millpond.dead_letters
                        where projection = 'appends' and reason_class = 'refused_by_postgres')
                    + (select count(*) from millpond.verdicts
                        where projection = 'appends' and class = 'refused_by_postgres')";
    let mut connection = field.arena.connect().await?;
    Ok(sqlx::query_scalar(sql).fetch_one(&mut connection).await?)
}

/// P8: a stranger takes every connection that there is.
pub async fn exhausted(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let outage = field.outage(4, 8);
    let mark = Mark::now(field.arena);
    let injected = field.begin(format!("a stranger takes all connections for {outage:?}, and ours are cut")).await?;
    let mut taken = Vec::new();
    for slot in &field.arena.slots {
        slot.postgres.cut("");
    }
    let begun = std::time::Instant::now();
    while begun.elapsed() < outage {
        // Many at once, or ours would be back before there are enough.
        let asked = futures_util::future::join_all((0..25).map(|_| field.arena.connect())).await;
        taken.extend(asked.into_iter().flatten());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let count = taken.len();
    drop(taken);
    let recovery = field.recovery(injected.at).await;
    let told = |line: &&String| line.contains("too many clients") || line.contains("remaining connection slots");
    let refused = mark.since(field.arena).iter().filter(told).count();
    let observed =
        (refused > 0).then(|| format!("{count} connections taken, and ours say {refused} times that there is none"));
    Ok(field.end(injected, observed, recovery))
}

/// P9: somebody locks rows that a batch writes in the other order: Postgres ends one of the two.
pub async fn deadlocked(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let injected = field.begin("sessions that lock lists in the reverse order of their keys").await?;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    let mut connection = field.arena.connect().await?;
    let before: i64 = sqlx::query_scalar(deadlocks).fetch_one(&mut connection).await?;
    let outage = field.outage(6, 10);
    let begun = std::time::Instant::now();
    let mut victims = 0;
    while begun.elapsed() < outage {
        // Key by key, with the locks kept: as an application would that knows nothing of ours.
        let sql = "do $$ declare r record; begin
                     for r in select key from live.chains order by key desc limit 400 loop
                       perform 1 from p_chains_v1.chains where key = r.key for update;
                       perform pg_sleep(0.001);
                     end loop; end $$";
        if sqlx::raw_sql(sql).execute(&mut connection).await.is_err() {
            victims += 1;
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after: i64 = sqlx::query_scalar(deadlocks).fetch_one(&mut connection).await?;
    sqlx::raw_sql(FORGET_DEADLOCKS).execute(&mut connection).await?;
    let recovery = field.recovery(injected.at).await;
    let count = after - before;
    let observed = (count > 0 || victims > 0).then(|| format!("{count} deadlocks, in {victims} the stranger lost"));
    Ok(field.end(injected, observed, recovery))
}

/// P12: tables are rewritten and analysed while they are written.
pub async fn maintained(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let injected = field.begin("vacuum full, analyze and reindex of tables in use").await?;
    let mut connection = field.arena.connect().await?;
    let (begun, mut again) = (std::time::Instant::now(), 0);
    for sql in [
        "vacuum full p_chains_v1.chains",
        "vacuum full millpond.fences",
        "analyze p_appends_v1.appends",
        "reindex table p_accounts_v1.accounts",
        "vacuum full millpond.outbox",
    ] {
        // Whoever maintains may be the one whom a deadlock ends, and tries again.
        while sqlx::raw_sql(sql).execute(&mut connection).await.is_err() {
            again += 1;
            anyhow::ensure!(again < 20, "`{sql}` does not come through");
        }
    }
    let took = begun.elapsed();
    // Counted with a delay of a second at most.
    tokio::time::sleep(Duration::from_secs(1)).await;
    sqlx::raw_sql(FORGET_DEADLOCKS).execute(&mut connection).await?;
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, Some(format!("done in {took:.1?}, {again} statements tried again")), recovery))
}

/// P10: somebody keeps a snapshot open for long, so that no dead row version can be removed.
pub async fn long_snapshot(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let outage = field.outage(8, 15);
    let injected = field.begin(format!("a snapshot is kept open for {outage:?}")).await?;
    let mut holder = field.arena.connect().await?;
    let open = "begin isolation level repeatable read; select count(*) from millpond.fences";
    sqlx::raw_sql(open).execute(&mut holder).await?;
    let before = applied(field).await?;
    tokio::time::sleep(outage).await;
    let steps = applied(field).await? - before;
    // Counters are written with a delay of a second at most.
    let dead = "select coalesce(sum(n_dead_tup), 0)::int8 from pg_stat_user_tables where schemaname <> 'rig'";
    let dead: i64 = sqlx::query_scalar(dead).fetch_one(&mut field.arena.connect().await?).await?;
    sqlx::raw_sql("commit").execute(&mut holder).await?;
    let recovery = field.recovery(injected.at).await;
    let observed = format!("{steps} offsets applied meanwhile, {dead} dead row versions at its end");
    Ok(field.end(injected, (steps > 0 && dead > 0).then_some(observed), recovery))
}
