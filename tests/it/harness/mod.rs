//! What tests share: where the servers are, and names that no other test has.

/// `host:port` of the Kafka to test with.
pub fn brokers() -> String {
    std::env::var("MILLPOND_TEST_KAFKA").expect("MILLPOND_TEST_KAFKA must name a Kafka broker, host:port")
}

/// URL of the Postgres to test with.
pub fn postgres_url() -> String {
    "postgres://postgres@127.0.0.1:5471/postgres".to_owned()
}
