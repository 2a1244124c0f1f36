//! Metrics of `kafka`.

use super::{metrics, seconds_buckets};

metrics! {
    PUBLISHED_RECORDS: IntCounterVec = "millpond_kafka_published_records_total",
        "Records given to the publisher, by topic and outcome: written, not_written, unknown",
        &["topic", "outcome"];
    PUBLISH_SECONDS: Histogram = "millpond_kafka_publish_duration_seconds",
        "Time from a batch's first record queued to its last record's acknowledgement", seconds_buckets();
    REFUSED_BATCHES: IntCounterVec = "millpond_kafka_refused_batches_total",
        "Batches of which no record was sent, by reason", &["reason"];
    IN_FLIGHT_BYTES: IntGauge = "millpond_kafka_in_flight_bytes",
        "Bytes of records that wait for acknowledgement, as the publisher's budget counts them";
    QUEUED_RECORDS: IntGauge = "millpond_kafka_queued_records",
        "Records in the Kafka client's queues, as it last reported";
    PUBLISHER_READY: IntGauge = "millpond_kafka_publisher_ready",
        "1 while the publisher takes records, else 0";
    PRODUCERS_REPLACED: IntCounter = "millpond_kafka_producers_replaced_total",
        "Producers that were replaced: after a fatal error, or with records that were not acknowledged in time";
    PRODUCER_EPOCHS: IntCounter = "millpond_kafka_producer_epochs_total",
        "New epochs under which a producer went on; records that waited for a second try may be in the log twice";
    REGISTRY_SCHEMAS: IntGauge = "millpond_kafka_registry_schemas",
        "Schemas that the registry serves";
    REGISTRATION_ROUNDS: IntCounterVec = "millpond_kafka_registration_rounds_total",
        "Rounds of schema registration, by outcome: found, written, fenced, failed, refused", &["outcome"];
}
