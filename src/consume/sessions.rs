//! Postgres sessions of one consumer, lent to one task at a time: some prepared with its staging tables for batches,
//! some plain ones for claims and releases, which must not wait for a batch.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::transaction::Failure;
use crate::store::{self, Class, PgConnection, Session};

/// Claims at once: as many as partitions usually come with one assignment; each is short.
const CONTROLS: usize = 4;

pub struct Sessions {
    url: String,
    application: String,
    setup: String,
    batches: Slots<Session>,
    controls: Slots<PgConnection>,
    guards: Slots<PgConnection>,
}

/// A bounded set of connections. One that saw an error is dropped, never lent again, unless the error was about a record.
struct Slots<C> {
    idle: Mutex<Vec<C>>,
    permits: Semaphore,
}

/// A connection on loan. Dropping it closes the connection; [`Lease::give_back`] returns a clean one.
pub struct Lease<'a, C> {
    pub connection: C,
    slots: &'a Slots<C>,
    _permit: SemaphorePermit<'a>,
}

impl<C> Slots<C> {
    fn new(size: usize) -> Self {
        Self { idle: Mutex::default(), permits: Semaphore::new(size) }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn as long as others take, and for a new connection no longer than for any answer.
    async fn lease(
        &self,
        connect: impl AsyncFnOnce() -> Result<C, store::Error>,
    ) -> Result<Lease<'_, C>, store::Error> {
        let permit = self.permits.acquire().await.expect("invariant: the semaphore is never closed");
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => store::bounded(connect()).await?,
        };
        Ok(Lease { connection, slots: self, _permit: permit })
    }
}

impl Sessions {
    /// `setup` runs once on every new session for batches, of which there are at most `size`.
    pub fn new(url: &str, application: &str, setup: &[String], size: usize) -> Self {
        Self {
            url: url.to_owned(),
            application: application.to_owned(),
            setup: setup.join(";\n"),
            batches: Slots::new(size),
            controls: Slots::new(CONTROLS),
            guards: Slots::new(1),
        }
    }

    /// Allows so many sessions for batches, before there is one.
    pub fn allow_batches(&mut self, size: usize) {
        self.batches = Slots::new(size);
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A session with the consumer's staging tables.
    pub async fn batch(&self) -> Result<Lease<'_, Session>, store::Error> {
        self.batches.lease(async || Session::connect(&self.url, &self.application, &self.setup).await).await
    }

    /// A plain connection.
    pub async fn control(&self) -> Result<Lease<'_, PgConnection>, store::Error> {
        self.controls.lease(async || store::connect(&self.url, &self.application).await).await
    }

    /// The one for the crash guard, whose attempts must not be counted while they queue behind claims. Connected while
    /// something is watched, as after a crash.
    pub async fn guard(&self) -> Result<Lease<'_, PgConnection>, store::Error> {
        self.guards.lease(async || store::connect(&self.url, &self.application).await).await
    }

    /// Closes the connections nobody uses: after an outage they are all dead.
    pub fn drop_idle(&self) {
        self.batches.idle().clear();
        self.controls.idle().clear();
        self.guards.idle().clear();
    }
}

impl<C> Lease<'_, C> {
    /// Returns the connection after work that ended well.
    pub fn give_back(self) {
        self.slots.idle().push(self.connection);
    }
}

impl Lease<'_, Session> {
    /// Returns the session of a transaction that failed, rolled back, if only a record was refused, or the fence is held: the search for it takes a
    /// dozen transactions, and none is to pay for a session of its own. Any other failure closes it.
    pub async fn give_back_after(self, failure: &Failure) {
        let refused = match failure {
            Failure::Store(error) => matches!(error.class(), Class::Record | Class::Held),
            Failure::Record(..) => true,
        };
        if refused && store::bounded(self.connection.run("rollback")).await.is_ok() {
            self.give_back();
        }
    }
}
