//! Kafka: publishing, subscribing, topics, the schema registry. The only importer of `rdkafka`.

pub mod subscription;
