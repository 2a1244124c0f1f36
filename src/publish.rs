//! ROLE publish: the relay from the outbox to Kafka.
//!
//! Downstream events leave in the order of `out_seq` per source partition, at least once, with ids that a repetition
//! shares. One relay at a time (a session lock in Postgres) keeps the order; the others stand by.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use base64::Engine as _;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    domain::HEADER_EVENT_ID,
    kafka::{Delivery, EncodedBatch, EncodedRecord, Publisher},
    store::{
        self, PgConnection,
        outbox::{self, OutboxRow},
    },
    telemetry::metrics::publish as metrics,
};

/// Rows per pass and source partition: enough for full produce requests, few enough to hold in memory.
const ROWS: i64 = 500;
/// How often an empty outbox is looked at; what a downstream event waits at most when nothing else is going on.
const IDLE: Duration = Duration::from_millis(200);
/// Pause after a failure, and how often a standby asks for the lead.
const RETRY: Duration = Duration::from_secs(1);

/// Relays until told to stop.
pub async fn run(url: String, publisher: Arc<Publisher>, mut stop: watch::Receiver<bool>) {
    loop {
        let relaying = relay(&url, &publisher);
        tokio::select! {
            result = relaying => {
                metrics::LEADING.set(0);
                if let Err(error) = result {
                    warn!(%error, "the relay of downstream events was interrupted; trying again");
                }
            }
            _ = stop.wait_for(|s| *s) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
    }
}

/// Leads until an error; waits for the lead as long as another process has it.
async fn relay(url: &str, publisher: &Publisher) -> Result<(), store::Error> {
    let mut connection = store::connect(url, "millpond publish").await?;
    while !outbox::try_lead(&mut connection).await? {
        tokio::time::sleep(RETRY).await;
    }
    publisher.wait_ready().await;
    info!("relaying downstream events");
    metrics::LEADING.set(1);
    let mut said = None;
    loop {
        let rows = store::bounded(outbox::pending(&mut connection, ROWS)).await?;
        if rows.is_empty() {
            metrics::PENDING.set(0);
            tokio::time::sleep(IDLE).await;
            continue;
        }
        metrics::PENDING.set(outbox::depth(&mut connection).await?);
        know_topics(publisher, &rows).await;
        let failure = pass(&mut connection, publisher, &rows).await?;
        if let Some(why) = &failure {
            // Said once, not with every try.
            if said.as_ref() != Some(why) {
                warn!(why, "downstream events wait");
            }
            tokio::time::sleep(RETRY).await;
        }
        said = failure;
    }
}

/// A topic may be younger than the publisher, as that of a consumer whose folder was just taken in.
async fn know_topics(publisher: &Publisher, rows: &[OutboxRow]) {
    let topics: BTreeSet<&str> = rows.iter().map(|row| row.target_topic.as_str()).collect();
    for topic in topics {
        // Whether it is there is told by the attempt to send.
        let _ = publisher.partitions_of(topic).await;
    }
}

/// Sends rows; of each source partition those before the first that failed are removed. Says why one did.
///
/// A row that cannot be sent holds up its own source partition, whose order it would break, and no other.
async fn pass(
    connection: &mut PgConnection,
    publisher: &Publisher,
    rows: &[OutboxRow],
) -> Result<Option<String>, store::Error> {
    let mut failure = None;
    let mut under_way = Vec::new();
    for lane in rows.chunk_by(same_lane) {
        let mut receipts = Vec::new();
        for run in lane.chunk_by(same_batch) {
            match publisher.publish(batch(run)) {
                Ok(receipt) => receipts.push((run, receipt)),
                Err(error) => {
                    failure = Some(format!("{} of {}: {error}", run[0].target_topic, run[0].projection));
                    count(&run[0].target_topic, "failed", run.len());
                    break;
                }
            }
        }
        under_way.push((lane, receipts));
    }
    let mut sent = Vec::new();
    for (lane, receipts) in under_way {
        let mut written = 0;
        for (run, receipt) in receipts {
            let deliveries = receipt.await.deliveries;
            let good = deliveries.iter().take_while(|d| matches!(d, Delivery::Written { .. })).count();
            count(&run[0].target_topic, "written", good);
            written += good;
            if let Some(bad) = deliveries.get(good) {
                failure = Some(format!("not acknowledged on {}: {bad:?}", run[0].target_topic));
                count(&run[0].target_topic, "failed", deliveries.len() - good);
                break;
            }
        }
        sent.extend_from_slice(&lane[..written]);
    }
    if !sent.is_empty() {
        store::bounded(outbox::remove(connection, &sent)).await?;
    }
    Ok(failure)
}

fn count(topic: &str, outcome: &str, rows: usize) {
    metrics::SENT.with_label_values(&[topic, outcome]).inc_by(rows as u64);
}

/// Rows of one lane come from one source partition, and leave in its order.
fn same_lane(a: &OutboxRow, b: &OutboxRow) -> bool {
    (&a.projection, a.version, &a.topic, a.partition) == (&b.projection, b.version, &b.topic, b.partition)
}

/// Rows go into one batch when they share topic and headers, but for the event's id.
fn same_batch(a: &OutboxRow, b: &OutboxRow) -> bool {
    a.target_topic == b.target_topic && headers(a) == headers(b)
}

fn headers(row: &OutboxRow) -> Vec<(Cow<'static, str>, Vec<u8>)> {
    let pairs = row.headers.as_array().into_iter().flatten();
    pairs
        .filter_map(|pair| {
            let name = pair.get(0)?.as_str()?;
            let value = base64::engine::general_purpose::STANDARD.decode(pair.get(1)?.as_str()?).ok()?;
            (name != HEADER_EVENT_ID).then(|| (Cow::Owned(name.to_owned()), value))
        })
        .collect()
}

fn batch(rows: &[OutboxRow]) -> EncodedBatch {
    let mut bytes = Vec::new();
    let mut append = |value: &[u8]| {
        let start = u32::try_from(bytes.len()).expect("invariant: 500 rows are below 4 GiB");
        bytes.extend_from_slice(value);
        start..u32::try_from(bytes.len()).expect("invariant: 500 rows are below 4 GiB")
    };
    let records = rows
        .iter()
        .map(|row| EncodedRecord {
            key: row.key.as_deref().map(&mut append),
            payload: row.payload.as_deref().map(&mut append),
            event_id: append(row.event_id.to_string().as_bytes()),
        })
        .collect();
    EncodedBatch { topic: rows[0].target_topic.as_str().into(), bytes, records, headers: headers(&rows[0]) }
}
