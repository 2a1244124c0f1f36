//! At least once, for clusters that cannot do transactions: of each source partition one row at a time.
//!
//! Of one source partition a row is under way only when the one before it is in the log: what was sent behind a row that
//! fails could not be taken back. Source partitions are sent side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::watch, time::Instant};
use tracing::warn;

use super::{RETRY, know_topics, pause, record};
use crate::{
    kafka::{Delivery, Health, Publisher},
    store::{
        self, PgConnection,
        outbox::{self, Bounds, Lane, OutboxRow},
    },
    telemetry::metrics::publish as metrics,
};

/// How long one source partition sends before what it sent is removed: what a crash makes the next relay repeat.
const STRETCH: Duration = Duration::from_millis(200);
/// How often an empty outbox is looked at; what a downstream event waits at most when nothing else is going on.
const IDLE: Duration = Duration::from_millis(200);
/// Of each source partition what it may send in one stretch, however many there are.
const BOUNDS: Bounds = Bounds { rows: 500, bytes: 1 << 20, all_rows: i64::MAX, all_bytes: i64::MAX };

pub async fn relay(
    connection: &mut PgConnection,
    publisher: &Publisher,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), store::Error> {
    let mut under_way = FuturesUnordered::new();
    let mut lanes = Lanes::default();
    loop {
        let leaving = *stop.borrow() || publisher.health() != Health::Ready;
        if !leaving {
            let taken = lanes.taken();
            let waiting = outbox::pending(connection, outbox::Lanes::But(&taken), BOUNDS);
            for rows in store::bounded(waiting).await? {
                lanes.busy.insert(rows[0].lane.clone());
                under_way.push(send(publisher, rows, stop.clone()));
            }
        }
        if under_way.is_empty() {
            if leaving {
                return Ok(());
            }
            pause(stop, IDLE).await;
            continue;
        }
        let mut ended = Vec::new();
        tokio::select! {
            first = under_way.next() => ended.extend(first),
            // Meanwhile others may have something to send.
            () = tokio::time::sleep(IDLE) => {}
        }
        while let Some(Some(next)) = under_way.next().now_or_never() {
            ended.push(next);
        }
        let sent: Vec<&OutboxRow> = ended.iter().flat_map(|sent| &sent.rows).collect();
        if !sent.is_empty() {
            store::bounded(outbox::remove(connection, &sent)).await?;
        }
        ended.into_iter().for_each(|sent| lanes.note(sent));
    }
}

/// Source partitions that are not to be looked at now.
#[derive(Default)]
struct Lanes {
    busy: BTreeSet<Lane>,
    /// Those with a row that could not be sent: until when they rest, and why.
    held: BTreeMap<Lane, (Instant, String)>,
}

impl Lanes {
    fn taken(&self) -> Vec<&Lane> {
        let now = Instant::now();
        let resting = self.held.iter().filter(|(_, (until, _))| *until > now).map(|(lane, _)| lane);
        self.busy.iter().chain(resting).collect()
    }

    fn note(&mut self, sent: Sent) {
        self.busy.remove(&sent.lane);
        let Some(why) = sent.failure else {
            self.held.remove(&sent.lane);
            return;
        };
        let Lane { projection, topic, partition } = &sent.lane;
        // Said once, not with every try.
        if self.held.get(&sent.lane).is_none_or(|(_, said)| *said != why) {
            warn!(consumer = projection, topic, partition, why, "downstream events wait");
        }
        self.held.insert(sent.lane, (Instant::now() + RETRY, why));
    }
}

/// What was sent of one source partition: the first of its rows, all acknowledged.
struct Sent {
    lane: Lane,
    rows: Vec<OutboxRow>,
    /// Why the next one could not be.
    failure: Option<String>,
}

/// Sends rows of one source partition one after the other, for a while, or until one fails. A row that cannot be sent
/// holds up those behind it, and no other partition.
async fn send(publisher: &Publisher, mut rows: Vec<OutboxRow>, stop: watch::Receiver<bool>) -> Sent {
    let until = Instant::now() + STRETCH;
    let lane = rows[0].lane.clone();
    know_topics(publisher, &rows).await;
    let (mut written, mut failure) = (0, None);
    for row in &rows {
        if Instant::now() >= until || *stop.borrow() {
            break;
        }
        failure = send_one(publisher, row).await.err();
        let outcome = if failure.is_some() { "failed" } else { "written" };
        metrics::SENT.with_label_values(&[row.target_topic.as_str(), outcome]).inc();
        if failure.is_some() {
            break;
        }
        written += 1;
    }
    rows.truncate(written);
    Sent { lane, rows, failure }
}

async fn send_one(publisher: &Publisher, row: &OutboxRow) -> Result<(), String> {
    let receipt = publisher.publish(record::batch(row)).map_err(|error| format!("{}: {error}", row.target_topic))?;
    match receipt.await.deliveries[..] {
        [Delivery::Written { .. }] => Ok(()),
        [Delivery::NotWritten(reason) | Delivery::Unknown(reason)] => {
            Err(format!("{}: {}", row.target_topic, reason.as_str()))
        }
        _ => Err(format!("{}: kafka told nothing of the record", row.target_topic)),
    }
}
