//! Metrics of `publish`.

use super::metrics;

metrics! {
    PENDING: IntGauge = "millpond_outbox_pending_messages", "Rows of the outbox that wait to be sent";
    SENT: IntCounterVec = "millpond_outbox_messages_total",
        "Rows of the outbox handed to Kafka, by outcome: written, failed", &["topic", "outcome"];
    LEADING: IntGauge = "millpond_outbox_leading", "1 in the process that relays the outbox";
}
