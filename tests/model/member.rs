//! The workers of the group's members, one per partition each: claim, batch, bisect, drain, and what they make of answers
//! that say no or never come.

use std::collections::{BTreeSet, VecDeque};

use crate::decide::{Decided, Desk};
use crate::log::{Kind, Record};
use crate::rules::{Bug, Rules};
use crate::store::{ATTEMPTS, Batch, Effect, Fence, Reply, Request, Title};
use crate::world::World;

/// Single records after which the crash guard rests.
const SMALL_STEPS: usize = 3;

/// What a worker is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// The partition is not this member's, as far as it knows.
    #[default]
    Off,
    Unclaimed,
    Claiming,
    Ready,
    /// It tells the crash guard what it begins.
    Beginning,
    /// A batch is on its way.
    Sent,
}

#[derive(Debug, Clone)]
pub struct Claim {
    pub title: Title,
    pub next: i64,
    log_time: i64,
    parked: BTreeSet<u8>,
}

/// What has to be known of a batch once it is committed, or refused.
#[derive(Debug, Clone, Default)]
struct Flight {
    to: i64,
    first: i64,
    records: usize,
    drains: bool,
    log_time: i64,
    parks: Vec<u8>,
    releases: Option<u8>,
}

#[derive(Debug, Clone, Default)]
pub struct Worker {
    pub state: State,
    pub claim: Option<Claim>,
    /// Where what the client has delivered begins.
    pub position: i64,
    /// Sizes of the batches that a bisected one became, the next one last.
    halves: Vec<usize>,
    /// A drain is tried record by record.
    singly: bool,
    suspect: Option<i64>,
    condemned: Option<i64>,
    /// For a planted bug: where the fence is moved, whatever is applied.
    skip_to: Option<i64>,
    drains_next: bool,
    flight: Flight,
    sent: Option<Batch>,
    /// What is sent once what has to be done before it is done.
    then: VecDeque<Request>,
    /// The token of the last claim of this process.
    owner: Option<u32>,
    /// The crash guard: how many small steps are left, where its last attempt began, and the attempt that is noted.
    watching: usize,
    begun: Option<i64>,
    attempt: Option<(i64, bool)>,
    /// The record for which a death would count, until it is known not to.
    pub at_work: Option<i64>,
    pub up: VecDeque<Request>,
    pub down: VecDeque<Reply>,
}

impl Worker {
    /// Its connection is of no more use; what was on its way may still arrive. `again` is a planted bug.
    pub fn cut(&mut self, again: bool) -> Vec<Request> {
        self.down.clear();
        if again && self.state == State::Sent {
            let late = self.up.drain(..).collect();
            self.up.push_back(Request::Batch(self.sent.clone().expect("a batch was sent")));
            return late;
        }
        self.then.clear();
        (self.claim, self.attempt, self.state) = (None, None, State::Unclaimed);
        self.up.drain(..).collect()
    }

    /// Claims again, whatever became of what it sent.
    fn claim_again(&mut self) {
        (self.claim, self.attempt, self.state) = (None, None, State::Unclaimed);
        self.then.clear();
    }
}

impl World {
    /// A worker does the next thing, if it waits for nothing.
    pub fn work(&mut self, member: usize, partition: usize, size: usize) {
        let owner = self.number();
        let worker = &mut self.members[member][partition];
        match worker.state {
            State::Unclaimed => {
                worker.state = State::Claiming;
                worker.up.push_back(Request::Claim { partition, owner });
                self.note(|| format!("member {member} claims partition {partition}"));
            }
            State::Ready => {
                // What it is about is ended first: the other would only be found out about in its place.
                let about = worker.suspect.map(|_| worker.flight.drains).or(worker.attempt.map(|(_, drains)| drains));
                let drains = about.unwrap_or(worker.drains_next);
                worker.drains_next = !worker.drains_next;
                let done = drains && self.drain(member, partition, size);
                if !done && !self.take(member, partition, size) {
                    self.drain(member, partition, size);
                }
            }
            _ => {}
        }
    }

    /// Takes the next records of the log; false when there are none.
    fn take(&mut self, member: usize, partition: usize, size: usize) -> bool {
        let trusting = self.rules.has(Bug::KafkaOffsetTrusted);
        let worker = &mut self.members[member][partition];
        let Some(claim) = worker.claim.clone() else { return false };
        if worker.position > claim.next && !trusting && !self.rules.has(Bug::GapIgnored) {
            // No offset is stepped over: it reads again from the fence.
            worker.position = claim.next;
        }
        let size = if worker.watching > 0 { 1 } else { worker.halves.last().copied().unwrap_or(size) };
        // Whatever the client delivers again is below the fence.
        let least = if self.rules.has(Bug::RedeliveredApplied) || trusting { 0 } else { claim.next };
        let delivered = self.log.from(partition, worker.position.max(least));
        let records: Vec<Record> = delivered.iter().take(size).copied().collect();
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return false };
        if self.begins(member, partition, (first.offset, false)) {
            return true;
        }
        let (log_time, parked) = (claim.log_time, &claim.parked);
        let decided = self.desk(member, partition).batch(&records, log_time, parked);
        let flight = Flight { to: last.offset + 1, first: first.offset, records: records.len(), ..Flight::default() };
        self.send(member, partition, decided, flight);
        true
    }

    /// Takes back what was decided of a parked key; false when there is nothing to take back.
    fn drain(&mut self, member: usize, partition: usize, size: usize) -> bool {
        let worker = &self.members[member][partition];
        let Some(claim) = worker.claim.clone() else { return false };
        let size = if worker.watching > 0 || worker.singly { 1 } else { size };
        for key in &claim.parked {
            let drained = self.desk(member, partition).drain(&self.log, *key, size);
            let Some(decided) = drained else { continue };
            let first = decided.first.expect("a drain begins with a record");
            if self.begins(member, partition, (first, true)) {
                return true;
            }
            let flight = Flight { to: claim.next, first, records: decided.drained, drains: true, ..Flight::default() };
            self.send(member, partition, decided, flight);
            return true;
        }
        false
    }

    fn desk(&self, member: usize, partition: usize) -> Desk<'_> {
        let Self { rules, db, sequence, .. } = self;
        let Worker { suspect, condemned, .. } = self.members[member][partition];
        Desk { rules: *rules, db, partition, suspect, condemned, sequence: *sequence }
    }

    /// Under the eye of the crash guard: tells it what is begun, unless that is told already.
    fn begins(&mut self, member: usize, partition: usize, attempt: (i64, bool)) -> bool {
        let worker = &mut self.members[member][partition];
        let Some(claim) = worker.claim.as_ref().filter(|_| worker.watching > 0) else { return false };
        if worker.attempt == Some(attempt) {
            return false;
        }
        let (at, title) = (attempt.0, claim.title);
        let anew = worker.begun.replace(at) == Some(at);
        worker.up.push_back(Request::Begin { title, at, anew });
        (worker.attempt, worker.at_work, worker.state) = (Some(attempt), Some(at), State::Beginning);
        self.note(|| format!("member {member} begins {partition}@{at} under the guard"));
        true
    }

    /// Sends a batch, if the process outlives the decoding of its records.
    fn send(&mut self, member: usize, partition: usize, decided: Decided, mut flight: Flight) {
        let deadly = |effect: &Effect| match effect {
            Effect::Apply { offset, payload, .. } => {
                let record = self.log.at(partition, *offset);
                record.kind == Kind::Deadly && record.payload == *payload
            }
            _ => false,
        };
        if decided.effects.iter().any(deadly) {
            self.note(|| format!("member {member} decodes a record that ends it"));
            self.crash(member);
            return;
        }
        self.sequence += i64::try_from(decided.effects.len()).expect("few");
        let worker = &mut self.members[member][partition];
        let Some(claim) = &worker.claim else { return };
        let mut from = claim.next;
        if self.rules.has(Bug::GapIgnored) && !flight.drains {
            from = from.max(worker.position);
        }
        let title = claim.title;
        let Decided { effects, log_time, parks, releases, .. } = decided;
        (flight.log_time, flight.parks, flight.releases) = (log_time, parks, releases);
        flight.to = worker.skip_to.take().unwrap_or(flight.to);
        let Flight { to, first, records, drains, .. } = flight;
        worker.flight = flight;
        worker.state = State::Sent;
        let batch = Batch { title, from, to, log_time, effects, loose: false };
        if worker.watching > 0 {
            if self.rules.has(Bug::GuardForgets) {
                worker.at_work = None;
            } else {
                worker.then.push_back(Request::End(title));
            }
        }
        worker.sent = Some(batch.clone());
        worker.then.extend(parts(batch, self.rules));
        worker.up.extend(worker.then.pop_front());
        let what = if drains { "takes back" } else { "sends" };
        self.note(|| format!("member {member} {what} {records} of {partition} from {first}, fence {from} to {to}"));
    }

    /// A worker reads the next answer.
    pub fn answer(&mut self, member: usize, partition: usize) {
        let worker = &mut self.members[member][partition];
        let Some(reply) = worker.down.pop_front() else { return };
        match (worker.state, reply) {
            (State::Claiming, Reply::Claimed { owner, fence, previous, parked }) => {
                self.claimed(member, partition, owner, &fence, previous, parked);
            }
            (State::Beginning, Reply::Begun(attempts)) => {
                worker.state = State::Ready;
                if attempts > ATTEMPTS {
                    worker.condemned = worker.attempt.map(|(at, _)| at);
                }
            }
            (State::Sent, Reply::Before) => {
                worker.at_work = None;
                worker.up.extend(worker.then.pop_front());
            }
            (State::Sent, Reply::Done) => self.done(member, partition),
            (State::Sent, Reply::Refused) => self.refused(member, partition),
            (State::Sent, Reply::Deadlock) if self.rules.has(Bug::DeadLetterOnDeadlock) => {
                self.refused(member, partition);
            }
            (State::Sent, Reply::Fenced | Reply::Deadlock) => worker.claim_again(),
            _ => {}
        }
    }

    fn claimed(
        &mut self,
        member: usize,
        partition: usize,
        owner: u32,
        fence: &Fence,
        previous: Option<u32>,
        mut parked: BTreeSet<u8>,
    ) {
        if self.rules.has(Bug::ParkedNotLoaded) {
            parked.clear();
        }
        let hint = self.hints[partition];
        let position = if self.rules.has(Bug::KafkaOffsetTrusted) { hint } else { fence.next };
        let worker = &mut self.members[member][partition];
        let left = previous.is_some() && previous != worker.owner;
        worker.owner = Some(owner);
        if left {
            worker.watching = SMALL_STEPS;
        }
        let Fence { next, epoch, log_time, .. } = *fence;
        let title = Title { partition, owner, epoch };
        worker.claim = Some(Claim { title, next, log_time, parked });
        (worker.state, worker.position) = (State::Ready, position);
        (worker.suspect, worker.condemned, worker.skip_to, worker.singly) = (None, None, None, false);
        worker.halves.clear();
        self.note(|| format!("member {member} has partition {partition} from {next} in epoch {epoch}"));
    }

    fn done(&mut self, member: usize, partition: usize) {
        let worker = &mut self.members[member][partition];
        let Some(claim) = &mut worker.claim else { return };
        let flight = std::mem::take(&mut worker.flight);
        (claim.next, claim.log_time) = (flight.to, claim.log_time.max(flight.log_time));
        claim.parked.extend(flight.parks);
        if let Some(key) = flight.releases {
            claim.parked.remove(&key);
        }
        worker.position = worker.position.max(flight.to);
        worker.state = State::Ready;
        (worker.suspect, worker.condemned, worker.attempt, worker.singly) = (None, None, None, false);
        if !flight.drains {
            worker.halves.pop();
        }
        worker.watching = worker.watching.saturating_sub(1);
        if worker.watching == 0 {
            worker.begun = None;
        }
        // A courtesy to lag tools, which nobody reads.
        self.hints[partition] = flight.to;
        self.note(|| format!("member {member} is told that it is committed"));
    }

    /// Bisects; a record that was alone is the one.
    fn refused(&mut self, member: usize, partition: usize) {
        let skips = self.rules.has(Bug::BisectSkipsRest);
        let worker = &mut self.members[member][partition];
        let Flight { to, first, records, drains, .. } = worker.flight;
        worker.then.clear();
        worker.state = State::Ready;
        if records <= 1 {
            worker.suspect = Some(first);
        } else if drains {
            worker.singly = true;
        } else {
            worker.halves.pop();
            if skips {
                worker.skip_to = Some(to);
            } else {
                worker.halves.push(records - records / 2);
            }
            worker.halves.push(records / 2);
        }
        self.note(|| format!("member {member} is told that a record of {records} cannot be applied"));
    }

    /// A member learns what the group has given it, and gives up what it has not.
    pub fn learn(&mut self, member: usize) {
        for partition in 0..self.assigned.len() {
            let worker = &mut self.members[member][partition];
            let mine = self.assigned[partition] == member;
            if mine && worker.state == State::Off {
                worker.state = State::Unclaimed;
            } else if !mine && worker.state != State::Off {
                let ready = worker.state == State::Ready;
                let release = worker.claim.as_ref().filter(|_| ready).map(|claim| Request::Release(claim.title));
                self.end(member, partition);
                self.late.extend(release);
            }
        }
    }

    /// A member's process is killed; another one takes its name.
    pub fn crash(&mut self, member: usize) {
        for partition in 0..self.assigned.len() {
            self.end(member, partition);
        }
    }

    fn end(&mut self, member: usize, partition: usize) {
        let worker = &mut self.members[member][partition];
        if let Some(at) = worker.at_work {
            *self.deaths.entry((partition, at)).or_default() += 1;
        }
        let late = worker.cut(false);
        self.late.extend(late);
        self.members[member][partition] = Worker::default();
    }
}

/// A batch as it is sent: whole, but for two planted bugs.
fn parts(mut batch: Batch, rules: Rules) -> Vec<Request> {
    let mut before = Vec::new();
    if rules.has(Bug::OffsetInSecondTransaction) {
        before = std::mem::take(&mut batch.effects);
    } else if rules.has(Bug::SeenBeforeBatch) {
        (before, batch.effects) = batch.effects.iter().partition(|effect| matches!(effect, Effect::Seen { .. }));
    }
    if before.is_empty() {
        return vec![Request::Batch(batch)];
    }
    let loose = Batch { effects: before, loose: true, ..batch.clone() };
    vec![Request::Batch(loose), Request::Batch(batch)]
}
