//! All that takes part, and every step that can be taken. Which step comes next is for a schedule to say: nothing here
//! happens by itself, and no time passes.

use std::collections::BTreeMap;

use crate::judge;
use crate::log::{Log, PARTITIONS};
use crate::member::{State, Worker};
use crate::relay::{Kafka, Order, Relay};
use crate::rules::{Bug, Rules};
use crate::store::{Database, Place, Reply, Request, Verdict, Wish};

pub const MEMBERS: usize = 2;
pub const RELAYS: usize = 2;
/// Rounds within which everything comes to rest once nothing is disturbed any more.
const ROUNDS: usize = 400;

/// Lines that are told of one schedule.
const TOLD: usize = 150;

/// Something that happens. A step that is not possible when its turn comes does nothing, so that steps can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Records are written to the log.
    Append {
        partition: usize,
        count: usize,
    },
    /// The group gives a partition to a member; the members learn of it later.
    Assign {
        partition: usize,
        member: usize,
    },
    Learn {
        member: usize,
    },
    /// A worker does the next thing, with so many records at most.
    Work {
        member: usize,
        partition: usize,
        size: usize,
    },
    /// It does, and hears what Postgres says to it.
    Go {
        member: usize,
        partition: usize,
        size: usize,
    },
    /// What a worker has sent arrives at Postgres.
    Arrive {
        member: usize,
        partition: usize,
    },
    Answer {
        member: usize,
        partition: usize,
    },
    /// A worker's connection is lost.
    Cut {
        member: usize,
        partition: usize,
    },
    /// `kill -9` of a member.
    Crash {
        member: usize,
    },
    /// What somebody has sent who has given up, or is dead, arrives; or is lost.
    Late {
        which: usize,
        lost: bool,
    },
    /// Postgres ends the next batch of a partition to resolve a deadlock.
    Deadlock {
        partition: usize,
    },
    /// The client delivers records again, or leaves some out.
    Redeliver {
        member: usize,
        partition: usize,
        back: i64,
    },
    /// An operator decides about a record that stands aside.
    Decide {
        which: usize,
        wish: Wish,
    },
    Purge {
        partition: usize,
    },
    /// A state of Postgres to which it goes back later.
    Save,
    /// Postgres loses its last commits, or only its connections.
    GoBack,
    Restart,
    /// Somebody reads rows and positions in one snapshot.
    Read,
    /// The relay does the next thing, with so many rows of each partition at most; and hears what Kafka says.
    Relay {
        relay: usize,
        size: usize,
    },
    RelayGoes {
        relay: usize,
        size: usize,
    },
    RelayArrive {
        relay: usize,
    },
    RelayTold {
        relay: usize,
    },
    RelayGivesUp {
        relay: usize,
    },
    RelayDies {
        relay: usize,
    },
    /// The leading relay's session ends, which it learns later.
    Depose,
    LateOrder {
        which: usize,
        lost: bool,
    },
}

#[derive(Debug, Clone)]
pub struct World {
    pub rules: Rules,
    pub log: Log,
    pub db: Database,
    pub kafka: Kafka,
    pub members: [[Worker; PARTITIONS]; MEMBERS],
    /// Who has which partition, as the group sees it.
    pub assigned: [usize; PARTITIONS],
    /// Kafka's committed offsets.
    pub hints: [i64; PARTITIONS],
    pub relays: [Relay; RELAYS],
    /// Who leads the relay, by a lock of its session.
    pub lead: Option<usize>,
    pub late: Vec<Request>,
    pub late_orders: Vec<Order>,
    /// A sequence that all partitions share.
    pub sequence: i64,
    /// Processes that ended while a record was at work.
    pub deaths: BTreeMap<Place, usize>,
    pub went_back: bool,
    /// What somebody saw that must not be seen.
    pub seen_wrong: Option<String>,
    saved: Option<Database>,
    deadlock: [bool; PARTITIONS],
    number: u32,
    trace: Option<Vec<String>>,
}

impl World {
    pub fn new(rules: Rules, log: Log) -> Self {
        Self {
            rules,
            log,
            db: Database::default(),
            kafka: Kafka::default(),
            members: Default::default(),
            assigned: [0, 1],
            hints: [0; PARTITIONS],
            relays: Default::default(),
            lead: None,
            late: Vec::new(),
            late_orders: Vec::new(),
            sequence: 0,
            deaths: BTreeMap::new(),
            went_back: false,
            seen_wrong: None,
            saved: None,
            deadlock: [false; PARTITIONS],
            number: 0,
            trace: None,
        }
    }

    /// Remembers what happens, in words.
    pub fn traced(mut self) -> Self {
        self.trace = Some(Vec::new());
        self
    }

    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = self.trace.as_mut().filter(|trace| trace.len() < TOLD) {
            trace.push(what());
        }
    }

    /// A number that nobody else has.
    pub fn number(&mut self) -> u32 {
        self.number += 1;
        self.number
    }

    pub fn step(&mut self, step: Step) {
        match step {
            Step::Append { partition, count } => self.append(partition, count),
            Step::Assign { partition, member } => {
                self.assigned[partition] = member;
                self.note(|| format!("the group gives partition {partition} to member {member}"));
            }
            Step::Learn { member } => self.learn(member),
            Step::Work { member, partition, size } => self.work(member, partition, size),
            Step::Go { member, partition, size } => self.go(member, partition, size),
            Step::Arrive { member, partition } => self.arrive(member, partition),
            Step::Answer { member, partition } => self.answer(member, partition),
            Step::Cut { member, partition } => self.cut(member, partition),
            Step::Crash { member } => {
                self.note(|| format!("member {member} is killed"));
                self.crash(member);
            }
            Step::Late { which, lost } => self.arrive_late(which, lost),
            Step::Deadlock { partition } => self.deadlock[partition] = true,
            Step::Redeliver { member, partition, back } => {
                let worker = &mut self.members[member][partition];
                worker.position = (worker.position - back).max(0);
                self.note(|| format!("the client of member {member} goes back by {back} on partition {partition}"));
            }
            Step::Decide { which, wish } => {
                if let Some((partition, offset)) = self.rules.park.then(|| self.db.wish(which, wish)).flatten() {
                    self.note(|| format!("an operator wants {wish:?} of {partition}@{offset}"));
                }
            }
            Step::Purge { partition } => self.db.purge(partition, self.rules),
            Step::Save => self.saved = Some(self.db.clone()),
            Step::GoBack => self.go_back(),
            Step::Restart => {
                self.disconnect();
                self.note(|| "Postgres restarts".into());
            }
            Step::Read => self.seen_wrong = self.seen_wrong.take().or_else(|| judge::read(self)),
            Step::Relay { relay, size } => self.relay(relay, size),
            Step::RelayGoes { relay, size } => self.relay_goes(relay, size),
            Step::RelayArrive { relay } => self.relay_arrive(relay),
            Step::RelayTold { relay } => self.told(relay),
            Step::RelayGivesUp { relay } => self.relay_gives_up(relay),
            Step::RelayDies { relay } => self.relay_dies(relay),
            Step::Depose => self.lead = None,
            Step::LateOrder { which, lost } => self.order_late(which, lost),
        }
    }

    fn append(&mut self, partition: usize, count: usize) {
        for _ in 0..count {
            let Some(record) = self.log.append(partition) else { return };
            self.note(|| format!("written: {partition}@{} {record:?}", record.offset));
        }
    }

    fn go(&mut self, member: usize, partition: usize, size: usize) {
        self.work(member, partition, size);
        self.arrive(member, partition);
        self.answer(member, partition);
    }

    fn relay_goes(&mut self, relay: usize, size: usize) {
        self.relay(relay, size);
        self.relay_arrive(relay);
        self.relay_arrive(relay);
        self.told(relay);
    }

    fn arrive(&mut self, member: usize, partition: usize) {
        let Some(request) = self.members[member][partition].up.pop_front() else { return };
        let reply = self.execute(request);
        self.members[member][partition].down.push_back(reply);
    }

    fn arrive_late(&mut self, which: usize, lost: bool) {
        if self.late.is_empty() {
            return;
        }
        let request = self.late.remove(which % self.late.len());
        if !lost {
            self.note(|| "what was sent before arrives late".into());
            self.execute(request);
        }
    }

    fn execute(&mut self, request: Request) -> Reply {
        let partition = match &request {
            Request::Batch(batch) => Some(batch.title.partition),
            _ => None,
        };
        if partition.is_some_and(|partition| std::mem::take(&mut self.deadlock[partition])) {
            self.note(|| "Postgres: deadlock".into());
            return Reply::Deadlock;
        }
        let reply = self.db.execute(request, self.rules);
        if partition.is_some() {
            self.note(|| format!("Postgres: {reply:?}"));
        }
        reply
    }

    fn cut(&mut self, member: usize, partition: usize) {
        let worker = &mut self.members[member][partition];
        if worker.state == State::Off {
            return;
        }
        let late = worker.cut(self.rules.has(Bug::UnknownSentAgain));
        self.late.extend(late);
        self.note(|| format!("member {member} loses its connection for partition {partition}"));
    }

    fn go_back(&mut self) {
        if let Some(saved) = self.saved.take() {
            self.db = saved;
            self.went_back = true;
            self.disconnect();
            self.note(|| "Postgres goes back to what was saved".into());
        }
    }

    /// Every connection to Postgres is lost, and what was on its way with it.
    fn disconnect(&mut self) {
        for worker in self.members.iter_mut().flatten().filter(|worker| worker.state != State::Off) {
            worker.cut(false);
        }
        self.late.clear();
        self.lead = None;
    }

    fn relay_arrive(&mut self, relay: usize) {
        let Some(order) = self.relays[relay].up.pop_front() else { return };
        if let Some(told) = self.kafka.execute(order) {
            self.note(|| format!("Kafka to relay {relay}: {told:?}"));
            self.relays[relay].down.push_back(told);
        }
    }

    fn order_late(&mut self, which: usize, lost: bool) {
        if self.late_orders.is_empty() {
            return;
        }
        let order = self.late_orders.remove(which % self.late_orders.len());
        if !lost {
            self.note(|| format!("Kafka: {order:?} arrives late"));
            self.kafka.execute(order);
        }
    }

    /// Nothing is disturbed any more: everybody goes on until there is nothing left to do. Whether that came.
    pub fn settle(&mut self) -> bool {
        self.note(|| "nothing is disturbed any more".into());
        self.deadlock = [false; PARTITIONS];
        while !self.late.is_empty() {
            self.arrive_late(0, false);
        }
        while !self.late_orders.is_empty() {
            self.order_late(0, false);
        }
        for round in 0..ROUNDS {
            if self.rests() {
                return true;
            }
            for member in 0..MEMBERS {
                self.learn(member);
                for partition in 0..PARTITIONS {
                    self.go(member, partition, 1 + round % 4);
                }
            }
            for relay in 0..RELAYS {
                self.relay_goes(relay, 3);
            }
        }
        false
    }

    /// Whether all is applied, taken back and sent that can be.
    fn rests(&self) -> bool {
        let applied = |partition: usize| self.db.fences[partition].next >= self.log.end(partition);
        let owned = |partition: usize| {
            let worker = &self.members[self.assigned[partition]][partition];
            worker.state == State::Ready
        };
        let open = |key: &(usize, u8)| {
            let head = self.db.queue(*key).first().copied();
            head.is_none_or(|(_, aside)| aside.why == crate::store::Why::Waits || aside.wish.is_some())
        };
        (0..PARTITIONS).all(|partition| applied(partition) && owned(partition))
            && !self.db.parked.iter().any(open)
            && self.db.outbox.is_empty()
    }

    /// A new version that reads the same log again, with the verdicts and nothing else of this one.
    pub fn again(&self) -> Self {
        let mut again = Self::new(self.rules, self.log.clone());
        let decided = |(_, verdict): &(&Place, &Verdict)| **verdict != Verdict::Apply;
        again.db.verdicts =
            self.db.verdicts.iter().filter(decided).map(|(place, verdict)| (*place, *verdict)).collect();
        again
    }
}
