//! The router without a broker: everything that is decided before Kafka is asked.

use std::{fs, path::Path};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    http,
    schema::SchemaSet,
    spec::producer::{Outcome, ProducerSpec, load_all},
};

const SCHEDULE: &str = r#"{"type": "record", "name": "ScheduleFlight", "namespace": "flights", "fields": [
    {"name": "command_id", "type": ["null", "string"], "default": null},
    {"name": "carrier", "type": "string"},
    {"name": "flight", "type": "int"}
]}"#;
const SEEN: &str = r#"{"type": "record", "name": "FlightSeen", "fields": [{"name": "tail", "type": "string"}]}"#;
const CONTRACT: &str = r#"
[commands.ScheduleFlight]
topic = "flights.commands.v1"
key = ["carrier", "flight"]
event_id = "command_id"
max_bytes = "1KiB"
[events.FlightSeen]
topic = "flights.events.v1"
key = "tail"
[topics."flights.commands.v1"]
partitions = 6
[topics."flights.events.v1"]
partitions = 3
"#;
/// Nothing listens there.
const NOWHERE: &str = "127.0.0.1:1";

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

pub(super) fn contracts(limits: &str) -> Contracts {
    contracts_in(tempfile::tempdir().unwrap().path(), limits).0
}

fn contracts_in(root: &Path, limits: &str) -> (Contracts, Vec<ProducerSpec>) {
    write(&root.join("schemas/ScheduleFlight/v1.avsc"), SCHEDULE);
    write(&root.join("schemas/FlightSeen/v1.avsc"), SEEN);
    write(&root.join("producers/flights/producer.toml"), &format!("{CONTRACT}{limits}"));
    write(
        &root.join("producers/flights/examples/valid/one.json"),
        r#"{"type": "ScheduleFlight", "body": {"carrier": "it's", "flight": 1}}"#,
    );
    let schemas = SchemaSet::load(&root.join("schemas")).unwrap();
    let specs = load_all(&root.join("producers")).unwrap();
    (Contracts::compile(&specs, &schemas).unwrap(), specs)
}

fn state(limits: &str, auth: Auth, options: Options) -> IngestState {
    let contracts = contracts(limits);
    contracts.get("ScheduleFlight").unwrap().set_schema_id(7);
    let kafka = kafka::Options { brokers: NOWHERE.into(), ..kafka::Options::default() };
    let publisher = Publisher::start(&kafka, []).unwrap();
    IngestState::new(contracts, Arc::new(publisher), Arc::new(auth), options)
}

pub(super) fn app_of(state: IngestState) -> Router {
    http::app(router(state))
}

fn app() -> Router {
    app_of(state("", Auth::Open, Options::default()))
}

pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

pub(super) async fn ask(app: &Router, request: Request<Body>) -> Answer {
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, body: serde_json::from_slice(&bytes).unwrap_or_default() }
}

async fn post(path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    ask(&app(), request.body(body.into()).unwrap()).await
}

const DRY: &str = "/v1/commands/ScheduleFlight?validate=only";
const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

pub(super) fn code(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.body["code"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn unknown_type_is_told_the_nearest() {
    let answer = post("/v1/commands/ScheduleFlights", &[], "{}").await;
    assert_eq!(code(&answer), (404, "MP1001"));
    assert_eq!(answer.body["near"][0], "ScheduleFlight");
    assert_eq!(answer.body["type"], "urn:millpond:problem:MP1001");
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json");
    let answer = post("/v1/commands/Zzz", &[], "{}").await;
    assert!(answer.body["detail"].as_str().unwrap().contains("GET /v1/commands"), "{}", answer.body);
}

#[tokio::test]
async fn command_sent_as_event_is_told_the_path() {
    let answer = post("/v1/events/ScheduleFlight", &[], "{}").await;
    assert_eq!(code(&answer), (404, "MP1002"));
    assert_eq!(answer.body["use"], "/v1/commands/ScheduleFlight");
}

#[tokio::test]
async fn dry_run_shows_key_and_id_of_each_record() {
    let body = r#"{"carrier": "U/A", "flight": 1545, "command_id": "c-1"}"#;
    let answer = post(DRY, &[JSON], body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["records"][0], json!({"index": 0, "key": "U%2FA/1545", "event_id": "c-1"}));
    let body =
        "{\"carrier\": \"UA\", \"flight\": 1}\n\n{\"carrier\": \"AA\", \"flight\": 2, \"command_id\": \"own\"}\n";
    let answer = post(DRY, &[NDJSON, ("idempotency-key", "\"k\"")], body).await;
    let ids: Vec<&str> =
        answer.body["records"].as_array().unwrap().iter().map(|r| r["event_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["k/0", "own"]);
    let answer = post(DRY, &[("idempotency-key", "k")], r#"{"carrier": "UA", "flight": 1}"#).await;
    assert_eq!(answer.body["records"][0]["event_id"], "k");
}

#[tokio::test]
async fn faults_of_every_record_come_with_place_and_pointer() {
    let body =
        "{\"carrier\": \"UA\", \"flight\": \"x\"}\n{\"carrier\": \"UA\", \"flight\": 1}\n{\"flight\": 1}\nnonsense";
    let answer = post(DRY, &[NDJSON], body).await;
    assert_eq!(code(&answer), (422, "MP1009"));
    assert_eq!(answer.body["outcome"], "not_written");
    assert_eq!(answer.body["invalid"], 3);
    let places: Vec<(u64, u64, &str)> = answer.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["index"].as_u64().unwrap(), e["line"].as_u64().unwrap(), e["pointer"].as_str().unwrap()))
        .collect();
    assert_eq!(places, [(0, 1, "/flight"), (2, 3, "/carrier"), (3, 4, "")]);
}

#[tokio::test]
async fn listed_faults_are_capped_and_counted() {
    let body = format!("[{}]", vec!["{}"; 200].join(","));
    let answer = post(DRY, &[JSON], body).await;
    assert_eq!(answer.body["invalid"], 200);
    assert_eq!(answer.body["errors"].as_array().unwrap().len(), 100);
    assert_eq!(answer.body["errors_omitted"], 300);
}

#[tokio::test]
async fn key_and_id_must_have_values() {
    let long = format!(r#"{{"carrier": "", "flight": 1, "command_id": "{}"}}"#, "x".repeat(256));
    let answer = post(DRY, &[JSON], long).await;
    let pointers: Vec<&str> =
        answer.body["errors"].as_array().unwrap().iter().map(|e| e["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["/carrier", "/command_id"], "{}", answer.body);
}

#[tokio::test]
async fn record_beyond_its_contracts_limit_is_a_fault() {
    let body = format!(r#"[{{"carrier": "{}", "flight": 1}}]"#, "x".repeat(1024));
    let answer = post(DRY, &[JSON], body).await;
    assert_eq!(code(&answer), (422, "MP1009"));
    assert_eq!(answer.body["errors"][0]["expected"], "a record of at most 1024 bytes of JSON");
}

#[tokio::test]
async fn empty_bodies_are_422() {
    for (header, body) in [(JSON, ""), (JSON, " \n"), (JSON, "[]"), (NDJSON, "\n\n")] {
        assert_eq!(code(&post(DRY, &[header], body).await), (422, "MP1006"), "{header:?} {body:?}");
    }
}

#[tokio::test]
async fn heads_that_are_not_understood_are_refused_before_the_body() {
    let refused = [
        (("content-type", "text/plain"), 415, "MP1003"),
        (("content-encoding", "gzip, zstd"), 415, "MP1004"),
        (("idempotency-key", "\"open"), 400, "MP1005"),
    ];
    for (header, status, expected) in refused {
        let body = Body::from_stream(futures_util::stream::pending::<Result<&str, std::io::Error>>());
        assert_eq!(code(&post(DRY, &[header], body).await), (status, expected), "{header:?}");
    }
    assert_eq!(code(&post("/v1/commands/ScheduleFlight?validate=yes", &[], "{}").await), (400, "MP1005"));
    assert_eq!(code(&post("/v1/commands/ScheduleFlight?dry=1", &[], "{}").await), (400, "MP1005"));
    let answer = post(DRY, &[("content-type", "text/plain")], "{}").await;
    assert_eq!(answer.headers[header::ACCEPT], "application/json, application/x-ndjson");
}

#[tokio::test]
async fn request_too_large_to_be_strict_is_told_to_be_lenient() {
    let options = Options { max_strict_bytes: 100, ..Options::default() };
    let app = app_of(state("", Auth::Open, options));
    let body = format!("[{}]", vec![r#"{"carrier": "UA", "flight": 1}"#; 20].join(","));
    let answer = ask(&app, Request::post(DRY).body(body.into()).unwrap()).await;
    assert_eq!(code(&answer), (413, "MP1008"));
    assert!(answer.body["detail"].as_str().unwrap().contains("handling=lenient"));
}

#[tokio::test]
async fn schema_without_an_id_and_kafka_away_are_503_not_written() {
    let answer = post("/v1/events/FlightSeen", &[JSON], r#"{"tail": "N1"}"#).await;
    assert_eq!(code(&answer), (503, "MP1014"));
    assert!(answer.body["detail"].as_str().unwrap().contains("millpond schema push"));
    for prefer in ["handling=strict", "handling=lenient"] {
        let answer = post(DRY.split('?').next().unwrap(), &[JSON, ("prefer", prefer)], "{}").await;
        assert_eq!(code(&answer), (503, "MP1015"));
        assert_eq!(answer.body["outcome"], "not_written");
        assert!(answer.headers.contains_key(header::RETRY_AFTER));
        assert_eq!(answer.headers["preference-applied"], prefer);
    }
}

#[tokio::test]
async fn client_beyond_its_rate_is_429() {
    let app = app_of(state("[limits]\nrate = \"2/h\"\n", Auth::Open, Options::default()));
    let one = || Request::post(DRY).body(r#"{"carrier": "UA", "flight": 1}"#.into()).unwrap();
    assert_eq!(ask(&app, one()).await.status, 200);
    assert_eq!(ask(&app, one()).await.status, 200);
    let answer = ask(&app, one()).await;
    assert_eq!(code(&answer), (429, "MP1012"));
    let seconds: u32 = answer.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1700..=1801).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn bodies_beyond_the_process_budget_are_503() {
    let options = Options { in_flight_bytes: 10, ..Options::default() };
    let app = app_of(state("", Auth::Open, options));
    let answer = ask(&app, Request::post(DRY).body(r#"{"carrier": "UA", "flight": 1}"#.into()).unwrap()).await;
    assert_eq!(code(&answer), (503, "MP1013"));
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn keys_decide_who_may_send_before_the_body_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let line = |name: &str, key: &str, producers: &str| format!("{name} {} {producers}\n", http::auth::hash_key(key));
    fs::write(&keys, line("airline", "good", "flights") + &line("other", "weak", "bags")).unwrap();
    let auth = Auth::new(&["0.0.0.0:1".parse().unwrap()], Some(&keys), false).unwrap();
    let app = app_of(state("", auth, Options::default()));
    let with = |key: Option<&str>, path: &str| {
        let request = Request::post(path);
        let request = match key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        };
        request.body(Body::from(r#"{"carrier": "UA", "flight": 1}"#)).unwrap()
    };
    let answer = ask(&app, with(None, DRY)).await;
    assert_eq!(code(&answer), (401, "MP0003"));
    assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE));
    assert_eq!(code(&ask(&app, with(Some("bad"), DRY)).await), (401, "MP0004"));
    assert_eq!(code(&ask(&app, with(None, "/v1/commands/Nowhere")).await), (401, "MP0003"), "names are not told");
    assert_eq!(code(&ask(&app, with(Some("weak"), DRY)).await), (403, "MP0005"));
    assert_eq!(ask(&app, with(Some("good"), DRY)).await.status, 200);
    assert_eq!(ask(&app, Request::get("/v1/commands").body(Body::empty()).unwrap()).await.status, 401);
}

#[tokio::test]
async fn lists_have_schema_and_a_line_to_try() {
    let request = Request::get("/v1/commands").header("host", "mill:8080").body(Body::empty()).unwrap();
    let answer = ask(&app(), request).await;
    let listed = &answer.body["commands"][0];
    assert_eq!(listed["type"], "ScheduleFlight");
    assert_eq!(listed["schema"]["fields"][1]["name"], "carrier");
    assert_eq!(
        listed["curl"],
        "curl -i http://mill:8080/v1/commands/ScheduleFlight -H 'content-type: application/json' \
         -d '{\"carrier\":\"it'\\''s\",\"flight\":1}'"
    );
    let one = ask(&app(), Request::get("/v1/events/FlightSeen").body(Body::empty()).unwrap()).await;
    assert_eq!(one.body["topic"], "flights.events.v1");
}

#[tokio::test]
async fn health_names_the_schema_that_has_no_id() {
    let state = state("", Auth::Open, Options::default());
    let findings = state.health().findings();
    assert_eq!(findings[1].reason.as_deref(), Some("no id in the registry for FlightSeen: run `millpond schema push`"));
    assert!(!findings[0].ready, "nothing listens at the broker's address");
    assert_eq!(state.contracts().unregistered(), ["FlightSeen"]);
}

#[test]
fn contract_of_a_field_that_the_schema_lacks_is_a_fault_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("schemas/FlightSeen/v1.avsc"), SEEN);
    let text = "[events.FlightSeen]\ntopic = \"t\"\nkey = \"tial\"\n[events.FlightSen]\ntopic = \"t\"\nkey = \"a\"\n[topics.t]\npartitions = 1\n";
    write(&dir.path().join("producers/flights/producer.toml"), text);
    let schemas = SchemaSet::load(&dir.path().join("schemas")).unwrap();
    let specs = load_all(&dir.path().join("producers")).unwrap();
    let faults = Contracts::compile(&specs, &schemas).unwrap_err();
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(
        texts.iter().any(|t| t.contains("toml:1: FlightSeen: ") && t.contains("did you mean `tail`?")),
        "{texts:?}"
    );
    assert!(
        texts.iter().any(|t| t.contains("toml:4: FlightSen has no schema") && t.contains("FlightSeen")),
        "{texts:?}"
    );
}

#[test]
fn examples_of_a_folder_are_run_as_requests_are() {
    let dir = tempfile::tempdir().unwrap();
    let (contracts, specs) = contracts_in(dir.path(), "");
    let wrong = r#"{"type": "ScheduleFlight", "body": {"carrier": "UA"}, "problem": {"pointer": "/flight"}}"#;
    write(&dir.path().join("producers/flights/examples/invalid/no_flight.json"), wrong);
    let reports = contracts.run_examples(&specs[0]);
    assert_eq!(reports.len(), 2);
    assert!(reports.iter().all(|report| report.outcome == Outcome::AsExpected), "{reports:?}");
}
