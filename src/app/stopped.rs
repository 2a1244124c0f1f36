//! Consumers that should run and do not: they were stopped to be started anew, and have not been yet.
//!
//! Behind a lock of its own that is held for a look only: whether a process is ready is asked while one of them waits
//! for Postgres.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// By name.
#[derive(Default)]
pub struct Stopped(Mutex<BTreeMap<String, Wanted>>);

struct Wanted {
    /// The version that ran last, if one did.
    ran: Option<i32>,
    /// Once a start has failed.
    why: Option<String>,
}

impl Stopped {
    /// A consumer whose version `runs` is about to be started anew. Why that failed before is still so. The version that ran
    /// last, however often it has been tried.
    pub fn begin(&self, consumer: &str, runs: Option<i32>) -> Option<i32> {
        self.lock().entry(consumer.to_owned()).or_insert(Wanted { ran: runs, why: None }).ran
    }

    /// A consumer could not be taken in. One that goes on as it was is none of ours.
    pub fn fail(&self, consumer: &str, why: &str) {
        if let Some(wanted) = self.lock().get_mut(consumer) {
            wanted.why = Some(why.to_owned());
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
        self.lock().iter().find_map(|(name, wanted)| Some((name.clone(), wanted.why.clone()?)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Wanted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_and_version_of_a_stopped_consumer_are_known_until_it_runs() {
        let stopped = Stopped::default();
        stopped.fail("flights", "its SQL is wrong, and what ran before goes on");
        assert_eq!((stopped.names(), stopped.failed()), (vec![], None));
        assert_eq!(stopped.begin("flights", Some(2)), Some(2));
        assert_eq!((stopped.names(), stopped.failed()), (vec!["flights".to_owned()], None));
        stopped.fail("flights", "a lock");
        assert_eq!(stopped.begin("flights", None), Some(2));
        assert_eq!(stopped.failed(), Some(("flights".to_owned(), "a lock".to_owned())));
        stopped.end("flights");
        assert_eq!((stopped.names(), stopped.failed()), (vec![], None));
    }
}
