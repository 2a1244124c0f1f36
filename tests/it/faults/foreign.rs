//! Clients that write past ingest: under schemas that they registered their own way, with headers of their own, or what
//! nobody can read.

use millpond::kafka::murmur2::partition_of;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Project, SOON};
use crate::harness::eventually_async;

/// A client that writes what it likes.
pub struct Foreigner {
    producer: FutureProducer,
    topic: String,
    partitions: u32,
}

impl Foreigner {
    /// `partitions`: those of the cluster's topic.
    pub fn of(cluster: &Cluster, partitions: u32) -> Self {
        let producer = ClientConfig::new().set("bootstrap.servers", cluster.servers.brokers()).create().unwrap();
        Self { producer, topic: cluster.project.topic.clone(), partitions }
    }

    /// Writes to the partition of `key`; the position that covers the record.
    pub async fn write(&self, key: &[u8], payload: &[u8]) -> String {
        self.write_with(key, payload, &[("from", Some("elsewhere"))]).await
    }

    /// Writes a record without a value.
    pub async fn bury(&self, key: &[u8]) {
        let record = FutureRecord::<[u8], [u8]>::to(&self.topic).key(key).partition(partition_of(key, self.partitions));
        self.producer.send(record, SOON).await.map_err(|(error, _)| error).unwrap();
    }

    async fn write_with(&self, key: &[u8], payload: &[u8], headers: &[(&str, Option<&str>)]) -> String {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: *value }));
        let partition = partition_of(key, self.partitions);
        let record = FutureRecord::to(&self.topic).key(key).payload(payload).headers(headers).partition(partition);
        let at = self.producer.send(record, SOON).await.map_err(|(error, _)| error).unwrap();
        format!("{}/{}@{}", self.topic, at.partition, at.offset + 1)
    }

    /// Registers a schema as a registry does for a client that names subjects after topics.
    pub async fn register_value(&self, version: i32, id: u32, schema: &str) {
        let subject = format!("{}-value", self.topic);
        let key = format!(r#"{{"keytype":"SCHEMA","subject":"{subject}","version":{version},"magic":1}}"#);
        let value = json!({"subject": subject, "version": version, "id": id, "schema": schema, "deleted": false});
        let value = value.to_string();
        self.producer.send(FutureRecord::to("_schemas").key(&key).payload(&value), SOON).await.unwrap();
    }
}

/// The id of the newest schema, and with it the next one.
pub fn newest_schema(cluster: &Cluster) -> u32 {
    let list = cluster.succeeds(&["schema", "list"]);
    list.lines().filter_map(|line| line.rsplit_once("id ")?.1.parse().ok()).max().expect("schemas are registered")
}

/// The id of `SUBJECT vN`.
pub fn id_of(cluster: &Cluster, version: &str) -> u32 {
    let list = cluster.succeeds(&["schema", "list"]);
    let found = list.lines().find_map(|line| line.strip_prefix(version)?.strip_prefix(": id ")?.parse().ok());
    found.unwrap_or_else(|| panic!("{version} in\n{list}"))
}

/// A version of what is measured: each has a field more than the one before it.
fn schema(version: usize) -> String {
    let more: String =
        (1..version).map(|v| format!(r#", {{"name": "x{v}", "type": "string", "default": ""}}"#)).collect();
    format!(
        r#"{{"type": "record", "name": "Measured", "namespace": "lab", "fields": [
        {{"name": "sensor", "type": "string"}}, {{"name": "value", "type": "int"}}{more}]}}"#
    )
}

/// A framed record of that version.
fn measured(version: usize, id: u32, sensor: &str, value: u8) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(id.to_be_bytes());
    // Zigzag: a small number is twice itself.
    bytes.push(u8::try_from(sensor.len() * 2).unwrap());
    bytes.extend(sensor.as_bytes());
    bytes.push(value * 2);
    bytes.extend(std::iter::repeat_n(0, version - 1));
    bytes
}

/// What sensors measured last, on one partition.
fn lab(dir: std::path::PathBuf, unique: &str) -> Project {
    let project = Project::empty(dir, unique);
    project.write("schemas/Measured/v1.avsc", &schema(1));
    let contract = "[events.Measured]\ntopic = \"TOPIC\"\nkey = \"sensor\"\n[topics.\"TOPIC\"]\npartitions = 1\n";
    project.write("producers/lab/producer.toml", contract);
    let manifest = "topics = [\"TOPIC\"]\n[tables.latest]\nkey = [\"sensor\"]\n";
    project.write("consumers/latest/consumer.toml", manifest);
    project.write("consumers/latest/latest.sql", "select sensor, value from measured");
    project
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_applied_whatever_subjects_their_schema_is_registered_under() {
    let cluster = Cluster::of("subjects", lab).await;
    let foreigner = Foreigner::of(&cluster, 1);
    let (known, newest) = (id_of(&cluster, "lab.Measured v1"), newest_schema(&cluster));
    let ids = [known, newest + 1, newest + 2];
    for (version, id) in (1..).zip(ids) {
        foreigner.register_value(version, id, &schema(usize::try_from(version).unwrap())).await;
    }
    // So the first is ours and then theirs, the second theirs alone, and the third theirs and then ours.
    cluster.project.write("schemas/Measured/v2.avsc", &schema(3));
    cluster.push();
    assert_eq!(id_of(&cluster, "lab.Measured v2"), ids[2]);
    for (version, id) in (1..).zip(ids) {
        let sensor = format!("s{version}");
        foreigner.write(sensor.as_bytes(), &measured(version, id, &sensor, 10)).await;
    }

    let shown = cluster.succeeds(&["consumer", "show", "latest"]);
    assert!(shown.contains("latest: 3 of 3 rows") && shown.contains("3 applied, 0 of types"), "{shown}");
    let all = cluster.start("all", &[]);
    cluster.settled(&cluster.project.topic, 1).await;
    assert_eq!(cluster.number("select sum(value) from live.latest").await, Some(30));
    let types: Vec<Value> = cluster.cat(&cluster.project.topic).into_iter().map(|mut r| r["type"].take()).collect();
    assert_eq!(types, ["Measured", "Measured", "Measured"]);
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn show_tells_records_that_cannot_be_read_and_shows_the_rest() {
    let cluster = Cluster::of("shown", lab).await;
    let foreigner = Foreigner::of(&cluster, 1);
    let (id, newest) = (id_of(&cluster, "lab.Measured v1"), newest_schema(&cluster));
    let other = schema(1).replace("Measured", "Weighed");
    foreigner.register_value(1, newest + 1, &other).await;
    for (id, sensor) in [
        (id, "before"),
        (newest + 77, "x"),
        (newest + 1, "weighed"),
        (newest + 78, "y"),
        (newest + 77, "z"),
        (id, "\u{1b}[2Jafter"),
    ] {
        foreigner.write(b"k", &measured(1, id, sensor, 10)).await;
    }
    let shown = cluster.succeeds(&["consumer", "show", "latest"]);
    for line in [
        "latest: 2 of 2 rows",
        "  before ",
        r"  \u{1b}[2Jafter ",
        "2 applied, 1 of types that are not read here, 3 that cannot be applied",
        "3 cannot be applied: decode",
        &format!("offset 1: schema id {} is not in the registry", newest + 77),
        &format!("offset 3: schema id {} is not in the registry", newest + 78),
    ] {
        assert!(shown.contains(line), "{line:?} in\n{shown}");
    }
    assert!(
        !shown.contains(|c: char| c.is_control() && c != '\n'),
        "a value can say anything to a terminal: {shown:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_of_a_dead_letter_has_all_headers_and_the_id_that_it_came_with() {
    let cluster = Cluster::of("mirror", lab).await;
    let (all, foreigner) = (cluster.start("all", &[]), Foreigner::of(&cluster, 1));
    let key = "\u{1b}long".repeat(100);
    let said = "00112233445566778899aabbccddeeff";
    let headers =
        [("empty", Some("")), ("none", None), ("mp-event-id", Some("order-7")), ("mp-fingerprint", Some(said))];
    foreigner.write_with(key.as_bytes(), b"not avro", &headers).await;
    let dead = async || cluster.number("select count(*) from millpond.dead_letters").await;
    eventually_async(SOON, async || dead().await == Some(1)).await;
    let unsent = async || cluster.number("select count(*) from millpond.outbox").await;
    eventually_async(SOON, async || unsent().await == Some(0)).await;
    let mirror: Vec<Value> = cluster.cat("latest.dlq").into_iter().map(|mut record| record["headers"].take()).collect();
    let of_ours: Vec<&Value> =
        mirror.iter().filter(|headers| headers["mp-dlq-topic"] == cluster.project.topic.as_str()).collect();
    let [headers] = of_ours[..] else { panic!("one mirror: {mirror:?}") };
    assert_eq!((&headers["empty"], &headers["mp-dlq-event-id"]), (&json!(""), &json!("order-7")), "{headers}");
    assert_eq!(headers.get("none"), Some(&Value::Null), "{headers}");
    let own = headers["mp-event-id"].as_str().unwrap();
    assert!(own.parse::<uuid::Uuid>().is_ok(), "the mirror has an id of its own: {headers}");
    assert_eq!(headers["mp-dlq-fingerprint"], said, "{headers}");
    let own = headers["mp-fingerprint"].as_str().unwrap();
    assert!(own.len() == said.len() && own != said, "and a fingerprint: {headers}");

    let list = cluster.succeeds(&["dlq", "list", "latest"]);
    let line = list.lines().find(|line| line.contains(" key ")).unwrap();
    assert!(line.contains(r"key \u{1b}long\u{1b}long") && line.contains("…: ") && line.len() < 300, "{line}");
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_that_no_topic_would_take_leaves_without_what_is_too_large() {
    let cluster = Cluster::of("large", lab).await;
    let (all, foreigner) = (cluster.start("all", &[]), Foreigner::of(&cluster, 1));
    // Just below what the topic takes.
    let (half, whole) = ("h".repeat(495_000), "h".repeat(990_000));
    foreigner.write_with(b"k", &vec![b'x'; 495_000], &[("large", Some(&half))]).await;
    foreigner.write_with(b"k", b"not avro", &[("large", Some(&whole))]).await;
    foreigner.write_with(&vec![b'k'; 990_000], b"not avro", &[("small", Some("s"))]).await;
    let unsent = async || cluster.number("select count(*) from millpond.outbox").await;
    let dead = async || cluster.number("select count(*) from millpond.dead_letters").await;
    eventually_async(SOON, async || (dead().await, unsent().await) == (Some(3), Some(0))).await;
    let mirrors = cluster.cat("latest.dlq").into_iter();
    let mirrors: Vec<Value> =
        mirrors.filter(|record| record["headers"]["mp-dlq-topic"] == cluster.project.topic.as_str()).collect();
    let omitted = |mirror: &Value, what: &str| mirror["headers"].get(format!("mp-dlq-{what}-omitted")).is_some();
    let [value, headers, key] = &mirrors[..] else { panic!("{} mirrors", mirrors.len()) };
    for (mirror, left_out) in [(value, "payload"), (headers, "headers"), (key, "key")] {
        let found: Vec<&str> = ["payload", "headers", "key"].into_iter().filter(|what| omitted(mirror, what)).collect();
        assert_eq!(found, [left_out]);
    }
    assert_eq!((&value["headers"]["large"], &key["headers"]["small"]), (&json!(half), &json!("s")));
    all.stop();
}
