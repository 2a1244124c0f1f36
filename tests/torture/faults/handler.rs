//! Faults of a handler: one that takes too long, and records that are the end of the process in which it runs.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::Row as _;

use super::measure::Mark;
use super::{Fault, Field};
use crate::accounts::TAKES_SECONDS;
use crate::values;
use crate::workload::history::Kind;

/// What a group waits for a member that does not ask for records (`max.poll.interval.ms`), and more.
const TOO_LONG: u64 = 64;
/// A handler is told of after ten seconds.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// Deadly records take a process each time they are tried: in a large batch, in smaller ones, and three times alone.
const SET_ASIDE_WITHIN: Duration = Duration::from_secs(240);
/// Between looks whether processes still end.
const LOOK: Duration = Duration::from_secs(10);
/// Values of the killer in one request, of which two are deadly.
const VALUES: usize = 20;

/// C6: the handler takes longer than a group waits for a member. It is another thread that asks for records, so the member
/// stays, the batch is applied once, and the log, a metric and the status say what is waited for.
pub async fn slow(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let told_to = field.arena.folder().join(TAKES_SECONDS);
    let (before, mark) = (fences(field).await?, Mark::now(field.arena));
    let injected = field.begin(format!("the handler of accounts takes {TOO_LONG} s for a batch")).await?;
    std::fs::write(&told_to, TOO_LONG.to_string())?;
    let overdue = overdue(field, &mark).await;
    // Those that have begun go on; what comes after them is quick again.
    std::fs::remove_file(&told_to)?;
    let standing = fences(field).await?;
    let done = done_after(field, &standing).await;
    let longest = longest(field, &mark);
    let recovery = field.recovery(injected.at).await;
    let after = fences(field).await?;
    let observed =
        format!("told of it from the first 10 s to the {longest}th second, then all fences of accounts moved");
    let claims = after.iter().zip(&before).map(|(after, before)| after.1 - before.1).sum::<i64>();
    // A member is lost to a machine that stands still for seconds, too: such an attempt says nothing.
    let blamed = mark.since(field.arena).iter().any(|line| line.contains("maximum poll interval"));
    let seen = overdue && done && longest >= TOO_LONG - 10 && (claims == 0 || blamed);
    let mut told = 0.0;
    for slot in field.arena.of_role("consume") {
        told += super::outbox::value(field, slot, "millpond_consumer_handler_overdue_total").await.unwrap_or_default();
    }
    let mut fault = field.end(injected, seen.then_some(observed), recovery);
    if seen && told == 0.0 {
        fault.wrong.push("no metric has told of the handler".to_owned());
    }
    if blamed {
        fault.wrong.push(format!("{claims} fences of accounts were claimed anew while the handler was slow"));
    }
    Ok(fault)
}

/// Where the fences of `accounts` are, and their epochs.
async fn fences(field: &Field<'_>) -> anyhow::Result<Vec<(i64, i64)>> {
    let sql = "select next_offset, epoch from millpond.fences where projection = 'accounts' order by partition";
    let rows = sqlx::query(sql).fetch_all(&mut field.arena.connect().await?).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Waits until a consumer says that its handler takes long; whether one does.
async fn overdue(field: &Field<'_>, mark: &Mark) -> bool {
    let begun = Instant::now();
    while longest(field, mark) == 0 && begun.elapsed() < TOLD_WITHIN {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    longest(field, mark) > 0
}

/// For how many seconds a handler was at work at most, as far as it was told.
fn longest(field: &Field<'_>, mark: &Mark) -> u64 {
    let lines = mark.since(field.arena).into_iter().filter(|line| line.contains("the handler is still at work"));
    let seconds = |line: String| serde_json::from_str::<serde_json::Value>(&line).ok()?["seconds"].as_u64();
    lines.filter_map(seconds).max().unwrap_or(0)
}

/// Waits until all fences have moved; whether they have.
async fn done_after(field: &Field<'_>, before: &[(i64, i64)]) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(TOO_LONG) + TOLD_WITHIN {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let Ok(now) = fences(field).await else { continue };
        if now.iter().zip(before).all(|(now, before)| now.0 > before.0) {
            return true;
        }
    }
    false
}

/// C8: records that are the end of every process that meets them. A supervisor starts processes again, and kills some on
/// top; the deadly records are set aside undecoded, and no other is.
pub async fn deadly(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let before = crashes(field).await?;
    field.arena.mortal = Some("consume");
    let injected = field.begin(format!("two deadly records among {VALUES}, and consumers killed around them")).await?;
    let mut sent = field.workload.burst(Kind::Money, values::KILLER, VALUES).await;
    for _ in 0..3 {
        // A request without an answer may have brought them or not: another brings others.
        sent = sent || field.workload.burst(Kind::Money, values::KILLER, VALUES).await;
    }
    anyhow::ensure!(sent, "no deadly record was acknowledged");
    let (mut ended, mut killed, begun) = (0, 0, Instant::now());
    let mut next_kill = begun + kill_pause(field);
    while crashes(field).await? < before + 2 && begun.elapsed() < SET_ASIDE_WITHIN {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if Instant::now() > next_kill {
            let slot = field.any("consume")?;
            killed += usize::from(field.arena.slots[slot].process.as_ref().is_some_and(crate::process::Process::runs));
            field.arena.kill_9(slot);
            next_kill = Instant::now() + kill_pause(field);
        }
        ended += revive(field);
    }
    let mut recovery = None;
    while recovery.is_none() && begun.elapsed() < SET_ASIDE_WITHIN {
        ended += revive(field);
        recovery = tokio::time::timeout(LOOK, field.recovery(injected.at)).await.ok().flatten();
    }
    let aside = crashes(field).await? - before;
    let observed =
        format!("{ended} processes ended, {killed} of them killed by us; {aside} records set aside undecoded");
    Ok(field.end(injected, (aside >= 2 && ended > killed).then_some(observed), recovery))
}

/// Far apart enough that processes come to their work in between.
fn kill_pause(field: &mut Field<'_>) -> Duration {
    Duration::from_millis(field.random.between(4000, 12_000))
}

/// Starts the consumers that have ended; how many had. One that ends again before it is ready is met the next time.
fn revive(field: &mut Field<'_>) -> usize {
    let mut ended = 0;
    for slot in field.arena.of_role("consume") {
        ended += usize::from(field.arena.revive(field.servers, slot).unwrap_or(true));
    }
    if ended > 0 {
        field.note_pids();
    }
    ended
}

/// How many records were set aside since processes ended over them.
async fn crashes(field: &Field<'_>) -> anyhow::Result<i64> {
    let sql = "select count(*) from millpond.dead_letters where reason_class = 'crash' and projection = 'accounts'";
    let mut connection = field.arena.connect().await?;
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.context("dead letters can be counted")
}
