//! Loss of power: the tail of a log is gone, at one broker or at all of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::kafka::{a_leader, kill, restart};
use super::{Fault, Field, SHOWS_WITHIN};
use crate::checker;
use crate::segments::Replica;
use crate::side::Side;
use crate::side::judge::{Excused, Lost};
use crate::workload::history::Outcome;

/// What a leader loses of each partition: some batches, and a part of one.
const TAIL: u64 = 4096;
/// How long it may take until who has applied what is gone has noticed. Not a measurement: that is in the report.
const NOTICES_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a torn batch that are left of it.
const TORN: u64 = 17;
/// All brokers.
const ALL: [i32; 3] = [1, 2, 3];

/// The folder in which a broker keeps its partitions.
fn data(field: &Field<'_>, node: i32) -> PathBuf {
    field.servers.folder().join(format!("kafka-{node}/kafka/data"))
}

/// K8: a leader loses power and is the first to be back, perhaps before it was missed. The others have all that was
/// acknowledged, and it has to have it from them.
pub async fn lost_by_leader(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (node, partitions) = a_leader(field).await?;
    let what =
        format!("broker {node}, which leads {partitions:?}, loses power and {TAIL} bytes of each, and is back at once");
    let injected = field.begin(what).await?;
    kill(field, &[node])?;
    let (topic, data) = (field.arena.topics.appends.clone(), data(field, node));
    let mut before = BTreeMap::new();
    let mut gone = 0;
    for partition in partitions {
        let replica = Replica::of(&data, &topic, partition)?;
        let length = replica.batches.last().map_or(0, |batch| batch.to);
        replica.cut(length.saturating_sub(TAIL).max(length / 2))?;
        before.insert(partition, replica.last());
        gone += replica.last() - Replica::of(&data, &topic, partition)?.last();
    }
    restart(field, &[node])?;
    let begun = Instant::now();
    let mut observed = None;
    while observed.is_none() && begun.elapsed() < SHOWS_WITHIN {
        let last = |partition: i32| Replica::of(&data, &topic, partition).map_or(-1, |replica| replica.last());
        if before.iter().all(|(partition, last_before)| last(*partition) >= *last_before) {
            let seconds = Duration::from_nanos(field.history.now() - injected.at).as_secs_f64();
            observed =
                Some(format!("{gone} offsets gone on its disk, there again after {seconds:.1} s")).filter(|_| gone > 0);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// K8b: all brokers lose power, and with it the same records of each partition of the small Millpond's topic, which were
/// acknowledged and applied. The log goes on as if they had never been; who has applied them must not.
pub async fn lost_by_all(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let side = field.side().await?;
    let injected = field.begin("all brokers lose power, and acknowledged records with it").await?;
    kill(field, &ALL)?;
    // What was fetched before is applied by then: fences stand still.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let power_lost = Instant::now();
    let lost = cut(field, &side).await?;
    restart(field, &ALL)?;
    let back = Instant::now();
    let partitions: Vec<i32> = lost.keys().copied().collect();
    let halts = side.halted(&partitions, NOTICES_WITHIN).await;
    let noticed = back.elapsed();
    let mut wrong = Vec::new();
    for (partition, from) in &lost {
        match halts.get(partition) {
            Some((code, _)) if code == "log_is_shorter" || code == "log_is_another" => {}
            other => {
                wrong.push(format!("partition {partition} lost what was applied from {from} on, and shows {other:?}"))
            }
        }
    }
    for (partition, halt) in halts.iter().filter(|(partition, _)| !lost.contains_key(partition)) {
        wrong.push(format!("partition {partition} lost nothing, and halted: {halt:?}"));
    }
    let codes: Vec<&str> = halts.values().map(|(code, _)| code.as_str()).collect();
    let observed = format!("lost from {lost:?} on; {codes:?} {noticed:.1?} after the brokers were back");
    if let Some((_, reason)) = halts.values().next() {
        side.obey(reason)?;
    }
    let reaches = lost.clone();
    let excused: Lost = Box::new(move |sent| {
        let reached = checker::position(&sent.position);
        let lost = |(at, end): (&i32, &i64)| reaches.get(at).is_some_and(|from| end > from);
        sent.outcome == Outcome::Ok && sent.invoked < power_lost && reached.iter().any(lost)
    });
    wrong.extend(field.leave(side, &Excused { lost: Some(excused), ..Excused::default() }).await?);
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, (!halts.is_empty() || !wrong.is_empty()).then_some(observed), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// Cuts every replica of each partition at one offset, below what is applied; which that is.
async fn cut(field: &mut Field<'_>, side: &Side) -> anyhow::Result<BTreeMap<i32, i64>> {
    let fences = side.fences().await?;
    let mut lost = BTreeMap::new();
    for (partition, fence) in fences {
        let replicas = ALL.map(|node| Replica::of(&data(field, node), &side.topic, partition));
        let replicas = replicas.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        // Of the batches that all have, one of the last that are applied.
        let shortest = replicas.iter().min_by_key(|replica| replica.last()).context("three replicas")?;
        let applied: Vec<i64> =
            shortest.batches.iter().filter(|batch| batch.last < fence.next_offset).map(|batch| batch.first).collect();
        let back = usize::try_from(field.random.between(1, 6))?;
        let from = applied.len().checked_sub(back).and_then(|at| applied.get(at)).copied();
        let from = from.with_context(|| format!("partition {partition} has too few batches"))?;
        for replica in &replicas {
            let batch = replica.batch_at(from).context("replicas have the same batches")?;
            ensure!(TORN < batch.to - batch.from, "a batch is longer than its head");
            replica.cut(batch.from + TORN)?;
        }
        lost.insert(partition, from);
    }
    Ok(lost)
}
