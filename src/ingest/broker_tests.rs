//! What clients are told while a broker errs, on librdkafka's mock cluster, which errs on demand: 202 only when every replica
//! in sync has it, *not written* only when that is certain.

use std::time::{Duration, Instant};

use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey::Produce, RDKafkaRespErr as Err},
};

use super::{
    tests::{Answer, app_of, ask, code, contracts},
    *,
};

/// Longer than a record waits for its acknowledgement.
const SOON: Duration = Duration::from_secs(40);

/// A broker that errs, and the ingest before it.
struct Scene {
    broker: MockCluster<'static, DefaultProducerContext>,
    app: axum::Router,
}

impl Scene {
    async fn set() -> Self {
        let broker = MockCluster::new(1).unwrap();
        broker.create_topic("flights.commands.v1", 6, 1).unwrap();
        let kafka = kafka::Options { brokers: broker.bootstrap_servers(), ..kafka::Options::default() };
        let publisher = Publisher::start(&kafka, ["flights.commands.v1"]).unwrap();
        tokio::time::timeout(SOON, publisher.wait_ready()).await.unwrap();
        let contracts = contracts("");
        contracts.get("ScheduleFlight").unwrap().set_schema_id(7);
        let state = IngestState::new(contracts, Arc::new(publisher), Arc::new(Auth::Open), Options::default());
        Self { broker, app: app_of(state) }
    }

    /// Posts a command; all of them are of one key.
    async fn post(&self) -> Answer {
        let body = r#"{"carrier": "UA", "flight": 1}"#;
        let request =
            axum::http::Request::post("/v1/commands/ScheduleFlight").header("content-type", "application/json");
        ask(&self.app, request.body(body.into()).unwrap()).await
    }

    /// Posts until it is taken; how often it was refused for certain before.
    async fn taken_again(&self) -> usize {
        let (begun, mut refused) = (Instant::now(), 0);
        loop {
            let answer = self.post().await;
            if answer.status == 202 {
                return refused;
            }
            assert_eq!((code(&answer), &answer.body["outcome"]), ((503, "MP1015"), &"not_written".into()));
            assert!(begun.elapsed() < SOON, "{}", answer.body);
            refused += 1;
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_in_sync_is_unknown_and_then_a_503_and_never_a_202() {
    let scene = Scene::set().await;
    assert_eq!(scene.post().await.status, 202);
    scene.broker.request_errors(Produce, &[Err::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 10_000]);
    let first = scene.post().await;
    assert_eq!((code(&first), &first.body["outcome"]), ((504, "MP1016"), &"unknown".into()));
    // One at a time may still try, and is told no better.
    let begun = Instant::now();
    let mut refused = 0;
    while begun.elapsed() < Duration::from_secs(3) || refused == 0 {
        let answer = scene.post().await;
        assert!([(503, "MP1015"), (504, "MP1016")].contains(&code(&answer)), "{}", answer.body);
        assert!(begun.elapsed() < SOON);
        refused += usize::from(answer.status == 503);
    }
    scene.broker.clear_request_errors(Produce);
    scene.taken_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fatal_error_of_the_producer_is_unknown_and_another_one_takes_its_place() {
    let scene = Scene::set().await;
    for error in [Err::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER; 3] {
        assert_eq!(scene.post().await.status, 202);
        scene.broker.request_errors(Produce, &[error; 3]);
        let answer = scene.post().await;
        assert_eq!((code(&answer), &answer.body["outcome"]), ((504, "MP1016"), &"unknown".into()));
        scene.broker.clear_request_errors(Produce);
        scene.taken_again().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_that_passes_is_a_202_and_a_refusal_of_the_record_is_told() {
    let scene = Scene::set().await;
    for passing in [
        Err::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Err::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Err::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Err::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
    ] {
        scene.broker.request_errors(Produce, &[passing; 2]);
        assert_eq!(scene.post().await.status, 202, "{passing:?}");
    }
    scene.broker.request_errors(Produce, &[Err::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let answer = scene.post().await;
    assert!(answer.status != 202 && answer.body["outcome"] == "not_written", "{}", answer.body);
    scene.taken_again().await;
}
