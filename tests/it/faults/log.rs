//! A log that is not the one that was applied: the partition halts, says why, and the command that it names ends it.

use std::time::{Duration, Instant};

use millpond::kafka::{Idle, OutgoingRecord, Reader};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process, Project, SOON, Web};
use crate::harness::{eventually, eventually_async, remove_records, unique};

const PAYMENTS: usize = 12;

/// Posts payments of one account: all on one partition.
async fn pay(web: &Web, payments: usize, amount: i64) {
    for _ in 0..payments {
        let body = json!({"account": "a", "amount": amount}).to_string();
        let answer = web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
}

/// A consumer that has applied some payments, and is not running.
async fn applied(name: &str) -> (Cluster, Process) {
    let cluster = Cluster::of(name, Project::sums).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    pay(&ingest.web, PAYMENTS, 1).await;
    cluster.settled(&cluster.project.topic, 1).await;
    consume.stop();
    (cluster, ingest)
}

/// Waits for a halt; its code, and the arguments of the command that it names.
async fn halted(cluster: &Cluster) -> (String, Vec<String>) {
    let status = || -> Value {
        let output = cluster.run(&["status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()[0].clone()
    };
    eventually_async(SOON, async || status()["state"] == "halted").await;
    let status = status();
    let partitions = status["partitions"].as_array().unwrap();
    let halted: Vec<&Value> = partitions.iter().filter(|p| p["state"] == "halted").collect();
    let [halted] = halted[..] else { panic!("{status}") };
    let (code, reason) = (halted["halt_code"].as_str().unwrap(), halted["halt_reason"].as_str().unwrap());
    assert!(status["next"].as_str().unwrap().contains(reason), "{status}");
    let command = reason.rsplit('`').nth(1).and_then(|command| command.strip_prefix("millpond "));
    let command = command.unwrap_or_else(|| panic!("{reason}"));
    (code.to_owned(), command.split(' ').map(str::to_owned).collect())
}

/// Types the command; what it printed.
fn obey(cluster: &Cluster, command: &[String]) -> String {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    cluster.succeeds(&words)
}

async fn total_is(cluster: &Cluster, total: i64) {
    eventually_async(SOON, async || {
        cluster.number("select coalesce(sum(total), 0)::int8 from live.sums").await == Some(total)
    })
    .await;
}

async fn runs_well(cluster: &Cluster) {
    eventually_async(SOON, async || cluster.run(&["status"]).status.success()).await;
}

fn admin(cluster: &Cluster) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", cluster.servers.brokers()).create().unwrap()
}

/// Deletes the topic and makes it anew.
async fn recreate(cluster: &Cluster) {
    let topic = &cluster.project.topic;
    let kafka = millpond::kafka::Admin::connect(&cluster.kafka()).unwrap();
    kafka.delete(topic).await.unwrap();
    eventually_async(SOON, async || kafka.describe(topic).await.is_ok_and(|found| found.is_none())).await;
    cluster.push();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_was_cut_halts_until_told_to_skip_what_is_gone() {
    let (cluster, ingest) = applied("cut").await;
    pay(&ingest.web, 5, 10).await;
    let ends = cluster.ends(&cluster.project.topic).await;
    let partition = i32::try_from(ends.iter().position(|end| *end > 0).unwrap()).unwrap();
    let low = i64::try_from(PAYMENTS + 2).unwrap();
    remove_records(&cluster.servers.brokers(), &cluster.project.topic, partition, low).await;

    let consume = cluster.start("consume", &[]);
    let (code, command) = halted(&cluster).await;
    assert_eq!((code.as_str(), command.last().unwrap().as_str()), ("log_was_cut", "--skip-removed"));
    // Told to go on without a word about what is gone, it says the same again.
    obey(&cluster, &command[..3]);
    assert_eq!(halted(&cluster).await.1, command);
    let said = obey(&cluster, &command);
    assert!(said.contains(&format!("the records from {PAYMENTS} on")), "{said}");
    // Two of five were removed.
    total_is(&cluster, 12 + 30).await;
    runs_well(&cluster).await;
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_is_shorter_halts_until_told_to_begin_anew() {
    let (cluster, _ingest) = applied("shorter").await;
    recreate(&cluster).await;
    let consume = cluster.start("consume", &[]);
    let (code, command) = halted(&cluster).await;
    assert_eq!((code.as_str(), command.last().unwrap().as_str()), ("log_is_shorter", "--from-zero"));
    total_is(&cluster, 12).await;
    obey(&cluster, &command);
    let ingest = cluster.start("ingest", &[]);
    pay(&ingest.web, 3, 1).await;
    total_is(&cluster, 3).await;
    runs_well(&cluster).await;
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_is_another_halts_until_told_to_begin_anew() {
    let (cluster, _ingest) = applied("another").await;
    recreate(&cluster).await;
    let ingest = cluster.start("ingest", &[]);
    pay(&ingest.web, PAYMENTS + 3, 10).await;
    let consume = cluster.start("consume", &[]);
    let (code, command) = halted(&cluster).await;
    assert_eq!((code.as_str(), command.last().unwrap().as_str()), ("log_is_another", "--from-zero"));
    total_is(&cluster, 12).await;
    obey(&cluster, &command);
    total_is(&cluster, 150).await;
    runs_well(&cluster).await;
    consume.stop();
}

/// A member that is stopped for a while and woken is not told by its client that the topic is another one, and may find
/// records at its offset: it has to look for itself.
#[tokio::test(flavor = "multi_thread")]
async fn log_that_was_replaced_by_a_longer_one_under_a_stopped_member_halts() {
    let cluster = Cluster::of("stopped", Project::sums).await;
    let ingest = cluster.start("ingest", &[]);
    // It stays in its group meanwhile.
    let consume = cluster.start("consume", &["kafka.client.session.timeout.ms=30000"]);
    pay(&ingest.web, PAYMENTS, 1).await;
    cluster.settled(&cluster.project.topic, 1).await;
    consume.pause();
    let stopped = Instant::now();
    recreate(&cluster).await;
    let ingest = cluster.start("ingest", &[]);
    pay(&ingest.web, PAYMENTS + 3, 10).await;
    let mut more = 0;
    while stopped.elapsed() < Duration::from_secs(3) {
        pay(&ingest.web, 1, 10).await;
        more += 1;
    }
    consume.cont();
    let (code, command) = halted(&cluster).await;
    assert_eq!((code.as_str(), command.last().unwrap().as_str()), ("log_is_another", "--from-zero"));
    total_is(&cluster, 12).await;
    obey(&cluster, &command);
    total_is(&cluster, 150 + 10 * more).await;
    runs_well(&cluster).await;
    consume.stop();
}

/// Pays from this account; the partition that it is on.
async fn pay_from(web: &Web, account: usize) -> u64 {
    let body = json!({"account": format!("account {account}"), "amount": 1}).to_string();
    let answer = web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let position = answer.header("millpond-position").unwrap();
    position.split(['/', '@']).nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_was_added_halts_until_it_is_declared_and_no_key_moves_before() {
    let (cluster, ingest) = applied("added").await;
    let mut places = Vec::new();
    for account in 0..12 {
        places.push(pay_from(&ingest.web, account).await);
    }
    let more = NewPartitions::new(&cluster.project.topic, 3);
    admin(&cluster).create_partitions([&more], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    // One that sees the new number from the first, and says so.
    let late = cluster.start("ingest", &[]);
    eventually(SOON, || late.log().contains("more partitions than its producer folder declares"));
    for web in [&late.web, &ingest.web] {
        for (account, place) in places.iter().enumerate() {
            assert_eq!(pay_from(web, account).await, *place, "account {account}");
        }
    }
    let doctor = cluster.run(&["doctor"]);
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(!doctor.status.success() && said.contains(" has 3 where its folder says "), "{said}");
    let consume = cluster.start("consume", &[]);
    let (code, command) = halted(&cluster).await;
    assert_eq!((code.as_str(), command.join(" ").as_str()), ("partitions_added", "consumer restart sums"));
    // The others go on. Told to go on without the new number being declared, it says the same again.
    total_is(&cluster, 12 + 36).await;
    obey(&cluster, &command);
    assert_eq!(halted(&cluster).await.0, "partitions_added");

    let contract = "[events.Paid]\ntopic = \"TOPIC\"\nkey = \"account\"\n[topics.\"TOPIC\"]\npartitions = 3\n";
    cluster.project.write("producers/shop/producer.toml", contract);
    consume.stop();
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    obey(&cluster, &command);
    let mut moved = 0;
    for (account, place) in places.iter().enumerate() {
        moved += usize::from(pay_from(&ingest.web, account).await != *place);
    }
    assert!(moved > 0);
    total_is(&cluster, 12 + 48).await;
    runs_well(&cluster).await;
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_ends_in_markers_and_aborted_records_is_applied_to_its_end() {
    let cluster = Cluster::of("markers", Project::sums).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    pay(&ingest.web, PAYMENTS, 1).await;
    cluster.settled(&cluster.project.topic, 1).await;
    let paid = cluster.cat(&cluster.project.topic);
    let partition = i32::try_from(paid[0]["partition"].as_i64().unwrap()).unwrap();
    let (kafka, topic) = (cluster.kafka(), cluster.project.topic.clone());
    let transactions = move || {
        let reader = Reader::open(&kafka).unwrap();
        let record = reader.read_record(&topic, partition, 0).unwrap().expect("the first payment");
        let again = OutgoingRecord {
            topic: &topic,
            partition: Some(partition),
            key: record.key.as_deref(),
            payload: record.payload.as_deref(),
            headers: &[],
        };
        let mut open = Idle::start(&kafka, &unique("payer")).unwrap().begin().unwrap();
        open.send(&again).unwrap();
        let mut open = open.commit().unwrap().begin().unwrap();
        open.send(&again).unwrap();
        open.send(&again).unwrap();
        // What is not written yet would leave nothing behind.
        let all = Reader::open_uncommitted(&kafka).unwrap();
        eventually(SOON, || all.watermarks(&topic, partition).unwrap().1 == PAYMENTS as i64 + 4);
        open.abort().unwrap();
    };
    tokio::task::spawn_blocking(transactions).await.unwrap();
    // The payment and its marker, two that were given up and theirs.
    let ends: i64 = cluster.ends(&cluster.project.topic).await.iter().sum();
    assert_eq!(ends, PAYMENTS as i64 + 5);
    cluster.settled(&cluster.project.topic, 1).await;
    let status: Value = serde_json::from_str(&cluster.succeeds(&["status", "--json"])).unwrap();
    assert_eq!(status[0]["state"], "running", "{status}");
    // What comes then is applied as ever, and once.
    pay(&ingest.web, 1, 1).await;
    total_is(&cluster, PAYMENTS as i64 + 2).await;
    consume.stop();
}

/// What became of a position.
async fn fate(process: &Process, position: &str) -> Value {
    let path = format!("/v1/positions/{}", position.replace('/', "%2F"));
    process.web.get(&path, &[]).await.json()["projections"][0]["entries"][0].clone()
}

/// Makes the topic anew and has the consumer read it from its start, one payment long.
async fn begun_anew(cluster: &Cluster, all: Process, amount: i64) -> (Process, String) {
    all.stop();
    recreate(cluster).await;
    let all = cluster.start("all", &[]);
    let (code, command) = halted(cluster).await;
    assert_eq!(code, "log_is_shorter");
    obey(cluster, &command);
    let body = json!({"account": "a", "amount": amount}).to_string();
    let answer = all.web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let position = answer.position().to_owned();
    eventually_async(SOON, async || {
        ["applied", "dead_lettered"].contains(&fate(&all, &position).await["outcome"].as_str().unwrap_or_default())
    })
    .await;
    (all, position)
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_of_an_earlier_topic_of_the_name_says_nothing_about_the_record_that_is_there_now() {
    let cluster = Cluster::of("anew", Project::sums).await;
    let all = cluster.start("all", &[]);
    pay(&all.web, 1, Project::TOO_MUCH).await;
    let discarded = async |count| {
        let sql = "select count(*) from millpond.verdicts where what = 'discard' and not void";
        eventually_async(SOON, async || cluster.number(sql).await == Some(count)).await;
    };
    eventually_async(SOON, async || cluster.run(&["dlq", "discard", "sums", "--all"]).status.success()).await;
    discarded(1).await;

    // A sound record at the same offset.
    let (all, position) = begun_anew(&cluster, all, 5).await;
    assert_eq!(fate(&all, &position).await["outcome"], "applied");
    let answer = all.web.get("/v1/views/sums", &[("millpond-min-position", &position)]).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    total_is(&cluster, 5).await;
    discarded(0).await;
    let record = format!("{}/0", position.split_once('@').unwrap().0);
    let shown: Value = serde_json::from_str(&cluster.succeeds(&["dlq", "show", "sums", &record])).unwrap();
    assert_eq!((&shown["verdict"]["what"], &shown["verdict"]["void"]), (&json!("discard"), &json!(true)), "{shown}");

    // The record that was meant, in its place again: what was decided about it holds.
    let (all, position) = begun_anew(&cluster, all, Project::TOO_MUCH).await;
    let told = fate(&all, &position).await;
    assert_eq!((&told["outcome"], &told["reason_class"]), (&json!("dead_lettered"), &json!("discarded")), "{told}");
    discarded(1).await;
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0));
    all.stop();
}
