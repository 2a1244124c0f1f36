//! Postgres: fences, rows, what is set aside, verdicts, ids that were seen, the outbox. A request is a transaction: all of
//! it or nothing, one after another. Who sent it may be gone by the time it arrives.

use std::collections::{BTreeMap, BTreeSet};

use crate::log::PARTITIONS;
use crate::rules::{Bug, Rules};

/// A partition and a key of it, and a partition and an offset of it.
pub type Key = (usize, u8);
pub type Place = (usize, i64);

/// Attempts that a record gets before it is taken for what ends processes.
pub const ATTEMPTS: i64 = 3;

#[derive(Debug, Clone, Default)]
pub struct Fence {
    pub next: i64,
    pub epoch: i64,
    pub owner: Option<u32>,
    pub out_seq: i64,
    pub log_time: i64,
    /// How often what begins at an offset was begun and not ended.
    attempts: (i64, i64),
}

/// Why a record stands aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It cannot be applied.
    Failed,
    /// A record of its key before it failed.
    Waits,
    /// Its id stands for another event.
    Conflict,
}

/// What an operator wants done with a record that stands aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Redrive,
    Edit,
    Discard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside {
    pub key: u8,
    pub why: Why,
    pub wish: Option<Wish>,
}

/// What was decided about a record, for whoever reads the log again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Apply,
    Edit,
    Discard,
    /// The crash guard's.
    DeadLetter,
}

/// What leaves: the event that follows from a record, or the mirror of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    pub place: Place,
    pub mirror: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub id: EventId,
    /// Given while the transaction was open; only a planted bug looks at it.
    pub sequence: i64,
}

/// A part of a batch's transaction.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    Apply {
        key: u8,
        offset: i64,
        payload: u32,
        refused: bool,
    },
    Emit {
        id: EventId,
        sequence: i64,
    },
    SetAside {
        offset: i64,
        key: u8,
        why: Why,
    },
    /// It stands aside no more.
    Resolve {
        offset: i64,
    },
    Park {
        key: u8,
    },
    Release {
        key: u8,
    },
    Seen {
        id: u8,
        payload: u32,
        time: i64,
    },
    Verdict {
        offset: i64,
        verdict: Verdict,
    },
}

/// Who asks: the owner of a partition in an epoch.
#[derive(Debug, Clone, Copy)]
pub struct Title {
    pub partition: usize,
    pub owner: u32,
    pub epoch: i64,
}

#[derive(Debug, Clone)]
pub struct Batch {
    pub title: Title,
    pub from: i64,
    pub to: i64,
    pub log_time: i64,
    pub effects: Vec<Effect>,
    /// A part that a planted bug commits before the rest, without the fence.
    pub loose: bool,
}

#[derive(Debug, Clone)]
pub enum Request {
    Claim {
        partition: usize,
        owner: u32,
    },
    Release(Title),
    /// An attempt at what begins at an offset is begun; `anew` when this process has outlived one there.
    Begin {
        title: Title,
        at: i64,
        anew: bool,
    },
    /// The process has outlived it.
    End(Title),
    Batch(Batch),
}

#[derive(Debug, Clone)]
pub enum Reply {
    Claimed {
        owner: u32,
        fence: Fence,
        previous: Option<u32>,
        parked: BTreeSet<u8>,
    },
    Begun(i64),
    /// What had to be done before a batch is done.
    Before,
    Done,
    Fenced,
    Deadlock,
    /// A record of the batch cannot be applied.
    Refused,
}

/// A step of a fence: partition, epoch, from, to.
pub type FenceStep = (usize, i64, i64, i64);

#[derive(Debug, Clone, Default)]
pub struct Database {
    pub fences: [Fence; PARTITIONS],
    /// Per key what was applied, in its order: offset and payload.
    pub rows: BTreeMap<Key, Vec<(i64, u32)>>,
    pub aside: BTreeMap<Place, Aside>,
    pub parked: BTreeSet<Key>,
    pub verdicts: BTreeMap<Place, Verdict>,
    /// Ids with payload and log time.
    pub seen: BTreeMap<Key, (u32, i64)>,
    pub outbox: BTreeMap<Place, Row>,
    /// All that was ever put into the outbox.
    pub emitted: Vec<(usize, EventId)>,
    pub steps: Vec<FenceStep>,
}

impl Database {
    pub fn execute(&mut self, request: Request, rules: Rules) -> Reply {
        match request {
            Request::Claim { partition, owner } => {
                let fence = &mut self.fences[partition];
                fence.epoch += 1;
                let previous = fence.owner.replace(owner);
                let parked = self.parked.iter().filter(|(at, _)| *at == partition).map(|(_, key)| *key).collect();
                Reply::Claimed { owner, fence: fence.clone(), previous, parked }
            }
            Request::Release(title) => {
                if self.holds(title) {
                    self.fences[title.partition].owner = None;
                }
                Reply::Before
            }
            Request::Begin { title, at, anew } => {
                if !self.holds(title) {
                    return Reply::Begun(1);
                }
                let attempts = &mut self.fences[title.partition].attempts;
                *attempts = (at, if attempts.0 == at && !anew { attempts.1 + 1 } else { 1 });
                Reply::Begun(attempts.1)
            }
            Request::End(title) => {
                if self.holds(title) {
                    let attempts = &mut self.fences[title.partition].attempts;
                    attempts.1 = (attempts.1 - ATTEMPTS - 1).max(0);
                }
                Reply::Before
            }
            Request::Batch(batch) => self.batch(&batch, rules),
        }
    }

    fn holds(&self, title: Title) -> bool {
        let fence = &self.fences[title.partition];
        fence.owner == Some(title.owner) && fence.epoch == title.epoch
    }

    fn batch(&mut self, batch: &Batch, rules: Rules) -> Reply {
        let Title { partition, .. } = batch.title;
        let at = self.fences[partition].next;
        let drains = batch.from == batch.to;
        let mine = self.holds(batch.title) || rules.has(Bug::OwnerDropped);
        let there = at == batch.from
            || rules.has(Bug::OffsetDropped)
            || (rules.has(Bug::OffsetMayBePassed) && at <= batch.from);
        let excused = batch.loose || (drains && rules.has(Bug::DrainUnfenced));
        let allowed = excused || (mine && there);
        if !allowed {
            return Reply::Fenced;
        }
        if batch.effects.iter().any(|effect| matches!(effect, Effect::Apply { refused: true, .. })) {
            return Reply::Refused;
        }
        for effect in &batch.effects {
            self.effect(partition, *effect);
        }
        if batch.loose {
            return Reply::Before;
        }
        let fence = &mut self.fences[partition];
        self.steps.push((partition, fence.epoch, fence.next, batch.to));
        fence.next = batch.to;
        fence.log_time = fence.log_time.max(batch.log_time);
        Reply::Done
    }

    fn effect(&mut self, partition: usize, effect: Effect) {
        match effect {
            Effect::Apply { key, offset, payload, .. } => {
                self.rows.entry((partition, key)).or_default().push((offset, payload));
            }
            Effect::Emit { id, sequence } => {
                let fence = &mut self.fences[partition];
                fence.out_seq += 1;
                self.outbox.insert((partition, fence.out_seq), Row { id, sequence });
                self.emitted.push((partition, id));
            }
            Effect::SetAside { offset, key, why } => {
                self.aside.insert((partition, offset), Aside { key, why, wish: None });
            }
            Effect::Resolve { offset } => drop(self.aside.remove(&(partition, offset))),
            Effect::Park { key } => drop(self.parked.insert((partition, key))),
            Effect::Release { key } => drop(self.parked.remove(&(partition, key))),
            Effect::Seen { id, payload, time } => drop(self.seen.insert((partition, id), (payload, time))),
            Effect::Verdict { offset, verdict } => drop(self.verdicts.insert((partition, offset), verdict)),
        }
    }

    /// The records of a key that stand aside in order: the failed one, and those that wait for it.
    pub fn queue(&self, (partition, key): Key) -> Vec<(i64, Aside)> {
        let of_partition = self.aside.range((partition, i64::MIN)..=(partition, i64::MAX));
        let of_key = of_partition.filter(|(_, aside)| aside.key == key && aside.why != Why::Conflict);
        of_key.map(|((_, offset), aside)| (*offset, *aside)).collect()
    }

    /// Removes ids that no decision needs any more.
    pub fn purge(&mut self, partition: usize, rules: Rules) {
        let window = if rules.has(Bug::PurgedEarly) { rules.window / 2 } else { rules.window };
        let now = self.fences[partition].log_time;
        self.seen.retain(|(at, _), (_, time)| *at != partition || now - *time <= window);
    }

    /// Writes an operator's wish to one of the records that stand aside: mostly to one that others wait for.
    pub fn wish(&mut self, which: usize, wish: Wish) -> Option<Place> {
        let wanted = |why: Why| why == Why::Failed || (why == Why::Waits && which.is_multiple_of(3));
        let open: Vec<Place> =
            self.aside.iter().filter(|(_, aside)| wanted(aside.why)).map(|(place, _)| *place).collect();
        let place = *open.get(which % open.len().max(1))?;
        self.aside.get_mut(&place).expect("it is one of them").wish = Some(wish);
        Some(place)
    }
}
