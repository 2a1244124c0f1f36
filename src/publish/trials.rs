//! Source partitions with something that could not be sent: they are tried apart from the others, with fewer rows, until it
//! is known which row it is. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::RETRY;
use crate::{
    kafka::{Failed, Reason},
    store::outbox::Lane,
};

/// Longest pause between two tries of a row that was refused. Each costs the others a transaction and the start of a
/// producer, about a second.
const LONGEST: Duration = Duration::from_secs(15);
/// So many transactions of as many rows as went well before more are tried where more did not.
const PATIENCE: u32 = 16;

/// The source partitions that are not like the others.
#[derive(Debug, Default)]
pub struct Trials(BTreeMap<Lane, Trial>);

#[derive(Debug)]
struct Trial {
    /// It is tried alone, from then on; none: it goes with the others.
    alone_from: Option<Instant>,
    pause: Duration,
    /// Rows of it in one transaction.
    most: usize,
    /// What `most` grows to; beyond it only with patience.
    ceiling: usize,
    went_well: u32,
    /// Why it waits, as the log was told.
    said: String,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            alone_from: None,
            pause: RETRY,
            most: usize::MAX,
            ceiling: usize::MAX,
            went_well: 0,
            said: String::new(),
        }
    }
}

/// What a transaction failed over, of one source partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// How many rows it had in the transaction.
    pub rows: usize,
    /// The first of them that was not taken; all before it were.
    pub first: usize,
    pub reason: Reason,
    /// It may be another's.
    pub shared: bool,
}

impl Trials {
    /// Those that are not to be in the transaction of all others.
    pub fn apart(&self) -> Vec<&Lane> {
        self.0.iter().filter(|(_, trial)| trial.alone_from.is_some()).map(|(lane, _)| lane).collect()
    }

    /// The one that is to be tried alone now.
    pub fn due(&self, now: Instant) -> Option<Lane> {
        let due = self.0.iter().filter_map(|(lane, trial)| Some((trial.alone_from.filter(|at| *at <= now)?, lane)));
        due.min().map(|(_, lane)| lane.clone())
    }

    /// How many of its rows one transaction may have.
    pub fn most(&self, lane: &Lane) -> usize {
        self.0.get(lane).map_or(usize::MAX, |trial| trial.most)
    }

    /// Its first row cannot be sent now, as is known without trying. Whether that is news.
    pub fn rest(&mut self, lane: &Lane, why: &str, now: Instant) -> bool {
        let trial = self.0.entry(lane.clone()).or_default();
        trial.alone_from = Some(now + RETRY);
        trial.say(why)
    }

    /// A transaction failed over it. Whether it is known now that it is its first row, and that is news.
    pub fn failed(&mut self, lane: &Lane, fault: &Fault, why: &str, now: Instant) -> bool {
        let trial = self.0.entry(lane.clone()).or_default();
        trial.went_well = 0;
        trial.alone_from = Some(now);
        if fault.shared {
            return false;
        }
        if fault.rows > 1 {
            trial.narrow(fault);
            return false;
        }
        trial.most = 1;
        // It is the row, not how many there were.
        trial.ceiling = usize::MAX;
        trial.alone_from = Some(now + trial.pause);
        trial.pause = (trial.pause * 2).min(LONGEST);
        trial.say(why)
    }

    /// A transaction with so many of its rows was committed.
    pub fn went_well(&mut self, lane: &Lane, rows: usize) {
        let Some(trial) = self.0.get_mut(lane) else { return };
        trial.alone_from = None;
        trial.pause = RETRY;
        trial.said.clear();
        if trial.ceiling == usize::MAX {
            // It was a row, which is gone.
            self.0.remove(lane);
        } else if rows >= trial.most {
            // Fewer than it might have had say nothing of more.
            trial.grow();
        }
    }
}

impl Trial {
    fn say(&mut self, why: &str) -> bool {
        let is_news = self.said != why;
        why.clone_into(&mut self.said);
        is_news
    }

    fn narrow(&mut self, fault: &Fault) {
        let may_be_size = matches!(fault.reason, Reason::RecordTooLarge | Reason::Rejected);
        self.most = match fault.first {
            // What is before it can leave.
            first if first > 0 => first,
            // The broker takes or refuses batches, not records.
            _ if may_be_size => fault.rows / 2,
            _ => 1,
        };
        if may_be_size && fault.first == 0 {
            self.ceiling = self.most;
        }
    }

    fn grow(&mut self) {
        if self.most >= self.ceiling {
            self.went_well += 1;
            if self.went_well < PATIENCE {
                return;
            }
            self.went_well = 0;
            self.ceiling = self.ceiling.saturating_mul(2);
        }
        self.most = self.most.saturating_mul(2).min(self.ceiling);
    }
}

/// Which source partitions a transaction failed over. `rows` has how many each had, in the order of sending.
#[derive(Debug, PartialEq, Eq)]
pub enum Blame {
    /// These, by their number.
    Lanes(Vec<(usize, Fault)>),
    /// Not the records: the brokers, the network, another relay.
    Nobody,
}

pub fn blame(failed: &Failed, rows: &[usize]) -> Blame {
    if failed.error.is_fenced() {
        return Blame::Nobody;
    }
    let certain = faults(failed, rows, Reason::is_definite);
    if !certain.is_empty() {
        return Blame::Lanes(certain);
    }
    // That some were acknowledged says that it is not the brokers.
    if failed.written > 0 {
        let late = faults(failed, rows, |reason| matches!(reason, Reason::TimedOut | Reason::NotEnoughReplicas));
        if !late.is_empty() {
            return Blame::Lanes(late);
        }
    }
    let Some(reason) = failed.error.refusal() else { return Blame::Nobody };
    let shared = rows.len() > 1;
    let all = rows.iter().enumerate().map(|(lane, rows)| (lane, Fault { rows: *rows, first: 0, reason, shared }));
    Blame::Lanes(all.collect())
}

/// The first record of each source partition that failed for such a reason.
fn faults(failed: &Failed, rows: &[usize], is_such: impl Fn(Reason) -> bool) -> Vec<(usize, Fault)> {
    let (mut found, mut begin) = (Vec::new(), 0);
    for (lane, rows) in rows.iter().enumerate() {
        let end = begin + rows;
        let of_lane =
            failed.records.iter().filter(|(number, reason)| (begin..end).contains(number) && is_such(*reason));
        if let Some((number, reason)) = of_lane.min_by_key(|(number, _)| *number) {
            let fault = Fault { rows: *rows, first: number - begin, reason: *reason, shared: false };
            found.push((lane, fault));
        }
        begin = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kafka::Error;

    fn lane(partition: i32) -> Lane {
        Lane { projection: "p".into(), topic: "t".into(), partition }
    }

    fn failed(records: &[(usize, Reason)], written: usize) -> Failed {
        let error = Error::Timeout { action: "commit".into(), seconds: 1 };
        Failed { error, records: records.to_vec(), written }
    }

    fn fault(rows: usize, first: usize, reason: Reason) -> Fault {
        Fault { rows, first, reason, shared: false }
    }

    #[test]
    fn refused_record_is_its_source_partitions_fault_and_late_ones_only_where_others_were_in_time() {
        let refused = failed(&[(4, Reason::RecordTooLarge), (1, Reason::TimedOut), (3, Reason::RecordTooLarge)], 2);
        assert_eq!(blame(&refused, &[2, 5]), Blame::Lanes(vec![(1, fault(5, 1, Reason::RecordTooLarge))]));
        let late = [(0, Reason::TimedOut), (1, Reason::TimedOut)];
        assert_eq!(blame(&failed(&late, 0), &[2, 5]), Blame::Nobody);
        assert_eq!(blame(&failed(&late, 3), &[2, 5]), Blame::Lanes(vec![(0, fault(2, 0, Reason::TimedOut))]));
        // A marker's number is beyond all rows.
        assert_eq!(blame(&failed(&[(7, Reason::TimedOut)], 3), &[2, 5]), Blame::Nobody);
    }

    /// Tries one source partition until it waits or is done; the transactions that failed, and what is left.
    fn play(trials: &mut Trials, rows: &mut Vec<bool>, batch: usize) -> usize {
        let (now, mut failures) = (Instant::now(), 0);
        while !rows.is_empty() {
            let sent = rows.len().min(trials.most(&lane(0)));
            // The broker takes or refuses so many at once.
            let refused = rows[..sent].chunks(batch).position(|batch| batch.contains(&true));
            let Some(at) = refused else {
                rows.drain(..sent);
                trials.went_well(&lane(0), sent);
                continue;
            };
            failures += 1;
            let fault = fault(sent, at * batch, Reason::RecordTooLarge);
            if trials.failed(&lane(0), &fault, "too large", now) {
                assert_eq!(trials.due(now), None, "it rests");
                break;
            }
            assert_eq!(trials.due(now), Some(lane(0)));
        }
        failures
    }

    proptest! {
        #[test]
        fn rows_before_the_one_that_is_refused_leave_and_it_is_found_soon(
            before in 0..3000_usize, behind in 0..3000_usize, batch in 1..400_usize,
        ) {
            let mut trials = Trials::default();
            let mut rows: Vec<bool> = (0..before + 1 + behind).map(|at| at == before).collect();
            let failures = play(&mut trials, &mut rows, batch);
            prop_assert_eq!(rows.len(), behind + 1);
            prop_assert!(rows[0]);
            prop_assert!(failures <= 40, "{} failures", failures);
            // Once it is taken, all others follow, with more and more of them at once.
            rows[0] = false;
            prop_assert_eq!(play(&mut trials, &mut rows, batch), 0);
            prop_assert!(trials.apart().is_empty());
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_are_said_once() {
        let (mut trials, now) = (Trials::default(), Instant::now());
        let one = fault(1, 0, Reason::Unauthorized);
        let said: Vec<bool> = (0..6).map(|_| trials.failed(&lane(1), &one, "no rights", now)).collect();
        assert_eq!(said, [true, false, false, false, false, false]);
        assert_eq!(trials.due(now + LONGEST - Duration::from_millis(1)), None);
        assert_eq!(trials.due(now + LONGEST), Some(lane(1)));
        assert!(trials.rest(&lane(1), "no such topic", now));
        trials.went_well(&lane(1), 1);
        assert!(trials.due(now + LONGEST).is_none());
    }

    #[test]
    fn those_that_may_be_innocent_are_tried_alone_with_all_their_rows() {
        let (mut trials, now) = (Trials::default(), Instant::now());
        let shared = Fault { shared: true, ..fault(500, 0, Reason::Unauthorized) };
        for partition in 0..3 {
            assert!(!trials.failed(&lane(partition), &shared, "no rights", now));
        }
        assert_eq!((trials.apart().len(), trials.most(&lane(0))), (3, usize::MAX));
        trials.went_well(&lane(0), 500);
        assert_eq!((trials.apart().len(), trials.due(now)), (2, Some(lane(1))));
    }
}
