//! Whether the log is the one that a fence was moved on: a topic that was deleted, made anew or cut must not be taken for
//! the same.

use super::{engine::Inspected, prepare};
use crate::store::fence::{Claim, Halt};

/// Compares what Kafka holds now with what was claimed.
pub fn compare(consumer: &str, claim: &Claim, found: &Inspected) -> Result<(), Halt> {
    let (at, next) = (&claim.at, claim.next_offset);
    let command = format!("`millpond consumer restart {consumer}");
    let from_zero = format!("to empty its tables and read the log as it is now, run {command} --from-zero`");
    let halt = |code, reason| Err(Halt { code, reason });
    if next > found.high {
        let what = format!("{at} ends at offset {}, but {consumer} has applied it up to {next}", found.high);
        return halt("log_is_shorter", format!("{what}: the topic was recreated or lost records; {from_zero}"));
    }
    if next < found.low {
        let what = format!("{at} starts at offset {}, but {consumer} has applied it only up to {next}", found.low);
        let go_on = format!("to go on without the records that were removed, run {command} --skip-removed`");
        return halt("log_was_cut", format!("{what}; {go_on}"));
    }
    if let (Some(last), Some(record)) = (&claim.last, &found.last) {
        let checksum = prepare::checksum(record.key.as_deref(), record.payload.as_deref());
        if checksum != last.checksum {
            let what = format!("the record at {at} offset {} is not the one {consumer} applied", last.offset);
            return halt("log_is_another", format!("{what}: the topic was recreated; {from_zero}"));
        }
    }
    Ok(())
}
