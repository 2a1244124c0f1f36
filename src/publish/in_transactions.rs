//! Exactly once for who reads committed records: everything that waits, up to a bound, and the markers of how far the
//! outbox has left with it, in one transaction of Kafka; then the rows are removed; then the next.
//!
//! A relay that starts takes its transactional id over, which shuts out every earlier one and decides what that left open.
//! Only then are the markers read, and only then is the outbox looked at: so whatever an earlier relay did, and wherever it
//! stopped, what it sent is told by the markers; of its last transaction, which Kafka may have torn, by its records themselves.
//! A producer is never used again after an error: the next one settles anew what has left.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{SecondsFormat, Utc};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Interrupted, Options, Transactions, evidence, know_topics,
    markers::{self, Doubt, MarkerRecord, Markers, Step},
    pause,
    record::{self, Header},
    trials::{Blame, Fault, Trials, blame},
};
use crate::{
    kafka::{self, Failed, Health, Idle, OutgoingRecord, Publisher, Reader},
    planted::{self, Bug},
    store::{
        self, PgConnection,
        outbox::{self, Bounds, Lane, Lanes, OutboxRow},
        relay::{self, Delivery},
    },
    telemetry::metrics::publish as metrics,
};

/// How often an empty outbox is looked at. A commit takes as long again, or twice.
const IDLE: Duration = Duration::from_millis(100);
/// What one transaction has at most: as much as half a megabyte a second brings away within its 10 s, and so much that the
/// 100 to 200 ms of a commit do not matter.
const BOUNDS: Bounds = Bounds { rows: 4_000, bytes: 2 << 20, all_rows: 10_000, all_bytes: 4 << 20 };
/// How often Postgres is told that the relay waits for Kafka: well within the 30 s after which it takes the lead away.
const PING: Duration = Duration::from_secs(10);

/// A relay that leads, with what it knows of the log.
struct Relay<'a> {
    options: &'a Options,
    connection: &'a mut PgConnection,
    publisher: &'a Publisher,
    trials: &'a mut Trials,
    installation: Uuid,
    /// As the log has them, once there is a producer.
    markers: Markers,
    /// None before the first transaction and after one that failed.
    producer: Option<Idle>,
    greeted: bool,
}

/// A row and the partition it goes to.
struct Placed {
    row: OutboxRow,
    partition: i32,
    headers: Vec<Header>,
}

/// Relays until told to stop, or until an error; why the cluster does not let us, if it does not.
pub async fn relay(
    options: &Options,
    connection: &mut PgConnection,
    publisher: &Publisher,
    trials: &mut Trials,
    stop: &mut watch::Receiver<bool>,
) -> Result<Option<String>, Interrupted> {
    let installation = store::bounded(relay::installation(connection)).await?;
    let markers = Markers::new(installation);
    let mut relay =
        Relay { options, connection, publisher, trials, installation, markers, producer: None, greeted: false };
    // Nothing is under way yet: a stop need not wait for brokers that do not answer.
    let opened = tokio::select! {
        opened = relay.open() => opened?,
        _ = stop.wait_for(|stop| *stop) => return Ok(None),
    };
    if let Err(error) = opened {
        let forbidden = error.forbids_transactions();
        if forbidden && options.transactions == Transactions::Auto {
            return Ok(Some(error.to_string()));
        }
        if forbidden || matches!(error, kafka::Error::NoTopic { .. }) {
            // Nothing passes by itself here: whoever looks is told.
            store::bounded(relay::note(relay.connection, &Delivery::NotAtAll(told(&error)))).await?;
        }
        return Err(Interrupted::Kafka(told(&error)));
    }
    info!("relaying downstream events, exactly once for readers of committed records");
    store::bounded(relay::note(relay.connection, &Delivery::ExactlyOnce)).await?;
    metrics::EXACTLY_ONCE.set(1);
    while !*stop.borrow() && relay.publisher.health() == Health::Ready {
        let mut busy = relay.round(None).await?;
        if let Some(lane) = relay.trials.due(Instant::now()) {
            busy |= relay.round(Some(&lane)).await?;
        }
        if !busy {
            pause(stop, IDLE).await;
        }
    }
    Ok(None)
}

/// An error of the start, with what to do where that is not the cluster's to mend.
fn told(error: &kafka::Error) -> String {
    match error {
        kafka::Error::NoTopic { topic, .. } => {
            format!(
                "topic `{topic}`, which the relay's markers are kept in, does not exist; run `millpond schema push`"
            )
        }
        error if error.forbids_transactions() => {
            format!("{error}; the cluster does not let the relay use transactions: see docs/operating.md")
        }
        error => error.to_string(),
    }
}

impl Relay<'_> {
    /// Starts a producer and reads the markers.
    async fn open(&mut self) -> Result<Result<(), kafka::Error>, Interrupted> {
        let (options, mut markers) = (self.options.kafka.clone(), self.markers.clone());
        let (installation, greeted) = (self.installation, self.greeted);
        let open = move || {
            let id = format!("millpond-relay-{installation}");
            let mut producer = Idle::start(&options, &id)?;
            if !greeted {
                // Asked first, for a record to a topic that is not there is waited for.
                Reader::open(&options)?.partitions_of(markers::TOPIC)?;
                let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
                producer =
                    send(producer, &[], &[markers::greeting(installation, &now)]).map_err(|failed| failed.error)?;
            }
            if !planted::is(Bug::MarkersUnread) {
                markers.catch_up(&options)?;
            }
            Ok((producer, markers))
        };
        Ok(match off_thread(self.connection, open).await? {
            Ok((producer, markers)) => {
                (self.producer, self.markers, self.greeted) = (Some(producer), markers, true);
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    /// Sends what waits, of `alone` or of all that are not apart; whether there was anything.
    async fn round(&mut self, alone: Option<&Lane>) -> Result<bool, Interrupted> {
        if self.producer.is_none() {
            // Before the outbox is looked at: what has left is known only now.
            self.open().await?.map_err(|error| Interrupted::Kafka(told(&error)))?;
        }
        let apart = self.trials.apart();
        let asked = alone.map_or(Lanes::But(&apart), Lanes::Only);
        let waiting = store::bounded(outbox::pending(self.connection, asked, BOUNDS)).await?;
        if waiting.is_empty() {
            if let Some(lane) = alone {
                // Somebody has removed its rows.
                self.trials.went_well(lane, usize::MAX);
            }
            return Ok(false);
        }
        let (waiting, removed) = self.remove_what_has_left(waiting).await?;
        let lanes = self.place(waiting).await;
        if lanes.is_empty() {
            return Ok(removed);
        }
        self.transact(lanes).await?;
        Ok(true)
    }

    /// Removes rows that markers say have left; returns the others, and whether there were any such.
    async fn remove_what_has_left(
        &mut self,
        mut waiting: Vec<Vec<OutboxRow>>,
    ) -> Result<(Vec<Vec<OutboxRow>>, bool), Interrupted> {
        let settled = self.settle(&mut waiting).await?;
        let markers = &self.markers;
        let left: Vec<OutboxRow> = waiting
            .iter_mut()
            .flat_map(|rows| rows.extract_if(.., |row| markers.has(row)).collect::<Vec<_>>())
            .collect();
        if !left.is_empty() {
            info!(rows = left.len(), "rows of the outbox have left already, as markers say, and are not sent again");
            metrics::RECOGNISED.inc_by(left.len() as u64);
            store::bounded(outbox::remove(self.connection, &left.iter().collect::<Vec<_>>())).await?;
        }
        waiting.retain(|rows| !rows.is_empty());
        Ok((waiting, settled || !left.is_empty()))
    }

    /// Finds out what is in the log of transactions that have sent some of these rows, with an outcome that no relay has
    /// seen. Rows that have left are removed, whether they are among these or not; whether there were any such.
    async fn settle(&mut self, waiting: &mut Vec<Vec<OutboxRow>>) -> Result<bool, Interrupted> {
        let doubts = self.markers.doubts(waiting.iter().flatten());
        if doubts.is_empty() {
            return Ok(false);
        }
        let options = self.options.kafka.clone();
        let look = move || evidence::find(&options, &doubts).map(|evidence| (doubts, evidence));
        let (doubts, evidence) = off_thread(self.connection, look)
            .await?
            .map_err(|error| Interrupted::Kafka(format!("cannot find out what has left: {error}")))?;
        let mut removed = 0;
        for doubt in doubts {
            if evidence.is_open(&doubt) {
                waiting.retain(|rows| rows.first().is_none_or(|row| row.lane != doubt.lane));
                let why = "transactions of another producer are open where its last events may be, and do not end";
                if self.trials.rest(&doubt.lane, why, Instant::now()) {
                    wait(&doubt.lane, why);
                }
                continue;
            }
            removed += self.remove_found(&doubt, &evidence.found).await?;
        }
        if removed > 0 {
            info!(rows = removed, "rows of the outbox are in the log already, and are not sent again");
            metrics::RECOGNISED.inc_by(removed);
        }
        for rows in waiting {
            rows.retain(|row| !evidence.found.contains(&row.event_id));
        }
        Ok(removed > 0)
    }

    /// Removes the rows of a transaction that are in the log; how many these were.
    async fn remove_found(&mut self, doubt: &Doubt, found: &HashSet<Uuid>) -> Result<u64, Interrupted> {
        let left: Vec<Uuid> = doubt.ids.intersection(found).copied().collect();
        let removed = store::bounded(outbox::remove_events(self.connection, &doubt.lane, doubt.version, &left)).await?;
        if self.markers.settle(doubt, found) {
            metrics::TORN.inc();
            let Lane { projection, topic, partition } = &doubt.lane;
            warn!(
                consumer = projection,
                topic,
                partition,
                sent = doubt.ids.len(),
                left = left.len(),
                "kafka has committed only a part of a transaction, as it can when most brokers die at once; the rest is sent \
                 again"
            );
        }
        Ok(removed)
    }

    /// Finds a partition for each row. Of a source partition with one that cannot be sent now, those before it are left.
    async fn place(&mut self, waiting: Vec<Vec<OutboxRow>>) -> Vec<Vec<Placed>> {
        know_topics(self.publisher, waiting.iter().flatten()).await;
        let mut lanes = Vec::with_capacity(waiting.len());
        for mut rows in waiting {
            let lane = rows[0].lane.clone();
            rows.truncate(self.trials.most(&lane));
            let mut placed = Vec::with_capacity(rows.len());
            for row in rows {
                let headers = record::all_headers(&row);
                match self.publisher.placement(&row.target_topic, row.key.as_deref(), bytes(&row, &headers)) {
                    Ok(partition) => placed.push(Placed { row, partition, headers }),
                    Err(refusal) => {
                        if placed.is_empty() {
                            count_failed(&row);
                            let why = format!("{}: {refusal}", row.target_topic);
                            if self.trials.rest(&lane, &why, Instant::now()) {
                                wait(&lane, &why);
                            }
                        }
                        break;
                    }
                }
            }
            if !placed.is_empty() {
                lanes.push(placed);
            }
        }
        lanes
    }

    /// One transaction, and the removal of its rows.
    async fn transact(&mut self, lanes: Vec<Vec<Placed>>) -> Result<(), Interrupted> {
        let Some(producer) = self.producer.take() else { return Ok(()) };
        let mut step = Step::default();
        for lane in &lanes {
            self.markers
                .step(&lane.iter().map(|placed| (&placed.row, placed.partition)).collect::<Vec<_>>(), &mut step);
        }
        let (begun, lanes) = (Instant::now(), Arc::new(lanes));
        if planted::is(Bug::OutboxEmptiedFirst) {
            let rows: Vec<&OutboxRow> = lanes.iter().flatten().map(|placed| &placed.row).collect();
            store::bounded(outbox::remove(self.connection, &rows)).await?;
        }
        let sent = lanes.clone();
        let work = move || {
            step.begin_at(|topic, partition| producer.reached(topic, partition));
            send(producer, &sent, &step.records()).map(|producer| (producer, step))
        };
        match off_thread(self.connection, work).await? {
            Ok((producer, step)) => {
                self.producer = Some(producer);
                // In the log: whatever happens from here on, the markers have it.
                self.markers.take(step);
            }
            Err(failed) => return self.failed(&failed, &lanes),
        }
        metrics::TRANSACTIONS.with_label_values(&["committed"]).inc();
        metrics::TRANSACTION_SECONDS.observe(begun.elapsed().as_secs_f64());
        let rows: Vec<&OutboxRow> = lanes.iter().flatten().map(|placed| &placed.row).collect();
        count_written(&rows);
        for lane in lanes.iter() {
            self.trials.went_well(&lane[0].row.lane, lane.len());
        }
        Ok(store::bounded(outbox::remove(self.connection, &rows)).await?)
    }

    /// Finds what a transaction failed over. An error where it was not a record.
    fn failed(&mut self, failed: &Failed, lanes: &[Vec<Placed>]) -> Result<(), Interrupted> {
        let outcome = if failed.error.is_fenced() { "fenced" } else { "failed" };
        metrics::TRANSACTIONS.with_label_values(&[outcome]).inc();
        self.publisher.look_again();
        let rows: Vec<usize> = lanes.iter().map(Vec::len).collect();
        let Blame::Lanes(faults) = blame(failed, &rows) else {
            return Err(Interrupted::Kafka(failed.error.to_string()));
        };
        for (number, fault) in faults {
            self.note(&lanes[number], &fault);
        }
        Ok(())
    }

    fn note(&mut self, rows: &[Placed], fault: &Fault) {
        let (lane, row) = (&rows[0].row.lane, &rows[fault.first].row);
        count_failed(row);
        let why = format!("{}: {}", row.target_topic, fault.reason.as_str());
        if self.trials.failed(lane, fault, &why, Instant::now()) {
            wait(lane, &why);
        }
    }
}

fn wait(lane: &Lane, why: &str) {
    let Lane { projection, topic, partition } = lane;
    warn!(consumer = projection, topic, partition, why, "downstream events wait");
}

fn count_failed(row: &OutboxRow) {
    metrics::SENT.with_label_values(&[row.target_topic.as_str(), "failed"]).inc();
}

fn count_written(rows: &[&OutboxRow]) {
    let mut by_topic: HashMap<&str, u64> = HashMap::new();
    for row in rows {
        *by_topic.entry(&row.target_topic).or_default() += 1;
    }
    for (topic, rows) in by_topic {
        metrics::SENT.with_label_values(&[topic, "written"]).inc_by(rows);
    }
}

/// Bytes of key, value and headers.
fn bytes(row: &OutboxRow, headers: &[Header]) -> usize {
    let length = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
    let headers: usize = headers.iter().map(|(name, value)| name.len() + length(value)).sum();
    length(&row.key) + length(&row.payload) + headers
}

/// One transaction: rows in their order, then the markers. Blocks.
fn send(producer: Idle, lanes: &[Vec<Placed>], markers: &[MarkerRecord]) -> Result<Idle, Failed> {
    let mut transaction = producer.begin()?;
    for placed in lanes.iter().flatten() {
        let headers: Vec<(&str, Option<&[u8]>)> =
            placed.headers.iter().map(|(name, value)| (name.as_ref(), value.as_deref())).collect();
        transaction.send(&OutgoingRecord {
            topic: &placed.row.target_topic,
            partition: Some(placed.partition),
            key: placed.row.key.as_deref(),
            payload: placed.row.payload.as_deref(),
            headers: &headers,
        })?;
    }
    for marker in markers {
        transaction.send(&OutgoingRecord {
            topic: markers::TOPIC,
            partition: Some(markers::PARTITION),
            key: Some(&marker.key),
            payload: marker.payload.as_deref(),
            headers: &[],
        })?;
    }
    transaction.finish()
}

/// Runs what blocks on a thread of its own, which the end of the process need not wait for, and tells Postgres meanwhile
/// that the relay is there.
async fn off_thread<T: Send + 'static>(
    connection: &mut PgConnection,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Interrupted> {
    let (done, mut result) = oneshot::channel();
    let run = move || drop(done.send(work()));
    let thread = std::thread::Builder::new().name("relay".into()).spawn(run);
    thread.map_err(|error| Interrupted::Kafka(format!("no thread for a transaction: {error}")))?;
    loop {
        tokio::select! {
            result = &mut result => return Ok(result.expect("invariant: what speaks to kafka does not panic")),
            () = tokio::time::sleep(PING) => store::bounded(outbox::ping(connection)).await?,
        }
    }
}
