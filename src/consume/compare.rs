//! Whether the log is the one that a fence was moved on: a topic that was deleted, made anew or cut must not be taken for
//! the same.

use super::{engine::Inspected, prepare};
use crate::{
    domain::TopicPartition,
    store::fence::{Claim, Halt},
};

/// Compares what Kafka holds now with what was claimed.
pub fn compare(consumer: &str, claim: &Claim, found: &Inspected) -> Result<(), Halt> {
    let (at, next) = (&claim.at, claim.next_offset);
    let command = format!("`millpond consumer restart {consumer}");
    let from_zero = format!("to empty its tables and read the log as it is now, run {command} --from-zero`");
    let halt = |code, reason| Err(Halt { code, reason });
    if next > found.high {
        let what = format!("{at} ends at offset {}, but {consumer} has applied it up to {next}", found.high);
        return halt(
            "log_is_shorter",
            format!(
                "{what}: the topic was made anew, or its replicas lost records that they had acknowledged; if a replica or \
                 a backup still has them, bring it back first; {from_zero}"
            ),
        );
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
            return halt(
                "log_is_another",
                format!(
                    "{what}: the topic was made anew, or its replicas lost records that they had acknowledged and others \
                     stand in their place; {from_zero}"
                ),
            );
        }
    }
    Ok(())
}

/// Refuses a partition that the topic was given since the project declared how many it has.
pub fn is_declared(consumer: &str, at: &TopicPartition, declared: Option<u32>) -> Result<(), Halt> {
    let Some(declared) = declared.filter(|declared| i64::from(at.partition) >= i64::from(*declared)) else {
        return Ok(());
    };
    Err(Halt {
        code: "partitions_added",
        reason: format!(
            "the topic of {at} is declared with {declared} partitions and was given more: who places keys by their number \
             writes to this one what belongs behind records of another; to read it all the same, wait until {consumer} has \
             applied the others, say the new number in the producer folder (`partitions = N`), start the processes with the \
             roles ingest, consume and publish anew, and run `millpond consumer restart {consumer}`"
        ),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{kafka::Record, store::fence::LastApplied};

    fn record(payload: &str) -> Record {
        Record {
            topic: "t".into(),
            partition: 0,
            offset: 6,
            timestamp: None,
            key: Some(b"k".to_vec()),
            payload: Some(payload.into()),
            headers: Vec::new(),
        }
    }

    /// A fence at offset 7 whose last record was `old`.
    fn claim() -> Claim {
        let checksum = prepare::checksum(Some(b"k"), Some(b"old"));
        Claim {
            at: TopicPartition::new("t", 0),
            number: 1,
            owner: Uuid::nil(),
            epoch: 1,
            next_offset: 7,
            out_seq: 0,
            last: Some(LastApplied { offset: 6, timestamp: 0, checksum }),
            log_time: None,
            previous_owner: None,
        }
    }

    fn code(low: i64, high: i64, last: Option<&str>) -> Option<&'static str> {
        let found = Inspected { low, high, last: last.map(record) };
        compare("sums", &claim(), &found).err().map(|halt| {
            assert!(halt.reason.contains("`millpond consumer restart sums --"), "{}", halt.reason);
            halt.code
        })
    }

    #[test]
    fn log_is_the_one_that_was_applied_or_says_how_it_is_not() {
        assert_eq!(code(0, 7, Some("old")), None);
        assert_eq!(code(7, 7, None), None);
        assert_eq!(code(0, 6, None), Some("log_is_shorter"));
        assert_eq!(code(8, 9, None), Some("log_was_cut"));
        // What was lost may have been written over: then only the record tells.
        assert_eq!(code(0, 7, Some("new")), Some("log_is_another"));
        assert_eq!(code(0, 900, Some("new")), Some("log_is_another"));
    }

    #[test]
    fn partition_beyond_the_declared_ones_is_refused_and_every_other_is_not() {
        let at = |partition| TopicPartition::new("t", partition);
        let halt = is_declared("sums", &at(3), Some(3)).unwrap_err();
        assert!(halt.reason.ends_with("`millpond consumer restart sums`") && halt.reason.contains("t/3"), "{halt:?}");
        assert!(is_declared("sums", &at(2), Some(3)).is_ok() && is_declared("sums", &at(2), None).is_ok());
    }
}
