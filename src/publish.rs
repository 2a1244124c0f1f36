//! ROLE publish: the relay from the outbox to Kafka.
//!
//! Downstream events leave in the order of `out_seq` per source partition, at least once, with ids that a repetition
//! shares. One relay at a time (a session lock in Postgres) keeps the order; the others stand by.

use std::{borrow::Cow, sync::Arc, time::Duration};

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

/// Rows per pass: enough for full produce requests, few enough to hold in memory.
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
    loop {
        let rows = outbox::pending(&mut connection, ROWS).await?;
        if rows.is_empty() {
            metrics::PENDING.set(0);
            tokio::time::sleep(IDLE).await;
            continue;
        }
        metrics::PENDING.set(outbox::depth(&mut connection).await?);
        if !pass(&mut connection, publisher, &rows).await? {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Sends rows and removes those before the first that failed; false when one did.
async fn pass(connection: &mut PgConnection, publisher: &Publisher, rows: &[OutboxRow]) -> Result<bool, store::Error> {
    let mut receipts = Vec::new();
    let mut sent = 0;
    for run in rows.chunk_by(same_batch) {
        match publisher.publish(batch(run)) {
            Ok(receipt) => receipts.push((run, receipt)),
            Err(error) => {
                warn!(topic = %run[0].target_topic, %error, "downstream events wait");
                metrics::SENT.with_label_values(&[run[0].target_topic.as_str(), "failed"]).inc_by(run.len() as u64);
                break;
            }
        }
    }
    'receipts: for (run, receipt) in receipts {
        let receipt = receipt.await;
        for delivery in &receipt.deliveries {
            if !matches!(delivery, Delivery::Written { .. }) {
                warn!(topic = %run[0].target_topic, ?delivery, "a downstream event was not acknowledged; sending it again");
                metrics::SENT.with_label_values(&[run[0].target_topic.as_str(), "failed"]).inc();
                break 'receipts;
            }
            metrics::SENT.with_label_values(&[run[0].target_topic.as_str(), "written"]).inc();
            sent += 1;
        }
    }
    if sent > 0 {
        outbox::remove(connection, &rows[..sent]).await?;
    }
    Ok(sent == rows.len())
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
