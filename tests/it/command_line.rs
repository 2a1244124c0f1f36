//! What an operator types against an application that runs, and what the command line prints about it.

use serde_json::{Value, json};

use crate::cluster::{Cluster, FlightCommand, Load, Pace, Process, Project, SOON, days};
use crate::harness::eventually_async;

/// What a command that has to fail printed, on both streams.
#[track_caller]
fn fails(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.run(args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "millpond {}: {said}", args.join(" "));
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

fn first_day(count: usize) -> Vec<FlightCommand> {
    days(&[1]).into_iter().take(count).collect()
}

/// `status --json`, by projection.
fn status(cluster: &Cluster, name: &str) -> Value {
    let output = cluster.run(&["status", "--json"]);
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    all.into_iter().find(|of| of["projection"] == name).expect("the projection is listed")
}

async fn post(all: &Process, commands: Vec<FlightCommand>) {
    Load::start(&all.web, commands, Pace::Free).finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_pause_and_restart_tell_and_steer_a_running_application() {
    let cluster = Cluster::flights("status").await;
    has(&fails(&cluster, &["status"]), &["millpond consume"]);
    let all = cluster.start("all", &[]);
    post(&all, first_day(200)).await;
    let topic = &cluster.project.topic;
    cluster.settled(topic, 3).await;
    // The ends are noted about once a second.
    eventually_async(SOON, async || status(&cluster, "flights")["lag"] == 0).await;
    let said = cluster.succeeds(&["status"]);
    has(&said, &["projection", "flight_rules", "flights", "punctuality", "running"]);
    assert_eq!(status(&cluster, "flights")["state"], "running");
    assert_eq!(status(&cluster, "flights")["partitions"].as_array().map(Vec::len), Some(6));

    has(&cluster.succeeds(&["consumer", "pause", "flights"]), &["flights"]);
    has(&fails(&cluster, &["status"]), &["paused", "millpond consumer resume flights"]);
    // Told to the process, too: what comes now waits.
    tells_of_the_pause(&cluster, &all).await;
    cluster.succeeds(&["consumer", "resume", "flights"]);
    cluster.settled(topic, 3).await;
    cluster.succeeds(&["status"]);

    let rows = cluster.number("select count(*) from live.flights").await;
    has(&cluster.succeeds(&["consumer", "restart", "flights", "--from-zero"]), &["flights", "from its start"]);
    eventually_async(SOON, async || cluster.number("select count(*) from live.flights").await == rows).await;
    has(&fails(&cluster, &["consumer", "pause", "flihgts"]), &["flihgts", "millpond status"]);
    all.stop();
    eventually_async(SOON, async || fails_with(&cluster, "not running")).await;
}

fn fails_with(cluster: &Cluster, text: &str) -> bool {
    let output = cluster.run(&["status"]);
    output.status.code() == Some(1) && String::from_utf8_lossy(&output.stdout).contains(text)
}

/// Posts until a record waits, which its position says with the command that ends it.
async fn tells_of_the_pause(cluster: &Cluster, all: &Process) {
    for command in days(&[1]).into_iter().skip(200) {
        let answer = crate::cluster::post(&all.web, &command).await.unwrap();
        let path = format!("/v1/positions/{}", answer.position().replace('/', "%2F"));
        let body = all.web.get(&path, &[]).await.json();
        let flights = body["projections"].as_array().unwrap().iter().find(|of| of["consumer"] == "flights").unwrap();
        if flights["outcome"] == "waiting" && flights["paused"] == true {
            assert_eq!(flights["entries"][0]["next"], "millpond consumer resume flights", "{flights}");
            assert_eq!(status(cluster, "flights")["state"], "paused");
            return;
        }
    }
    panic!("everything was applied, paused or not");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_dead_letters_and_schemas_are_shown_as_they_are() {
    let cluster = Cluster::flights("shown").await;
    let all = cluster.start("all", &[]);
    let commands = first_day(30);
    let flight = commands[7].flight_id.clone();
    post(&all, commands).await;
    let topic = cluster.project.topic.as_str();
    cluster.settled(topic, 3).await;

    let list = cluster.succeeds(&["topic", "list"]);
    let line = list.lines().find(|line| line.starts_with(topic)).expect("the topic is listed");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), [topic, "6", "30"]);
    let cat = cluster.succeeds(&["topic", "cat", topic, "--limit", "5"]);
    assert_eq!(cat.lines().count(), 6, "{cat}");
    has(&cat, &["key", "ScheduleFlight", "flight_number"]);
    let of_one = cluster.succeeds(&["topic", "cat", topic, "--key", &flight, "--format", "jsonl"]);
    let record: Value = serde_json::from_str(&of_one).expect("one record");
    assert_eq!((&record["key"], &record["value"]["flight_id"]), (&flight.clone().into(), &flight.clone().into()));
    let said = fails(&cluster, &["topic", "cat", "no.such.topic"]);
    has(&said, &["no.such.topic", "does not exist", "create it"]);
    assert!(!said.contains("offset"), "a head without a table: {said}");
    let near = format!("{}x", topic.replace('.', ""));
    has(&fails(&cluster, &["topic", "cat", &near]), &[&format!("did you mean `{topic}`?")]);
    let said = fails(&cluster, &["topic", "cat", topic, "--partition", "9"]);
    has(&said, &[&format!("topic `{topic}` has no partition 9; it has partitions 0 to 5")]);
    assert!(!said.contains("offset"), "a head without a table: {said}");

    has(&fails(&cluster, &["consumer", "new", "x", "--from", "RecordDepature"]), &["did you mean RecordDeparture?"]);
    has(&fails(&cluster, &["consumer", "new", "x", "--from", topic]), &["is a topic", "CancelFlight"]);

    has(&cluster.succeeds(&["dlq", "list"]), &["no dead letters"]);
    has(&fails(&cluster, &["dlq", "list", "fligths"]), &["no projection fligths", "did you mean flights?"]);
    has(
        &fails(&cluster, &["dlq", "show", "flights", &format!("{topic}/0/7")]),
        &["no dead letter", "dlq list flights"],
    );

    has(&cluster.succeeds(&["schema", "list"]), &["flights.ScheduleFlight v1: id "]);
    assert!(!cluster.succeeds(&["schema", "push"]).contains("registered now"));
    cluster.succeeds(&["schema", "check"]);
    let schema = std::fs::read_to_string(cluster.project.dir.join("schemas/CancelFlight/v1.avsc")).unwrap();
    cluster.project.write("schemas/CancelFlight/v2.avsc", &schema.replace("\"carrier\"", "\"airline\""));
    has(&fails(&cluster, &["schema", "check", "--offline"]), &["CancelFlight", "airline"]);
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_and_config_say_what_is_in_force_and_what_is_wrong() {
    let cluster = Cluster::flights("doctor").await;
    let all = cluster.start("all", &[]);
    let said = cluster.succeeds(&["doctor"]);
    has(&said, &["ok    project", "ok    kafka", "ok    schemas", "ok    postgres"]);
    assert!(!said.contains("FAIL"), "{said}");
    let said = fails(&cluster, &["doctor", "--set", "postgres.url=postgres://nobody@127.0.0.1:1/none"]);
    has(&said, &["FAIL  postgres", "ok    kafka"]);

    let config = cluster.succeeds(&["config"]);
    has(&config, &["kafka.brokers", &cluster.servers.brokers(), "# flag", "# default"]);
    let password = cluster.database.split(['/', '@', ':']).nth(4).expect("a password in the URL");
    assert!(password.len() < 8 || !config.contains(password), "{config}");
    let said = fails(&cluster, &["config", "--set", "kafka.broker=x"]);
    has(&said, &["there is no key kafka.broker", "did you mean kafka.brokers?"]);
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_consumer_of_fields_that_are_words_of_sql_works_as_it_is_written() {
    let empty = |dir, unique: &str| {
        let project = Project::empty(dir, unique);
        project.write("schemas/README.md", "");
        project
    };
    let cluster = Cluster::of("words", empty).await;
    let sql = "select array_agg(word::text) from pg_get_keywords()";
    let mut fields: Vec<String> = sqlx::query_scalar(sql).fetch_one(&mut cluster.postgres().await).await.unwrap();
    fields.push("orderId".to_owned());
    let sample: serde_json::Map<String, Value> = fields.iter().map(|field| (field.clone(), json!("x"))).collect();
    let sample = Value::Object(sample).to_string();
    cluster.project.write("sample.json", &sample);
    let topic = &cluster.project.topic;
    let producer = ["producer", "new", "words", "--from", "sample.json", "--type", "Order", "--key", "user", "--topic"];
    cluster.succeeds(&[&producer[..], &[topic]].concat());
    cluster.push();
    cluster.succeeds(&["consumer", "new", "table", "--from", "Order"]);
    cluster.succeeds(&["consumer", "test", "table"]);
    let all = cluster.start("all", &[]);
    let answer = all.web.post("/v1/events/Order", &[("content-type", "application/json")], &sample).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let read = [("millpond-min-position", answer.position()), ("prefer", "wait=10")];
    let rows = all.web.get("/v1/views/table", &read).await;
    assert_eq!(rows.status, 200, "{}", rows.text);
    let row = &rows.json()[0];
    assert!(fields.iter().all(|field| row[field] == "x"), "{row}");
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn downstream_events_that_leave_at_least_once_are_said_to() {
    let cluster = Cluster::flights("delivery").await;
    let said = |args: &[&str]| String::from_utf8_lossy(&cluster.run(args).stdout).into_owned();
    has(&said(&["doctor"]), &["ok    downstream: nothing was sent yet"]);
    let publish = cluster.start("publish", &["publish.transactions=off"]);
    eventually_async(SOON, async || said(&["status"]).contains("at least once: publish.transactions is off")).await;
    has(&fails(&cluster, &["doctor"]), &["FAIL  downstream: at least once", "publish.transactions"]);
    let accepted = cluster.succeeds(&["doctor", "--set", "publish.transactions=off"]);
    has(&accepted, &["ok    downstream: at least once"]);
    publish.stop();
    let publish = cluster.start("publish", &[]);
    eventually_async(SOON, async || said(&["doctor"]).contains("ok    downstream: exactly once")).await;
    assert!(!said(&["status"]).contains("at least once"));
    publish.stop();
}
