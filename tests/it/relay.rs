//! The relay of downstream events, alone: rows of an outbox that a test fills, and what the topic has of them.

mod once;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use millpond::kafka::{self, Admin, Publisher, TopicSpec};
use millpond::publish::{self, Transactions, markers};
use millpond::telemetry::metrics::publish::{PENDING, SENT};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::{Database, brokers, database, eventually_async};
use crate::publisher::{new_topic, options, read_all};

/// Far more than it takes, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);

/// An outbox and the topic that its rows are for.
struct Outbox {
    database: Database,
    topic: String,
}

/// A relay at work.
struct Relay {
    stop: watch::Sender<bool>,
    ended: JoinHandle<()>,
    publisher: Arc<Publisher>,
}

impl Relay {
    /// Ends it in its tracks.
    fn kill(self) {
        self.ended.abort();
    }

    /// Returns when it has stopped, as a process does that is told to stop.
    async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(SOON, self.ended).await.expect("it ends").unwrap();
        assert_eq!(self.publisher.close(SOON).await, 0);
    }
}

impl Outbox {
    async fn new() -> Self {
        Self::of(new_topic(2).await)
    }

    fn of(topic: String) -> Self {
        Self { database: database(), topic }
    }

    /// A relay as it is by default.
    async fn relay(&self) -> Relay {
        self.relay_by(Transactions::Auto, options()).await
    }

    /// A relay whose transactions go to the Kafka of these options.
    async fn relay_by(&self, transactions: Transactions, kafka: kafka::Options) -> Relay {
        self.relay_topics().await;
        let (stop, stopped) = watch::channel(false);
        let publisher = Arc::new(Publisher::start(&options(), [self.topic.as_str()]).unwrap());
        let relay = publish::Options { url: self.database.url.clone(), kafka, transactions };
        let ended = tokio::spawn(publish::run(relay, Arc::clone(&publisher), stopped));
        Relay { stop, ended, publisher }
    }

    async fn relay_topics(&self) {
        Admin::connect(&options()).unwrap().ensure_topics(&[markers::topic_spec()]).await.unwrap();
    }

    async fn execute(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.database.url).await.unwrap();
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
    }

    /// A version of the projection `p` that reads two partitions.
    async fn version(&self, version: i32, state: &str) {
        let fence = if state == "retired" { state } else { "running" };
        self.execute(&format!(
            "insert into millpond.projections values ('p') on conflict do nothing;
             insert into millpond.versions values ('p', {version}, 'hash', 'p_p_v{version}', '{state}', '{{s}}', '[]');
             insert into millpond.fences (projection, version, topic, partition, next_offset, state)
                select 'p', {version}, 's', at, 0, '{fence}' from generate_series(0, 1) at;
             update millpond.projections set live_version = {version} where '{state}' = 'live';"
        ))
        .await;
    }

    /// Rows of a source partition, numbered; `payload` is SQL. Their key is the number of the partition.
    async fn rows(&self, version: i32, partition: i32, numbers: Range<i32>, payload: &str) {
        self.execute(&format!(
            "insert into millpond.outbox (projection, version, topic, partition, out_seq, source_offset, index, event_id,
                target_topic, record_type, key, payload)
             select 'p', {version}, 's', {partition}, n, n, 0, gen_random_uuid(), '{}', 'E', '{partition}', {payload}
               from generate_series({}, {}) n",
            self.topic,
            numbers.start,
            numbers.end - 1
        ))
        .await;
    }

    async fn left(&self) -> usize {
        let mut connection = PgConnection::connect(&self.database.url).await.unwrap();
        let rows: i64 =
            sqlx::query_scalar("select count(*) from millpond.outbox").fetch_one(&mut connection).await.unwrap();
        usize::try_from(rows).unwrap()
    }

    /// How far the topic is written, the ends of transactions counted.
    async fn end(&self) -> i64 {
        let ends = Admin::connect(&options()).unwrap().watermarks(&self.topic).await.unwrap();
        ends.into_iter().map(|(_, high)| high).sum()
    }

    /// Records in the topic: its offsets count the ends of transactions too.
    async fn sent(&self) -> usize {
        read_all(&self.topic).await.len()
    }

    /// The payloads of one source partition's rows, as the log has them: the text before the first blank of each.
    async fn log(&self, partition: i32) -> Vec<String> {
        let key = partition.to_string();
        let records = read_all(&self.topic).await.into_iter().filter(|r| r.key.as_deref() == Some(key.as_bytes()));
        let text = |payload: Vec<u8>| String::from_utf8_lossy(&payload).split(' ').next().unwrap().to_owned();
        records.map(|record| text(record.payload.unwrap())).collect()
    }
}

/// Text of the row's number, then 600,000 bytes: two do not fit into one request to the broker.
fn long(text: &str) -> String {
    format!("(convert_to('{text} ', 'UTF8') || decode(repeat('00', 600000), 'hex'))")
}

/// The same, which cannot be compressed.
fn long_and_random(text: &str) -> String {
    let random = "(select string_agg(decode(md5(random()::text), 'hex'), '') from generate_series(1, 37500))";
    format!("(convert_to('{text} ', 'UTF8') || {random})")
}

#[tokio::test(flavor = "multi_thread")]
async fn row_behind_one_that_fails_waits_for_it_and_other_partitions_do_not() {
    row_that_fails(Transactions::Auto).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_behind_one_that_fails_waits_for_it_without_transactions_too() {
    row_that_fails(Transactions::Off).await;
}

async fn row_that_fails(transactions: Transactions) {
    let topic = crate::harness::unique("narrow");
    let mut spec = TopicSpec::log(&topic, 2);
    spec.config.insert("max.message.bytes".into(), "100000".into());
    Admin::connect(&options()).unwrap().ensure_topics(&[spec]).await.unwrap();
    let outbox = Outbox::of(topic);
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 1..2, &long("first")).await;
    outbox.rows(1, 0, 2..3, &long_and_random("refused")).await;
    outbox.rows(1, 0, 3..4, &long("behind")).await;
    let relay = outbox.relay_by(transactions, options()).await;
    let failed = || SENT.with_label_values(&[outbox.topic.as_str(), "failed"]).get();
    // The broker has refused it more than once.
    eventually_async(SOON, async || failed() >= 3).await;
    assert_eq!(outbox.log(0).await, ["first"]);
    outbox.rows(1, 1, 1..11, "convert_to(n::text, 'UTF8')").await;
    eventually_async(SOON, async || outbox.log(1).await.len() == 10).await;

    widen(&outbox.topic).await;
    eventually_async(SOON, async || outbox.left().await == 0).await;
    assert_eq!(outbox.log(0).await, ["first", "refused", "behind"]);
    assert_eq!(outbox.log(1).await, (1..11).map(|n| n.to_string()).collect::<Vec<_>>());
    relay.stop().await;
}

/// Lets a topic take any record.
async fn widen(topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap();
    let config = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", "2000000");
    for result in admin.alter_configs([&config], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_that_is_stopped_in_the_middle_has_removed_what_it_sent() {
    stopped_in_the_middle::<30_000>(Transactions::Auto).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_without_transactions_that_is_stopped_in_the_middle_has_removed_what_it_sent() {
    stopped_in_the_middle::<3000>(Transactions::Off).await;
}

async fn stopped_in_the_middle<const ROWS: i32>(transactions: Transactions) {
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    for partition in 0..2 {
        outbox.rows(1, partition, 1..ROWS + 1, "convert_to(n::text, 'UTF8')").await;
    }
    for more in [1, 300, 700] {
        let (before, relay) = (outbox.end().await, outbox.relay_by(transactions, options()).await);
        eventually_async(SOON, async || outbox.end().await >= before + more).await;
        relay.stop().await;
        let (sent, left) = (outbox.sent().await, outbox.left().await);
        assert_eq!(sent + left, 2 * ROWS as usize, "{left} are left");
    }
    let relay = outbox.relay_by(transactions, options()).await;
    eventually_async(SOON, async || outbox.left().await == 0).await;
    for partition in 0..2 {
        assert_eq!(outbox.log(partition).await, (1..=ROWS).map(|n| n.to_string()).collect::<Vec<_>>());
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_several_versions_leave_in_the_order_of_their_records() {
    let outbox = Outbox::new().await;
    for (version, state) in [(1, "retired"), (2, "retired"), (3, "live")] {
        outbox.version(version, state).await;
    }
    for version in [3, 1, 2] {
        outbox.rows(version, 0, 1..1001, &format!("convert_to('{version}/' || n, 'UTF8')")).await;
    }
    let relay = outbox.relay().await;
    eventually_async(SOON, async || outbox.left().await == 0).await;
    let expected: Vec<String> = (1..1001).flat_map(|n| (1..=3).map(move |v| format!("{v}/{n}"))).collect();
    assert_eq!(outbox.log(0).await, expected);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_version_that_is_being_built_stay() {
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    outbox.version(2, "building").await;
    outbox.rows(2, 0, 1..4, "convert_to('early', 'UTF8')").await;
    outbox.rows(1, 0, 1..4, "convert_to('live', 'UTF8')").await;
    let relay = outbox.relay().await;
    eventually_async(SOON, async || outbox.left().await == 3).await;
    assert_eq!(outbox.log(0).await, ["live", "live", "live"]);
    relay.stop().await;
}

/// That is when they grow, and when somebody has to be told.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_counted_while_there_is_no_kafka() {
    // Far from what other tests of this process have waiting.
    const ROWS: i32 = 4_321;
    let outbox = Outbox::new().await;
    outbox.version(1, "live").await;
    outbox.rows(1, 0, 0..ROWS, "''").await;
    let kafka = kafka::Options { brokers: "127.0.0.1:1".into(), ..options() };
    let publisher = Arc::new(Publisher::start(&kafka, [outbox.topic.as_str()]).unwrap());
    let (stop, stopped) = watch::channel(false);
    let relay = publish::Options { url: outbox.database.url.clone(), kafka, transactions: Transactions::Auto };
    let ended = tokio::spawn(publish::run(relay, Arc::clone(&publisher), stopped));
    eventually_async(SOON, async || PENDING.get() == i64::from(ROWS)).await;
    // It stops at once all the same.
    stop.send_replace(true);
    tokio::time::timeout(SOON, ended).await.expect("it ends").unwrap();
    publisher.close(Duration::ZERO).await;
}
