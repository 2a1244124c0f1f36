//! What a batch does, decided before it is sent: which records are repeated, wait, fail or are applied; and which of those
//! that stand aside come back.
//!
//! It reads what is committed now. Whether that is still so when the batch arrives is for the fence to say.

use std::collections::{BTreeMap, BTreeSet};

use crate::log::{Kind, Log, Record};
use crate::rules::{Bug, Rules};
use crate::store::{Aside, Database, Effect, EventId, Verdict, Why, Wish};

/// What an edit makes of a payload.
pub const EDITED: u32 = 100_000;

/// What is decided with.
pub struct Desk<'a> {
    pub rules: Rules,
    pub db: &'a Database,
    pub partition: usize,
    /// The record that Postgres is known to refuse, when it was alone in its batch.
    pub suspect: Option<i64>,
    /// The record that the crash guard has set aside.
    pub condemned: Option<i64>,
    /// For a planted bug: the last number of the sequence that all partitions share.
    pub sequence: i64,
}

/// What a batch does.
#[derive(Debug, Default)]
pub struct Decided {
    pub effects: Vec<Effect>,
    pub log_time: i64,
    /// Keys that it parks, or releases.
    pub parks: Vec<u8>,
    pub releases: Option<u8>,
    /// Records of a drain.
    pub drained: usize,
    /// The record that a drain begins with.
    pub first: Option<i64>,
}

impl Desk<'_> {
    /// What becomes of these records when they follow what was applied up to `log_time` with these keys parked.
    pub fn batch(&mut self, records: &[Record], log_time: i64, parked: &BTreeSet<u8>) -> Decided {
        let mut parked = parked.clone();
        let mut decided = Decided { log_time, ..Decided::default() };
        let latest = records.iter().map(|record| record.time).max().unwrap_or(0);
        let mut fresh: BTreeMap<u8, (u32, i64)> = BTreeMap::new();
        for record in records {
            let time = if self.rules.has(Bug::LogTimeOfBatch) { latest } else { record.time };
            decided.log_time = decided.log_time.max(time);
            if let Some(id) = record.id.filter(|_| !self.rules.has(Bug::SeenSkipped)) {
                let known = fresh.get(&id).or_else(|| self.db.seen.get(&(self.partition, id)));
                match known {
                    Some((payload, seen)) if decided.log_time - seen <= self.rules.window => {
                        if *payload != record.payload {
                            self.set_aside(record, Why::Conflict, &mut decided);
                        }
                        continue;
                    }
                    _ => {
                        let (payload, time) = (record.payload, decided.log_time);
                        fresh.insert(id, (payload, time));
                        decided.effects.push(Effect::Seen { id, payload, time });
                    }
                }
            }
            self.record(record, &mut parked, &mut decided);
        }
        decided
    }

    fn record(&mut self, record: &Record, parked: &mut BTreeSet<u8>, decided: &mut Decided) {
        let place = (self.partition, record.offset);
        let before = decided.effects.len();
        if parked.contains(&record.key) {
            self.set_aside(record, Why::Waits, decided);
            self.forget(before, decided);
            return;
        }
        let verdict = self.db.verdicts.get(&place).filter(|_| !self.rules.has(Bug::VerdictIgnored));
        let condemned = self.condemned == Some(record.offset);
        let fails = match verdict {
            Some(Verdict::Discard) => return,
            Some(Verdict::Edit) => return self.apply(record, record.payload + EDITED, decided),
            Some(Verdict::DeadLetter) => true,
            Some(Verdict::Apply) | None => {
                condemned || record.kind == Kind::Undecodable || self.suspect == Some(record.offset)
            }
        };
        if !fails {
            return self.apply(record, record.payload, decided);
        }
        self.set_aside(record, Why::Failed, decided);
        self.forget(before, decided);
        if condemned {
            let verdict = Verdict::DeadLetter;
            decided.effects.push(Effect::Verdict { offset: record.offset, verdict });
        }
        if self.rules.park {
            decided.effects.push(Effect::Park { key: record.key });
            decided.parks.push(record.key);
            if !self.rules.has(Bug::OvertakenInBatch) {
                parked.insert(record.key);
            }
        }
    }

    /// For a planted bug: what is set aside was never seen.
    fn forget(&self, before: usize, decided: &mut Decided) {
        if self.rules.has(Bug::DeadNotSeen)
            && matches!(decided.effects.get(before.wrapping_sub(1)), Some(Effect::Seen { .. }))
        {
            decided.effects.remove(before - 1);
        }
    }

    fn apply(&mut self, record: &Record, payload: u32, decided: &mut Decided) {
        let Record { key, offset, .. } = *record;
        let refused = record.kind == Kind::Refused && payload < EDITED;
        decided.effects.push(Effect::Apply { key, offset, payload, refused });
        if record.emits {
            self.emit(offset, false, decided);
        }
    }

    fn emit(&mut self, offset: i64, mirror: bool, decided: &mut Decided) {
        self.sequence += 1;
        let id = EventId { place: (self.partition, offset), mirror };
        decided.effects.push(Effect::Emit { id, sequence: self.sequence });
    }

    /// Sets a record aside. What fails has a mirror in Kafka, what only waits has none.
    fn set_aside(&mut self, record: &Record, why: Why, decided: &mut Decided) {
        let Record { key, offset, .. } = *record;
        decided.effects.push(Effect::SetAside { offset, key, why });
        if why != Why::Waits {
            self.emit(offset, true, decided);
        }
    }

    /// What is to be taken back of a parked key: at most so many records from the first one on, as far as all is decided
    /// and nothing fails. None when the first one waits for an operator.
    pub fn drain(&mut self, log: &Log, key: u8, most: usize) -> Option<Decided> {
        let mut queue = self.db.queue((self.partition, key));
        if self.rules.has(Bug::DrainOutOfOrder) {
            queue.sort_by_key(|(_, aside)| aside.wish.is_none());
        }
        let (first, head) = *queue.first()?;
        if head.why == Why::Failed && head.wish.is_none() {
            return None;
        }
        let mut decided = Decided { first: Some(first), ..Decided::default() };
        for (offset, aside) in queue.iter().take(most) {
            if aside.why == Why::Failed && aside.wish.is_none() {
                break;
            }
            let record = log.at(self.partition, *offset);
            if self.fails_again(&record, *aside) {
                if decided.drained == 0 {
                    self.new_head(&record, *aside, &mut decided);
                }
                return Some(decided);
            }
            self.take_back(&record, *aside, &mut decided);
        }
        if decided.drained == queue.len() || self.rules.has(Bug::ParkReleasedEarly) {
            decided.effects.push(Effect::Release { key });
            decided.releases = Some(key);
        }
        Some(decided)
    }

    fn fails_again(&self, record: &Record, aside: Aside) -> bool {
        let at_fault = record.kind == Kind::Undecodable
            || self.suspect == Some(record.offset)
            || self.condemned == Some(record.offset)
            || self.db.verdicts.get(&(self.partition, record.offset)) == Some(&Verdict::DeadLetter);
        at_fault && !matches!(aside.wish, Some(Wish::Edit | Wish::Discard))
    }

    /// A record that could not be taken back: its key goes on waiting for an operator, from this one on.
    fn new_head(&mut self, record: &Record, aside: Aside, decided: &mut Decided) {
        let Record { key, offset, .. } = *record;
        decided.effects.push(Effect::SetAside { offset, key, why: Why::Failed });
        if aside.why == Why::Waits {
            self.emit(offset, true, decided);
        }
        if self.condemned == Some(offset) {
            decided.effects.push(Effect::Verdict { offset, verdict: Verdict::DeadLetter });
        }
    }

    fn take_back(&mut self, record: &Record, aside: Aside, decided: &mut Decided) {
        let offset = record.offset;
        let verdict = match aside.wish {
            Some(Wish::Discard) => Verdict::Discard,
            Some(Wish::Edit) => Verdict::Edit,
            Some(Wish::Redrive) | None => Verdict::Apply,
        };
        match verdict {
            Verdict::Edit => self.apply(record, record.payload + EDITED, decided),
            Verdict::Apply => self.apply(record, record.payload, decided),
            Verdict::Discard | Verdict::DeadLetter => {}
        }
        decided.effects.push(Effect::Resolve { offset });
        if !self.rules.has(Bug::VerdictNotWritten) {
            decided.effects.push(Effect::Verdict { offset, verdict });
        }
        decided.drained += 1;
    }
}
