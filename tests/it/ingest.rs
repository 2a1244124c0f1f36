//! Posting to a real broker: what the answer says is what the log has.

use std::{fs, path::Path, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use millpond::{
    domain::Position,
    http::{self, Auth},
    ingest::{Contracts, IngestState, Options, router},
    kafka::{Publisher, Record},
    schema::{SchemaSet, encode::fingerprint, framing},
    spec::producer::load_all,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::cluster::SOON;
use crate::publisher::{new_topic, options, read_all};

const SCHEMA: &str = r#"{"type": "record", "name": "Reading", "fields": [
    {"name": "sensor", "type": "string"}, {"name": "value", "type": "long"}, {"name": "note", "type": "string", "default": ""}
]}"#;
const SCHEMA_ID: u32 = 77;
const PATH: &str = "/v1/events/Reading";

struct App {
    router: Router,
    topic: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

async fn app(topic: String) -> App {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).unwrap();
        fs::write(path, text).unwrap();
    };
    write("schemas/Reading/v1.avsc", SCHEMA);
    let contract =
        format!("[events.Reading]\ntopic = {topic:?}\nkey = \"sensor\"\n[topics.{topic:?}]\npartitions = 3\n");
    write("producers/sensors/producer.toml", &contract);
    let schemas = SchemaSet::load(&dir.path().join("schemas")).unwrap();
    let contracts = Contracts::compile(&load_all(&dir.path().join("producers")).unwrap(), &schemas).unwrap();
    contracts.get("Reading").unwrap().set_schema_id(SCHEMA_ID);
    let publisher = Publisher::start(&options(), [topic.as_str()]).unwrap();
    tokio::time::timeout(SOON, publisher.wait_ready()).await.expect("ready in time");
    let options = Options { chunk_bytes: 16 << 10, ..Options::default() };
    let state = IngestState::new(contracts, Arc::new(publisher), Arc::new(Auth::Open), options);
    App { router: http::app(router(state)), topic }
}

impl App {
    async fn new() -> Self {
        app(new_topic(3).await).await
    }

    async fn post(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::post(PATH);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body: serde_json::from_slice(&bytes).unwrap() }
    }

    async fn log(&self) -> Vec<Record> {
        read_all(&self.topic).await
    }
}

fn header(record: &Record, name: &str) -> String {
    let found = record.headers.iter().find(|header| header.name == name);
    String::from_utf8(found.and_then(|header| header.value.clone()).unwrap_or_default().to_vec()).unwrap()
}

fn lines(count: usize) -> String {
    (0..count).map(|n| format!("{{\"sensor\": \"s{}\", \"value\": {n}}}\n", n % 10)).collect()
}

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const LENIENT: (&str, &str) = ("prefer", "handling=lenient");

#[tokio::test(flavor = "multi_thread")]
async fn single_record_is_in_the_log_as_answered() {
    let app = App::new().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("idempotency-key", "\"id-1\""), ("traceparent", parent), ("tracestate", "a=1")];
    let answer = app.post(&headers, r#"{"sensor": "s1", "value": 3}"#).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let [record] = &app.log().await[..] else { panic!("one record") };
    let position: Position = answer.headers["millpond-position"].to_str().unwrap().parse().unwrap();
    assert_eq!(answer.body, json!({"event_id": "id-1", "position": position.to_string()}));
    let at = format!("{}/{}@{}", app.topic, record.partition, record.offset + 1);
    assert_eq!(position.to_string(), at);
    assert_eq!(answer.headers["location"], format!("/v1/positions/{}", at.replace('/', "%2F")));
    assert_eq!(record.key.as_deref(), Some(&b"s1"[..]));
    let (id, avro) = framing::split(record.payload.as_deref().unwrap()).unwrap();
    assert_eq!((id, avro), (SCHEMA_ID, &b"\x04s1\x06\x00"[..]));
    assert_eq!((header(record, "mp-event-id"), header(record, "mp-producer")), ("id-1".into(), "sensors".into()));
    assert!(header(record, "traceparent").starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert_eq!(header(record, "tracestate"), "a=1");
    let says = fingerprint("Reading", br#"{"value":3.0, "sensor":"s1"}"#).map(|hash| format!("{hash:032x}"));
    assert_eq!(Some(header(record, "mp-fingerprint")), says);

    assert_eq!(app.post(&[], r#"{"sensor": "s2", "value": 3}"#).await.status, 202);
    let [_, without] = &app.log().await[..] else { panic!("two records") };
    let names: Vec<&str> = without.headers.iter().map(|header| &*header.name).collect();
    assert_eq!(names, ["mp-producer", "mp-event-id"], "a trace that nobody knows is not written");
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_request_with_one_fault_writes_nothing() {
    let app = App::new().await;
    let body = lines(1000) + "{\"sensor\": 5}\n";
    let answer = app.post(&[NDJSON], body).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.body["errors"][0]["line"], 1001);
    assert!(app.log().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_is_written_once_in_order_per_key_with_the_places_listed() {
    let app = App::new().await;
    let headers = [NDJSON, ("prefer", "return=representation"), ("content-encoding", "zstd")];
    let answer = app.post(&headers, zstd::encode_all(lines(3000).as_bytes(), 1).unwrap()).await;
    assert_eq!((answer.status.as_u16(), &answer.body["count"]), (202, &json!(3000)));
    let log = app.log().await;
    assert_eq!(log.len(), 3000);
    let mut listed = answer.body["records"].as_array().unwrap().iter();
    assert!(listed.clone().enumerate().all(|(at, record)| record["index"] == at && record["outcome"] == "written"));
    for record in &log {
        let id = header(record, "mp-event-id");
        let place = answer.body["records"].as_array().unwrap().iter().find(|listed| listed["event_id"] == id.as_str());
        let place = place.unwrap_or_else(|| panic!("{id} is not listed"));
        assert_eq!(
            (place["partition"].clone(), place["offset"].clone()),
            (json!(record.partition), json!(record.offset))
        );
    }
    for partition in 0..3 {
        let indexes: Vec<u64> = listed
            .by_ref()
            .filter(|record| record["partition"] == partition)
            .map(|record| record["offset"].as_u64().unwrap())
            .collect();
        assert!(indexes.is_sorted(), "offsets follow the body's order");
        listed = answer.body["records"].as_array().unwrap().iter();
    }
    let position: Position = answer.body["position"].as_str().unwrap().parse().unwrap();
    assert_eq!(position.iter().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn lenient_stream_writes_the_good_and_reports_the_bad() {
    let app = App::new().await;
    let mut body = lines(5000);
    body.insert_str(0, "{\"sensor\": 1}\n");
    body.push_str("nonsense\n{\"sensor\": \"last\", \"value\": 1}");
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> = body.as_bytes().chunks(700).map(|p| Ok(p.to_vec())).collect();
    let stream = Body::from_stream(futures_util::stream::iter(pieces));
    let answer = app.post(&[NDJSON, LENIENT, ("idempotency-key", "k")], stream).await;
    assert_eq!(answer.status, 207, "{}", answer.body);
    assert_eq!((&answer.body["count"], &answer.body["failed"]), (&json!(5001), &json!(2)));
    let lines: Vec<u64> =
        answer.body["errors"].as_array().unwrap().iter().map(|error| error["line"].as_u64().unwrap()).collect();
    assert_eq!((lines.first(), lines.last()), (Some(&1), Some(&5002)));
    assert_eq!(answer.headers["preference-applied"], "handling=lenient");
    let log = app.log().await;
    let mut ids: Vec<String> = log.iter().map(|record| header(record, "mp-event-id")).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((log.len(), ids.len()), (5001, 5001));
    assert!(!ids.contains(&"k/0".to_owned()) && ids.contains(&"k/1".to_owned()) && ids.contains(&"k/5002".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn lenient_array_that_breaks_off_says_what_was_written() {
    let app = App::new().await;
    let records: Vec<String> = (0..2000).map(|n| format!("{{\"sensor\": \"s\", \"value\": {n}}}")).collect();
    let whole = format!("[{}]", records.join(","));
    let answer = app.post(&[LENIENT], whole.clone()).await;
    assert_eq!((answer.status.as_u16(), &answer.body["count"]), (202, &json!(2000)), "{}", answer.body);
    let broken =
        futures_util::stream::iter([Ok(whole[..whole.len() / 2].to_owned()), Err(std::io::Error::other("gone"))]);
    let answer = app.post(&[LENIENT], Body::from_stream(broken)).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    let written = answer.body["written"].as_u64().unwrap();
    assert!(written > 0 && written < 2000, "{}", answer.body);
    assert_eq!(answer.body["stopped_before"], written);
    assert_eq!(app.log().await.len() as u64, 2000 + written);
    assert!(answer.body["advice"].as_str().unwrap().starts_with("send the rest"), "{}", answer.body);
    // Under a key the ids count from the first record of a request: sending only the rest would give it ids that are taken.
    let broken =
        futures_util::stream::iter([Ok(whole[..whole.len() / 2].to_owned()), Err(std::io::Error::other("gone"))]);
    let answer = app.post(&[LENIENT, ("idempotency-key", "k")], Body::from_stream(broken)).await;
    assert!(answer.body["advice"].as_str().unwrap().contains("another Idempotency-Key"), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_does_not_take_its_records_along() {
    let app = App::new().await;
    let request = Request::post(PATH).body(Body::from(r#"{"sensor": "s", "value": 1}"#)).unwrap();
    let mut answer = Box::pin(app.router.clone().oneshot(request));
    // Polled once: the record is with Kafka, the acknowledgement is not there yet.
    let ready = futures_util::poll!(answer.as_mut());
    assert!(ready.is_pending());
    drop(answer);
    // A later record on the same partition: once it is acknowledged, so is the first.
    assert_eq!(app.post(&[], r#"{"sensor": "s", "value": 2}"#).await.status, 202);
    assert_eq!(app.log().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_that_does_not_exist_is_503_not_written() {
    let app = app(format!("missing.{}", uuid::Uuid::new_v4().simple())).await;
    for headers in [&[NDJSON][..], &[NDJSON, LENIENT]] {
        let answer = app.post(headers, lines(3)).await;
        assert_eq!((answer.status.as_u16(), &answer.body["code"]), (503, &json!("MP1015")), "{}", answer.body);
        assert_eq!(answer.body["outcome"], "not_written");
    }
}
