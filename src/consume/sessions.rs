//! Postgres sessions of one consumer: prepared with its staging tables, lent to one batch at a time.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::store::{self, PgConnection};

/// A bounded set of sessions. A session that saw an error is dropped, never lent again.
pub struct Sessions {
    url: String,
    application: String,
    setup: String,
    idle: Mutex<Vec<PgConnection>>,
    permits: Semaphore,
}

/// A session on loan. Dropping it closes the connection; [`Lease::give_back`] returns a clean one.
pub struct Lease<'a> {
    connection: PgConnection,
    sessions: &'a Sessions,
    _permit: SemaphorePermit<'a>,
}

impl Sessions {
    /// `setup` runs once on every new session.
    pub fn new(url: &str, application: &str, setup: &[String], size: usize) -> Self {
        Self {
            url: url.to_owned(),
            application: application.to_owned(),
            setup: setup.join(";\n"),
            idle: Mutex::default(),
            permits: Semaphore::new(size),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn lease(&self) -> Result<Lease<'_>, store::Error> {
        let permit = self.permits.acquire().await.expect("invariant: the semaphore is never closed");
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let mut connection = store::connect(&self.url, &self.application).await?;
                store::run(&mut connection, self.setup.clone()).await?;
                connection
            }
        };
        Ok(Lease { connection, sessions: self, _permit: permit })
    }

    /// Closes the sessions nobody uses: after an outage they are all dead.
    pub fn drop_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Lease<'_> {
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Returns the session after a transaction that ended well.
    pub fn give_back(self) {
        self.sessions.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.connection);
    }
}
