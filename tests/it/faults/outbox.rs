//! The relay of downstream events ended again and again: each event arrives, in order, under one id.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{CONSUMERS, SMALL_BATCHES};
use crate::cluster::{Cluster, Load, Pace, Process, Project, SOON, Slice, days};
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

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_version_that_is_retired_leave_whoever_is_killed_on_the_way() {
    const BAD: i64 = 20;
    let cluster = Cluster::of("retired", Project::sums).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    let pay = async |amount: i64| {
        let body = json!({"account": format!("a{amount}"), "amount": amount}).to_string();
        let answer = ingest.web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    };
    for bad in 0..BAD {
        pay(bad).await;
        pay(Project::TOO_MUCH + bad).await;
    }
    let unsent = async || cluster.number("select count(*) from millpond.outbox").await;
    eventually_async(SOON, async || unsent().await == Some(BAD)).await;
    consume.kill_9();

    // A version to which nothing of this is bad.
    cluster.project.bound(Project::TOO_MUCH * 1000);
    cluster.succeeds(&["consumer", "restart", "sums", "--from-zero"]);
    assert_eq!(unsent().await, Some(BAD));
    let consume = cluster.start("consume", &[]);
    consume.kill_9();
    let consume = cluster.start("consume", &[]);
    eventually_async(SOON, async || cluster.number("select count(*) from live.sums").await == Some(2 * BAD)).await;
    assert_eq!(unsent().await, Some(BAD), "the new version sets nothing aside");

    let publish = cluster.start("publish", &[]);
    eventually_async(SOON, async || unsent().await < Some(BAD)).await;
    publish.kill_9();
    let publish = cluster.start("publish", &[]);
    eventually_async(SOON, async || unsent().await == Some(0)).await;
    let mut offsets: HashMap<i64, Vec<i64>> = HashMap::new();
    for letter in cluster.cat("sums.dlq") {
        let header = |name: &str| letter["headers"][name].as_str().unwrap().to_owned();
        if header("mp-dlq-topic") == cluster.project.topic {
            let of = offsets.entry(header("mp-dlq-partition").parse().unwrap()).or_default();
            let offset = header("mp-dlq-offset").parse().unwrap();
            if !of.contains(&offset) {
                of.push(offset);
            }
        }
    }
    assert_eq!(offsets.values().map(Vec::len).sum::<usize>(), usize::try_from(BAD).unwrap());
    publish.stop();
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn projection_with_unsent_rows_is_dropped_only_when_told_to_give_them_up() {
    let cluster = Cluster::of("dropped", Project::sums).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    let body = json!({"account": "a", "amount": Project::TOO_MUCH}).to_string();
    ingest.web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
    eventually_async(SOON, async || cluster.number("select count(*) from millpond.outbox").await == Some(1)).await;
    consume.stop();
    std::fs::remove_dir_all(cluster.project.dir.join("consumers/sums")).unwrap();

    let refused = cluster.run(&["consumer", "drop", "sums"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    let command = said.split('`').nth(1).unwrap_or_else(|| panic!("{said}"));
    let words: Vec<&str> = command.strip_prefix("millpond ").unwrap().split(' ').collect();
    assert_eq!(cluster.number("select count(*) from millpond.projections").await, Some(1));
    assert_eq!(cluster.number("select count(*) from millpond.fences where state = 'running'").await, Some(2));
    cluster.succeeds(&words);
    for table in ["projections", "versions", "fences", "outbox", "dead_letters"] {
        assert_eq!(cluster.number(&format!("select count(*) from millpond.{table}")).await, Some(0), "{table}");
    }
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
