//! Records that cannot be applied: only they are set aside, each with its reason; a flood of them stops the partition.

use std::collections::BTreeMap;
use std::time::Duration;

use millpond::kafka::murmur2::partition_of;
use serde_json::{Value, json};
use sqlx::Row as _;

use super::foreign::{Foreigner, newest_schema};
use crate::cluster::{Answer, Cluster, Process, Project, SOON};
use crate::harness::eventually_async;

const FIELDS: &str = r#"{"name": "sensor", "type": "string"}, {"name": "value", "type": "int"},
    {"name": "divisor", "type": "int"}, {"name": "note", "type": "string"}"#;
const PARTITIONS: u32 = 2;

/// Sensors post readings; two consumers keep the last of each sensor: one sets aside what it cannot apply, one halts.
fn readings(dir: std::path::PathBuf, unique: &str) -> Project {
    let project = Project::empty(dir, unique);
    project
        .write("schemas/Reading/v1.avsc", &format!(r#"{{"type": "record", "name": "Reading", "fields": [{FIELDS}]}}"#));
    let contract = format!(
        "[events.Reading]\ntopic = \"TOPIC\"\nkey = \"sensor\"\n[topics.\"TOPIC\"]\npartitions = {PARTITIONS}\n"
    );
    project.write("producers/sensors/producer.toml", &contract);
    for (name, on_error) in [("lenient", "skip"), ("strict", "halt")] {
        let manifest =
            format!("topics = [\"TOPIC\"]\non_error = \"{on_error}\"\n[tables.{name}]\nkey = [\"sensor\"]\n");
        project.write(&format!("consumers/{name}/consumer.toml"), &manifest);
        let table = format!(
            "create table {name} (sensor text primary key, value integer, root double precision, hundredth integer, \
             tenfold integer, note text)"
        );
        project.write(&format!("consumers/{name}/tables.sql"), &table);
        let select = "select sensor, value, sqrt(value) as root, 100 / divisor as hundredth, value * 10 as tenfold, note \
                      from reading";
        project.write(&format!("consumers/{name}/{name}.sql"), select);
    }
    project
}

fn reading(sensor: &str, value: i64, divisor: i64) -> Value {
    json!({"sensor": sensor, "value": value, "divisor": divisor, "note": "n"})
}

async fn post(all: &Process, record: &Value) -> Answer {
    let answer = all.web.post("/v1/events/Reading", &[("content-type", "application/json")], &record.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer
}

/// A framed reading as another producer would write it.
fn framed(schema_id: u32, sensor: &[u8], value: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(schema_id.to_be_bytes());
    bytes.push(u8::try_from(sensor.len() * 2).unwrap());
    bytes.extend(sensor);
    // Zigzag: a small number is twice itself. The divisor is 1, the note is "n".
    bytes.extend([value * 2, 2, 2, b'n']);
    bytes.extend(rest);
    bytes
}

/// Two more keys on the partition of `key`.
fn beside(key: &str) -> [String; 2] {
    let at = partition_of(key.as_bytes(), PARTITIONS);
    let keys = (0..).map(|number| format!("{key}{number}"));
    let mut keys = keys.filter(|other| partition_of(other.as_bytes(), PARTITIONS) == at);
    [keys.next().unwrap(), keys.next().unwrap()]
}

/// What became of a position in one projection.
async fn fate(all: &Process, consumer: &str, position: &str) -> Value {
    let answer = all.web.get(&format!("/v1/positions/{}", position.replace('/', "%2F")), &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    let mut projections = body["projections"].as_array().unwrap().iter();
    projections.find(|of| of["consumer"] == consumer).unwrap_or_else(|| panic!("{body}"))["entries"][0].clone()
}

async fn becomes(all: &Process, consumer: &str, position: &str, outcome: &str) -> Value {
    eventually_async(SOON, async || fate(all, consumer, position).await["outcome"] == outcome).await;
    fate(all, consumer, position).await
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_alone_becomes_dead_letters_and_all_else_is_applied() {
    let cluster = Cluster::of("poison", readings).await;
    let (all, foreigner) = (cluster.start("all", &[]), Foreigner::of(&cluster, PARTITIONS));
    let id = newest_schema(&cluster);
    let mut expected: BTreeMap<String, &str> = BTreeMap::new();
    for good in 0..200 {
        post(&all, &reading(&format!("good{good}"), good, 1)).await;
        let key = format!("bad{good}");
        let bad = match good {
            10 => (foreigner.write(key.as_bytes(), b"not avro").await, "decode"),
            30 => (foreigner.write(key.as_bytes(), &framed(id, b"cut", 1, &[])[..7]).await, "decode"),
            50 => (foreigner.write(key.as_bytes(), &framed(id, b"n\0l", 1, &[])).await, "decode"),
            70 => (foreigner.write(b"k\0y", &framed(id, b"key", 1, &[])).await, "decode"),
            90 => (post(&all, &reading(&key, -1, 1)).await.position().to_owned(), "refused_by_postgres"),
            110 => (post(&all, &reading(&key, 1, 0)).await.position().to_owned(), "refused_by_postgres"),
            130 => (post(&all, &reading(&key, 2_000_000_000, 1)).await.position().to_owned(), "refused_by_postgres"),
            _ => continue,
        };
        expected.insert(bad.0, bad.1);
    }
    for (position, class) in &expected {
        let entry = becomes(&all, "lenient", position, "dead_lettered").await;
        assert_eq!(entry["reason_class"], *class, "{entry}");
        set_aside_is_told(&cluster, &all, position, &entry).await;
    }
    eventually_async(SOON, async || cluster.number("select count(*) from live.lenient").await == Some(200)).await;
    assert_eq!(cluster.number("select count(*) from live.lenient where sensor !~ '^good'").await, Some(0));
    assert_eq!(cluster.number("select sum(value) from live.lenient").await, Some(199 * 200 / 2));

    mirrored(&cluster, &expected).await;
    let list = cluster.succeeds(&["dlq", "list", "lenient"]);
    assert!(!list.contains('\0'), "a key can say anything to a terminal: {list:?}");
    assert!(
        list.contains("3  lenient: decode, Reading") && list.contains("3  lenient: refused_by_postgres, Reading"),
        "{list}"
    );
    all.stop();
}

/// A reader who asks for the position learns that it was set aside, and the command that is named shows the record.
async fn set_aside_is_told(cluster: &Cluster, all: &Process, position: &str, entry: &Value) {
    let answer = all.web.get("/v1/views/lenient", &[("millpond-min-position", position)]).await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    assert!(
        answer.text.contains(entry["reason"].as_str().unwrap()) || answer.text.contains("dlq show"),
        "{}",
        answer.text
    );
    let command = entry["next"].as_str().unwrap_or_else(|| panic!("{entry}"));
    let words: Vec<&str> = command.strip_prefix("millpond ").unwrap().split(' ').collect();
    let shown: Value = serde_json::from_str(&cluster.succeeds(&words)).unwrap();
    assert_eq!((&shown["offset"], &shown["reason"]), (&entry["offset"], &entry["reason"]), "{shown}");
}

/// The topic of dead letters has each record as it was, with where it was and why it is here.
async fn mirrored(cluster: &Cluster, expected: &BTreeMap<String, &str>) {
    let ends = async || cluster.number("select count(*) from millpond.outbox where target_topic = 'lenient.dlq'").await;
    eventually_async(SOON, async || ends().await == Some(0)).await;
    let mirror = cluster.cat("lenient.dlq");
    let mirror: Vec<&Value> =
        mirror.iter().filter(|record| record["headers"]["mp-dlq-topic"] == json!(cluster.project.topic)).collect();
    let found: BTreeMap<String, &str> = mirror
        .iter()
        .map(|record| {
            let header = |name: &str| record["headers"][name].as_str().unwrap_or_else(|| panic!("{record}"));
            assert!(!header("mp-dlq-reason").is_empty());
            let next = header("mp-dlq-offset").parse::<i64>().unwrap() + 1;
            (format!("{}/{}@{next}", header("mp-dlq-topic"), header("mp-dlq-partition")), header("mp-dlq-class"))
        })
        .collect();
    assert_eq!(&found, expected);
    assert_eq!(mirror.len(), expected.len());
    let rows = sqlx::query("select key, payload, headers::text from millpond.dead_letters where payload = 'not avro'")
        .fetch_all(&mut cluster.postgres().await)
        .await
        .unwrap();
    let [row] = &rows[..] else { panic!("one record was not Avro") };
    assert_eq!((row.get::<&[u8], _>(0), row.get::<&str, _>(2)), (&b"bad10"[..], r#"[["from", "ZWxzZXdoZXJl"]]"#));
    let foreign = mirror.iter().filter(|record| record["headers"]["from"] == "elsewhere").count();
    assert_eq!(foreign, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn record_of_an_unknown_schema_waits_until_the_schema_is_registered() {
    let cluster = Cluster::of("unknown", readings).await;
    let (all, foreigner) = (cluster.start("all", &[]), Foreigner::of(&cluster, PARTITIONS));
    let id = newest_schema(&cluster) + 1;
    let ahead = post(&all, &reading("s", 1, 1)).await;
    // A record with a field more than the schema that the consumer reads with.
    let early = foreigner.write(b"s", &framed(id, b"s", 2, &[2, b'x'])).await;
    let behind = post(&all, &reading("s", 3, 1)).await;
    becomes(&all, "lenient", ahead.position(), "applied").await;
    let waits = format!("schema id {id} is not in the registry");
    eventually_async(SOON, async || all.log().contains(&waits)).await;
    let told = format!("last error of {}: {waits}", early.split_once('@').unwrap().0);
    let said = || String::from_utf8(cluster.run(&["status"]).stdout).unwrap();
    eventually_async(SOON, async || said().matches(&told).count() == 2).await;
    assert_eq!(fate(&all, "lenient", &early).await["outcome"], "waiting");
    assert_eq!(fate(&all, "lenient", behind.position()).await["outcome"], "waiting");

    let second = format!(
        r#"{{"type": "record", "name": "Reading", "fields": [{FIELDS}, {{"name": "unit", "type": "string", "default": ""}}]}}"#
    );
    cluster.project.write("schemas/Reading/v2.avsc", &second);
    cluster.push();
    assert_eq!(newest_schema(&cluster), id);
    for consumer in ["lenient", "strict"] {
        becomes(&all, consumer, behind.position(), "applied").await;
    }
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0));
    assert_eq!(cluster.number("select value::int8 from live.lenient").await, Some(3));
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_that_halts_says_why_and_goes_on_when_told() {
    let cluster = Cluster::of("halt", readings).await;
    let all = cluster.start("all", &["log.level=info,millpond::kafka::subscription=debug"]);
    for good in 0..20 {
        post(&all, &reading("s", good, 1)).await;
    }
    // Overwritten by the next record of its key, and not passed over for that.
    let poison = post(&all, &reading("s", -7, 1)).await;
    let [good, _] = beside("s");
    post(&all, &reading("s", 20, 1)).await;
    let behind = post(&all, &reading(&good, 50, 1)).await;
    let entry = becomes(&all, "strict", behind.position(), "halted").await;
    assert_eq!(entry["halt"]["code"], "poison", "{entry}");
    let reason = entry["halt"]["reason"].as_str().unwrap();
    assert!(reason.contains("square root") && reason.contains("millpond consumer restart strict"), "{reason}");
    // All before the poison is there, and nothing of it or behind it.
    assert_eq!(cluster.number("select sum(value) from live.strict").await, Some(19));
    let headers = [("millpond-min-position", poison.position()), ("prefer", "wait=0")];
    let answer = all.web.get("/v1/views/strict", &headers).await;
    assert_eq!(answer.status, 412, "{}", answer.text);
    assert!(answer.text.contains("halted"), "{}", answer.text);
    let status = cluster.run(&["status"]);
    let said = String::from_utf8(status.stdout).unwrap();
    assert_eq!(status.status.code(), Some(1), "{said}");
    assert!(said.contains("halted") && said.contains("millpond consumer restart strict"), "{said}");
    error_is_told_of_its_partition_alone(&cluster, poison.position()).await;
    // Nothing more of it is fetched, to be thrown away.
    eventually_async(SOON, async || all.log().contains(r#""paused":true"#)).await;
    // The other one set it aside and went on.
    becomes(&all, "lenient", behind.position(), "applied").await;

    // Told to go on with nothing mended, it halts at the same record again.
    let said = cluster.succeeds(&["consumer", "restart", "strict"]);
    assert!(said.contains("1 halted partition goes on"), "{said}");
    becomes(&all, "strict", behind.position(), "halted").await;
    all.stop();

    // Told to set such records aside: by the folder, a restart of the process, and the command.
    let manifest = "consumers/strict/consumer.toml";
    let text = std::fs::read_to_string(cluster.project.dir.join(manifest)).unwrap();
    cluster.project.write(manifest, &text.replace("\"halt\"", "\"skip\""));
    let all = cluster.start("all", &[]);
    assert_eq!(fate(&all, "strict", behind.position()).await["outcome"], "halted", "until somebody says so");
    cluster.succeeds(&["consumer", "restart", "strict"]);
    becomes(&all, "strict", behind.position(), "applied").await;
    let entry = fate(&all, "strict", poison.position()).await;
    assert_eq!((&entry["outcome"], &entry["reason_class"]), (&json!("dead_lettered"), &json!("refused_by_postgres")));
    assert_eq!(cluster.number("select sum(value) from live.strict").await, Some(20 + 50));
    let versions = "select count(*) from millpond.versions where projection = 'strict'";
    assert_eq!(cluster.number(versions).await, Some(1), "the same tables");
    all.stop();
}

/// Only the partition that halted has the error.
async fn error_is_told_of_its_partition_alone(cluster: &Cluster, position: &str) {
    let at = position.split_once('@').unwrap().0;
    let with_error = || -> Vec<String> {
        let status: Value = serde_json::from_slice(&cluster.run(&["status", "--json"]).stdout).unwrap();
        let strict = status.as_array().unwrap().iter().find(|of| of["projection"] == "strict").unwrap();
        let partitions = strict["partitions"].as_array().unwrap();
        assert_eq!(partitions.len(), PARTITIONS as usize);
        let faulty = partitions.iter().filter(|partition| partition["last_error"].is_string());
        faulty.map(|p| format!("{}/{}", p["topic"].as_str().unwrap(), p["partition"])).collect()
    };
    eventually_async(SOON, async || !with_error().is_empty()).await;
    assert_eq!(with_error(), [at]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_poison_trips_the_breaker_and_nothing_of_it_is_lost() {
    const FLOOD: usize = 60;
    let cluster = Cluster::of("flood", readings).await;
    let (all, foreigner) = (cluster.start("all", &["consume.max_records=10"]), Foreigner::of(&cluster, PARTITIONS));
    post(&all, &reading("s", 1, 1)).await;
    let mut last = String::new();
    for _ in 0..FLOOD {
        last = foreigner.write(b"s", b"rubbish").await;
    }
    let behind = post(&all, &reading("s", 2, 1)).await;
    let entry = becomes(&all, "lenient", &last, "halted").await;
    assert_eq!(entry["halt"]["code"], "breaker", "{entry}");
    let set_aside =
        async || cluster.number("select count(*) from millpond.dead_letters where projection = 'lenient'").await;
    let before = set_aside().await.unwrap();
    assert!((20..FLOOD as i64).contains(&before), "{before} were set aside before it stopped");
    eventually_async(Duration::from_secs(120), async || {
        // Told to go on, it goes on until the next twenty.
        if fate(&all, "lenient", behind.position()).await["outcome"] == "halted" {
            cluster.succeeds(&["consumer", "restart", "lenient"]);
        }
        fate(&all, "lenient", behind.position()).await["outcome"] == "applied"
    })
    .await;
    assert_eq!(set_aside().await, Some(FLOOD as i64));
    assert_eq!(cluster.number("select value::int8 from live.lenient").await, Some(2));
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_poison_is_worked_off_with_one_command_where_somebody_says_so() {
    const FLOOD: usize = 100;
    let cluster = Cluster::of("worked_off", readings).await;
    let (all, foreigner) = (cluster.start("all", &["consume.max_records=10"]), Foreigner::of(&cluster, PARTITIONS));
    for _ in 0..FLOOD {
        foreigner.write(b"s", b"rubbish").await;
    }
    let behind = post(&all, &reading("s", 2, 1)).await;
    let entry = becomes(&all, "lenient", behind.position(), "halted").await;
    assert!(entry["halt"]["reason"].as_str().unwrap().contains("--no-breaker"), "{entry}");
    let said = cluster.succeeds(&["consumer", "restart", "lenient", "--no-breaker"]);
    assert!(said.contains("for ten minutes"), "{said}");
    becomes(&all, "lenient", behind.position(), "applied").await;
    let set_aside = "select count(*) from millpond.dead_letters where projection = 'lenient'";
    assert_eq!(cluster.number(set_aside).await, Some(FLOOD as i64));
    // Only for so long, and only where it was said.
    let rests = "select count(*) from millpond.projections where breaker_rests_until > now()";
    assert_eq!(cluster.number(rests).await, Some(1));
    cluster.execute("update millpond.projections set breaker_rests_until = now()").await;
    all.stop();
    let all = cluster.start("all", &["consume.max_records=10"]);
    for _ in 0..FLOOD {
        foreigner.write(b"s", b"rubbish").await;
    }
    let behind = post(&all, &reading("s", 3, 1)).await;
    becomes(&all, "lenient", behind.position(), "halted").await;
    all.stop();
}
