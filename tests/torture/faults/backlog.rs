//! C12: nobody consumes while much comes in; then it is caught up with, in little memory.

use std::time::{Duration, Instant};

use super::measure::peak;
use super::{Fault, Field};
use crate::values;
use crate::watch;
use crate::workload::history::Kind;

/// Partitions of the appends in this scenario: each has a buffer, and what librdkafka fetched in advance.
pub const PARTITIONS: usize = 50;
/// Values of the backlog, times `--scale`.
const VALUES: f64 = 200_000.0;
/// Values in one request.
const REQUEST: usize = 2500;
/// What a consuming process may take while it catches up: what check 13 allows, here of the peak and not of samples.
const MOST_MIB: u64 = 400;
/// Longer than an unoptimised build on a busy machine takes.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(420);

/// Lets a backlog grow, and has it caught up with.
pub async fn caught_up(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let values = (VALUES * field.scale) as usize;
    let injected =
        field.begin(format!("nobody consumes until {values} values wait on {PARTITIONS} partitions")).await?;
    let slots = field.arena.of_role("consume");
    for slot in &slots {
        field.arena.stop(*slot);
    }
    let requests = values.div_ceil(REQUEST * values::BULK.len());
    let workload = field.workload;
    let clients = values::BULK.map(|client| async move {
        let mut sent = 0;
        for _ in 0..requests {
            // What was not acknowledged may be there all the same.
            sent += REQUEST * usize::from(workload.burst(Kind::Append, client, REQUEST).await);
        }
        sent
    });
    let sent: usize = futures_util::future::join_all(clients).await.into_iter().sum();
    let (from, acknowledged) = (applied(field).await?, field.workload.acknowledged());
    let begun = Instant::now();
    for slot in &slots {
        field.start(*slot)?;
    }
    let goal = from + i64::try_from(sent)?;
    let took = loop {
        if applied(field).await? >= goal {
            break Some(begun.elapsed());
        }
        if begun.elapsed() > CATCHES_UP_WITHIN {
            break None;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let recovery = field.recovery(injected.at).await;
    let pids = slots.iter().filter_map(|slot| Some(field.arena.slots[*slot].process.as_ref()?.pid()));
    let most = pids.filter_map(peak).max().unwrap_or(0) >> 20;
    let meanwhile = field.workload.acknowledged() - acknowledged;
    let observed = took.map(|took| {
        let rate = sent as f64 / took.as_secs_f64();
        format!(
            "{sent} values caught up with in {:.1} s ({rate:.0}/s in two tables each), {most} MiB resident at most; \
             {meanwhile} more acknowledged meanwhile",
            took.as_secs_f64()
        )
    });
    let mut fault = field.end(injected, observed, recovery);
    if most > MOST_MIB {
        fault.wrong.push(format!("a consumer took {most} MiB over a backlog, where {MOST_MIB} MiB have to do"));
    }
    Ok(fault)
}

/// How many appends are in both tables.
async fn applied(field: &Field<'_>) -> anyhow::Result<i64> {
    Ok(watch::applied(&mut field.arena.connect().await?).await?)
}
