//! Each event once for readers of committed records, whatever was forgotten on the way; and what clusters get that cannot
//! do transactions.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use millpond::kafka::{Admin, Idle, Options, OutgoingRecord, Reader, TopicSpec};
use millpond::publish::{
    Transactions,
    markers::{self, Markers, Step},
};
use millpond::store::outbox::{self, Bounds, Lanes, OutboxRow};
use millpond::store::relay::{self, Delivery};
use millpond::telemetry::metrics::publish::TORN;
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::{Outbox, SOON};
use crate::harness::{brokers, eventually_async, remove_records, unique};
use crate::publisher::{new_topic, options};

const NUMBER: &str = "convert_to(n::text, 'UTF8')";

fn numbers(range: std::ops::Range<i32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

impl Outbox {
    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.database.url).await.unwrap()
    }

    async fn is_empty(&self) {
        eventually_async(SOON, async || self.left().await == 0).await;
    }

    /// Ends the sessions of relays, as a crash of their machine does.
    async fn end_sessions(&self) {
        let sessions =
            "from pg_stat_activity where datname = current_database() and application_name = 'millpond publish'";
        self.execute(&format!("select pg_terminate_backend(pid) {sessions}")).await;
        let left = format!("select count(*) {sessions}");
        eventually_async(SOON, async || {
            let left = sqlx::AssertSqlSafe(left.clone());
            sqlx::query_scalar::<_, i64>(left).fetch_one(&mut self.connect().await).await.unwrap() == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_between_kafkas_commit_and_the_removal_repeats_nothing() {
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    for partition in 0..2 {
        outbox.rows(1, partition, 1..301, NUMBER).await;
    }
    // Nobody can remove a row while this is open.
    let mut holder = outbox.connect().await;
    holder.execute(sqlx::raw_sql("begin; select from millpond.outbox for update")).await.unwrap();
    let first = outbox.relay().await;
    eventually_async(SOON, async || outbox.sent().await == 600).await;
    first.kill();
    outbox.end_sessions().await;
    holder.execute(sqlx::raw_sql("rollback")).await.unwrap();
    assert_eq!(outbox.left().await, 600);

    for partition in 0..2 {
        outbox.rows(1, partition, 301..401, NUMBER).await;
    }
    let second = outbox.relay().await;
    outbox.is_empty().await;
    for partition in 0..2 {
        assert_eq!(outbox.log(partition).await, numbers(1..401));
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_postgres_brings_back_do_not_leave_again_and_others_under_their_numbers_do() {
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 1..101, NUMBER).await;
    outbox.execute("create table kept as table millpond.outbox").await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    relay.stop().await;

    // It went back to before the first half of them, and came to other events on the way.
    outbox
        .execute(
            "insert into millpond.outbox select * from kept where out_seq > 50;
             update millpond.outbox set event_id = gen_random_uuid(), payload = convert_to('other' || out_seq, 'UTF8')
              where out_seq between 61 and 63",
        )
        .await;
    outbox.rows(1, 0, 101..103, NUMBER).await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    let mut expected = numbers(1..101);
    expected.extend(["other61", "other62", "other63", "101", "102"].map(str::to_owned));
    assert_eq!(outbox.log(0).await, expected);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_that_is_made_anew_under_its_number_sends_its_events_again() {
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 1..11, NUMBER).await;
    outbox.execute("create table kept as table millpond.outbox").await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    outbox
        .execute("delete from millpond.fences; delete from millpond.versions; delete from millpond.projections")
        .await;
    outbox.version(1, "live").await;
    outbox.execute("insert into millpond.outbox select * from kept").await;
    outbox.is_empty().await;
    assert_eq!(outbox.log(0).await, [numbers(1..11), numbers(1..11)].concat());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_partition_whose_topic_does_not_exist_holds_up_no_other() {
    let outbox = Outbox::new().await;
    let missing = unique("missing");
    outbox.version(1, "live").await;
    for partition in 0..2 {
        outbox.rows(1, partition, 1..51, NUMBER).await;
    }
    // Its first rows can leave.
    outbox
        .execute(&format!(
            "update millpond.outbox set target_topic = '{missing}' where partition = 0 and out_seq between 11 and 20"
        ))
        .await;
    let relay = outbox.relay().await;
    eventually_async(SOON, async || outbox.left().await == 40).await;
    assert_eq!((outbox.log(0).await, outbox.log(1).await), (numbers(1..11), numbers(1..51)));
    Admin::connect(&options()).unwrap().ensure_topics(&[TopicSpec::log(&missing, 1)]).await.unwrap();
    outbox.is_empty().await;
    assert_eq!(outbox.log(0).await, [numbers(1..11), numbers(21..51)].concat());
    let elsewhere = Outbox { database: outbox.database.clone(), topic: missing };
    assert_eq!(elsewhere.log(0).await, numbers(11..21));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_share_a_kafka_do_not_take_each_other_for_themselves() {
    let topic = new_topic(2).await;
    let (a, b) = (Outbox::of(topic.clone()), Outbox::of(topic));
    for (outbox, payload) in [(&a, "'a' || n"), (&b, "'b' || n")] {
        outbox.version(1, "live").await;
        outbox.rows(1, 0, 1..501, &format!("convert_to({payload}, 'UTF8')")).await;
    }
    let relays = [a.relay().await, b.relay().await];
    a.is_empty().await;
    b.is_empty().await;
    let log = a.log(0).await;
    for name in ["a", "b"] {
        let of: Vec<&String> = log.iter().filter(|text| text.starts_with(name)).collect();
        assert!(of.iter().copied().eq((1..501).map(|n| format!("{name}{n}")).collect::<Vec<_>>().iter()), "{of:?}");
    }
    for relay in relays {
        relay.stop().await;
    }
}

/// A transaction of a relay that Kafka tears: events of some of these rows are committed, the marker of all of them is, or is
/// not. No broker can be made to do that at will, so it is made of several transactions.
async fn torn_transaction(outbox: &Outbox, sent: Range<i64>, committed: Range<i64>, with_marker: bool) {
    let mut postgres = outbox.connect().await;
    let installation = relay::installation(&mut postgres).await.unwrap();
    let bounds = Bounds { rows: 1_000, bytes: 1 << 20, all_rows: 1_000, all_bytes: 1 << 20 };
    let rows = outbox::pending(&mut postgres, Lanes::But(&[]), bounds).await.unwrap().concat();
    let rows: Vec<OutboxRow> = rows.into_iter().filter(|row| sent.contains(&row.out_seq)).collect();
    let work = move || {
        let producer = Idle::start(&options(), &format!("millpond-relay-{installation}")).unwrap();
        let mut known = Markers::new(installation);
        known.catch_up(&options()).unwrap();
        let mut step = Step::default();
        known.step(&rows.iter().map(|row| (row, 0)).collect::<Vec<_>>(), &mut step);
        step.begin_at(|topic, partition| producer.reached(topic, partition));
        let mut events = producer.begin().unwrap();
        for row in rows.iter().filter(|row| committed.contains(&row.out_seq)) {
            let id = row.event_id.to_string();
            let headers: &[(&str, Option<&[u8]>)] = &[("mp-event-id", Some(id.as_bytes()))];
            let (topic, key, payload) = (row.target_topic.as_str(), row.key.as_deref(), row.payload.as_deref());
            events.send(&OutgoingRecord { topic, partition: Some(0), key, payload, headers }).unwrap();
        }
        drop(events.commit().unwrap());
        let marking: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers())
            .set("transactional.id", unique("torn"))
            .create()
            .unwrap();
        marking.init_transactions(SOON).unwrap();
        marking.begin_transaction().unwrap();
        for marker in step.records() {
            let payload = marker.payload.as_deref().unwrap();
            marking.send(BaseRecord::to(markers::TOPIC).key(&marker.key).payload(payload)).unwrap();
        }
        // What is aborted is in the log, too.
        marking.flush(SOON).unwrap();
        let ended = if with_marker { marking.commit_transaction(SOON) } else { marking.abort_transaction(SOON) };
        ended.unwrap();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_that_kafka_tears_leaves_whole_and_once() {
    let outbox = Outbox::of(new_topic(1).await);
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 1..11, NUMBER).await;
    let torn = TORN.get();
    // The relay's topic is there once one has run.
    outbox.relay_topics().await;
    torn_transaction(&outbox, 1..9, 1..6, true).await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    relay.stop().await;
    assert_eq!((outbox.log(0).await, TORN.get() - torn), (numbers(1..11), 1));

    outbox.rows(1, 0, 11..21, NUMBER).await;
    torn_transaction(&outbox, 11..19, 11..15, false).await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    relay.stop().await;
    assert_eq!((outbox.log(0).await, TORN.get() - torn), (numbers(1..21), 2));

    // Neither what was aborted whole nor what was committed whole is torn.
    outbox.rows(1, 0, 21..41, NUMBER).await;
    torn_transaction(&outbox, 21..31, 0..0, false).await;
    torn_transaction(&outbox, 21..26, 21..26, true).await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    relay.stop().await;
    assert_eq!((outbox.log(0).await, TORN.get() - torn), (numbers(1..41), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_transaction_whose_records_retention_has_removed_does_not_leave_again() {
    let topic = new_topic(1).await;
    let outbox = Outbox::of(topic.clone());
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 1..11, NUMBER).await;
    outbox.relay_topics().await;
    torn_transaction(&outbox, 1..9, 1..9, true).await;
    remove_records(&brokers(), &topic, 0, 6).await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    relay.stop().await;
    assert_eq!(outbox.log(0).await, numbers(7..11), "what was removed, and what was kept of it, is not sent again");

    // What was aborted may have left in part, but nobody knows which: none of it may be lost.
    outbox.rows(1, 0, 11..21, NUMBER).await;
    torn_transaction(&outbox, 11..21, 0..0, false).await;
    let (_, end) = Reader::open(&options()).unwrap().watermarks(&topic, 0).unwrap();
    remove_records(&brokers(), &topic, 0, end).await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    relay.stop().await;
    assert_eq!(outbox.log(0).await, numbers(11..21));
}

/// A cluster that gives nobody the right to transactions.
fn forbidding() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refusal; 100]);
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_that_forbids_transactions_gets_events_at_least_once_and_it_is_said() {
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 1..31, NUMBER).await;
    let cluster = forbidding();
    let kafka = Options { brokers: cluster.bootstrap_servers(), ..options() };
    let relay = outbox.relay_by(Transactions::Auto, kafka).await;
    outbox.is_empty().await;
    assert_eq!(outbox.log(0).await, numbers(1..31));
    let delivery = relay::delivery(&mut outbox.connect().await).await.unwrap();
    assert!(matches!(&delivery, Some(Delivery::AtLeastOnce(why)) if why.contains("uthoriz")), "{delivery:?}");
    relay.stop().await;

    // With the rights, and started again.
    outbox.rows(1, 0, 31..41, NUMBER).await;
    let relay = outbox.relay().await;
    outbox.is_empty().await;
    assert_eq!(outbox.log(0).await, numbers(1..41));
    assert_eq!(relay::delivery(&mut outbox.connect().await).await.unwrap(), Some(Delivery::ExactlyOnce));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_that_forbids_transactions_gets_nothing_where_they_are_required() {
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 1..31, NUMBER).await;
    let cluster = forbidding();
    let kafka = Options { brokers: cluster.bootstrap_servers(), ..options() };
    let relay = outbox.relay_by(Transactions::Required, kafka).await;
    // It tries again and again, each time with a session of its own.
    let sessions = RefCell::new(BTreeSet::new());
    eventually_async(SOON, async || {
        let mut postgres = outbox.connect().await;
        let pids = "select pid from pg_stat_activity
                     where datname = current_database() and application_name = 'millpond publish'";
        let pids: Vec<i32> = sqlx::query_scalar(pids).fetch_all(&mut postgres).await.unwrap();
        sessions.borrow_mut().extend(pids);
        sessions.borrow().len() > 2
    })
    .await;
    assert_eq!((outbox.left().await, outbox.sent().await), (30, 0));
    let delivery = relay::delivery(&mut outbox.connect().await).await.unwrap();
    assert!(matches!(&delivery, Some(Delivery::NotAtAll(why)) if why.contains("uthoriz")), "{delivery:?}");
    relay.stop().await;

    let relay = outbox.relay_by(Transactions::Required, options()).await;
    outbox.is_empty().await;
    assert_eq!(outbox.log(0).await, numbers(1..31));
    assert_eq!(relay::delivery(&mut outbox.connect().await).await.unwrap(), Some(Delivery::ExactlyOnce));
    relay.stop().await;
}

/// How fast an outbox empties, in transactions and one by one, and how long one event takes: for the figures in ADR 15.
/// `cargo test --test it -- relay::once::rate --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes a minute"]
async fn rate() {
    // Far longer than either takes.
    const LONG: Duration = Duration::from_secs(300);
    for (transactions, total) in [(Transactions::Off, 6_000), (Transactions::Auto, 60_000)] {
        for partitions in [1, 6] {
            let outbox = Outbox::of(new_topic(6).await);
            outbox.version(1, "live").await;
            let relay = outbox.relay_by(transactions, options()).await;
            outbox.rows(1, 0, 0..1, "decode(repeat('ab', 300), 'hex')").await;
            outbox.is_empty().await;
            for partition in 0..partitions {
                outbox.rows(1, partition, 1..total / partitions + 1, "decode(repeat('ab', 300), 'hex')").await;
            }
            let begun = Instant::now();
            eventually_async(LONG, async || outbox.left().await == 0).await;
            let rate = f64::from(total) / begun.elapsed().as_secs_f64();
            let mut waits: Vec<u128> = Vec::new();
            for event in 0..20 {
                let begun = Instant::now();
                outbox.rows(1, 0, total + 1 + event..total + 2 + event, NUMBER).await;
                outbox.is_empty().await;
                waits.push(begun.elapsed().as_millis());
            }
            waits.sort_unstable();
            eprintln!(
                "{transactions:?}, {partitions} source partitions: {rate:.0} events/s; one event alone {} ms (median), {} ms at most",
                waits[waits.len() / 2],
                waits[waits.len() - 1]
            );
            relay.stop().await;
        }
    }
}
