//! Forgetting: ids that are older than the window of their version, removed by and by, beside the batches and never in one.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::debug;

use super::{engine::Engine, group::Group, partition::Partition};
use crate::{
    store::{self, seen},
    telemetry::metrics::consume as metrics,
};

/// How often it is looked what has become too old. It does no harm for as long as it is there.
const PERIOD: Duration = Duration::from_secs(10);
/// Ids removed by one statement: some ten milliseconds of Postgres' time, and of locks that nobody else wants.
const ROWS: i64 = 5_000;

/// Purges until told to stop.
pub async fn run(group: Arc<Group>, mut stop: watch::Receiver<bool>) {
    let Some(window) = group.engine.dedupe_window else { return };
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        if group.engine.vitals.is_superseded() {
            continue;
        }
        for partition in group.partitions() {
            let purged = tokio::select! {
                purged = purge(&group.engine, &partition, window) => purged,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            if let Err(error) = purged {
                // The workers say it when the database is away.
                debug!(consumer = %group.engine.projection, partition = %partition.at, %error, "cannot remove old ids");
                break;
            }
        }
    }
}

/// Removes all that is too old of one partition, a statement at a time.
async fn purge(engine: &Engine, partition: &Partition, window: Duration) -> Result<(), store::Error> {
    loop {
        let of = (engine.projection.as_str(), engine.version, engine.schema.as_str());
        let mut lease = engine.sessions.control().await?;
        let removed = store::bounded(seen::purge(&mut lease.connection, of, &partition.at, window, ROWS)).await?;
        lease.give_back();
        metrics::FORGOTTEN_IDS.with_label_values(&[engine.label().as_str()]).inc_by(removed);
        if removed < ROWS.unsigned_abs() {
            return Ok(());
        }
    }
}
