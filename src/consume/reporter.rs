//! Once a second: how far the ends of this member's partitions are, for lag and age; whether an operator paused it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tracing::debug;

use super::{group::Group, partition::Partition};
use crate::{
    store::{
        self, PgConnection,
        status::{self, End},
    },
    telemetry::metrics::consume as metrics,
};

/// Age is known to about this much.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest that the database may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest that one partition is asked for its end: one without a leader must not hide the others.
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(1);

/// Reports until told to stop.
pub async fn run(group: Arc<Group>, mut stop: watch::Receiver<bool>) {
    let mut connection = None;
    loop {
        let reported = tokio::select! {
            reported = report(&group, &mut connection) => reported,
            _ = stop.wait_for(|s| *s) => return,
        };
        match reported {
            Ok(()) => group.engine.vitals.note_report(),
            Err(error) => {
                // The workers say that the database is away; here it only means that lag is not known.
                debug!(consumer = %group.engine.projection, error, "cannot report");
                connection = None;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
    }
}

async fn report(group: &Group, connection: &mut Option<PgConnection>) -> Result<(), String> {
    let engine = &group.engine;
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(answer(store::connect(engine.sessions.url(), "millpond report")).await?),
    };
    let switches = answer(status::switches(connection, &engine.projection)).await?;
    engine.vitals.set_paused(switches.paused);
    if switches.live_version != Some(engine.version) {
        engine.vitals.supersede();
        return Ok(());
    }
    let vitals = answer(status::vitals(connection, &engine.projection, engine.version)).await?;
    let labels = [engine.projection.as_str()];
    metrics::HALTED.with_label_values(&labels).set(vitals.halted_partitions);
    if let Some(age) = vitals.age_seconds {
        metrics::FRESHNESS_SECONDS.with_label_values(&labels).set(age);
    }
    let held = group.partitions();
    if held.is_empty() {
        return Ok(());
    }
    let ends = look(group, held).await?;
    if ends.is_empty() {
        return Err("no partition's end is known".to_owned());
    }
    answer(status::note_ends(connection, &engine.projection, engine.version, &ends)).await
}

/// Asks Kafka for the ends of partitions. Not ended early, or threads that ask would pile up.
async fn look(group: &Group, held: Vec<Arc<Partition>>) -> Result<Vec<End>, String> {
    let Some(reader) = group.engine.reader.clone() else { return Ok(Vec::new()) };
    let asked = held.clone();
    let ask = move || {
        let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let end = |partition: &Arc<Partition>| {
            reader.watermarks_within(&partition.at.topic, partition.at.partition, PATIENCE_WITH_ONE)
        };
        asked.iter().map(end).collect::<Vec<_>>()
    };
    let answers = tokio::task::spawn_blocking(ask).await.map_err(|e| e.to_string())?;
    let mut ends = Vec::with_capacity(held.len());
    for (partition, answer) in held.iter().zip(answers) {
        let at = &partition.at;
        let end_offset = match answer {
            Ok((_, end)) => end,
            Err(error) => {
                debug!(consumer = %group.engine.projection, partition = %at, %error, "its end is not known");
                continue;
            }
        };
        let lag = (end_offset - partition.next_offset().unwrap_or_default()).max(0);
        let labels = [group.engine.projection.as_str(), &at.topic, &at.partition.to_string()];
        metrics::LAG.with_label_values(&labels).set(lag);
        ends.push(End { at: at.clone(), end_offset, error: partition.take_error() });
    }
    Ok(ends)
}

async fn answer<T>(work: impl Future<Output = Result<T, store::Error>>) -> Result<T, String> {
    let answer = tokio::time::timeout(PATIENCE, work).await;
    answer.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())
}
