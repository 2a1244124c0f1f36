//! Consumers that should run and do not: they were stopped to be started anew, and have not been yet.
//!
//! Behind a lock of its own that is held for a look only: whether a process is ready is asked while one of them waits
//! for Postgres.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// By name; with the reason, once a start has failed.
#[derive(Default)]
pub struct Stopped(Mutex<BTreeMap<String, Option<String>>>);

impl Stopped {
    /// A consumer is about to be started anew. Why that failed before is still so.
    pub fn begin(&self, consumer: &str) {
        self.lock().entry(consumer.to_owned()).or_default();
    }

    /// A consumer could not be taken in. One that goes on as it was is none of ours.
    pub fn fail(&self, consumer: &str, why: &str) {
        if let Some(reason) = self.lock().get_mut(consumer) {
            *reason = Some(why.to_owned());
        }
    }

    /// A consumer runs, or is not wanted any more.
    pub fn end(&self, consumer: &str) {
        self.lock().remove(consumer);
    }

    /// The names of all, in their order.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The first that could not be started, and why.
    pub fn failed(&self) -> Option<(String, String)> {
        self.lock().iter().find_map(|(name, why)| Some((name.clone(), why.clone()?)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_a_stopped_consumer_is_known_until_it_runs() {
        let stopped = Stopped::default();
        stopped.fail("flights", "its SQL is wrong, and what ran before goes on");
        assert_eq!((stopped.names(), stopped.failed()), (vec![], None));
        stopped.begin("flights");
        assert_eq!((stopped.names(), stopped.failed()), (vec!["flights".to_owned()], None));
        stopped.fail("flights", "a lock");
        stopped.begin("flights");
        assert_eq!(stopped.failed(), Some(("flights".to_owned(), "a lock".to_owned())));
        stopped.end("flights");
        assert_eq!((stopped.names(), stopped.failed()), (vec![], None));
    }
}
