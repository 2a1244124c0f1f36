//! The bugs that are planted, and where each is looked for: few runs, chosen so that one of them meets it.

use anyhow::Context as _;
use millpond::planted::Bug;

/// A bug, and what finds it.
#[derive(Debug)]
pub struct Planted {
    pub name: &'static str,
    /// What is wrong, where the binary's own words do not say it.
    what: &'static str,
    /// Which text of `millpond.advance_fence` becomes which.
    pub fence: Option<(&'static str, &'static str)>,
    /// What is turned on in the processes.
    pub bug: Option<Bug>,
    /// Scenarios and seeds, in the order in which they are run.
    pub looked_for: &'static [(&'static str, &'static [u64])],
    /// The checks that tell it; what any other says is noise.
    pub by: &'static [u8],
}

/// What asks for the right owner, and for the right place.
const OWNER: &str = "and owner = p_owner and epoch = p_epoch ";
const PLACE: &str = "and next_offset = p_from ";

/// A bug of the database. The fence asks for more than it needs: whoever does all else right is not harmed by one question
/// less, so each of those about the place goes with a mistake that it is there to stop.
const fn of_fence(
    name: &'static str,
    what: &'static str,
    fence: (&'static str, &'static str),
    bug: Option<Bug>,
    looked_for: &'static [(&'static str, &'static [u64])],
    by: &'static [u8],
) -> Planted {
    Planted { name, what, fence: Some(fence), bug, looked_for, by }
}

/// A bug of the binary.
const fn of_binary(bug: Bug, looked_for: &'static [(&'static str, &'static [u64])], by: &'static [u8]) -> Planted {
    Planted { name: bug.name(), what: bug.what(), fence: None, bug: Some(bug), looked_for, by }
}

/// All of them. Single letters are those of the list in `docs/torture.md`.
pub const BUGS: &[Planted] = &[
    of_fence("a", "the fence does not ask for its owner", (OWNER, ""), None, &[("C13", &[1, 2, 3])], &[5, 9]),
    of_fence(
        "b",
        "the fence does not ask where it stands, and a batch without an answer is sent again",
        (PLACE, ""),
        Some(Bug::UnknownSentAgain),
        &[("P2", &[3, 7, 11])],
        &[5, 9],
    ),
    of_fence(
        "c",
        "the fence may be passed over (<=), and a new claim goes on with what is in the buffer",
        (PLACE, "and next_offset <= p_from "),
        Some(Bug::GapIgnored),
        &[("P4", &[1, 2, 3]), ("P5", &[1])],
        &[5, 9],
    ),
    of_fence(
        "c2",
        "the fence may have been passed (>=), and a batch without an answer is sent again",
        (PLACE, "and next_offset >= p_from "),
        Some(Bug::UnknownSentAgain),
        &[("P2", &[3, 7, 11])],
        &[5, 9],
    ),
    of_fence(
        "ab",
        "the fence asks for nothing",
        ("and owner = p_owner and epoch = p_epoch and next_offset = p_from ", ""),
        None,
        &[("C3", &[3, 1, 2])],
        &[5, 9],
    ),
    of_binary(Bug::OffsetApart, &[("P2", &[2, 4, 8])], &[5]),
    of_binary(Bug::KafkaOffsetTrusted, &[("K12", &[2, 4])], &[5]),
    of_binary(Bug::SharedSequence, &[("P6", &[1, 3, 6])], &[8, 10]),
    of_binary(Bug::DeadLetterOnDeadlock, &[("P9", &[1, 2])], &[5, 11]),
    of_binary(Bug::UnsortedUpserts, &[("P13", &[1, 2])], &[13]),
    of_binary(Bug::AnsweredEarly, &[("I8", &[1, 2])], &[1]),
    of_binary(Bug::AcksOne, &[("K16", &[1, 2, 3])], &[1]),
    of_binary(Bug::ProducerGoesOn, &[("O2", &[1, 2]), ("K3", &[1, 2, 3])], &[8, 10]),
    of_binary(Bug::RedeliveredApplied, &[("P2", &[3, 7, 11])], &[5]),
    of_binary(Bug::UnknownAsWritten, &[("K3", &[1, 2, 3])], &[1]),
    of_binary(Bug::PositionAhead, &[("P6", &[1, 3, 6])], &[6]),
    of_binary(Bug::SeenSkipped, &[("C11", &[1, 2])], &[5, 11, 12]),
    of_binary(Bug::MarkersUnread, &[("O1", &[1, 2])], &[10]),
    of_binary(Bug::ReleasedEarly, &[("C7", &[1, 2])], &[5, 11, 16, 17]),
    of_binary(Bug::OutboxEmptiedFirst, &[("O3", &[1, 2, 3])], &[8, 10]),
    of_binary(Bug::SwapUnchecked, &[("S3", &[1, 2])], &[5, 6, 7, 15]),
    of_binary(Bug::BuildSends, &[("S1", &[2, 8])], &[10]),
    of_binary(Bug::VerdictsUnread, &[("S1", &[3, 9, 4])], &[5, 11, 16, 17]),
    of_binary(Bug::ViewsLeft, &[("S3", &[1, 2])], &[5, 15]),
    of_binary(Bug::SwapApart, &[("S3", &[1, 2])], &[5, 15]),
];

/// Nothing: the runs in which bugs are looked for have to find nothing without one.
pub const NONE: Planted =
    Planted { name: "none", what: "nothing is planted", fence: None, bug: None, looked_for: &[], by: &[] };

impl Planted {
    /// What is wrong, for people.
    pub const fn what(&self) -> &'static str {
        self.what
    }

    /// Scenario and seed of every run in which it is looked for.
    pub fn runs(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.looked_for.iter().flat_map(|(scenario, seeds)| seeds.iter().map(|seed| (*scenario, *seed)))
    }
}

/// The bug of a name.
pub fn find(name: &str) -> anyhow::Result<&'static Planted> {
    let known = BUGS.iter().chain([&NONE]).find(|bug| bug.name == name);
    known.with_context(|| {
        let names: Vec<&str> = BUGS.iter().map(|bug| bug.name).collect();
        format!("there is no bug {name} to plant; there are {}, and none", names.join(", "))
    })
}
