//! The crash guard: a record that ends the process (out of memory, a stack that overflows, an abort in a library) leaves no
//! error behind, and would end the next process, too.
//!
//! Whoever claims a fence that was not released takes small steps, from a single record on. An attempt is counted in the
//! fence before it is begun, and no longer once the process has outlived it: when the records are decoded and a handler is
//! done with them. While the process waits for Postgres it is not counted either, for waiting ends no process. And of all
//! partitions of a process only one has a record at work at a time, or those that are at work beside the one that ends it
//! would be taken for it. So only what kills it from outside while a record is at work, or while the one statement is on its
//! way that says so before it or after it, is mistaken for the record's doing: milliseconds, for the statement has a
//! connection of its own and waits for nobody. A single record over which three processes have ended is not touched again.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{engine::Engine, prepare::Fault};
use crate::store::{
    self,
    fence::{self, Claim},
};

/// Attempts that a record gets.
const ATTEMPTS: i32 = 3;

/// Who has a record at work under the eyes of a guard: one worker of the process.
static AT_WORK: Semaphore = Semaphore::const_new(1);

/// Longest wait for the others. Decoding takes fractions of a millisecond, but a handler as long as it takes: that it does
/// must not hold up the other consumers of the process. Whoever has waited for so long goes on beside it.
const PATIENCE: Duration = Duration::from_secs(2);

/// A worker's turn to have a record at work; its copies are the same turn.
#[derive(Debug, Default, Clone)]
pub struct Turn(Arc<Mutex<Option<SemaphorePermit<'static>>>>);

impl Turn {
    async fn take(&self) {
        if self.lock().is_some() {
            return;
        }
        let waited = tokio::time::timeout(PATIENCE, AT_WORK.acquire()).await;
        *self.lock() = waited.ok().and_then(Result::ok);
    }

    /// Lets another have it.
    fn give_up(&self) {
        self.lock().take();
    }

    fn lock(&self) -> MutexGuard<'_, Option<SemaphorePermit<'static>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one worker knows of it.
#[derive(Debug, Default)]
pub struct Guard {
    watching: bool,
    turn: Turn,
    /// The token of the claim that this worker had last.
    owner: Option<uuid::Uuid>,
    /// Where its last attempt began: if it begins there again, it has outlived that one.
    begun: Option<i64>,
}

impl Guard {
    /// Takes note of a claim. True when its fence was left by a process that has ended, or that is believed to have.
    pub fn claimed(&mut self, claim: &Claim) -> bool {
        let own = self.owner.replace(claim.owner);
        let left = claim.previous_owner.is_some() && claim.previous_owner != own;
        self.watching |= left;
        left
    }

    pub fn is_watching(&self) -> bool {
        self.watching
    }

    /// The turn to be at work, while it watches.
    pub fn turn(&self) -> Option<Turn> {
        self.watching.then(|| self.turn.clone())
    }

    /// Nothing is at work any more, whatever became of it.
    pub fn give_up_turn(&self) {
        self.turn.give_up();
    }

    /// Notes that `records` from offset `from` on are begun. A fault when it is a single one that has had its attempts.
    pub async fn begin(
        &mut self,
        engine: &Engine,
        claim: &Claim,
        from: i64,
        records: usize,
    ) -> Result<Option<Fault>, store::Error> {
        self.turn.take().await;
        let attempt = (from, self.begun.replace(from) == Some(from));
        let mut lease = engine.sessions.guard().await?;
        let noting = fence::note_attempt(&mut lease.connection, &engine.projection, engine.version, claim, attempt);
        let attempts = store::bounded(noting).await?;
        lease.give_back();
        let spent = records == 1 && attempts > ATTEMPTS;
        Ok(spent.then(|| Fault {
            class: "crash",
            reason: format!("{ATTEMPTS} processes ended while they applied it; it was set aside undecoded"),
            record_type: None,
        }))
    }

    /// Batches of any size are applied again: whatever it was is left behind.
    pub fn rest(&mut self) {
        *self = Self { owner: self.owner, ..Self::default() };
    }
}

/// The attempt under way, for those who know when it is over.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    pub engine: &'a Engine,
    pub claim: &'a Claim,
    pub turn: &'a Turn,
}

impl Attempt<'_> {
    /// The process waits for Postgres, whatever the record is like: to be ended now does not count.
    pub async fn pause(self) -> Result<(), store::Error> {
        let counted = self.count(-1).await;
        self.turn.give_up();
        counted
    }

    /// The record is at work again.
    pub async fn resume(self) -> Result<(), store::Error> {
        self.turn.take().await;
        self.count(1).await
    }

    /// The process has outlived it: the record cannot be what ends it.
    pub async fn end(self) -> Result<(), store::Error> {
        let counted = self.count(-ATTEMPTS - 1).await;
        self.turn.give_up();
        counted
    }

    async fn count(self, by: i32) -> Result<(), store::Error> {
        let mut lease = self.engine.sessions.guard().await?;
        let (name, version) = (&self.engine.projection, self.engine.version);
        store::bounded(fence::count_attempts(&mut lease.connection, name, version, self.claim, by)).await?;
        lease.give_back();
        Ok(())
    }
}
