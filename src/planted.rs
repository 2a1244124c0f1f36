//! Bugs on purpose, by which the torture rig is put to the test: each is a mistake that somebody could make in this code, and
//! the rig has to find it (`make torture ARGS=planted`, `docs/torture.md`).
//!
//! Owns their list and which of them is turned on. Without the feature `planted`, which no release can be built with, none
//! ever is, and what asks is compiled away. With it the variable [`VARIABLE`] names the one that is.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!(
    "the feature `planted` carries bugs on purpose: it is for builds with debug assertions, never for a release"
);

/// The environment variable that names the bug to turn on.
pub const VARIABLE: &str = "MILLPOND_PLANT";

macro_rules! bugs {
    ($($bug:ident = $name:literal, $what:literal;)*) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bug { $(#[doc = $what] $bug,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// What it is turned on by.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$bug => $name,)* }
            }

            /// What it does wrong, for people.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$bug => $what,)* }
            }
        }
    };
}

bugs! {
    UnknownSentAgain = "sent-again", "a batch without an answer is sent again under the same claim";
    GapIgnored = "gap", "a new claim goes on with what is in the buffer, though the fence stands before it";
    OffsetApart = "d", "rows are committed in one transaction, the fence in the next";
    KafkaOffsetTrusted = "e", "an assigned partition is read from Kafka's committed offset";
    SeenSkipped = "f", "nobody looks at the ids that were seen";
    SharedSequence = "g", "the outbox is numbered by what partitions share, and emptied up to the number that left last";
    DeadLetterOnDeadlock = "h", "a deadlock makes a dead letter";
    UnsortedUpserts = "k", "rows are written in no order";
    AnsweredEarly = "m", "202 is answered before Kafka has acknowledged";
    AcksOne = "n", "the leader's acknowledgement is enough (acks=1)";
    ProducerGoesOn = "relay", "the relay goes on with its producer after a transaction that did not commit";
    RedeliveredApplied = "redelivered", "what was kept over a claim is applied again, though the fence has passed it";
    UnknownAsWritten = "partly", "records of a bulk whose fate is unknown are answered as written";
    PositionAhead = "ahead", "a read's position is read after its rows";
    OutboxEmptiedFirst = "outbox-first", "rows leave the outbox before their transaction is committed";
    MarkersUnread = "markers", "a relay that starts does not read what has left already";
    ReleasedEarly = "park-early", "a parked key is released before its last record";
    SwapUnchecked = "i", "a version is swapped in wherever it stands";
    BuildSends = "j", "events of a version that is built are not held";
    VerdictsUnread = "verdicts-unread", "a version that is built does not read what was decided";
    ViewsLeft = "views", "a swap leaves the views over the tables of the version before";
    SwapApart = "swap-apart", "a swap replaces the views in one transaction, and moves the pointer in the next";
}

/// Whether a bug is turned on: never, in a build that carries none.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}

/// Whether a bug is turned on.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    use std::sync::LazyLock;

    static PLANTED: LazyLock<Option<Bug>> = LazyLock::new(|| named().ok().flatten());
    *PLANTED == Some(bug)
}

/// Says loudly what this build is, if it carries bugs; an error if there is none of the name.
pub fn announce() -> Result<(), String> {
    #[cfg(feature = "planted")]
    match named()? {
        Some(bug) => tracing::error!(
            bug = bug.name(),
            "A BUG IS PLANTED IN THIS PROCESS, AND IT WILL LOSE OR CORRUPT DATA: {}; unset {VARIABLE}, and never use a \
             build with the feature `planted` for anything but tests of tests",
            bug.what()
        ),
        None => {
            tracing::warn!("this build carries planted bugs, none of which is turned on; it is for tests of tests only")
        }
    }
    Ok(())
}

/// The bug that the environment names.
#[cfg(feature = "planted")]
fn named() -> Result<Option<Bug>, String> {
    let Some(name) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let known = Bug::ALL.iter().find(|bug| name.to_str() == Some(bug.name()));
    let names = || Bug::ALL.iter().map(|bug| bug.name()).collect::<Vec<_>>().join(", ");
    known
        .map(|bug| Some(*bug))
        .ok_or_else(|| format!("{VARIABLE} names a bug `{}`, and there is none; there are {}", name.display(), names()))
}

/// A number that all partitions share and that grows, as one sequence for all of them would give.
pub fn shared_number() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bugs_have_names_of_their_own() {
        let mut names: Vec<&str> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Bug::ALL.len());
    }

    #[test]
    fn no_bug_is_turned_on_unless_it_is_asked_for() {
        assert!(std::env::var_os(VARIABLE).is_some() || Bug::ALL.iter().all(|bug| !is(*bug)));
    }
}
