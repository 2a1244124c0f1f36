//! The relay of downstream events killed, frozen and cut off again and again: each event arrives once, in order, under one
//! id, for who reads committed records.

use std::collections::HashMap;

use millpond::kafka::Reader;
use serde_json::{Value, json};

use super::{CONSUMERS, SMALL_BATCHES};
use crate::cluster::{Cluster, Load, Pace, Process, Project, SOON, Slice, days, long};
use crate::harness::eventually_async;

/// How often the relay ends under load.
fn ends() -> usize {
    if long() { 20 } else { 8 }
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_killed_in_the_middle_sends_every_event_in_order_under_stable_ids() {
    let events = relayed("outbox", Process::kill_9).await;
    eprintln!("{} events, {} sent twice", events.first, events.repeated);
    assert_eq!(events.repeated, 0, "of {}", events.first);
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_frozen_under_load_is_shut_out_by_the_next_and_repeats_nothing_when_it_wakes() {
    let freezes = if long() { 10 } else { 3 };
    let (cluster, load, scene) = Scene::set("frozen").await;
    let mut leader = cluster.start("publish", &[]);
    for _ in 0..freezes {
        let before = written(&cluster);
        load.release(scene.total * 2 / 3 / (freezes + 1));
        // Perhaps in the middle of a transaction.
        eventually_async(SOON, async || written(&cluster) > before).await;
        leader.pause();
        let next = cluster.start("publish", &[]);
        // Postgres does that by itself after half a minute.
        let ended = "select count(pg_terminate_backend(l.pid)) from pg_locks l join pg_database d on d.oid = l.database
                      where d.datname = current_database() and l.locktype = 'advisory' and l.granted";
        assert!(cluster.number(ended).await >= Some(1));
        let committed = sent(&cluster).await;
        load.release(scene.total / 100);
        eventually_async(SOON, async || sent(&cluster).await > committed).await;
        leader.cont();
        // What it had under way fails now; it stands by then, and goes.
        eventually_async(SOON, async || leader.log().matches("interrupted").count() > 0).await;
        std::mem::replace(&mut leader, next).stop();
    }
    let events = scene.end(&cluster, load).await;
    assert_eq!(events.repeated, 0, "of {}", events.first);
    leader.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_killed_under_the_relay_loses_and_repeats_nothing() {
    let outages = if long() { 5 } else { 2 };
    let (mut cluster, load, scene) = Scene::set("cut").await;
    let publish = cluster.start("publish", &[]);
    let mut released = scene.total / 3;
    for _ in 0..outages {
        let before = written(&cluster);
        let share = scene.total * 2 / 3 / (outages + 1);
        load.release(share);
        released += share;
        eventually_async(SOON, async || load.posted() == released && written(&cluster) > before).await;
        let kafka = cluster.servers.kafka();
        kafka.kill_9().unwrap();
        kafka.restart().unwrap();
        scene.ingest_is_ready().await;
    }
    let events = scene.end(&cluster, load).await;
    assert_eq!(events.repeated, 0, "of {}", events.first);
    publish.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_stopped_under_load_sends_every_event_once() {
    let events = relayed("relay", Process::stop).await;
    assert_eq!(events.repeated, 0, "of {}", events.first);
}

/// Versions that are live in turn while nothing is sent: each has events of a stretch of the log.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_versions_that_were_live_in_turn_leave_in_the_order_of_their_records() {
    let cluster = Cluster::flights("turns").await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    let late =
        |cluster: &Cluster| late_departures(&cluster.cat(&cluster.project.topic)).values().map(Vec::len).sum::<usize>();
    for (day, then) in
        [(1, &["rebuild", "flight_rules", "--swap"][..]), (2, &["rollback", "flight_rules"]), (3, &["plan"])]
    {
        crate::flights::post(&ingest, &days(&[day])).await;
        let made = i64::try_from(late(&cluster)).unwrap();
        let waiting = "select count(*) from millpond.outbox where not held";
        eventually_async(SOON, async || cluster.number(waiting).await == Some(made)).await;
        cluster.succeeds(then);
    }
    let publish = cluster.start("publish", &[]);
    let left = "select count(*) from millpond.outbox where not held";
    eventually_async(SOON, async || cluster.number(left).await == Some(0)).await;
    let events = judge(&cluster);
    assert_eq!((events.first, events.repeated), (late(&cluster), 0));
    for process in [publish, consume, ingest] {
        process.stop();
    }
}

/// What the topic of events has.
struct Events {
    first: usize,
    repeated: usize,
}

/// Everything but the relay, and a load that waits to be released.
struct Scene {
    ingest: Process,
    _consume: Process,
    serve: Process,
    /// Commands of the load.
    total: usize,
}

impl Scene {
    async fn set(name: &str) -> (Cluster, Load, Self) {
        let cluster = Cluster::flights(name).await;
        let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[SMALL_BATCHES]));
        let serve = cluster.start("serve", &[]);
        let commands = days(&[1, 2]);
        let total = commands.len();
        let load = Load::start(&ingest.web, commands, Pace::Released);
        // Flights are scheduled the evening before; only from here on some leave late.
        load.release(total / 3);
        eventually_async(SOON, async || load.posted() == total / 3).await;
        (cluster, load, Self { ingest, _consume: consume, serve, total })
    }

    async fn ingest_is_ready(&self) {
        let ready = async || self.ingest.web.try_get("/readyz", &[]).await.is_ok_and(|answer| answer.status == 200);
        eventually_async(SOON, ready).await;
    }

    /// Lets the load run to its end and everything leave; what has left.
    async fn end(&self, cluster: &Cluster, load: Load) -> Events {
        load.release(self.total);
        load.finish().await;
        cluster.settled(&cluster.project.topic, CONSUMERS).await;
        Slice::days(&[1, 2]).equals(cluster, &self.serve.web).await;
        judge(cluster)
    }
}

/// Runs a load, with a relay that ends again and again.
async fn relayed(name: &str, end: fn(Process)) -> Events {
    let (cluster, load, scene) = Scene::set(name).await;
    for at in 0..ends() {
        let (committed, begun) = (sent(&cluster).await, written(&cluster));
        let publish = cluster.start("publish", &[]);
        load.release(scene.total * 2 / 3 / (ends() + 1));
        // In turns when something is committed, and when something is written that may not be.
        let moved = async || if at % 2 == 0 { sent(&cluster).await > committed } else { written(&cluster) > begun };
        eventually_async(SOON, moved).await;
        end(publish);
    }
    let publish = cluster.start("publish", &[]);
    let events = scene.end(&cluster, load).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn projection_that_a_process_applies_is_dropped_only_when_told_so() {
    let cluster = Cluster::of("applied", Project::sums).await;
    let consume = cluster.start("consume", &[]);
    let applied = "select count(*) from millpond.ends where observed_at > now() - interval '1 second'";
    eventually_async(SOON, async || cluster.number(applied).await == Some(2)).await;
    std::fs::remove_dir_all(cluster.project.dir.join("consumers/sums")).unwrap();

    let status: Value = serde_json::from_slice(&cluster.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status[0]["state"], "running", "{status}");
    let refused = cluster.run(&["consumer", "drop", "sums"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("a process applies sums"), "{said}");
    assert_eq!(cluster.number("select count(*) from millpond.projections").await, Some(1));
    consume.stop();
    cluster.succeeds(&["consumer", "drop", "sums"]);
    assert_eq!(cluster.number("select count(*) from millpond.projections").await, Some(0));
}

async fn sent(cluster: &Cluster) -> i64 {
    cluster.ends(&cluster.project.downstream).await.iter().sum()
}

/// How far downstream events are written, committed or not.
fn written(cluster: &Cluster) -> i64 {
    let reader = Reader::open_uncommitted(&cluster.kafka()).unwrap();
    let partitions = reader.partitions_of(&cluster.project.downstream).unwrap();
    let end = |partition| reader.watermarks(&cluster.project.downstream, partition).unwrap().1;
    (0..i32::try_from(partitions).unwrap()).map(end).sum()
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
