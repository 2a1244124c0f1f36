//! How the poll thread learns that there is something to do: commands of workers, and librdkafka's word that a queue is
//! no longer empty. So it sleeps while nothing happens, and a command does not wait for the next record.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Command;

#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Bounded by what workers may ask: a resume, a seek or a commit per batch.
    commands: Vec<Command>,
    rung: bool,
}

impl Inbox {
    /// Has the poll thread do something.
    pub fn send(&self, command: Command) {
        self.lock().commands.push(command);
        self.changed.notify_one();
    }

    /// Has the poll thread look at its queues. Called by threads of librdkafka that hold the queue's lock.
    pub(super) fn ring(&self) {
        self.lock().rung = true;
        self.changed.notify_one();
    }

    /// Takes the commands, after waiting for one or for a ring, at most so long.
    pub(super) fn take(&self, longest: Duration) -> Vec<Command> {
        let idle = |waiting: &mut Waiting| !waiting.rung && waiting.commands.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), longest, idle);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.rung = false;
        std::mem::take(&mut waiting.commands)
    }

    /// True when it comes to be told to stop within so long; whatever else was asked is forgotten.
    pub(super) fn wait_for_stop(&self, longest: Duration) -> bool {
        let deadline = Instant::now() + longest;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.take(left).iter().any(|command| matches!(command, Command::Stop)) {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Ask, *};

    /// Longer than any test may take: who waits so long was not woken.
    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_ring_before_the_wait_is_not_lost() {
        let inbox = Inbox::default();
        inbox.ring();
        assert!(inbox.take(NEVER).is_empty());
        assert!(inbox.take(Duration::ZERO).is_empty());
    }

    #[test]
    fn commands_come_in_their_order_and_once() {
        let inbox = Inbox::default();
        let at = crate::domain::TopicPartition::new("t", 0);
        inbox.send(Command::Ask { at, assignment: 1, ask: Ask::Commit(7) });
        inbox.send(Command::Stop);
        assert!(matches!(inbox.take(NEVER)[..], [Command::Ask { ask: Ask::Commit(7), .. }, Command::Stop]));
        assert!(inbox.take(Duration::ZERO).is_empty());
    }

    #[test]
    fn a_command_wakes_the_waiting_thread() {
        let inbox = Inbox::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| inbox.take(NEVER).len());
            inbox.send(Command::Stop);
            assert_eq!(waiting.join().unwrap(), 1);
        });
    }
}
