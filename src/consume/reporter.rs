//! Once a second: how far the ends of this member's partitions are, for lag and age; whether an operator paused it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tracing::debug;

use super::group::Group;
use crate::{
    domain::TopicPartition,
    store::{
        self, PgConnection,
        status::{self, End},
    },
    telemetry::metrics::consume as metrics,
};

/// Age is known to about this much.
const PERIOD: Duration = Duration::from_secs(1);

/// Longest that one report may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reports until told to stop.
pub async fn run(group: Arc<Group>, mut stop: watch::Receiver<bool>) {
    let mut connection = None;
    loop {
        let reported = tokio::select! {
            reported = tokio::time::timeout(PATIENCE, report(&group, &mut connection)) => reported,
            _ = stop.wait_for(|s| *s) => return,
        };
        match reported.unwrap_or_else(|_| Err("no answer".to_owned())) {
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
        None => {
            let new = store::connect(engine.sessions.url(), "millpond report").await.map_err(|e| e.to_string())?;
            connection.insert(new)
        }
    };
    let switches = status::switches(connection, &engine.projection).await.map_err(|e| e.to_string())?;
    engine.vitals.set_paused(switches.paused);
    if switches.live_version != Some(engine.version) {
        engine.vitals.supersede();
        return Ok(());
    }
    let vitals = status::vitals(connection, &engine.projection, engine.version).await.map_err(|e| e.to_string())?;
    let labels = [engine.projection.as_str()];
    metrics::HALTED.with_label_values(&labels).set(vitals.halted_partitions);
    if let Some(age) = vitals.age_seconds {
        metrics::FRESHNESS_SECONDS.with_label_values(&labels).set(age);
    }
    let positions = group.positions();
    if positions.is_empty() {
        return Ok(());
    }
    let Some(reader) = engine.reader.clone() else { return Ok(()) };
    let partitions: Vec<TopicPartition> = positions.iter().map(|(at, _)| at.clone()).collect();
    let look = move || {
        let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = partitions.into_iter().map(|at| {
            let (_, end_offset) = reader.watermarks(&at.topic, at.partition)?;
            Ok(End { at, end_offset })
        });
        ends.collect::<Result<Vec<End>, crate::kafka::Error>>()
    };
    let ends = tokio::task::spawn_blocking(look).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    for (at, next_offset) in &positions {
        let end = ends.iter().find(|e| e.at == *at).map_or(0, |e| e.end_offset);
        let lag = (end - next_offset.unwrap_or_default()).max(0);
        let labels = [engine.projection.as_str(), &at.topic, &at.partition.to_string()];
        metrics::LAG.with_label_values(&labels).set(lag);
    }
    let error = engine.vitals.take_error();
    status::note_ends(connection, &engine.projection, engine.version, &ends, error.as_deref())
        .await
        .map_err(|e| e.to_string())
}
