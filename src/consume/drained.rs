//! What a transaction does to records that were set aside before: it takes them away with what they became, or sets one of
//! them back. Beside the fence, which stays where it is.

use super::{
    dead_letter::{DeadLetter, retry_at_sql},
    engine::Engine,
    verdict::Decision,
};
use crate::{
    domain::{TopicPartition, literal},
    planted::{self, Bug},
    store::parked::{Lane, SetAside},
};

/// Records of one lane in the order of their offsets.
pub struct Drained<'a> {
    pub lane: Lane,
    pub outcome: Outcome<'a>,
}

pub enum Outcome<'a> {
    /// They are applied, or passed over where that was wanted.
    Settled(&'a [SetAside]),
    /// The first record that waits has failed again.
    SetBack {
        row: &'a SetAside,
        /// With its new reason.
        letter: DeadLetter<'a>,
        what: SetBack,
    },
}

/// What becomes of a record that has failed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetBack {
    /// Its key waits for somebody to decide.
    Waits,
    /// It is tried again by itself; so many attempts were made.
    Retried(i32),
    /// It holds its key up no longer.
    Dead,
}

/// Where a parked key goes on.
struct Next {
    head: Option<i64>,
    goes_on: bool,
    /// Records that wait no longer.
    gone: usize,
}

impl Drained<'_> {
    /// The statements, to follow that of the fence.
    pub fn sql(&self, engine: &Engine, at: &TopicPartition) -> String {
        let place =
            format!("{}, {}, {}, {}", literal(&engine.projection), engine.version, literal(&at.topic), at.partition);
        match &self.outcome {
            Outcome::Settled(rows) => {
                let offsets: Vec<String> = rows.iter().map(|row| row.offset.to_string()).collect();
                let revisions: i64 = rows.iter().map(|row| row.revision).sum();
                let settle =
                    format!("select millpond.settle({place}, '{{{}}}'::bigint[], {revisions});\n", offsets.join(","));
                settle + &self.moved_sql(&place)
            }
            Outcome::SetBack { row, letter, what } => {
                let dead = *what == SetBack::Dead;
                let set_back = format!(
                    "select millpond.set_back({place}, {}, {}, {}, {}, {dead});\n",
                    row.offset,
                    row.revision,
                    literal(letter.fault.class),
                    literal(&letter.fault.reason),
                );
                set_back + &self.moved_sql(&place)
            }
        }
    }

    fn moved_sql(&self, place: &str) -> String {
        let Lane::Key(parked_at) = self.lane else { return String::new() };
        let this = format!("where (projection, version, topic, partition) = ({place}) and parked_at = {parked_at}");
        if let Outcome::SetBack { what: SetBack::Waits, .. } = self.outcome {
            return format!(
                "update millpond.parked_keys set state = 'parked', retry_at = null, attempts = 0 {this};\n"
            );
        }
        if let Outcome::SetBack { what: SetBack::Retried(attempts), .. } = self.outcome {
            let retry_at = retry_at_sql(attempts);
            return format!(
                "update millpond.parked_keys set state = 'parked', attempts = {attempts}, retry_at = {retry_at} {this};\n"
            );
        }
        let Next { head, goes_on, gone } = self.next();
        let Some(head) = head else { return format!("delete from millpond.parked_keys {this};\n") };
        let state = if goes_on { "draining" } else { "parked" };
        format!(
            "update millpond.parked_keys set head = {head}, records = records - {gone}, state = '{state}', attempts = 0, \
             retry_at = null {this};\n"
        )
    }

    fn next(&self) -> Next {
        let (last, gone) = match &self.outcome {
            Outcome::Settled(rows) => (rows.last(), rows.len()),
            Outcome::SetBack { row, .. } => (Some(*row), 1),
        };
        let last = last.filter(|_| !planted::is(Bug::ReleasedEarly));
        let (head, goes_on) = last.map_or((None, false), |row| (row.next, row.next_goes_on));
        Next { head, goes_on, gone }
    }

    /// Whether nothing of the key waits any more.
    pub fn is_released(&self) -> bool {
        let moved = !matches!(self.outcome, Outcome::SetBack { what: SetBack::Waits | SetBack::Retried(_), .. });
        matches!(self.lane, Lane::Key(_)) && moved && self.next().head.is_none()
    }

    /// Whether there is more to do in the lane at once.
    pub fn goes_on(&self) -> bool {
        match self.outcome {
            Outcome::SetBack { what: SetBack::Waits | SetBack::Retried(_), .. } => self.lane == Lane::Dead,
            _ => self.next().goes_on,
        }
    }

    /// What has to be written down of it, for whoever reads the log again.
    pub fn decisions(&self) -> Vec<Decision> {
        match &self.outcome {
            Outcome::Settled(rows) => rows.iter().filter_map(Decision::of).collect(),
            Outcome::SetBack { .. } => Vec::new(),
        }
    }

    /// A record that only waited until now is told to the topic of dead letters when it fails itself.
    pub fn mirror(&self) -> Option<&DeadLetter<'_>> {
        match &self.outcome {
            Outcome::SetBack { row, letter, .. } if row.class == super::parked::WAITS => Some(letter),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::parked::Wish;

    fn row(offset: i64, next: Option<i64>, goes_on: bool) -> SetAside {
        SetAside {
            offset,
            timestamp: 0,
            key: Some(b"k".to_vec()),
            headers: serde_json::json!([]),
            payload: None,
            edited: None,
            class: "waits".to_owned(),
            reason: String::new(),
            wanted: Some(Wish::Apply).filter(|_| offset == 1),
            wanted_by: None,
            revision: offset,
            retry: false,
            next,
            next_goes_on: goes_on,
        }
    }

    #[test]
    fn key_moves_on_to_what_waits_behind_and_is_released_with_its_last_record() {
        let rows = [row(1, Some(4), true), row(4, Some(9), false)];
        let drained = |rows| Drained { lane: Lane::Key(1), outcome: Outcome::Settled(rows) };
        let sql = drained(&rows).moved_sql("p");
        assert!(sql.contains("head = 9, records = records - 2, state = 'parked'"), "{sql}");
        assert!(!drained(&rows).goes_on() && !drained(&rows).is_released());
        assert!(drained(&rows[..1]).goes_on());
        let last = [row(9, None, false)];
        assert!(drained(&last).is_released() && drained(&last).moved_sql("p").starts_with("delete from"));
        // The wish of the head is written down, and of what only waited nothing is.
        assert_eq!(drained(&rows).decisions().len(), 1);
    }
}
