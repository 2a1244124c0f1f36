//! Versions that were kept for as long as they were to be, of whichever projection: their tables go.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::store::{self, PgConnection, removal};

/// Between two attempts at a version that cannot be removed: each waits for locks that others may want.
const AGAIN: Duration = Duration::from_secs(10);

/// Those that could not be removed, when that was tried last, and why.
#[derive(Default)]
pub struct Expired(HashMap<(String, i32), (Instant, String)>);

impl Expired {
    /// Removes those whose time is over. Why one of them cannot be removed is told, and keeps no other one.
    ///
    /// # Errors
    /// When the connection must not be used any more.
    pub async fn remove(&mut self, connection: &mut PgConnection) -> Result<(), store::Error> {
        let over = store::bounded(removal::over(connection)).await?;
        self.0.retain(|at, _| over.contains(at));
        for at in over {
            if self.0.get(&at).is_some_and(|(since, _)| since.elapsed() < AGAIN) {
                continue;
            }
            let (consumer, version) = (&at.0, at.1);
            let error = match store::bounded(removal::remove_over(connection, consumer, version)).await {
                Ok(removed) => {
                    if removed {
                        info!(consumer, version, "kept for as long as it was to be; its tables are removed");
                    }
                    continue;
                }
                Err(error) => error,
            };
            let why = error.to_string();
            if self.0.get(&at).is_none_or(|(_, told)| *told != why) {
                warn!(
                    consumer,
                    version,
                    error = why,
                    "its time is over, and it cannot be removed; tried again every 10 s"
                );
            }
            self.0.insert(at, (Instant::now(), why));
            let is_answer = error.sqlstate().is_some() || matches!(error, store::Error::NeededByOthers(_));
            if !is_answer {
                return Err(error);
            }
        }
        Ok(())
    }
}
