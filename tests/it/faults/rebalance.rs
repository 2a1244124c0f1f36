//! Members that come, go, die and come back from the dead: partitions change hands, effects do not double.

use std::collections::HashMap;

use sqlx::Row as _;

use super::{CONSUMERS, FAST_REBALANCE, SMALL_BATCHES};
use crate::cluster::{Cluster, Load, Pace, Process, SOON, Slice, days};
use crate::harness::eventually_async;

/// How often a member is frozen until it is taken for dead, and thawed.
const ZOMBIES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn members_that_join_leave_die_and_return_apply_everything_once() {
    let cluster = Cluster::flights("rebalance").await;
    let (ingest, _publish) = (cluster.start("ingest", &[]), cluster.start("publish", &[]));
    let serve = cluster.start("serve", &[]);
    let member = || cluster.start("consume", &[SMALL_BATCHES, FAST_REBALANCE[0], FAST_REBALANCE[1]]);
    let commands = days(&[1, 2]);
    let total = commands.len();
    let load = Load::start(&ingest.web, commands, Pace::PerSecond(150));

    let first = member();
    has_partitions(&first, 1).await;
    let second = member();
    has_partitions(&second, 1).await;
    second.stop();
    let second = member();
    has_partitions(&second, 1).await;
    second.kill_9();
    caught_up(&cluster).await;
    let second = member();
    has_partitions(&second, 1).await;
    let all = (CONSUMERS * cluster.ends(&cluster.project.topic).await.len()) as i64;
    for _ in 0..ZOMBIES {
        eventually_async(SOON, async || holds(&first) > 0 && holds(&first) + holds(&second) == all).await;
        let before = assignments(&first);
        first.pause();
        // It has been taken for dead when the other one has all partitions, whether or not anything comes meanwhile.
        eventually_async(SOON, async || holds(&second) == all).await;
        caught_up(&cluster).await;
        first.cont();
        has_partitions(&first, before + 1).await;
    }
    load.release(total);
    load.finish().await;
    cluster.settled(&cluster.project.topic, CONSUMERS).await;
    Slice::days(&[1, 2]).equals(&cluster, &serve.web).await;
    assert!(first.log().contains(r#""lost":true"#), "the first member was never taken for dead");
    first.stop();
    second.stop();
}

fn assignments(member: &Process) -> usize {
    member.log().matches(r#""message":"assigned""#).count()
}

/// How many partitions a member has been given and not lost again.
fn holds(member: &Process) -> i64 {
    let log = member.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .map(|line| match line["message"].as_str() {
            Some("assigned") => 1,
            Some("revoked") => -line["partitions"].as_i64().expect("a number"),
            _ => 0,
        })
        .sum()
}

/// Waits until a member has been given so many partitions in its life.
async fn has_partitions(member: &Process, count: usize) {
    eventually_async(SOON, async || assignments(member) >= count).await;
}

/// Waits until every consumer has applied every partition as far as it is written now.
async fn caught_up(cluster: &Cluster) {
    let ends = cluster.ends(&cluster.project.topic).await;
    eventually_async(SOON, async || {
        let fences = fences(cluster).await;
        fences.len() == CONSUMERS * ends.len() && fences.iter().all(|((_, at), next)| *next >= ends[*at as usize])
    })
    .await;
}

/// How far each consumer is on each partition.
async fn fences(cluster: &Cluster) -> HashMap<(String, i32), i64> {
    let rows = sqlx::query("select projection, partition, next_offset from millpond.fences")
        .fetch_all(&mut cluster.postgres().await)
        .await
        .unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}
