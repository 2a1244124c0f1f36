//! Schedules: steps by chance from a seed, their run, and the fewest of them that still go wrong.

use crate::judge;
use crate::log::{Log, PARTITIONS};
use crate::random::Random;
use crate::rules::{Bug, Rules};
use crate::store::Wish;
use crate::world::{MEMBERS, RELAYS, Step, World};

/// One run of the model: what holds, the log, and the steps before everything comes to rest.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub rules: Rules,
    pub log: Log,
    pub steps: Vec<Step>,
}

/// A schedule that went wrong, as short as it could be made.
#[derive(Debug)]
pub struct Witness {
    pub seed: u64,
    pub steps: usize,
    pub wrong: String,
    pub trace: Vec<String>,
}

/// How likely steps of each kind are, in parts: what a schedule is mostly about differs from one to the next.
#[derive(Debug, Clone, Copy)]
struct Mood {
    consumers: u64,
    crashes: u64,
    cuts: u64,
    moves: u64,
    rewinds: u64,
    operators: u64,
    relays: u64,
    relay_faults: u64,
}

impl Mood {
    fn of(random: &mut Random) -> Self {
        let mut some = |often: u64| if random.below(2) == 0 { 0 } else { often };
        Self {
            consumers: 60,
            crashes: some(4),
            cuts: some(8),
            moves: some(10),
            rewinds: some(3),
            operators: some(10),
            relays: some(25),
            relay_faults: some(8),
        }
    }
}

impl Schedule {
    pub fn generate(seed: u64, bugs: &'static [Bug]) -> Self {
        let mut random = Random::new(seed);
        let window = i64::try_from(random.between(5, 40)).expect("few");
        let rules = Rules { park: random.below(3) > 0, window, bugs };
        let log = Log::generate(&mut random);
        let mood = Mood::of(&mut random);
        let length = random.between(60, 240);
        let mut sleeper = None;
        let mut steps = Vec::new();
        for member in 0..MEMBERS {
            steps.push(Step::Learn { member });
        }
        for _ in 0..length {
            // Now and then a member does nothing for a while, and its messages stay on their way.
            if random.below(25) == 0 {
                sleeper = (random.below(2) == 0).then(|| pick(&mut random, MEMBERS));
            }
            let step = mood.step(&mut random);
            if step.member().is_none_or(|member| Some(member) != sleeper) {
                steps.push(step);
            }
        }
        Self { rules, log, steps }
    }

    /// Runs it; what went wrong.
    pub fn run(&self) -> Option<String> {
        self.end(World::new(self.rules, self.log.clone())).1
    }

    fn end(&self, mut world: World) -> (World, Option<String>) {
        for step in &self.steps {
            world.step(*step);
        }
        let wrong = judge::judge(&mut world);
        (world, wrong)
    }

    /// Leaves out what can be left out while something still goes wrong.
    pub fn shrink(mut self, seed: u64) -> Witness {
        let mut size = self.steps.len().div_ceil(2);
        while size > 0 {
            let (mut at, mut left_out) = (0, false);
            while at < self.steps.len() {
                let mut shorter = self.clone();
                shorter.steps.drain(at..(at + size).min(self.steps.len()));
                if shorter.run().is_some() {
                    self = shorter;
                    left_out = true;
                } else {
                    at += size;
                }
            }
            // Once more with single steps, until none of them can be spared.
            if size > 1 || !left_out {
                size /= 2;
            }
        }
        let (world, wrong) = self.end(World::new(self.rules, self.log.clone()).traced());
        let wrong = wrong.unwrap_or_else(|| "it went wrong and does no more".into());
        Witness { seed, steps: self.steps.len(), wrong, trace: world.trace().to_vec() }
    }
}

impl Step {
    /// The member that takes it.
    fn member(self) -> Option<usize> {
        match self {
            Self::Learn { member }
            | Self::Work { member, .. }
            | Self::Go { member, .. }
            | Self::Answer { member, .. } => Some(member),
            _ => None,
        }
    }
}

impl Mood {
    fn step(&self, random: &mut Random) -> Step {
        let parts = [
            self.consumers,
            self.crashes,
            self.cuts,
            self.moves,
            self.rewinds,
            self.operators,
            self.relays,
            self.relay_faults,
        ];
        let mut left = random.below(parts.iter().sum());
        for (kind, part) in parts.into_iter().enumerate() {
            if left < part {
                return step_of(kind, random);
            }
            left -= part;
        }
        Step::Read
    }
}

fn pick(random: &mut Random, of: usize) -> usize {
    usize::try_from(random.below(of as u64)).expect("few")
}

/// A step of the kind at this place in [`Mood`].
fn step_of(kind: usize, random: &mut Random) -> Step {
    let (member, partition) = (pick(random, MEMBERS), pick(random, PARTITIONS));
    let relay = pick(random, RELAYS);
    let (which, lost) = (pick(random, 8), random.below(3) == 0);
    match (kind, random.below(20)) {
        (0, 0..=1) => Step::Append { partition, count: 1 + pick(random, 4) },
        (0, 2) => Step::Read,
        (0, 3) => Step::Late { which, lost },
        (0, 4..=10) => Step::Go { member, partition, size: 1 + pick(random, 6) },
        (0, 11..=14) => Step::Work { member, partition, size: 1 + pick(random, 6) },
        (0, 15..=17) => Step::Arrive { member, partition },
        (0, _) => Step::Answer { member, partition },
        (1, _) => Step::Crash { member },
        (2, 0..=5) => Step::Deadlock { partition },
        (2, 6..=9) => Step::Redeliver { member, partition, back: [1, 2, 4, -1][pick(random, 4)] },
        (2, 10..=12) => Step::Restart,
        (2, _) => Step::Cut { member, partition },
        (3, 0..=7) => Step::Assign { partition, member },
        (3, _) => Step::Learn { member },
        (4, 0..=9) => Step::Save,
        (4, _) => Step::GoBack,
        (5, 0..=4) => Step::Purge { partition },
        (5, at) => Step::Decide {
            which,
            wish: [Wish::Redrive, Wish::Edit, Wish::Discard][usize::from(at > 9) + usize::from(at > 14)],
        },
        (6, 0..=8) => Step::RelayGoes { relay, size: 1 + pick(random, 3) },
        (6, 9..=12) => Step::Relay { relay, size: 1 + pick(random, 3) },
        (6, 13..=17) => Step::RelayArrive { relay },
        (6, _) => Step::RelayTold { relay },
        (7, 0..=4) => Step::RelayDies { relay },
        (7, 5..=8) => Step::Depose,
        (7, 9..=13) => Step::LateOrder { which, lost },
        _ => Step::RelayGivesUp { relay },
    }
}
