//! What a real broker cannot be made to show on demand: silence, and errors that end a producer. On librdkafka's mock
//! cluster.

use std::time::{Duration, Instant};

use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::*;

pub(super) type Cluster = MockCluster<'static, DefaultProducerContext>;

pub(super) fn cluster() -> (Cluster, Options) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 2, 1).unwrap();
    let options = Options { brokers: cluster.bootstrap_servers(), ..Options::default() };
    (cluster, options)
}

fn one(key: &str) -> EncodedBatch {
    let record = EncodedRecord { key: Some(0..key.len() as u32), payload: None, event_id: 0..0, fingerprint: 0..0 };
    EncodedBatch { topic: "t".into(), bytes: key.as_bytes().to_vec(), records: vec![record], headers: Vec::new() }
}

pub(super) async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.expect("in time")
}

pub(super) async fn ready(options: &Options) -> Publisher {
    let publisher = Publisher::start(options, ["t"]).unwrap();
    within(20, publisher.wait_ready()).await;
    publisher
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_broker_closes_the_publisher_and_leaves_the_record_unknown() {
    let (cluster, options) = cluster();
    let publisher = ready(&options).await;
    assert!(publisher.publish(one("a")).unwrap().await.all_written());

    cluster.broker_round_trip_time(1, Duration::from_secs(60)).unwrap();
    let sent = Instant::now();
    let pending = publisher.publish(one("a")).unwrap();
    let mut health = publisher.watch_health();
    within(6, health.wait_for(|health| *health != Health::Ready)).await.unwrap();
    assert!(sent.elapsed() >= Duration::from_secs(2));
    assert!(matches!(publisher.publish(one("b")).err(), Some(NotSent::Unavailable { .. })));

    let receipt = within(20, pending).await;
    assert_eq!(receipt.deliveries, [Delivery::Unknown(Reason::TimedOut)]);
    assert_eq!(publisher.in_flight_bytes(), 0);
    // No record is under way now, but the broker is as silent as before.
    assert!(matches!(publisher.publish(one("b")).err(), Some(NotSent::Unavailable { .. })));

    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    within(60, publisher.wait_ready()).await;
    assert!(within(20, publisher.publish(one("a")).unwrap()).await.all_written());
}

#[tokio::test(flavor = "multi_thread")]
async fn fatal_error_replaces_the_producer_and_accounts_for_every_record() {
    let (cluster, options) = cluster();
    let publisher = ready(&options).await;
    assert!(publisher.publish(one("a")).unwrap().await.all_written());

    // The broker says that it misses records that it acknowledged: nothing can be trusted after that.
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[lost; 3]);
    let receipt = within(20, publisher.publish(one("a")).unwrap()).await;
    assert!(matches!(receipt.deliveries[..], [Delivery::Unknown(_)]), "{receipt:?}");
    cluster.clear_request_errors(RDKafkaApiKey::Produce);

    within(30, publisher.wait_ready()).await;
    assert!(within(20, publisher.publish(one("a")).unwrap()).await.all_written());
    assert_eq!(publisher.in_flight_bytes(), 0);
    assert_eq!(publisher.close(Duration::from_secs(5)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn close_in_no_time_says_what_stays_unknown() {
    let (cluster, options) = cluster();
    let publisher = ready(&options).await;
    cluster.broker_round_trip_time(1, Duration::from_secs(60)).unwrap();
    let pending = [publisher.publish(one("a")).unwrap(), publisher.publish(one("b")).unwrap()];
    assert_eq!(within(10, publisher.close(Duration::ZERO)).await, 2);
    for receipt in pending {
        assert_eq!(receipt.await.deliveries, [Delivery::Unknown(Reason::Closed)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_without_a_leader_is_refused_and_the_other_goes_on() {
    let (cluster, options) = cluster();
    let other = (0..).map(|i| i.to_string()).find(|key| partition(key) != partition("a")).unwrap();
    cluster.partition_leader("t", partition("a"), None).unwrap();
    let publisher = ready(&options).await;
    let refused = publisher.publish(one("a")).err();
    let closed = NotSent::PartitionUnavailable { topic: "t".into(), partition: partition("a") };
    assert_eq!(refused, Some(closed));
    assert!(within(20, publisher.publish(one(&other)).unwrap()).await.all_written());

    cluster.partition_leader("t", partition("a"), Some(1)).unwrap();
    let mut rounds = publisher.shared.state.rounds.subscribe();
    let seen = |_: &u64| publisher.shared.state.topics.get("t").unwrap().partitions.iter().all(|p| p.is_open());
    within(20, rounds.wait_for(seen)).await.unwrap();
    assert!(within(20, publisher.publish(one("a")).unwrap()).await.all_written());
}

/// A broker refuses every record as long as fewer replicas are in sync than the topic wants. The client tries again and
/// again until the record's time is over, and says no more than that then.
#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_in_sync_are_no_202_and_one_try_at_a_time() {
    let (cluster, options) = cluster();
    let publisher = ready(&options).await;
    let mut health = publisher.watch_health();
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 10_000]);
    let pending = publisher.publish(one("a")).unwrap();
    within(6, health.wait_for(|health| *health != Health::Ready)).await.unwrap();
    assert!(matches!(publisher.publish(one("a")).err(), Some(NotSent::Unavailable { .. })));
    assert_eq!(within(20, pending).await.deliveries, [Delivery::Unknown(Reason::TimedOut)]);

    // The brokers answer, so one record finds out whether they take any; the others are told without having to wait.
    within(20, publisher.wait_ready()).await;
    let tries: Vec<_> = (0..20).filter_map(|_| publisher.publish(one("a")).ok()).collect();
    assert_eq!(tries.len(), 1);
    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    for pending in tries {
        assert!(within(20, pending).await.all_written(), "it was tried until replicas were back");
    }
    within(20, publisher.wait_ready()).await;
    let all: Vec<_> = (0..20).map(|_| publisher.publish(one("a")).unwrap()).collect();
    for pending in all {
        assert!(within(20, pending).await.all_written());
    }
}

/// The broker refuses a producer's first request for want of replicas, and takes the second, which was on its way: it has nothing
/// to compare its sequence number with. librdkafka reports the records of the first as written with those of the second.
#[tokio::test(flavor = "multi_thread")]
async fn record_that_is_acknowledged_only_with_a_later_one_is_not_written() {
    let (cluster, options) = cluster();
    let publisher = ready(&options).await;
    cluster.broker_round_trip_time(1, Duration::from_millis(300)).unwrap();
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS]);
    let first = publisher.publish(one("a")).unwrap();
    // More than they wait for others: these are two requests.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = publisher.publish(one("a")).unwrap();
    let (first, second) = (within(20, first).await, within(20, second).await);
    assert_eq!(first.deliveries, [Delivery::Unknown(Reason::NotPlaced)]);
    assert!(matches!(second.deliveries[..], [Delivery::Written { offset: 0, .. }]), "{second:?}");
}

fn partition(key: &str) -> i32 {
    murmur2::partition_of(key.as_bytes(), 2)
}
