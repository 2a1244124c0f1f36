//! Requests that are sent again: under one id a record takes effect once, on whichever node it is posted and whoever dies
//! between; another record under the same id is told apart.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millpond::domain::Fingerprint;
use millpond::kafka::{Admin, TopicSpec};
use millpond::schema::encode::fingerprint;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sqlx::{Executor as _, Row as _};

use super::foreign::id_of;
use super::{CONSUMERS, FAST_REBALANCE, SMALL_BATCHES};
use crate::cluster::{Answer, Cluster, Load, Pace, Process, Project, SOON, Slice, Web, days};
use crate::harness::eventually_async;

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

/// Payments, and three consumers of them: sums that know repeats, sums that do not, and the last payment, by statements of
/// an author.
fn shop(dir: std::path::PathBuf, unique: &str) -> Project {
    let project = Project::sums(dir, unique);
    let manifest = "topics = [\"TOPIC\"]\ndedupe_window = \"0\"\n[tables.all_sums]\nkey = [\"account\"]\n\
                    merge = { total = \"sum\" }\n";
    project.write("consumers/all_sums/consumer.toml", manifest);
    project.write("consumers/all_sums/all_sums.sql", "select account, sum(amount) as total from paid group by account");
    project.write("consumers/ledger/consumer.toml", "topics = [\"TOPIC\"]\n");
    project.write(
        "consumers/ledger/tables.sql",
        "create table ledger (account text primary key, payments bigint, last bigint)",
    );
    let apply = "insert into ledger select account, 1, amount from paid on conflict (account) do update set payments = \
                 ledger.payments + 1, last = excluded.last";
    project.write("consumers/ledger/apply.sql", apply);
    project
}

async fn pay(web: &Web, id: &str, body: &str) -> Answer {
    let answer = web.post("/v1/events/Paid", &[JSON, ("idempotency-key", id)], body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer
}

/// Waits until so many consumers have read all payments: mirrors of dead letters need not have left.
async fn applied_all(cluster: &Cluster, consumers: i64) {
    let end: i64 = cluster.ends(&cluster.project.topic).await.iter().sum();
    eventually_async(SOON, async || cluster.applied().await == Some(consumers * end)).await;
}

/// A number out of the tables.
async fn becomes(cluster: &Cluster, sql: &str, wanted: i64) {
    eventually_async(SOON, async || cluster.number(sql).await == Some(wanted)).await;
}

const TOTAL: &str = "select coalesce(sum(total), 0)::int8 from live.sums";
const PAYMENTS: &str = "select coalesce(sum(payments), 0)::int8 from live.sums";

/// Every row of the consumers that know repeats.
async fn rows(cluster: &Cluster) -> Vec<String> {
    let sql = "select 'sums ' || s::text from live.sums s union all select 'ledger ' || l::text from live.ledger l order by 1";
    let rows = sqlx::query(sql).fetch_all(&mut cluster.postgres().await).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The dead letters of a consumer, by offset and class.
async fn dead(cluster: &Cluster, consumer: &str) -> Vec<(i32, i64, String)> {
    let sql = "select d.partition, d.\"offset\", d.reason_class from millpond.dead_letters d
                 join millpond.projections p on p.projection = d.projection and p.live_version = d.version
                where d.projection = $1 order by 1, 2";
    let rows = sqlx::query(sql).bind(consumer).fetch_all(&mut cluster.postgres().await).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Restarts the consumers from the start of the log, and waits until they have read it.
async fn from_zero(cluster: &Cluster, consumers: &[&str]) {
    for consumer in consumers {
        cluster.succeeds(&["consumer", "restart", consumer, "--from-zero"]);
    }
    let live = "select count(*) from millpond.projections where live_version > 1";
    becomes(cluster, live, i64::try_from(consumers.len()).unwrap()).await;
}

fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn same_key_on_two_nodes_takes_effect_once_and_another_record_under_it_is_a_conflict() {
    let cluster = Cluster::of("repeats", shop).await;
    let (one, other) = (cluster.start("ingest", &[]), cluster.start("ingest", &[]));
    let (serve, consume) = (cluster.start("serve", &[]), cluster.start("consume", &FAST_REBALANCE));
    let first = pay(&one.web, "k-1", r#"{"account": "a", "amount": 7}"#).await;
    // Written otherwise, as another library would.
    let again = pay(&other.web, "\"k-1\"", "{ \"amount\" :7,\n\"account\":\"\\u0061\" }").await;
    assert_ne!(first.position(), again.position(), "both are in the log");
    applied_all(&cluster, 3).await;
    assert_eq!(cluster.number("select total::int8 from live.all_sums").await, Some(14));
    assert_eq!(cluster.number(TOTAL).await, Some(7));

    // One that the consumer meets after it was killed, beside one that it has not met.
    consume.kill_9();
    pay(&other.web, "k-1", r#"{"account": "a", "amount": 7}"#).await;
    pay(&one.web, "k-2", r#"{"account": "a", "amount": 7}"#).await;
    let consume = cluster.start("consume", &FAST_REBALANCE);
    applied_all(&cluster, 3).await;
    assert_eq!(cluster.number(TOTAL).await, Some(14));
    let metrics = consume.web.get("/metrics", &[]).await.text;
    let repeated = metric(&metrics, r#"millpond_consumer_messages_total{consumer="sums",outcome="repeated"}"#);
    assert_eq!(repeated, 1, "{metrics}");

    // Another record under the id.
    let conflict = pay(&one.web, "k-1", r#"{"account": "a", "amount": 8}"#).await;
    let read = [("millpond-min-position", conflict.position()), ("prefer", "wait=10")];
    let answer = serve.web.get("/v1/views/sums", &read).await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    applied_all(&cluster, 3).await;
    let path = format!("/v1/positions/{}", conflict.position().replace('/', "%2F"));
    let told: BTreeMap<String, Value> = serve.web.get(&path, &[]).await.json()["projections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (of["consumer"].as_str().unwrap().to_owned(), of["entries"][0].clone()))
        .collect();
    let offset: i64 = first.position().rsplit('@').next().unwrap().parse().unwrap();
    for consumer in ["sums", "ledger"] {
        let entry = &told[consumer];
        assert_eq!((&entry["outcome"], &entry["reason_class"]), (&json!("dead_lettered"), &json!("id_conflict")));
        assert!(entry["reason"].as_str().unwrap().contains(&format!("offset {} ", offset - 1)), "{entry}");
    }
    assert_eq!(told["all_sums"]["outcome"], "applied");
    assert!(cluster.succeeds(&["explain", "id_conflict"]).contains("event id"), "it is explained");
    let outcome = async |of: &Answer| {
        let path = format!("/v1/positions/{}", of.position().replace('/', "%2F"));
        serve.web.get(&path, &[]).await.json()
    };
    assert_eq!(outcome(&again).await["outcome"], "applied");

    // One of a record that was set aside has no effect either, and is told so.
    let too_much = format!(r#"{{"account": "b", "amount": {}}}"#, Project::TOO_MUCH);
    pay(&one.web, "k-3", &too_much).await;
    let again = pay(&other.web, "k-3", &too_much).await;
    applied_all(&cluster, 3).await;
    let told = outcome(&again).await;
    let sums = told["projections"].as_array().unwrap().iter().find(|of| of["consumer"] == "sums").unwrap();
    let entry = &sums["entries"][0];
    assert_eq!((&entry["outcome"], &entry["code"]), (&json!("refused"), &json!("repeat_of_dead_letter")), "{told}");

    // The same decisions from the start of the log.
    let (before, letters) = (rows(&cluster).await, dead(&cluster, "sums").await);
    assert_eq!(letters.len(), 2);
    from_zero(&cluster, &["sums", "ledger"]).await;
    applied_all(&cluster, 3).await;
    assert_eq!((rows(&cluster).await, dead(&cluster, "sums").await), (before, letters));
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_sent_again_adds_what_was_missing_and_nothing_else() {
    const RECORDS: i64 = 3000;
    let cluster = Cluster::of("bulk", shop).await;
    let (one, other) = (cluster.start("ingest", &[]), cluster.start("ingest", &[]));
    let consume = cluster.start("consume", &["consume.max_records=700"]);
    let line = |n: i64| json!({"account": format!("a{}", n % 7), "amount": n}).to_string();
    let lines: Vec<String> = (0..RECORDS).map(line).collect();
    let bulk = [NDJSON, ("idempotency-key", "load-1")];
    // The first attempt has got half-way, the second and third run side by side, the third as an array.
    let half = lines[..lines.len() / 2].join("\n");
    assert_eq!(one.web.post("/v1/events/Paid", &bulk, &half).await.status, 202);
    let (whole, array) = (lines.join("\n"), format!("[{}]", lines.join(",")));
    let (streamed, listed) = ([bulk[0], bulk[1], ("prefer", "handling=lenient")], [JSON, bulk[1]]);
    let (second, third) = tokio::join!(
        one.web.post("/v1/events/Paid", &streamed, &whole),
        other.web.post("/v1/events/Paid", &listed, &array),
    );
    assert_eq!((second.status, third.status), (202, 202), "{} {}", second.text, third.text);
    cluster.settled(&cluster.project.topic, 3).await;
    assert_eq!(cluster.number(PAYMENTS).await, Some(RECORDS));
    assert_eq!(cluster.number(TOTAL).await, Some((0..RECORDS).sum()));
    assert_eq!(cluster.number("select sum(payments)::int8 from live.ledger").await, Some(RECORDS));
    let times: i64 = (0..RECORDS).map(|n| if n < RECORDS / 2 { 3 * n } else { 2 * n }).sum();
    assert_eq!(cluster.number("select sum(total)::int8 from live.all_sums").await, Some(times));

    // A record too many in the middle: from there on every id stands for another record.
    let mut shifted = lines.clone();
    shifted.insert(lines.len() - 10, line(7));
    assert_eq!(other.web.post("/v1/events/Paid", &bulk, &shifted.join("\n")).await.status, 202);
    applied_all(&cluster, 3).await;
    let letters = dead(&cluster, "sums").await;
    // Ids are remembered by partition: a record that has moved to another one is not known there.
    assert!((1..=11).contains(&letters.len()), "{letters:?}");
    assert!(letters.iter().all(|(.., class)| class == "id_conflict"), "{letters:?}");
    let new = cluster.number(PAYMENTS).await.unwrap() - RECORDS;
    assert_eq!(new + i64::try_from(letters.len()).unwrap(), 11);
    // Clients that misuse ids do not halt anybody.
    assert_eq!(cluster.number("select count(*) from millpond.fences where state = 'halted'").await, Some(0));
    let before = rows(&cluster).await;
    from_zero(&cluster, &["sums", "ledger"]).await;
    applied_all(&cluster, 3).await;
    assert_eq!(rows(&cluster).await, before);
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn conflict_about_which_somebody_has_decided_is_as_decided_when_the_log_is_read_again() {
    let cluster = Cluster::of("decided", shop).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &FAST_REBALANCE));
    let mut records = Vec::new();
    for amount in [7, 8, 9, 10] {
        let answer = pay(&ingest.web, "k-1", &json!({"account": "a", "amount": amount}).to_string()).await;
        let (at, next) = answer.position().split_once('@').unwrap();
        records.push(format!("{at}/{}", next.parse::<i64>().unwrap() - 1));
    }
    applied_all(&cluster, 3).await;
    assert_eq!((cluster.number(TOTAL).await, dead(&cluster, "sums").await.len()), (Some(7), 3));
    cluster.succeeds(&["dlq", "redrive", "sums", &records[1]]);
    cluster.succeeds(&["dlq", "edit", "sums", &records[2], "--field", "amount=100"]);
    cluster.succeeds(&["dlq", "discard", "sums", &records[3]]);
    becomes(&cluster, TOTAL, 7 + 8 + 100).await;
    becomes(&cluster, "select count(*) from millpond.dead_letters where projection = 'sums'", 0).await;

    let before = rows(&cluster).await;
    from_zero(&cluster, &["sums"]).await;
    applied_all(&cluster, 3).await;
    assert_eq!((rows(&cluster).await, dead(&cluster, "sums").await), (before, Vec::new()));
    assert_eq!(cluster.number(PAYMENTS).await, Some(3));
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_killed_between_staging_and_commit_knows_the_repeat_whichever_way_it_went() {
    let cluster = Cluster::of("staged", Project::sums).await;
    let ingest = cluster.start("ingest", &[]);
    let mut lock = cluster.postgres().await;
    let waits = "select count(*) from pg_locks where not granted and relation = 'p_sums_v1.sums'::regclass";
    let mut total = 0;
    let mut consume = cluster.start("consume", &FAST_REBALANCE);
    // The backend of a killed process goes on with what it was sent, or is ended: the batch is in, or it is not.
    for (round, commits) in [true, false, true, false].into_iter().enumerate() {
        lock.execute("begin").await.unwrap();
        lock.execute("lock table p_sums_v1.sums in access exclusive mode").await.unwrap();
        let (id, body) = (format!("k-{round}"), json!({"account": "a", "amount": round + 1}).to_string());
        pay(&ingest.web, &id, &body).await;
        total += i64::try_from(round).unwrap() + 1;
        eventually_async(SOON, async || cluster.number(waits).await == Some(1)).await;
        consume.kill_9();
        pay(&ingest.web, &id, &body).await;
        if !commits {
            let end = "select count(pg_terminate_backend(pid)) from pg_locks
                        where not granted and relation = 'p_sums_v1.sums'::regclass";
            assert_eq!(cluster.number(end).await, Some(1));
            becomes(&cluster, waits, 0).await;
        }
        lock.execute("rollback").await.unwrap();
        pay(&ingest.web, &id, &body).await;
        consume = cluster.start("consume", &FAST_REBALANCE);
        cluster.settled(&cluster.project.topic, 1).await;
        assert_eq!(cluster.number(TOTAL).await, Some(total), "round {round}");
    }
    assert_eq!(cluster.number(PAYMENTS).await, Some(4));
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn flights_posted_twice_by_clients_that_never_heard_an_answer_are_flights_once() {
    let cluster = Cluster::flights("twice").await;
    let downstream = &cluster.project.downstream;
    // Who reads the events of a handler knows them again, too.
    let manifest =
        format!("topics = [\"{downstream}\"]\n[tables.delays]\nkey = [\"carrier\"]\nmerge = {{ delays = \"sum\" }}\n");
    cluster.project.write("consumers/delays/consumer.toml", &manifest);
    let select = "select carrier, count(*) as delays from flight_delayed group by carrier";
    cluster.project.write("consumers/delays/delays.sql", select);
    let (one, other) = (cluster.start("ingest", &[]), cluster.start("ingest", &[]));
    let (serve, publish) = (cluster.start("serve", &[]), cluster.start("publish", &[]));
    let settings = [SMALL_BATCHES, FAST_REBALANCE[0], FAST_REBALANCE[1]];
    let commands = days(&[1, 2]);
    let total = commands.len();
    let loads =
        [Load::start(&one.web, commands.clone(), Pace::Released), Load::start(&other.web, commands, Pace::Released)];
    let mut consume: Option<Process> = None;
    for _ in 0..4 {
        loads.iter().for_each(|load| load.release(total / 5));
        if let Some(consume) = consume.take() {
            consume.kill_9();
        }
        let applied = cluster.applied().await;
        consume = Some(cluster.start("consume", &settings));
        eventually_async(SOON, async || cluster.applied().await > applied).await;
    }
    loads.iter().for_each(|load| load.release(total));
    for load in loads {
        assert_eq!(load.finish().await, total);
    }
    let settled = async || {
        let (commands, events) = (&cluster.project.topic, &cluster.project.downstream);
        let ends = async |topic: &str| cluster.ends(topic).await.iter().sum::<i64>();
        let unsent = "select count(*) from millpond.outbox";
        eventually_async(SOON, async || {
            let wanted = i64::try_from(CONSUMERS).unwrap() * ends(commands).await + ends(events).await;
            cluster.number(unsent).await == Some(0) && cluster.applied().await == Some(wanted)
        })
        .await;
    };
    settled().await;
    Slice::days(&[1, 2]).equals(&cluster, &serve.web).await;
    let delays = "select sum(delays)::int8 from live.delays";
    let late = cluster.number(delays).await;
    assert!(late > Some(0));

    // Built anew they are the same, and what the handler emits anew is known downstream.
    let sent: i64 = cluster.ends(downstream).await.iter().sum();
    from_zero(&cluster, &["flights", "punctuality", "flight_rules"]).await;
    eventually_async(SOON, async || cluster.ends(downstream).await.iter().sum::<i64>() >= sent + late.unwrap()).await;
    settled().await;
    Slice::days(&[1, 2]).equals(&cluster, &serve.web).await;
    assert_eq!(cluster.number(delays).await, late, "{sent} events before");
    if let Some(consume) = consume {
        consume.stop();
    }
    publish.stop();
}

/// A topic whose records carry the times that their producers give them.
struct Old<'a> {
    cluster: &'a Cluster,
    producer: FutureProducer,
    topic: String,
    schema_id: u32,
    now: SystemTime,
}

impl Old<'_> {
    /// A payment of 1 by account `id`, so many minutes ago.
    async fn pay(&self, id: &str, minutes: u64) {
        let says = fingerprint("Paid", json!({"account": id, "amount": 1}).to_string().as_bytes()).unwrap();
        let said = Fingerprint::from(says).to_hex();
        let mut payload = vec![0];
        payload.extend(self.schema_id.to_be_bytes());
        // Zigzag: a small number is twice itself.
        payload.push(u8::try_from(id.len() * 2).unwrap());
        payload.extend(id.as_bytes());
        payload.push(2);
        let headers = OwnedHeaders::new()
            .insert(Header { key: "mp-event-id", value: Some(id.as_bytes()) })
            .insert(Header { key: "mp-fingerprint", value: Some(&said[..]) });
        let at = self.now - Duration::from_secs(60 * minutes);
        let at = i64::try_from(at.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        let record = FutureRecord::to(&self.topic).key(id).payload(&payload).headers(headers).timestamp(at);
        self.producer.send(record.partition(0), SOON).await.map_err(|(error, _)| error).unwrap();
    }

    async fn settled(&self, consumers: i64) {
        let end: i64 = self.cluster.ends(&self.topic).await.iter().sum();
        eventually_async(SOON, async || self.cluster.applied().await == Some(consumers * end)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn id_is_forgotten_when_the_log_is_the_window_later() {
    let cluster = Cluster::of("window", |dir, unique| Project::shop(dir, unique, 1)).await;
    let topic = format!("{}.old", cluster.project.topic);
    let spec = TopicSpec {
        config: BTreeMap::from([("message.timestamp.type".into(), "CreateTime".into())]),
        ..TopicSpec::log(&topic, 1)
    };
    Admin::connect(&cluster.kafka()).unwrap().ensure_topics(&[spec]).await.unwrap();
    for (name, window) in [("hour", "1h"), ("never", "0")] {
        let manifest = format!(
            "topics = [\"{topic}\"]\ndedupe_window = \"{window}\"\n[tables.{name}]\nkey = [\"account\"]\nmerge = {{ total = \"sum\" }}\n"
        );
        cluster.project.write(&format!("consumers/{name}/consumer.toml"), &manifest);
        let select = "select account, sum(amount) as total from paid group by account";
        cluster.project.write(&format!("consumers/{name}/{name}.sql"), select);
    }
    let producer = ClientConfig::new().set("bootstrap.servers", cluster.servers.brokers()).create().unwrap();
    let schema_id = id_of(&cluster, "Paid v1");
    let old = Old { cluster: &cluster, producer, topic, schema_id, now: SystemTime::now() };
    let consume = cluster.start("consume", &["consume.max_records=2"]);
    // Minutes ago, and whether it counts. The log does not get younger when a record does.
    let records = [
        ("x", 600, true),
        ("k", 300, true),
        ("k", 270, false),
        ("k", 240, false),
        ("k", 239, true),
        ("k", 290, false),
        ("k", 190, false),
        ("y", 185, true),
        ("k", 185, false),
        ("k", 170, true),
        ("y", 169, false),
    ];
    for (id, minutes, _) in records {
        old.pay(id, minutes).await;
    }
    old.settled(2).await;
    let total = |table: &str| format!("select sum(total)::int8 from live.{table}");
    let wanted = records.iter().filter(|(.., counts)| *counts).count();
    assert_eq!(cluster.number(&total("hour")).await, Some(i64::try_from(wanted).unwrap()));
    assert_eq!(cluster.number(&total("never")).await, Some(i64::try_from(records.len()).unwrap()));
    // What is too old is removed by and by: `x` was, `k` and `y` are remembered.
    becomes(&cluster, "select count(*) from p_hour_v1._seen", 2).await;
    assert_eq!(cluster.number("select count(*) from p_never_v1._seen").await, Some(0));
    from_zero(&cluster, &["hour"]).await;
    old.settled(2).await;
    assert_eq!(cluster.number(&total("hour")).await, Some(i64::try_from(wanted).unwrap()));
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcome_and_its_retry_under_the_same_key_take_effect_once() {
    let mut cluster = Cluster::of("unknown_once", shop).await;
    let (one, other) = (cluster.start("ingest", &[]), cluster.start("ingest", &[]));
    let consume = cluster.start("consume", &FAST_REBALANCE);
    pay(&one.web, "k-0", r#"{"account": "a", "amount": 1}"#).await;
    applied_all(&cluster, 3).await;
    // What it is sent while it is frozen it takes when it goes on, unless its controller, frozen as long, is the first to
    // wake, misses it, and puts it out of office for a moment.
    cluster.servers.kafka().pause().unwrap();
    let (body, headers) = (r#"{"account": "a", "amount": 7}"#, [JSON, ("idempotency-key", "k-1")]);
    let answer = one.web.post("/v1/events/Paid", &headers, body).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (504, &json!("unknown")), "{}", answer.text);
    assert_eq!(answer.json()["code"], "MP1016");
    assert!(answer.header("retry-after").is_some() && answer.text.contains("same id"), "{answer:?}");
    cluster.servers.kafka().cont().unwrap();
    // As its answer says, at the other node: until it is taken nothing of it is written.
    eventually_async(SOON, async || other.web.post("/v1/events/Paid", &headers, body).await.status == 202).await;
    // Sent by two nodes, once each. Who does not look for repeats counts both.
    let log = async || cluster.ends(&cluster.project.topic).await.iter().sum::<i64>();
    let all_sums = async || cluster.number("select total::int8 from live.all_sums").await;
    eventually_async(SOON, async || {
        let log = log().await;
        cluster.applied().await == Some(3 * log) && all_sums().await == Some(1 + 7 * (log - 1))
    })
    .await;
    assert_eq!(cluster.number(TOTAL).await, Some(1 + 7));
    let (log, metrics) = (log().await, consume.web.get("/metrics", &[]).await.text);
    let repeated = metric(&metrics, r#"millpond_consumer_messages_total{consumer="sums",outcome="repeated"}"#);
    assert_eq!((log - 2).try_into(), Ok(repeated), "{log} records");
    assert!(log <= 3, "{log} records");
    consume.stop();
}
