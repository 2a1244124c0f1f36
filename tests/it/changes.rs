//! Folders that change while there are tables: what is taken in, what makes a new version, and what is refused.

use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::cluster::{Cluster, Process, Project, SOON};
use crate::harness::eventually_async;

const FIELDS: &str = r#"{"name": "sensor", "type": "string"}, {"name": "value", "type": "int"}"#;

const CONTRACT: &str = "[events.Reading]\ntopic = \"TOPIC\"\nkey = \"sensor\"\n[topics.\"TOPIC\"]\npartitions = 1\n";

/// Sensors post readings, of which the root is kept; there is none of a number below zero.
fn roots(dir: std::path::PathBuf, unique: &str) -> Project {
    let project = Project::empty(dir, unique);
    project.write("schemas/Reading/v1.avsc", &schema(&project, ""));
    project.write("producers/sensors/producer.toml", CONTRACT);
    project.write("consumers/roots/consumer.toml", &manifest("halt"));
    project.write("consumers/roots/roots.sql", "select sensor, sqrt(value) as root from reading");
    project
}

/// Subjects are shared by all projects of a registry.
fn schema(project: &Project, more: &str) -> String {
    let namespace = project.topic.replace('.', "_");
    format!(r#"{{"type": "record", "name": "Reading", "namespace": "{namespace}", "fields": [{FIELDS}{more}]}}"#)
}

fn manifest(on_error: &str) -> String {
    format!("topics = [\"TOPIC\"]\non_error = \"{on_error}\"\n[tables.roots]\nkey = [\"sensor\"]\n")
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// Posts a reading; its position.
async fn post(process: &Process, sensor: &str, value: i64) -> String {
    let body = json!({"sensor": sensor, "value": value}).to_string();
    let answer = process.web.post("/v1/events/Reading", &JSON, &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.position().to_owned()
}

/// Waits for what becomes of a position.
async fn becomes(process: &Process, position: &str, outcome: &str) -> Value {
    let path = format!("/v1/positions/{}", position.replace('/', "%2F"));
    let entry = async || process.web.get(&path, &[]).await.json()["projections"][0]["entries"][0].clone();
    eventually_async(SOON, async || entry().await["outcome"] == outcome).await;
    entry().await
}

/// Waits until it has said that.
async fn says(dev: &Process, text: &str) {
    eventually_async(SOON, async || dev.log().contains(text)).await;
}

async fn versions(cluster: &Cluster) -> Option<i64> {
    cluster.number("select count(*) from millpond.versions where projection = 'roots'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn field_that_no_select_reads_and_grants_make_no_new_version() {
    let cluster = Cluster::of("unread", roots).await;
    let all = cluster.start("all", &[]);
    becomes(&all, &post(&all, "a", 4).await, "applied").await;
    all.stop();

    let role = crate::harness::unique("analyst");
    cluster.execute(&format!("create role {role}")).await;
    cluster.project.write("consumers/roots/consumer.toml", &format!("{}grants = [\"{role}\"]\n", manifest("halt")));
    let unit = r#", {"name": "unit", "type": "string", "default": ""}"#;
    cluster.project.write("schemas/Reading/v2.avsc", &schema(&cluster.project, unit));
    cluster.push();
    let all = cluster.start("all", &[]);
    let body = json!({"sensor": "b", "value": 9, "unit": "kelvin"}).to_string();
    let answer = all.web.post("/v1/events/Reading", &JSON, &body).await;
    becomes(&all, answer.position(), "applied").await;
    assert_eq!(cluster.number("select sum(root)::int8 from live.roots").await, Some(2 + 3));
    assert_eq!(versions(&cluster).await, Some(1));
    let granted = format!("select has_table_privilege('{role}', 'live.roots', 'select')::int::int8");
    assert_eq!(cluster.number(&granted).await, Some(1));
    all.stop();

    // Read by the SQL, it is another matter.
    cluster.project.write("consumers/roots/roots.sql", "select sensor, sqrt(value) as root, unit from reading");
    let output = cluster.run(&["consume", "--listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("the folder of consumer roots has changed"), "{said}");
    cluster.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_takes_in_what_changes_and_says_what_to_type() {
    let cluster = Cluster::of("dev", roots).await;
    let dev = cluster.start_dev();
    assert!(dev.log().contains("/v1/events/Reading -H 'content-type: application/json' -d"), "{}", dev.log());

    // A policy: the same tables go on.
    becomes(&dev, &post(&dev, "a", 4).await, "applied").await;
    let poison = post(&dev, "a", -1).await;
    let behind = post(&dev, "a", 9).await;
    let halted = becomes(&dev, &poison, "halted").await;
    let reason = halted["halt"]["reason"].as_str().unwrap();
    assert!(reason.contains("on_error = \"skip\"") && reason.contains("millpond consumer restart roots"), "{reason}");
    cluster.project.write("consumers/roots/consumer.toml", &manifest("skip"));
    says(&dev, "consumer roots: version 1 goes on with the changed settings").await;
    cluster.succeeds(&["consumer", "restart", "roots"]);
    becomes(&dev, &behind, "applied").await;
    assert_eq!(becomes(&dev, &poison, "dead_lettered").await["reason_class"], "refused_by_postgres");
    assert_eq!(versions(&cluster).await, Some(1));

    // A topic that nobody has, which would be waited for in silence.
    cluster.project.write("consumers/squares/squares.sql", "select sensor, value * value as square from reading");
    let misspelt = manifest("skip").replace("roots", "squares").replace("TOPIC", "xTOPIC");
    cluster.project.write("consumers/squares/consumer.toml", &misspelt);
    says(&dev, &format!("did you mean `{}`?", cluster.project.topic)).await;
    assert!(dev.log().contains("consumers/squares/consumer.toml: no folder declares the topic"), "{}", dev.log());
    cluster.project.write("consumers/squares/consumer.toml", &manifest("skip").replace("roots", "squares"));
    says(&dev, "consumer squares: version 1 reads the log from its start").await;

    // A new type is posted as it is told.
    cluster.project.write("sample.json", r#"{"order_id": "o'1", "pieces": 3}"#);
    let topic = format!("{}.orders", cluster.project.topic);
    cluster.succeeds(&["producer", "new", "orders", "--from", "sample.json", "--topic", &topic]);
    says(&dev, "new, and ready to be posted:").await;
    says(&dev, "/v1/events/Orders -H").await;
    let log = dev.log();
    let line = log.lines().find(|line| line.contains("/v1/events/Orders")).unwrap().trim();
    let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("202 Accepted"), "{line}\n{answer}");
    assert_eq!(log.matches("/v1/events/Reading").count(), 1, "what was told is not told again:\n{log}");
    dev.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_builds_beside_what_people_read_and_tells_of_a_lock_in_the_way() {
    let cluster = Cluster::of("locked", roots).await;
    let dev = cluster.start_dev();
    becomes(&dev, &post(&dev, "a", 4).await, "applied").await;

    // As somebody does who has begun a transaction in psql and looks at the rows.
    let mut psql = cluster.postgres().await;
    psql.execute("begin").await.unwrap();
    psql.execute("select * from live.roots").await.unwrap();
    cluster.project.write("consumers/roots/roots.sql", "select sensor, cbrt(value) as root from reading");
    says(&dev, "consumer roots: version 2 is built from the log; version 1 goes on until it is as far").await;
    // It is built all the same, people go on reading, and what is in the way is told once.
    let waits = "consumer roots: version 2 is not live yet: another session holds a lock on the tables or views of consumer roots; \
                 end that transaction";
    says(&dev, waits).await;
    becomes(&dev, &post(&dev, "b", 27).await, "applied").await;
    let swaps =
        "select count(*) from pg_stat_activity where application_name = 'millpond swap' and wait_event_type = 'Lock'
                    and datname = current_database()";
    for wanted in [0, 1, 0, 1] {
        eventually_async(SOON, async || cluster.number(swaps).await == Some(wanted)).await;
    }
    assert_eq!(dev.web.get("/readyz", &[]).await.status, 200);
    assert_eq!(dev.log().matches("is not live yet").count(), 1, "{}", dev.log());
    psql.execute("rollback").await.unwrap();
    says(&dev, "consumer roots: version 2 is live").await;
    assert_eq!(cluster.number("select root::int8 from live.roots where sensor = 'b'").await, Some(3));
    becomes(&dev, &post(&dev, "b", 64).await, "applied").await;
    assert_eq!(cluster.number("select root::int8 from live.roots where sensor = 'b'").await, Some(4));
    // Nobody goes back to the one before.
    let gone = "select count(*) from information_schema.schemata where schema_name = 'p_roots_v1'";
    eventually_async(SOON, async || cluster.number(gone).await == Some(0)).await;

    // The tables of a version that stays go on where they were, however late.
    let taken = "select pg_advisory_xact_lock(hashtextextended('millpond.version.roots', 0))";
    psql.execute("begin").await.unwrap();
    psql.execute(taken).await.unwrap();
    cluster.project.write("consumers/roots/consumer.toml", &manifest("skip"));
    says(&dev, "the change is not taken in, consumer roots is stopped and tried again every second").await;
    let log = dev.log();
    assert!(!log.contains("what ran before goes on"), "{log}");
    // Also while it is being tried.
    let waits = "select coalesce(max(pid), 0)::int8 from pg_stat_activity
                  where application_name = 'millpond compile' and wait_event_type = 'Lock'
                    and datname = current_database()";
    for _ in 0..2 {
        eventually_async(SOON, async || cluster.number(waits).await > Some(0)).await;
        let waiting = cluster.number(waits).await;
        let answer = dev.web.get("/readyz", &[]).await;
        assert_eq!(cluster.number(waits).await, waiting, "it was tried all the while");
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.text.contains("consumer roots is stopped and tried again every second"), "{}", answer.text);
        assert!(answer.text.contains("another session holds a lock"), "{}", answer.text);
        eventually_async(SOON, async || cluster.number(waits).await != waiting).await;
    }
    let warnings = dev.log().matches("cannot be started anew").count();
    assert!(warnings <= 1, "the same is told once:\n{}", dev.log());
    psql.execute("rollback").await.unwrap();
    says(&dev, "consumer roots: version 2 goes on with the changed settings").await;
    eventually_async(SOON, async || dev.web.get("/readyz", &[]).await.status == 200).await;

    // Where all roles have to be started anew, nothing runs until they can be.
    psql.execute("begin").await.unwrap();
    psql.execute(taken).await.unwrap();
    cluster.project.write("consumers/roots/roots.sql", "select sensor, cbrt(value) as root, unit from reading");
    says(&dev, "the change is not taken in, what ran before goes on").await;
    let unit = r#", {"name": "unit", "type": "string", "default": ""}"#;
    cluster.project.write("schemas/Reading/v2.avsc", &schema(&cluster.project, unit));
    says(&dev, "the change is not taken in, nothing runs until it is").await;
    psql.execute("rollback").await.unwrap();
    let is_ready = async || dev.web.try_get("/readyz", &[]).await.is_ok_and(|answer| answer.status == 200);
    eventually_async(SOON, is_ready).await;
    says(&dev, "consumer roots: version 3 is live").await;
    becomes(&dev, &post(&dev, "c", 8).await, "applied").await;

    // What is being built is given up once the folder is again what people read.
    psql.execute("begin").await.unwrap();
    psql.execute("select * from live.roots").await.unwrap();
    let before = std::fs::read_to_string(cluster.project.dir.join("consumers/roots/roots.sql")).unwrap();
    cluster.project.write("consumers/roots/roots.sql", "select sensor, sqrt(value) as root, unit from reading");
    says(&dev, "consumer roots: version 4 is built from the log").await;
    cluster.project.write("consumers/roots/roots.sql", &before);
    says(&dev, "consumer roots: version 3 goes on\n").await;
    psql.execute("rollback").await.unwrap();
    becomes(&dev, &post(&dev, "d", 8).await, "applied").await;
    let left = "select max(version)::int8 from millpond.versions where projection = 'roots'";
    assert_eq!(cluster.number(left).await, Some(3));
    dev.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_takes_a_change_in_that_postgres_was_away_for() {
    let mut cluster = Cluster::of("away", roots).await;
    let dev = cluster.start_dev();
    becomes(&dev, &post(&dev, "a", 4).await, "applied").await;

    cluster.servers.postgres().pause().unwrap();
    cluster.project.write("consumers/roots/roots.sql", "select sensor, cbrt(value) as root from reading");
    says(&dev, "the change is not taken in, what ran before goes on").await;
    cluster.servers.postgres().cont().unwrap();
    says(&dev, "consumer roots: version 2 is live").await;
    says(&dev, "the change is taken in now").await;
    let log = dev.log();
    assert_eq!(log.matches("the change is not taken in").count(), 1, "the same is told once:\n{log}");
    dev.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_goes_on_beside_a_topic_that_kafka_refuses() {
    let cluster = Cluster::of("refused", roots).await;
    let dev = cluster.start_dev();
    becomes(&dev, &post(&dev, "a", 4).await, "applied").await;

    // Kafka takes names that differ in dots and underscores only for one.
    let clashing = cluster.project.topic.replace(".events.v1", "_events.v1");
    let refused = format!("{CONTRACT}[topics.\"{clashing}\"]\npartitions = 1\n");
    cluster.project.write("producers/sensors/producer.toml", &refused);
    says(&dev, "the change is not taken in, what ran before goes on").await;
    assert!(dev.log().contains(&format!("create topic `{clashing}`")), "{}", dev.log());
    becomes(&dev, &post(&dev, "b", 9).await, "applied").await;
    assert!(!dev.log().contains("restarting the roles"), "{}", dev.log());
    dev.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_tells_that_a_version_made_by_another_process_reads_from_the_start() {
    let cluster = Cluster::of("anew", roots).await;
    let dev = cluster.start_dev();
    let consume = cluster.start("consume", &[]);
    becomes(&dev, &post(&dev, "a", 4).await, "applied").await;
    // The other one is to be first.
    dev.pause();
    cluster.succeeds(&["consumer", "restart", "roots", "--from-zero"]);
    eventually_async(SOON, async || versions(&cluster).await == Some(2)).await;
    dev.cont();
    let told = async || dev.log().contains("consumer roots: version 2 reads the log from its start");
    eventually_async(SOON, told).await;
    assert!(!dev.log().contains("goes on with the changed settings"), "{}", dev.log());
    consume.stop();
    dev.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn role_beside_dev_uses_its_servers_and_says_so() {
    let cluster = Cluster::of("beside", roots).await;
    cluster.project.write("millpond.toml", "[kafka]\nbrokers = \"127.0.0.1:1\"\n");
    let dev = cluster.start_dev();
    let consume = cluster.start_beside("consume");
    let log = consume.log();
    assert!(log.contains("using the servers of the `millpond dev` that runs in this project"), "{log}");
    assert!(log.contains(&format!("kafka.brokers = {}", cluster.servers.brokers())), "{log}");
    let config = cluster.run_beside(&["config"]);
    for key in ["kafka.brokers", "postgres.url"] {
        let line = config.lines().find(|line| line.starts_with(key)).unwrap();
        assert!(line.ends_with("# millpond dev, running here"), "{config}");
    }
    consume.stop();

    // What a flag says is meant, and nobody's servers are spoken of.
    let consume = cluster.start("consume", &[]);
    assert!(!consume.log().contains("millpond dev"), "{}", consume.log());
    consume.stop();
    dev.stop();
    let config = cluster.run_beside(&["config"]);
    let line = config.lines().find(|line| line.starts_with("kafka.brokers")).unwrap();
    assert!(line.contains("127.0.0.1:1 ") && line.ends_with("# file millpond.toml"), "{config}");
}
