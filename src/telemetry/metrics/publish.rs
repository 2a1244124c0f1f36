//! Metrics of `publish`.

use super::{metrics, seconds_buckets};

metrics! {
    PENDING: IntGauge = "millpond_outbox_pending_messages", "Rows of the outbox that wait to be sent";
    SENT: IntCounterVec = "millpond_outbox_messages_total",
        "Rows of the outbox handed to Kafka, by outcome: written, failed", &["topic", "outcome"];
    RECOGNISED: IntCounter = "millpond_outbox_recognised_messages_total",
        "Rows of the outbox that had left already, as a marker or the log says, and were not sent again";
    TORN: IntCounter = "millpond_outbox_torn_transactions_total",
        "Transactions of which Kafka committed only a part; the rest was sent again";
    TRANSACTIONS: IntCounterVec = "millpond_outbox_transactions_total",
        "Transactions of downstream events, by outcome: committed, failed, fenced (another relay has taken over)",
        &["outcome"];
    TRANSACTION_SECONDS: Histogram = "millpond_outbox_transaction_duration_seconds",
        "Time from a transaction's first record to its commit", seconds_buckets();
    LEADING: IntGauge = "millpond_outbox_leading", "1 in the process that relays the outbox";
    EXACTLY_ONCE: IntGauge = "millpond_outbox_exactly_once",
        "1 in the process that relays the outbox while it does so in transactions, 0 while it sends at least once";
}
