//! Publishing to a real broker: what a receipt says is what the log has.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use futures_util::future::join_all;
use millpond::kafka::{
    Admin, Delivery, EncodedBatch, EncodedRecord, Error, Health, NotSent, Options, Publisher, Reader, Receipt, Record,
    Start, TopicRange, TopicSpec, murmur2,
};
use uuid::Uuid;

use crate::cluster::SOON;
use crate::harness::brokers;

pub fn options() -> Options {
    Options { brokers: brokers(), client_id: "millpond-test".into(), ..Options::default() }
}

/// A new topic with a name of its own.
pub async fn new_topic(partitions: u32) -> String {
    new_topic_of(&options(), partitions).await
}

pub async fn new_topic_of(options: &Options, partitions: u32) -> String {
    let name = format!("test.{}", Uuid::new_v4().simple());
    let spec = TopicSpec::log(&name, partitions);
    Admin::connect(options).unwrap().ensure_topics(&[spec]).await.unwrap();
    name
}

/// (key, payload, event id)
type Plain<'a> = (Option<&'a str>, Option<&'a str>, &'a str);

pub fn batch(topic: &str, records: &[Plain<'_>]) -> EncodedBatch {
    let mut bytes = Vec::new();
    let mut put = |text: &str| {
        let start = bytes.len() as u32;
        bytes.extend_from_slice(text.as_bytes());
        start..bytes.len() as u32
    };
    let records = records
        .iter()
        .map(|(key, payload, id)| EncodedRecord {
            key: key.map(&mut put),
            payload: payload.map(&mut put),
            event_id: put(id),
            fingerprint: 0..0,
        })
        .collect();
    EncodedBatch { topic: topic.into(), bytes, records, headers: vec![("mp-producer".into(), Some(b"test".to_vec()))] }
}

pub async fn ready(options: &Options, topic: &str) -> Publisher {
    let publisher = Publisher::start(options, [topic]).unwrap();
    tokio::time::timeout(SOON, publisher.wait_ready()).await.expect("ready in time");
    publisher
}

pub async fn read_all(topic: &str) -> Vec<Record> {
    read_all_by(options(), topic, Reader::open).await
}

pub async fn read_all_by(options: Options, topic: &str, open: fn(&Options) -> Result<Reader, Error>) -> Vec<Record> {
    let topic: Arc<str> = topic.into();
    tokio::task::spawn_blocking(move || {
        let mut records = Vec::new();
        let range =
            TopicRange { topic, partitions: None, start: Start::Beginning, key: None, limit: None, follow: false };
        let keep = |record| {
            records.push(record);
            ControlFlow::Continue(())
        };
        open(&options).unwrap().read(&range, keep).unwrap();
        records
    })
    .await
    .unwrap()
}

fn places(receipt: &Receipt) -> Vec<(i32, i64)> {
    let place = |delivery: &Delivery| match delivery {
        Delivery::Written { partition, offset } => (*partition, *offset),
        other => panic!("not written: {other:?}"),
    };
    receipt.deliveries.iter().map(place).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn receipt_names_the_place_where_each_record_is() {
    let topic = new_topic(4).await;
    let publisher = ready(&options(), &topic).await;
    let keys: Vec<String> = (0..200).map(|i| format!("key-{}", i % 17)).collect();
    let ids: Vec<String> = (0..200).map(|i| format!("id-{i}")).collect();
    let mut records: Vec<Plain> =
        keys.iter().zip(&ids).map(|(key, id)| (Some(key.as_str()), Some(id.as_str()), id.as_str())).collect();
    records.push((Some("key-3"), None, "tombstone"));
    records.push((Some(""), Some(""), ""));
    let receipt = publisher.publish(batch(&topic, &records)).unwrap().await;
    assert!(receipt.all_written());

    let log = read_all(&topic).await;
    assert_eq!(log.len(), records.len());
    for ((key, payload, id), (partition, offset)) in records.iter().zip(places(&receipt)) {
        let found =
            log.iter().find(|r| (r.partition, r.offset) == (partition, offset)).expect("a record at that place");
        assert_eq!(found.key.as_deref(), key.map(str::as_bytes));
        assert_eq!(found.payload.as_deref(), payload.map(str::as_bytes));
        assert_eq!(found.header("mp-event-id").unwrap_or_default(), id.as_bytes());
        assert_eq!(found.header("mp-producer"), Some(&b"test"[..]));
        assert_eq!(partition, murmur2::partition_of(key.unwrap().as_bytes(), 4));
    }
    // In order per key: the ids of one key rise with the offset.
    for partition in 0..4 {
        let ids: Vec<usize> = log
            .iter()
            .filter(|r| r.partition == partition)
            .filter_map(|r| std::str::from_utf8(r.payload.as_deref()?).ok()?.strip_prefix("id-")?.parse().ok())
            .collect();
        assert!(ids.is_sorted(), "{ids:?}");
    }
    assert_eq!(publisher.close(Duration::from_secs(5)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keyless_batch_lands_on_one_partition() {
    let topic = new_topic(6).await;
    let publisher = ready(&options(), &topic).await;
    let receipt = publisher.publish(batch(&topic, &[(None, Some("a"), ""); 50])).unwrap().await;
    let partitions: std::collections::HashSet<i32> =
        places(&receipt).into_iter().map(|(partition, _)| partition).collect();
    assert_eq!(partitions.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_budget_refuses_at_once_and_opens_again() {
    let topic = new_topic(1).await;
    let publisher = ready(&Options { in_flight_bytes: 64 << 10, ..options() }, &topic).await;
    let payload = "x".repeat(1000);
    let one = || batch(&topic, &[(Some("k"), Some(&payload), "")]);
    let (mut pending, mut refused) = (Vec::new(), None);
    for _ in 0..10_000 {
        match publisher.publish(one()) {
            Ok(receipt) => pending.push(receipt),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(matches!(refused, Some(NotSent::Full { .. })), "{refused:?}");
    let accepted = pending.len();
    assert!(join_all(pending).await.iter().all(Receipt::all_written));
    // What was refused was not written; what was accepted was.
    assert_eq!(read_all(&topic).await.len(), accepted);
    assert_eq!(publisher.in_flight_bytes(), 0);
    assert!(publisher.publish(one()).unwrap().await.all_written());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_receipts_are_written_and_accounted_for_all_the_same() {
    let topic = new_topic(2).await;
    let publisher = ready(&options(), &topic).await;
    for i in 0..100 {
        drop(publisher.publish(batch(&topic, &[(Some(&i.to_string()), Some("v"), "")])).unwrap());
    }
    assert_eq!(publisher.close(Duration::from_secs(10)).await, 0);
    assert_eq!(publisher.in_flight_bytes(), 0);
    assert_eq!(read_all(&topic).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn record_over_the_limit_stops_its_batch_before_the_first_is_sent() {
    let topic = new_topic(1).await;
    let publisher = ready(&options(), &topic).await;
    let large = "x".repeat(1_000_001);
    let error = publisher.publish(batch(&topic, &[(None, Some("ok"), ""), (None, Some(&large), "")])).err().unwrap();
    assert!(matches!(error, NotSent::RecordTooLarge { index: 1, .. }), "{error}");
    let malformed = EncodedRecord { key: Some(5..9), payload: None, event_id: 0..0, fingerprint: 0..0 };
    let faulty =
        EncodedBatch { topic: topic.as_str().into(), bytes: vec![0; 8], records: vec![malformed], headers: vec![] };
    assert_eq!(publisher.publish(faulty).err(), Some(NotSent::Malformed { index: 0 }));
    assert!(read_all(&topic).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn record_that_the_topic_refuses_is_certainly_not_written() {
    let name = format!("test.{}", Uuid::new_v4().simple());
    let mut spec = TopicSpec::compacted(&name, 1);
    spec.config.insert("max.message.bytes".into(), "2000".into());
    Admin::connect(&options()).unwrap().ensure_topics(&[spec]).await.unwrap();
    let publisher = ready(&options(), &name).await;
    // A compacted topic takes no record without a key.
    let receipt = publisher.publish(batch(&name, &[(None, Some("v"), "")])).unwrap().await;
    assert!(matches!(receipt.deliveries[..], [Delivery::NotWritten(_)]), "{receipt:?}");
    let noise: String =
        (0..4000_u32).map(|i| char::from(33 + (murmur2::murmur2(&i.to_le_bytes()) % 90) as u8)).collect();
    let receipt = publisher.publish(batch(&name, &[(Some("k"), Some(&noise), "")])).unwrap().await;
    assert!(matches!(receipt.deliveries[..], [Delivery::NotWritten(_)]), "{receipt:?}");
    assert!(read_all(&name).await.is_empty());
    assert_eq!(publisher.health(), Health::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_that_does_not_exist_is_refused_until_it_does() {
    let publisher = ready(&options(), &new_topic(1).await).await;
    let absent = format!("test.{}", Uuid::new_v4().simple());
    let error = publisher.publish(batch(&absent, &[(None, Some("v"), "")])).err();
    assert_eq!(error, Some(NotSent::UnknownTopic { topic: absent.as_str().into() }));
    assert!(matches!(publisher.partitions_of(&absent).await, Err(Error::NoTopic { .. })));
    let spec = TopicSpec::log(&absent, 3);
    Admin::connect(&options()).unwrap().ensure_topics(&[spec]).await.unwrap();
    assert_eq!(publisher.partitions_of(&absent).await.unwrap(), 3);
    assert!(publisher.publish(batch(&absent, &[(None, Some("v"), "")])).unwrap().await.all_written());
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_publisher_has_written_what_it_took_and_takes_no_more() {
    let topic = new_topic(3).await;
    let publisher = ready(&options(), &topic).await;
    let pending = publisher.publish(batch(&topic, &[(None, Some("v"), ""); 500])).unwrap();
    assert_eq!(publisher.close(Duration::from_secs(10)).await, 0);
    assert!(pending.await.all_written());
    assert!(matches!(publisher.publish(batch(&topic, &[])).err(), Some(NotSent::Unavailable { .. })));
    assert_eq!(publisher.close(Duration::from_secs(10)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_brokers_are_said_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let brokers = listener.local_addr().unwrap().to_string();
    drop(listener);
    let publisher = Publisher::start(&Options { brokers, ..options() }, ["t"]).unwrap();
    let error = publisher.publish(batch("t", &[(None, Some("v"), "")])).err();
    assert!(matches!(error, Some(NotSent::Unavailable { .. })), "{error:?}");
    let mut health = publisher.watch_health();
    let says_so = |health: &Health| matches!(health, Health::Degraded { why, .. } if why.contains("no broker"));
    let said = tokio::time::timeout(SOON, health.wait_for(says_so)).await;
    assert!(said.is_ok(), "{:?}", publisher.health());
}
