//! Errors of a broker in the midst of a load, on librdkafka's mock cluster: the producer goes on or is replaced, every
//! record is accounted for as it is in the log, and the records of a key stay in order.

use std::{
    collections::{HashMap, VecDeque},
    ops::ControlFlow,
};

use futures_util::FutureExt as _;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Err};

use super::{
    mock_tests::{Cluster, cluster, ready, within},
    *,
};
use crate::kafka::{Reader, Start, TopicRange};

const KEYS: usize = 5;
/// Batches under way at once: requests are pipelined, so that an error meets some that were sent behind it.
const PIPELINED: usize = 16;
const BATCHES: usize = 200;

/// A record of the load: which of its key's it is, and what became of it.
struct Sent {
    key: usize,
    number: usize,
    delivery: Delivery,
}

/// Sends batches with a record for each key, while `disturb` does what it likes before each.
async fn load(publisher: &Publisher, mut disturb: impl FnMut(usize)) -> Vec<Sent> {
    let (mut sent, mut under_way) = (Vec::new(), VecDeque::new());
    for number in 0..BATCHES {
        disturb(number);
        if under_way.len() == PIPELINED {
            settle(&mut under_way, &mut sent).await;
        }
        let pending = loop {
            match publisher.publish(batch(number)) {
                Ok(pending) => break pending,
                // As a client does that is answered 503: what was sent before is settled first.
                Err(NotSent::Unavailable { .. } | NotSent::PartitionUnavailable { .. }) => {
                    while !under_way.is_empty() {
                        settle(&mut under_way, &mut sent).await;
                    }
                    within(60, publisher.wait_ready()).await;
                    tokio::task::yield_now().await;
                }
                Err(other) => panic!("{other}"),
            }
        };
        under_way.push_back((number, pending));
    }
    while !under_way.is_empty() {
        settle(&mut under_way, &mut sent).await;
    }
    sent
}

async fn settle(under_way: &mut VecDeque<(usize, PendingReceipt)>, sent: &mut Vec<Sent>) {
    let Some((number, pending)) = under_way.pop_front() else { return };
    let receipt = within(60, pending).await;
    let records = receipt.deliveries.into_iter().enumerate();
    sent.extend(records.map(|(key, delivery)| Sent { key, number, delivery }));
}

fn batch(number: usize) -> EncodedBatch {
    let mut bytes = Vec::new();
    let mut put = |text: String| {
        let start = bytes.len() as u32;
        bytes.extend_from_slice(text.as_bytes());
        start..bytes.len() as u32
    };
    let records = (0..KEYS)
        .map(|key| EncodedRecord {
            key: Some(put(format!("key {key}"))),
            payload: Some(put(number.to_string())),
            event_id: 0..0,
            fingerprint: 0..0,
        })
        .collect();
    EncodedBatch { topic: "t".into(), bytes, records, headers: Vec::new() }
}

/// Key and number of every record in the log, by place.
fn log(options: &Options) -> HashMap<(i32, i64), (usize, usize)> {
    let topic = "t".into();
    let range = TopicRange { topic, partitions: None, start: Start::Beginning, key: None, limit: None, follow: false };
    let mut found = HashMap::new();
    let number = |bytes: Option<&[u8]>| {
        let text = String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
        text.trim_start_matches("key ").parse().unwrap()
    };
    Reader::open_uncommitted(options)
        .unwrap()
        .read(&range, |record| {
            let what = (number(record.key.as_deref()), number(record.payload.as_deref()));
            assert!(found.insert((record.partition, record.offset), what).is_none());
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

/// Compares what was told with the log, as the promise has it.
fn check(sent: &[Sent], options: &Options) {
    let log = log(options);
    let mut places: HashMap<(usize, usize), Vec<(i32, i64)>> = HashMap::new();
    for (place, what) in &log {
        places.entry(*what).or_default().push(*place);
    }
    for Sent { key, number, delivery } in sent {
        let places = places.get(&(*key, *number)).map_or(&[][..], Vec::as_slice);
        assert!(places.len() <= 1, "key {key} number {number} is in the log {} times", places.len());
        match delivery {
            Delivery::Written { partition, offset } => assert_eq!(places, [(*partition, *offset)]),
            Delivery::NotWritten(reason) => assert!(places.is_empty(), "not written ({reason:?}), and in the log"),
            Delivery::Unknown(_) => {}
        }
    }
    // Nothing is ever sent again, so whatever is there is in the order in which it was sent: written or unknown.
    let mut in_order: Vec<_> = log.into_iter().collect();
    in_order.sort_unstable();
    let mut last: HashMap<usize, usize> = HashMap::new();
    for (place, (key, number)) in in_order {
        let before = last.insert(key, number);
        assert!(before < Some(number), "key {key}: {before:?} stands before {number} at {place:?}");
    }
}

/// Runs a load in the midst of which the broker answers `error` to so many requests, several times. Gives how many records
/// were written, and whether a producer was replaced.
async fn disturbed_by(error: Err, requests: usize) -> (usize, bool) {
    let (cluster, options): (Cluster, Options) = cluster();
    let publisher = ready(&options).await;
    let mut health = publisher.watch_health();
    let is_replaced =
        |health: &Health| matches!(health, Health::Degraded { why, .. } if why.contains("being replaced"));
    let replaced = tokio::spawn(async move { health.wait_for(is_replaced).await.is_ok() });
    let sent = load(&publisher, |number| {
        if number % 50 == 25 {
            cluster.request_errors(RDKafkaApiKey::Produce, &vec![error; requests]);
        }
    })
    .await;
    assert_eq!(sent.len(), BATCHES * KEYS);
    check(&sent, &options);
    assert_eq!(publisher.in_flight_bytes(), 0);
    let replaced = replaced.now_or_never().is_some_and(|replaced| replaced.unwrap());
    assert_eq!(within(30, publisher.close(Duration::from_secs(10))).await, 0);
    let written = sent.iter().filter(|record| matches!(record.delivery, Delivery::Written { .. })).count();
    eprintln!("{error:?}: {written} of {} written, replaced: {replaced}", sent.len());
    (written, replaced)
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_error_costs_no_record() {
    for error in [
        Err::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Err::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Err::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Err::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Err::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
    ] {
        assert_eq!(disturbed_by(error, 2).await, (BATCHES * KEYS, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_batch_costs_its_records_and_no_order() {
    for error in [Err::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Err::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE] {
        let (written, replaced) = disturbed_by(error, 2).await;
        assert!(written > BATCHES * KEYS / 4 && written < BATCHES * KEYS && !replaced);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fatal_error_in_a_load_replaces_the_producer_and_costs_no_order() {
    let (written, replaced) = disturbed_by(Err::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1).await;
    assert!(written > BATCHES * KEYS / 4 && written < BATCHES * KEYS && replaced);
}
