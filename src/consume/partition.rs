//! What the poll thread and the worker of one partition share.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::buffer::{Bounds, Buffer, Chunk};
use crate::{domain::TopicPartition, kafka::gaps::Gap};

/// How often it is looked whether something is still waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Whether a worker may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Run,
    /// End the transaction in flight, start no other, release the fence.
    Finish,
    /// The partition is someone else's already: drop everything.
    Abandon,
}

pub struct Partition {
    pub at: TopicPartition,
    /// Which of the times that this member was given it.
    pub assignment: u64,
    buffer: Mutex<Buffer>,
    arrived: Notify,
    sought: Notify,
    stop: watch::Sender<Stop>,
    /// Set when the client says that the partition cannot be read where it stands.
    doubted: AtomicBool,
    /// Set when something may be due of what was set aside.
    to_look: AtomicBool,
    /// Whether the worker waits and nothing is there for it.
    idle: AtomicBool,
    /// Offsets behind the last record that was applied, of which it is known that they hold none.
    gap: Mutex<Option<Gap>>,
    /// First offset that is not applied, as of the last commit; -1 before the claim.
    next_offset: AtomicI64,
    last_error: Mutex<Option<String>>,
}

/// What a worker got when it asked for a batch.
pub enum Next {
    /// A batch, and whether the poll thread should be told to resume the partition.
    Batch(Chunk, bool),
    /// No record is left in it: the fence may pass over it.
    Gap(Gap),
    /// There is something else to do first, or there may be.
    Nothing,
    /// The place in the log is in doubt: claim and compare again.
    Doubt,
    Stop,
}

impl Partition {
    pub fn new(at: TopicPartition, assignment: u64) -> Self {
        Self {
            at,
            assignment,
            buffer: Mutex::default(),
            arrived: Notify::new(),
            sought: Notify::new(),
            stop: watch::Sender::new(Stop::Run),
            doubted: AtomicBool::new(false),
            to_look: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            gap: Mutex::default(),
            next_offset: AtomicI64::new(-1),
            last_error: Mutex::default(),
        }
    }

    pub fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wake(&self) {
        self.arrived.notify_one();
    }

    /// Takes records from `offset` on; everything read before is dropped.
    pub fn accept(&self, offset: i64) {
        self.buffer().accept(offset);
        self.sought.notify_one();
    }

    /// Has the worker claim again and compare the log with its fence.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
        self.arrived.notify_one();
    }

    /// Has the worker look whether something is due of what was set aside.
    pub fn look(&self) {
        self.to_look.store(true, Ordering::Relaxed);
        self.arrived.notify_one();
    }

    /// Whether it was told to since it was asked.
    pub fn is_to_look(&self) -> bool {
        self.to_look.swap(false, Ordering::Relaxed)
    }

    pub async fn wait_sought(&self) {
        self.sought.notified().await;
    }

    pub fn stop(&self, how: Stop) {
        self.stop.send_replace(how);
        self.arrived.notify_one();
        self.sought.notify_one();
    }

    pub fn stopping(&self) -> Stop {
        *self.stop.borrow()
    }

    /// Ends early when the worker is told to stop.
    pub async fn sleep(&self, duration: Duration) {
        self.until_stopped(tokio::time::sleep(duration)).await;
    }

    /// Sleeps as long as that is wanted, and no longer than `longest`, but not past a stop.
    pub async fn sleep_while(&self, longest: Duration, wanted: impl Fn() -> bool) {
        let waits = async {
            while wanted() {
                tokio::time::sleep(LOOK).await;
            }
        };
        self.until_stopped(tokio::time::timeout(longest, waits)).await;
    }

    /// Waits for that, or for a stop.
    async fn until_stopped(&self, waits: impl Future) {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            _ = waits => {}
            _ = stop.wait_for(|s| *s != Stop::Run) => {}
        }
    }

    /// Keeps an error for `millpond status`.
    pub fn note_error(&self, error: &str) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_owned());
    }

    /// The last error since it was asked for.
    pub fn take_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether all that has come is applied, as far as that can be told from here.
    pub fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// Has the fence pass over offsets that hold no record, if it stands where they begin.
    pub fn pass_over(&self, gap: Gap) {
        *self.gap.lock().unwrap_or_else(PoisonError::into_inner) = Some(gap);
        self.arrived.notify_one();
    }

    fn take_gap(&self) -> Option<Gap> {
        self.gap.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn set_next_offset(&self, offset: i64) {
        self.next_offset.store(offset, Ordering::Relaxed);
    }

    pub fn next_offset(&self) -> Option<i64> {
        Some(self.next_offset.load(Ordering::Relaxed)).filter(|o| *o >= 0)
    }

    /// Waits for a batch: full, or as old as `max_age` since its first record was seen here. Without patience it is what is
    /// there now.
    pub async fn next_batch(&self, bounds: Bounds, max_age: Duration, patient: bool) -> Next {
        let mut first_seen: Option<Instant> = None;
        loop {
            if self.stopping() != Stop::Run {
                return Next::Stop;
            }
            if self.doubted.swap(false, Ordering::Relaxed) {
                return Next::Doubt;
            }
            let mut deadline = None;
            {
                let mut buffer = self.buffer();
                if !buffer.is_empty() {
                    let due = *first_seen.get_or_insert_with(Instant::now) + max_age;
                    if !patient || buffer.has_full_chunk(bounds) || Instant::now() >= due {
                        let (chunk, resume) = buffer.pop();
                        return Next::Batch(chunk.unwrap_or_default(), resume);
                    }
                    deadline = Some(due);
                }
            }
            if !patient || self.to_look.load(Ordering::Relaxed) {
                return Next::Nothing;
            }
            match deadline {
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = self.arrived.notified() => {}
                    }
                }
                None => {
                    if let Some(gap) = self.take_gap() {
                        return Next::Gap(gap);
                    }
                    self.idle.store(true, Ordering::Relaxed);
                    self.arrived.notified().await;
                    self.idle.store(false, Ordering::Relaxed);
                }
            }
        }
    }
}
