//! The platform's tables: whoever comes first and may make them does.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tracing::{info, warn};

use crate::{
    config::Config,
    store::{self, Class, Error},
};

/// How often the database is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The same for a role that can do without: what keeps it from connecting may be there to stay, as a pooler that takes
/// no settings.
const RETRY_AT_EASE: Duration = Duration::from_secs(10);

/// Makes or migrates the tables; waits for a database that is not there yet, for roles may start in any order.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    let mut said = false;
    loop {
        match try_migrate(&config.postgres.url).await {
            Ok(()) => return Ok(()),
            Err(error) if error.class() == Class::Transient => {
                if !said {
                    warn!(%error, "waiting for Postgres");
                    said = true;
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error).context("the platform's tables cannot be made or migrated"),
        }
    }
}

async fn try_migrate(url: &str) -> Result<(), Error> {
    let mut connection = store::connect(url, "millpond migrate").await?;
    store::migrate(&mut connection).await
}

/// The tables as a role sees them that only reads: it makes them if it may, and does not need to.
#[derive(Default)]
pub struct Tables {
    missing: Mutex<Option<String>>,
}

impl Tables {
    /// Whether they are known to be missing, with what to do.
    pub fn check(&self) -> Result<(), String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    fn note(&self, missing: Option<String>) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    /// Goes on until the tables are there.
    pub async fn make(self: Arc<Self>, url: String) {
        let mut said = false;
        loop {
            let error = match self.try_make(&url).await {
                Ok(()) => break,
                Err(error) => error,
            };
            // While there is no connection the reads' own say so.
            if error.class() == Class::Transient {
                tokio::time::sleep(RETRY_AT_EASE).await;
                continue;
            }
            let why = format!(
                "this database has no tables of Millpond yet, and the account of postgres.url may not make them \
                 ({error}): start `millpond consume` or `millpond publish` on it, with an account that may create \
                 schemas"
            );
            if !said {
                warn!(why, "no reads yet");
                said = true;
            }
            self.note(Some(why));
            tokio::time::sleep(RETRY).await;
        }
        self.note(None);
        if said {
            info!("the tables of Millpond are there now");
        }
    }

    async fn try_make(&self, url: &str) -> Result<(), Error> {
        let mut connection = store::connect(url, "millpond migrate").await?;
        // An account that only reads is refused even when there is nothing to do.
        if store::has_tables(&mut connection).await? { Ok(()) } else { store::migrate(&mut connection).await }
    }
}
