//! Traps: one message is waited for, and one thing is done when it comes.
//!
//! This is how a fault meets one exact point of a protocol (staged and not flushed, committed and not answered) without
//! a line in the code under test.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::{Direction, lock};

/// The message that springs a trap.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// The client sends a statement with this text in it.
    Sent(&'static str),
    /// The client sends data of a COPY.
    Copying,
    /// The server says that a command of this tag is done, in answer to a statement with this text in it.
    Done { tag: &'static str, of: &'static str },
}

/// What happens to that message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It waits, and all that follows it, until the trap is released or the connection ends.
    Hold,
    /// It is thrown away, and the connection is reset: nobody is told.
    SwallowAndCut,
    /// It passes; the connection is reset behind it.
    PassAndCut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Set,
    Sprung,
    Released,
}

/// A trap; its copies are the same trap.
#[derive(Debug, Clone)]
pub struct Trap {
    pub client: String,
    pub pattern: Pattern,
    pub action: Action,
    state: Arc<watch::Sender<State>>,
    /// The statement that sprang it.
    caught: Arc<Mutex<String>>,
}

impl Trap {
    /// For the first matching message of a client whose name begins so.
    pub fn new(client: &str, pattern: Pattern, action: Action) -> Self {
        let state = Arc::new(watch::Sender::new(State::Set));
        Self { client: client.to_owned(), pattern, action, state, caught: Arc::default() }
    }

    /// Waits until the message has come; whether it has.
    pub async fn sprung(&self, within: Duration) -> bool {
        let mut state = self.state.subscribe();
        tokio::time::timeout(within, state.wait_for(|state| *state != State::Set)).await.is_ok() && self.has_sprung()
    }

    pub fn has_sprung(&self) -> bool {
        *self.state.borrow() != State::Set
    }

    /// Lets go of what it holds. A trap that has not sprung never will.
    pub fn release(&self) {
        self.state.send_replace(State::Released);
    }

    /// Waits for the release.
    pub(super) async fn released(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| *state == State::Released).await;
    }

    /// Springs on a message that fits; a trap does so once.
    pub(super) fn springs(&self, client: &str, direction: Direction, message: &Message<'_>) -> bool {
        if *self.state.borrow() != State::Set || !client.starts_with(&self.client) {
            return false;
        }
        let fits = match (&self.pattern, direction, message) {
            (Pattern::Sent(text), Direction::ToServer, Message::Statement(statement)) => statement.contains(text),
            (Pattern::Copying, Direction::ToServer, Message::CopyData) => true,
            (Pattern::Done { tag, of }, Direction::ToClient, Message::Complete { tag: done, statement }) => {
                done.starts_with(tag) && statement.contains(of)
            }
            _ => false,
        };
        fits && self.state.send_if_modified(|state| {
            let set = *state == State::Set;
            if set {
                *state = State::Sprung;
                if let Message::Statement(statement) = message {
                    lock(&self.caught).push_str(statement);
                }
            }
            set
        })
    }

    /// The statement that sprang it; empty for another message.
    pub fn caught(&self) -> String {
        lock(&self.caught).clone()
    }
}

/// What a message is, as far as a trap asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    Statement(&'a str),
    CopyData,
    Complete { tag: &'a str, statement: &'a str },
    Other,
}
