//! Metrics of `consume`.

use super::{metrics, seconds_buckets};

metrics! {
    MESSAGES: IntCounterVec = "millpond_consumer_messages_total",
        "Records whose fate was decided, by outcome: applied, skipped, repeated, refused, dead_lettered; or put off: parked", &["consumer", "outcome"];
    BATCH_SECONDS: HistogramVec = "millpond_consumer_batch_duration_seconds",
        "Time from a batch's first statement to its commit", (&["consumer"], seconds_buckets());
    HANDLERS_OVERDUE: IntCounterVec = "millpond_consumer_handler_overdue_total",
        "Times that a handler was found to have been at work on one batch for 10 s, or for 10 s more", &["consumer"];
    BATCHES: IntCounterVec = "millpond_consumer_batches_total",
        "Transactions, by outcome: committed, record_error, transient_error, fenced", &["consumer", "outcome"];
    REBALANCES: IntCounterVec = "millpond_consumer_rebalances_total",
        "Assignments and revocations by the group", &["consumer", "kind"];
    LAG: IntGaugeVec = "millpond_consumer_lag_messages",
        "Records between the fence and the end of the partition", &["consumer", "topic", "partition"];
    FRESHNESS_SECONDS: GaugeVec = "millpond_consumer_freshness_seconds",
        "How old the data of the projection is, by its oldest partition, as far as known", &["consumer"];
    HALTED: IntGaugeVec = "millpond_consumer_halted_partitions",
        "Partitions of the projection that have halted and wait for an operator, whichever process has them", &["consumer"];
    FORGOTTEN_IDS: IntCounterVec = "millpond_consumer_forgotten_ids_total",
        "Ids of clients that were removed because they are older than the consumer's dedupe_window", &["consumer"];
    DEAD_LETTERS: IntCounterVec = "millpond_dead_letters_total",
        "Records that could not be applied and were set aside, by class of reason; not those that wait behind one",
        &["consumer", "class"];
    PARKED_KEYS: IntGaugeVec = "millpond_parked_keys",
        "Keys whose records wait in order, in all partitions of the projection, whichever process has them", &["consumer"];
    PARKED_RECORDS: IntGaugeVec = "millpond_parked_records",
        "Records that wait with their key", &["consumer"];
    VERSION_LAG: IntGaugeVec = "millpond_version_lag_messages",
        "Records that a version beside the live one has not applied yet, by its state (building, standby, scratch), whichever process applies them",
        &["consumer", "version", "state"];
    VERSION_PASSED: IntGaugeVec = "millpond_version_passed_messages",
        "Offsets that lie behind its fences: how fast they grow is how fast it is built", &["consumer", "version", "state"];
    VERSION_HALTED: IntGaugeVec = "millpond_version_halted_partitions",
        "Partitions on which it has halted", &["consumer", "version", "state"];
}
