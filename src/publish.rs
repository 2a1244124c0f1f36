//! ROLE publish: the relay from the outbox to Kafka.
//!
//! Downstream events leave in the order in which they were committed per source partition, over all versions of the
//! projection, at least once, with ids that a repetition shares. Of one source partition a row is under way only when
//! the one before it is in the log: what was sent behind a row that fails could not be taken back. One relay at a time
//! (a session lock in Postgres) does this; the others stand by.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use base64::Engine as _;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use crate::{
    domain::{HEADER_DLQ_EVENT_ID, HEADER_EVENT_ID},
    kafka::{Delivery, EncodedBatch, EncodedRecord, Health, Publisher},
    store::{
        self, PgConnection,
        outbox::{self, Lane, OutboxRow},
    },
    telemetry::metrics::publish as metrics,
};

/// How long one source partition sends before what it sent is removed: what a crash makes the next relay repeat.
const STRETCH: Duration = Duration::from_millis(200);
/// How often an empty outbox is looked at; what a downstream event waits at most when nothing else is going on.
const IDLE: Duration = Duration::from_millis(200);
/// Pause after a failure, of the source partition that it holds up; and how often a standby asks for the lead.
const RETRY: Duration = Duration::from_secs(1);
/// How often the rows that wait are counted.
const COUNT: Duration = Duration::from_secs(5);

/// Relays until told to stop; then ends what is under way.
pub async fn run(url: String, publisher: Arc<Publisher>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let relayed = lead(&url, &publisher, &mut stop).await;
        metrics::LEADING.set(0);
        if let Err(error) = relayed {
            warn!(%error, "the relay of downstream events was interrupted; trying again");
        }
        pause(&mut stop, RETRY).await;
    }
}

/// Ends early when the relay is told to stop.
async fn pause(stop: &mut watch::Receiver<bool>, duration: Duration) {
    let _ = tokio::time::timeout(duration, stop.wait_for(|stop| *stop)).await;
}

/// Leads until an error, or until Kafka takes no records from here; waits for the lead as long as another process has it.
async fn lead(url: &str, publisher: &Publisher, stop: &mut watch::Receiver<bool>) -> Result<(), store::Error> {
    // Without Kafka it would only keep others from relaying.
    tokio::select! {
        () = publisher.wait_ready() => {}
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    }
    let mut connection = outbox::connect(url).await?;
    while !store::bounded(outbox::try_lead(&mut connection)).await? {
        pause(stop, RETRY).await;
        if *stop.borrow() {
            return Ok(());
        }
    }
    info!("relaying downstream events");
    metrics::LEADING.set(1);
    relay(&mut connection, publisher, stop).await
}

async fn relay(
    connection: &mut PgConnection,
    publisher: &Publisher,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), store::Error> {
    let mut under_way = FuturesUnordered::new();
    let mut lanes = Lanes::default();
    let mut counted: Option<Instant> = None;
    loop {
        let leaving = *stop.borrow() || publisher.health() != Health::Ready;
        if !leaving {
            for rows in store::bounded(outbox::pending(connection, &lanes.taken())).await? {
                lanes.busy.insert(rows[0].lane.clone());
                under_way.push(send(publisher, rows, stop.clone()));
            }
            if counted.is_none_or(|at| at.elapsed() > COUNT) {
                metrics::PENDING.set(store::bounded(outbox::depth(connection)).await?);
                counted = Some(Instant::now());
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

/// A topic may be younger than the publisher, as that of a consumer whose folder was just taken in.
async fn know_topics(publisher: &Publisher, rows: &[OutboxRow]) {
    let topics: BTreeSet<&str> = rows.iter().map(|row| row.target_topic.as_str()).collect();
    for topic in topics {
        // Whether it is there is told by the attempt to send.
        let _ = publisher.partitions_of(topic).await;
    }
}

async fn send_one(publisher: &Publisher, row: &OutboxRow) -> Result<(), String> {
    let receipt = publisher.publish(batch(row)).map_err(|error| format!("{}: {error}", row.target_topic))?;
    match receipt.await.deliveries[..] {
        [Delivery::Written { .. }] => Ok(()),
        [Delivery::NotWritten(reason) | Delivery::Unknown(reason)] => {
            Err(format!("{}: {}", row.target_topic, reason.as_str()))
        }
        _ => Err(format!("{}: kafka told nothing of the record", row.target_topic)),
    }
}

/// The row's headers but for its own id, which the record gets anyway. Any other id is that of the record which a dead
/// letter mirrors: it goes by another name, for a record has one id.
fn headers(row: &OutboxRow) -> Vec<(Cow<'static, str>, Option<Vec<u8>>)> {
    let own = row.event_id.to_string();
    let header = |pair: &Value| {
        let name = pair.get(0)?.as_str()?;
        let value = match pair.get(1)? {
            Value::Null => None,
            value => Some(base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()?),
        };
        match name {
            HEADER_EVENT_ID if value.as_deref() == Some(own.as_bytes()) => None,
            HEADER_EVENT_ID => Some((Cow::Borrowed(HEADER_DLQ_EVENT_ID), value)),
            name => Some((Cow::Owned(name.to_owned()), value)),
        }
    };
    row.headers.as_array().into_iter().flatten().filter_map(header).collect()
}

fn batch(row: &OutboxRow) -> EncodedBatch {
    let mut bytes = Vec::new();
    let mut append = |value: &[u8]| {
        let start = u32::try_from(bytes.len()).expect("invariant: a row is below 4 GiB");
        bytes.extend_from_slice(value);
        start..u32::try_from(bytes.len()).expect("invariant: a row is below 4 GiB")
    };
    let record = EncodedRecord {
        key: row.key.as_deref().map(&mut append),
        payload: row.payload.as_deref().map(&mut append),
        event_id: append(row.event_id.to_string().as_bytes()),
        // Where there is one it is among the row's headers.
        fingerprint: 0..0,
    };
    EncodedBatch { topic: row.target_topic.as_str().into(), bytes, records: vec![record], headers: headers(row) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn sent(event_id: Uuid, headers: Value) -> Vec<(String, Option<Vec<u8>>)> {
        let row = OutboxRow {
            lane: Lane { projection: "p".into(), topic: "t".into(), partition: 0 },
            version: 1,
            out_seq: 1,
            event_id,
            target_topic: "p.dlq".into(),
            key: None,
            payload: None,
            headers,
        };
        super::headers(&row).into_iter().map(|(name, value)| (name.into_owned(), value)).collect()
    }

    fn base64(value: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(value)
    }

    #[test]
    fn own_id_of_an_event_is_not_sent_twice() {
        let id = Uuid::from_u128(7);
        assert_eq!(sent(id, json!([[HEADER_EVENT_ID, base64(&id.to_string())]])), []);
    }

    #[test]
    fn headers_of_a_dead_letter_are_those_it_came_with() {
        let headers = json!([["a", base64("1")], [HEADER_EVENT_ID, base64("order-7")], ["none", null], ["a", ""]]);
        let expected = [
            ("a".to_owned(), Some(b"1".to_vec())),
            (HEADER_DLQ_EVENT_ID.to_owned(), Some(b"order-7".to_vec())),
            ("none".to_owned(), None),
            ("a".to_owned(), Some(Vec::new())),
        ];
        assert_eq!(sent(Uuid::from_u128(7), headers), expected);
        assert_eq!(sent(Uuid::nil(), json!([[HEADER_EVENT_ID, null]])), [(HEADER_DLQ_EVENT_ID.to_owned(), None)]);
    }
}
