//! What holds in a run of the model: the policy, the window of dedupe, and what is planted.

/// A bug that can be planted: what the protocol leaves out, or does at the wrong moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    OwnerDropped,
    OffsetDropped,
    OffsetMayBePassed,
    OffsetInSecondTransaction,
    KafkaOffsetTrusted,
    SeenSkipped,
    SharedSequence,
    DeadLetterOnDeadlock,
    UnknownSentAgain,
    GapIgnored,
    RedeliveredApplied,
    BisectSkipsRest,
    GuardForgets,
    ParkReleasedEarly,
    ParkedNotLoaded,
    OvertakenInBatch,
    DrainUnfenced,
    DrainOutOfOrder,
    VerdictIgnored,
    VerdictNotWritten,
    LogTimeOfBatch,
    SeenBeforeBatch,
    DeadNotSeen,
    PurgedEarly,
    ProducerGoesOn,
    MarkerAfterCommit,
    MarkersBeforeInit,
    MarkerByNumber,
    OutboxEmptiedFirst,
}

/// All that is planted: the name to plant it by, and what it is. Single letters are those of the list in `docs/torture.md`.
///
/// The fence asks for more than it needs: for its owner in an epoch, and for where it stands. To drop only one of the two
/// harms nobody whose other rules hold, so the second is dropped together with a rule that it is there to back.
pub const BUGS: &[(&[Bug], &str, &str)] = &[
    (&[Bug::OwnerDropped], "a", "the fence does not ask for its owner"),
    (
        &[Bug::OffsetDropped, Bug::UnknownSentAgain],
        "b",
        "the fence does not ask where it stands, and what has no answer is sent again",
    ),
    (
        &[Bug::OffsetMayBePassed, Bug::GapIgnored],
        "c",
        "the fence may be passed over, and what the client leaves out is not missed",
    ),
    (&[Bug::OwnerDropped, Bug::OffsetDropped], "ab", "the fence asks for nothing"),
    (&[Bug::OffsetInSecondTransaction], "d", "rows in one transaction, the fence in the next"),
    (&[Bug::KafkaOffsetTrusted], "e", "a claim goes on from Kafka's committed offset"),
    (&[Bug::SeenSkipped], "f", "nobody looks at the ids that were seen"),
    (&[Bug::SharedSequence], "g", "the outbox is ordered by a sequence that partitions share"),
    (&[Bug::DeadLetterOnDeadlock], "h", "a deadlock makes a dead letter"),
    (&[Bug::RedeliveredApplied], "redelivered", "what the client delivers again is applied again"),
    (&[Bug::BisectSkipsRest], "bisect-skips", "a bisected batch moves the fence over its second half"),
    (&[Bug::GuardForgets], "guard-forgets", "the crash guard's count is not taken back when a record is done with"),
    (&[Bug::ParkReleasedEarly], "park-early", "a parked key is released before its last record"),
    (&[Bug::ParkedNotLoaded], "park-unloaded", "a claim does not load parked keys: later records overtake"),
    (&[Bug::OvertakenInBatch], "park-batch", "records behind the failing one of their batch are applied"),
    (&[Bug::DrainUnfenced], "drain-unfenced", "a drain does not ask the fence"),
    (&[Bug::DrainOutOfOrder], "drain-order", "a decided record is drained before those that wait in front of it"),
    (&[Bug::VerdictIgnored], "verdict-ignored", "reading the log again does not apply verdicts"),
    (&[Bug::VerdictNotWritten], "verdict-unwritten", "a decision takes effect without its verdict"),
    (&[Bug::LogTimeOfBatch], "log-time", "log time is that of the batch, not that of the record"),
    (&[Bug::SeenBeforeBatch], "seen-early", "ids are noted in a transaction before their batch's"),
    (&[Bug::DeadNotSeen], "seen-not-dead", "a record that is set aside is not noted as seen"),
    (&[Bug::PurgedEarly], "seen-purged", "ids are purged before the window is over"),
    (&[Bug::ProducerGoesOn], "relay-goes-on", "the relay goes on with its producer after a timed-out transaction"),
    (&[Bug::MarkerAfterCommit], "marker-late", "markers are written after the transaction of their events"),
    (&[Bug::MarkersBeforeInit], "marker-early", "markers are read before rivals are shut out"),
    (&[Bug::MarkerByNumber], "marker-number", "a marker is compared by its number alone"),
    (&[Bug::OutboxEmptiedFirst], "outbox-first", "rows leave the outbox before their transaction is committed"),
];

/// What holds in one run.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether a record that fails parks its key; else it is skipped.
    pub park: bool,
    /// Within so much log time an id stands for one event.
    pub window: i64,
    pub bugs: &'static [Bug],
}

impl Rules {
    pub fn has(&self, bug: Bug) -> bool {
        self.bugs.contains(&bug)
    }
}
