//! What the promise is worth when things break: processes killed, Postgres away, Kafka away.
//!
//! After each the tables and the emitted events are, row by row, what the oracle computes from what was accepted.

mod age;
mod crash;
pub mod foreign;
mod handlers;
mod kafka_outage;
mod log;
mod outbox;
mod parked;
mod poison;
mod policy;
mod rebalance;
mod repeats;
mod retries;
mod shutdown;
mod slow;

use std::time::Duration;

use crate::cluster::{Cluster, Load, Pace, SOON, Slice, days, long};
use crate::harness::eventually_async;

/// A member that was killed is missed after a second and a half, not after ten.
pub const FAST_REBALANCE: [&str; 2] =
    ["kafka.client.session.timeout.ms=1500", "kafka.client.heartbeat.interval.ms=300"];
/// Many small batches: more moments at which something can happen.
pub const SMALL_BATCHES: &str = "consume.max_records=60";

/// Consumers of the flights application.
pub const CONSUMERS: usize = 3;

/// How long a server is away.
fn outage() -> Duration {
    Duration::from_secs(if long() { 30 } else { 5 })
}

/// Where in its share of the work each consumer is killed, in percent: right when it is ready, so while it joins and
/// claims, or at work.
const MOMENTS: [usize; 20] = [50, 0, 80, 10, 100, 30, 0, 70, 20, 60, 90, 0, 40, 5, 95, 15, 0, 85, 35, 65];

#[tokio::test(flavor = "multi_thread")]
async fn consumer_killed_at_twenty_moments_under_load_applies_everything_once() {
    let cluster = Cluster::flights("kills").await;
    let (ingest, _publish) = (cluster.start("ingest", &[]), cluster.start("publish", &[]));
    let serve = cluster.start("serve", &[]);
    let commands = days(&[1, 2, 3]);
    let share = commands.len() / (MOMENTS.len() + 1);
    let total = commands.len();
    let load = Load::start(&ingest.web, commands, Pace::Released);
    let settings = [SMALL_BATCHES, FAST_REBALANCE[0], FAST_REBALANCE[1]];
    for (kill, moment) in MOMENTS.iter().enumerate() {
        load.release(share);
        let consume = cluster.start("consume", &settings);
        if *moment > 0 {
            let wanted = ((kill * 100 + moment) * share * CONSUMERS / 100) as i64;
            eventually_async(SOON, async || cluster.applied().await >= Some(wanted)).await;
        }
        consume.kill_9();
    }
    load.release(total);
    let consume = cluster.start("consume", &settings);
    assert_eq!(load.finish().await, total);
    cluster.settled(&cluster.project.topic, CONSUMERS).await;
    Slice::days(&[1, 2, 3]).equals(&cluster, &serve.web).await;
    consume.stop();
}

/// How Postgres goes away.
#[derive(Debug, Clone, Copy)]
enum Away {
    Stopped,
    Killed,
    Frozen,
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_away_under_load_leaves_ingest_at_202_and_nothing_lost() {
    let mut cluster = Cluster::flights("postgres").await;
    let (ingest, _publish) = (cluster.start("ingest", &[]), cluster.start("publish", &[]));
    let (serve, consume) = (cluster.start("serve", &[]), cluster.start("consume", &[SMALL_BATCHES]));
    let commands = days(&[1, 2]);
    let total = commands.len();
    // Slow enough to last through all outages.
    let load = Load::start(&ingest.web, commands, Pace::PerSecond(if long() { 40 } else { 100 }));
    for how in [Away::Stopped, Away::Killed, Away::Frozen] {
        let applied = cluster.applied().await;
        eventually_async(SOON, async || cluster.applied().await > applied).await;
        away(&mut cluster, &load, how).await;
    }
    load.release(total);
    load.finish().await;
    cluster.settled(&cluster.project.topic, CONSUMERS).await;
    Slice::days(&[1, 2]).equals(&cluster, &serve.web).await;
    // The members polled on all the while: nobody was thrown out of a group.
    let assigned = consume.log().matches(r#""message":"assigned""#).count();
    assert_eq!(assigned, CONSUMERS * 6, "{}", consume.log());
    consume.stop();
}

/// Takes Postgres away for the time of an outage, during which every command has to be answered 202 as before.
async fn away(cluster: &mut Cluster, load: &Load, how: Away) {
    let postgres = cluster.servers.postgres();
    match how {
        Away::Stopped => postgres.stop().unwrap(),
        Away::Killed => postgres.kill_9().unwrap(),
        Away::Frozen => postgres.pause().unwrap(),
    }
    let before = load.posted();
    // The length of the outage, not a wait for anything.
    tokio::time::sleep(outage()).await;
    let posted = load.posted() - before;
    match how {
        Away::Frozen => postgres.cont().unwrap(),
        Away::Stopped | Away::Killed => postgres.restart().unwrap(),
    }
    assert!(posted > 100, "{how:?}: {posted} commands were accepted within {:?}", outage());
}
