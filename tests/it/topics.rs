//! Topics and plain reads on a real broker.

use std::{ops::ControlFlow, time::Duration};

use millpond::kafka::{
    Admin, Error, Idle, Options, OutgoingRecord, Publisher, Reader, Record, Start, TopicRange, TopicSpec,
};
use rdkafka::mocking::MockCluster;
use uuid::Uuid;

use crate::harness::eventually;
use crate::publisher::{batch, new_topic, options, read_all};

fn range(topic: &str) -> TopicRange {
    TopicRange { topic: topic.into(), partitions: None, start: Start::Beginning, key: None, limit: None, follow: false }
}

async fn fill(topic: &str, records: usize) {
    let publisher = Publisher::start(&options(), [topic]).unwrap();
    publisher.wait_ready().await;
    let payloads: Vec<String> = (0..records).map(|i| i.to_string()).collect();
    let keys: Vec<String> = (0..records).map(|i| format!("k{}", i % 3)).collect();
    let plain: Vec<_> = keys.iter().zip(&payloads).map(|(k, p)| (Some(k.as_str()), Some(p.as_str()), "")).collect();
    assert!(publisher.publish(batch(topic, &plain)).unwrap().await.all_written());
    publisher.close(Duration::from_secs(5)).await;
}

/// Payloads as numbers.
async fn read(range: TopicRange) -> Vec<usize> {
    tokio::task::spawn_blocking(move || {
        let mut numbers = Vec::new();
        Reader::open(&options())
            .unwrap()
            .read(&range, |record| {
                numbers.push(String::from_utf8(record.payload.unwrap()).unwrap().parse().unwrap());
                ControlFlow::Continue(())
            })
            .unwrap();
        numbers
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_topic_is_created_once_then_compared() {
    let admin = Admin::connect(&options()).unwrap();
    let name = format!("test.{}", Uuid::new_v4().simple());
    let spec = TopicSpec::log(&name, 3);
    let first = admin.ensure_topics(std::slice::from_ref(&spec)).await.unwrap();
    assert!(first[0].created && first[0].warnings.is_empty());
    let second = admin.ensure_topics(std::slice::from_ref(&spec)).await.unwrap();
    assert!(!second[0].created && second[0].warnings.is_empty(), "{second:?}");
    assert_eq!(admin.describe(&name).await.unwrap().unwrap().partitions, 3);
    assert_eq!(admin.watermarks(&name).await.unwrap(), [(0, 0); 3]);
    assert!(admin.list().await.unwrap().iter().any(|topic| topic.name == name));

    let more = admin.ensure_topics(&[TopicSpec::log(&name, 6)]).await;
    assert!(matches!(more, Err(Error::Partitions { found: 3, wanted: 6, .. })), "{more:?}");
    let fewer = admin.ensure_topics(&[TopicSpec::log(&name, 2)]).await;
    assert!(matches!(fewer, Err(Error::Partitions { found: 3, wanted: 2, .. })), "{fewer:?}");
    admin.delete(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_without_the_brokers_time_is_a_warning() {
    let admin = Admin::connect(&options()).unwrap();
    let name = format!("test.{}", Uuid::new_v4().simple());
    admin.ensure_topics(&[TopicSpec { name: name.clone(), partitions: 1, config: Default::default() }]).await.unwrap();
    let ensured = admin.ensure_topics(&[TopicSpec::log(&name, 1)]).await.unwrap();
    assert!(ensured[0].warnings[0].contains("message.timestamp.type=CreateTime"), "{ensured:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_ensure_the_same_topic_both_succeed() {
    let name = format!("test.{}", Uuid::new_v4().simple());
    let ensure = || async {
        Admin::connect(&options()).unwrap().ensure_topics(&[TopicSpec::log(&name, 2)]).await.map(|e| e[0].created)
    };
    let (a, b) = tokio::join!(ensure(), ensure());
    assert!(a.unwrap() | b.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn range_is_read_from_an_offset_for_a_key_up_to_a_limit() {
    let topic = new_topic(1).await;
    fill(&topic, 30).await;
    assert_eq!(read(range(&topic)).await, (0..30).collect::<Vec<_>>());
    assert_eq!(read(TopicRange { start: Start::Offset(25), ..range(&topic) }).await, [25, 26, 27, 28, 29]);
    let of_key = TopicRange { key: Some(b"k1".to_vec()), limit: Some(3), ..range(&topic) };
    assert_eq!(read(of_key).await, [1, 4, 7]);
    assert_eq!(read(TopicRange { start: Start::Offset(30), ..range(&topic) }).await, [0; 0]);
    let future = chrono::Utc::now().timestamp_millis() + 3_600_000;
    assert_eq!(read(TopicRange { start: Start::Timestamp(future), ..range(&topic) }).await, [0; 0]);
    assert_eq!(read(TopicRange { start: Start::Timestamp(1), ..range(&topic) }).await.len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_that_begins_behind_the_end_gets_what_comes_next() {
    let topic = new_topic(2).await;
    fill(&topic, 30).await;
    for start in [Start::Timestamp(chrono::Utc::now().timestamp_millis() + 3_600_000), Start::Offset(1_000)] {
        let ends = Admin::connect(&options()).unwrap().watermarks(&topic).await.unwrap();
        let follow = TopicRange { start, limit: Some(1), follow: true, ..range(&topic) };
        let first = tokio::task::spawn_blocking(move || {
            let mut first = None;
            let each = |record: Record| {
                first = Some((record.partition, record.offset));
                ControlFlow::Continue(())
            };
            Reader::open(&options()).unwrap().read(&follow, each).map(|_| first)
        });
        // Whenever it has begun, something comes after that.
        while !first.is_finished() {
            fill(&topic, 3).await;
        }
        let (partition, offset) = first.await.unwrap().unwrap().expect("a record");
        let (_, end) = ends[usize::try_from(partition).unwrap()];
        assert!(offset >= end, "{partition}@{offset} was there before the end at {end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_a_topic_has_not_is_answered_with_those_it_has() {
    let (one, six) = (new_topic(1).await, new_topic(6).await);
    let said = |topic: String, start, partition| {
        let range = TopicRange { start, partitions: Some(vec![partition]), ..range(&topic) };
        let read = move || Reader::open(&options()).unwrap().read(&range, |_| ControlFlow::Continue(()));
        async move { tokio::task::spawn_blocking(read).await.unwrap().unwrap_err().to_string() }
    };
    for start in [Start::Beginning, Start::Timestamp(1)] {
        let expected = format!("topic `{six}` has no partition 9; it has partitions 0 to 5");
        assert_eq!(said(six.clone(), start, 9).await, expected);
        let expected = format!("topic `{one}` has no partition -1; it has partition 0 alone");
        assert_eq!(said(one.clone(), start, -1).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_is_read_only_when_committed() {
    let topic = new_topic(1).await;
    let id = topic.clone();
    let name = topic.clone();
    tokio::task::spawn_blocking(move || {
        let record = |payload: &'static [u8]| OutgoingRecord {
            topic: &name,
            partition: None,
            key: Some(b"k"),
            payload: Some(payload),
            headers: &[("h", Some(b"v")), ("n", None)],
        };
        let mut transaction = Idle::start(&options(), &id).unwrap().begin().unwrap();
        transaction.send(&record(b"1")).unwrap();
        let mut transaction = transaction.commit().unwrap().begin().unwrap();
        transaction.send(&record(b"2")).unwrap();
        let mut transaction = transaction.abort().unwrap().begin().unwrap();
        transaction.send(&record(b"3")).unwrap();
        let zombie = transaction.commit().unwrap().begin().unwrap();

        // A successor of the same id fences it.
        let successor = Idle::start(&options(), &id).unwrap();
        let mut zombie = zombie;
        zombie.send(&record(b"4")).unwrap();
        let error = zombie.commit().err().expect("fenced");
        assert!(error.is_fenced(), "{error:?}");
        let mut transaction = successor.begin().unwrap();
        transaction.send(&record(b"5")).unwrap();
        transaction.commit().unwrap();
    })
    .await
    .unwrap();
    assert_eq!(read(range(&topic)).await, [1, 3, 5]);
    let records = read_all(&topic).await;
    assert_eq!(records[0].header("h"), Some(&b"v"[..]));
    assert_eq!(records[0].headers[1].value, None);

    let offsets: Vec<i64> = records.iter().map(|record| record.offset).collect();
    tokio::task::spawn_blocking(move || {
        let reader = Reader::open(&options()).unwrap();
        let (low, high) = reader.watermarks(&topic, 0).unwrap();
        assert_eq!(low, 0);
        for offset in -1..=high {
            let found = reader.read_record(&topic, 0, offset).unwrap();
            assert_eq!(found.map(|record| record.offset), offsets.contains(&offset).then_some(offset), "@{offset}");
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_known_soon_after_the_leader_has_died_and_another_was_elected() {
    const TOPIC: &str = "moved";
    // librdkafka's own refresh comes after minutes.
    const SOON: Duration = Duration::from_secs(10);
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic(TOPIC, 1, 3).unwrap();
    cluster.partition_leader(TOPIC, 0, Some(1)).unwrap();
    let options = Options { brokers: cluster.bootstrap_servers(), ..options() };
    let reader = tokio::task::spawn_blocking(move || {
        let reader = Reader::open(&options).unwrap();
        assert_eq!(reader.watermarks(TOPIC, 0).unwrap(), (0, 0));
        reader
    });
    let reader = reader.await.unwrap();
    cluster.partition_leader(TOPIC, 0, Some(2)).unwrap();
    cluster.broker_down(1).unwrap();
    let within = move || reader.watermarks_within(TOPIC, 0, Duration::from_secs(1)).is_ok();
    tokio::task::spawn_blocking(move || eventually(SOON, within)).await.unwrap();
}
