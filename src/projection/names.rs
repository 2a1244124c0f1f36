//! Names of what a version owns in Postgres.

use sha2::{Digest as _, Sha256};

use crate::domain::schema_name;

/// Schema of the stable views for people.
pub const LIVE_SCHEMA: &str = "live";

/// The view by which people read a table: the consumer's own name when it has one table or for the table of that name.
pub fn live_view(consumer: &str, table: &str, tables: usize) -> String {
    if tables == 1 || table == consumer { consumer.to_owned() } else { format!("{consumer}_{table}") }
}

/// Key of the advisory lock that lets one apply at a time write a version.
pub fn advisory_key(consumer: &str, version: i32) -> i64 {
    let digest = Sha256::digest(format!("millpond apply {}", schema_name(consumer, version)));
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_named_after_the_consumer_where_they_can_be() {
        assert_eq!(live_view("flights", "rows", 1), "flights");
        assert_eq!(live_view("flights", "flights", 2), "flights");
        assert_eq!(live_view("flights", "delays", 2), "flights_delays");
    }
}
