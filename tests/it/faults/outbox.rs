//! The relay of downstream events ended again and again: each event arrives, in order, under one id.

use std::collections::HashMap;

use serde_json::Value;

use super::{CONSUMERS, SMALL_BATCHES};
use crate::cluster::{Cluster, Load, Pace, Process, SOON, Slice, days};
use crate::harness::eventually_async;

/// How often the relay ends under load.
const ENDS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn relay_killed_in_the_middle_sends_every_event_in_order_under_stable_ids() {
    let events = relayed("outbox", Process::kill_9).await;
    eprintln!("{} events, {} sent twice", events.first, events.repeated);
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_stopped_under_load_sends_every_event_once() {
    let events = relayed("relay", Process::stop).await;
    assert_eq!(events.repeated, 0, "of {}", events.first);
}

/// What the topic of events has.
struct Events {
    first: usize,
    repeated: usize,
}

/// Runs a load, with a relay that ends again and again.
async fn relayed(name: &str, end: fn(Process)) -> Events {
    let cluster = Cluster::flights(name).await;
    let (ingest, _consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[SMALL_BATCHES]));
    let serve = cluster.start("serve", &[]);
    let commands = days(&[1, 2]);
    let total = commands.len();
    let load = Load::start(&ingest.web, commands, Pace::Released);
    // Flights are scheduled the evening before; only from here on some leave late.
    load.release(total / 3);
    for _ in 0..ENDS {
        let sent = sent(&cluster).await;
        let publish = cluster.start("publish", &[]);
        load.release(total * 2 / 3 / (ENDS + 1));
        eventually_async(SOON, async || self::sent(&cluster).await > sent).await;
        end(publish);
    }
    let publish = cluster.start("publish", &[]);
    load.release(total);
    load.finish().await;
    cluster.settled(&cluster.project.topic, CONSUMERS).await;
    Slice::days(&[1, 2]).equals(&cluster, &serve.web).await;
    let events = judge(&cluster);
    publish.stop();
    events
}

/// Every repetition is one, and without them the events of each partition stand in the order of their commands.
fn judge(cluster: &Cluster) -> Events {
    let events = cluster.cat(&cluster.project.downstream);
    let mut first: HashMap<&str, &Value> = HashMap::new();
    let mut order: HashMap<i64, Vec<&str>> = HashMap::new();
    for event in &events {
        let id = event["headers"]["mp-event-id"].as_str().unwrap();
        match first.get(id) {
            Some(known) => assert_eq!((&known["key"], &known["value"]), (&event["key"], &event["value"]), "{id}"),
            None => {
                first.insert(id, event);
                // Keys are the same there and here, and so are the numbers of partitions: so are the partitions.
                order.entry(event["partition"].as_i64().unwrap()).or_default().push(event["key"].as_str().unwrap());
            }
        }
    }
    assert_eq!(order, late_departures(&cluster.cat(&cluster.project.topic)));
    Events { first: first.len(), repeated: events.len() - first.len() }
}

async fn sent(cluster: &Cluster) -> i64 {
    cluster.ends(&cluster.project.downstream).await.iter().sum()
}

/// The flights that left late, per partition and in the order of their commands.
fn late_departures(commands: &[Value]) -> HashMap<i64, Vec<&str>> {
    let mut late: HashMap<i64, Vec<(i64, &str)>> = HashMap::new();
    for command in commands {
        if command["type"] == "RecordDeparture" && command["value"]["delay_minutes"].as_i64() >= Some(15) {
            let at = late.entry(command["partition"].as_i64().unwrap()).or_default();
            at.push((command["offset"].as_i64().unwrap(), command["key"].as_str().unwrap()));
        }
    }
    late.into_iter()
        .map(|(partition, mut flights)| {
            flights.sort_unstable();
            (partition, flights.into_iter().map(|(_, flight)| flight).collect())
        })
        .collect()
}
