//! Why a partition halts: a stable code, which the runbook has a page for, and a sentence that ends with what to type.
//! Those about the log itself are in `compare`.

use super::{
    parked::{MAX_KEY_BYTES, MAX_KEYS},
    prepare::Fault,
};
use crate::{
    domain::TopicPartition,
    store::{self, fence::Halt},
};

/// A record that cannot be applied, under `on_error = "halt"`.
pub fn poison(consumer: &str, at: &TopicPartition, offset: i64, fault: &Fault) -> Halt {
    Halt {
        code: "poison",
        reason: format!(
            "the record at {at} offset {offset} cannot be applied: {}; to build the tables anew from a mended folder, beside these, \
             run `millpond rebuild {consumer}`; to set the record aside, set on_error = \"skip\" in the \
             folder, or \"park_key\" to have it and the later records of its key wait for a decision, restart the processes \
             with the role consume, and run `millpond consumer restart {consumer}`",
            fault.reason
        ),
    }
}

/// An error that no record is to blame for: of the handler, or of the statements.
pub fn deploy(consumer: &str, error: &store::Error) -> Halt {
    if matches!(error, store::Error::Refused(_)) {
        return Halt {
            code: "handler_is_wrong",
            reason: format!(
                "{error}; mend the handler of consumer {consumer}, start the processes with the role consume anew, then run \
                 `millpond consumer restart {consumer}`; with another `revision`, `millpond rebuild {consumer}`"
            ),
        };
    }
    Halt {
        code: "statements_do_not_fit",
        reason: format!(
            "the statements of consumer {consumer} failed: {error}; undo what was changed in the database and run \
             `millpond consumer restart {consumer}`, or empty its tables and read the log again with `millpond consumer restart \
             {consumer} --from-zero`"
        ),
    }
}

/// A panic, most likely in a handler: the same records would bring it about again.
pub fn panicked(consumer: &str, at: &TopicPartition, next_offset: i64, message: &str) -> Halt {
    Halt {
        code: "panicked",
        reason: format!(
            "applying {at} from offset {next_offset} on panicked: {message}; mend the handler, start the processes with the \
             role consume anew, then run `millpond consumer restart {consumer}`; with another `revision`, `millpond rebuild \
             {consumer}`"
        ),
    }
}

/// Too many records failed within a minute.
pub fn breaker(consumer: &str, failures: usize, records: usize) -> Halt {
    Halt {
        code: "breaker",
        reason: format!(
            "{failures} of {records} records of {consumer} failed within a minute, which looks like a faulty deploy rather \
             than faulty data; look at the reasons with `millpond dlq list {consumer}`, stop what sends such records or mend the \
             folder, then run `millpond consumer restart {consumer}`, with --no-breaker where all that is left of them may be \
             set aside"
        ),
    }
}

/// More keys are parked than a worker keeps in mind.
pub fn too_many_parked_keys(consumer: &str, at: &TopicPartition) -> Halt {
    Halt {
        code: "too_many_parked_keys",
        reason: format!(
            "more than {MAX_KEYS} keys of {at}, or of {} MiB together, would be parked, which is no longer a matter of single \
             records; mend the cause, decide about those that wait with `millpond dlq redrive {consumer} --all` or `millpond dlq discard {consumer} \
             --all`, then run `millpond consumer restart {consumer}`",
            MAX_KEY_BYTES >> 20
        ),
    }
}
