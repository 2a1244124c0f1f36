//! An operator at work while everything breaks: looks at what was set aside and decides about it, through the command line
//! that people have. What was decided and what was answered is in the history; a command that was killed, or lost its
//! connection, has an outcome that nobody knows.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::history::{Choice, Decision, History, Outcome};
use crate::random::Random;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(600);
/// How long a command may take: Kafka or Postgres may be away.
const COMMAND_WITHIN: Duration = Duration::from_secs(20);
/// One command in so many is killed, as by somebody who has lost patience, within so many milliseconds.
const KILLED: u64 = 10;
const KILLED_WITHIN: u64 = 400;
/// The consumer whose keys are parked, and one whose dead letters are decided about.
const PARKING: &str = "lanes";
const SKIPPING: &str = "appends";
/// What Postgres refuses: poison.
const REFUSED: &str = "refused_by_postgres";
/// How refusals of the command line are recognised: for certain nothing was changed.
const REFUSALS: [&str; 6] = [
    "has no such record",
    "only waits behind",
    "cannot be applied any more",
    "has no value",
    "the new value",
    "were decided about through another version",
];

/// What the operator needs to run commands.
#[derive(Debug, Clone)]
pub struct Desk {
    pub project: PathBuf,
    pub brokers: String,
    pub database: String,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shift {
    /// Looks now and then, and decides about some of it.
    Works,
    /// Decides about all that waits, until it is sent home.
    TidiesUp,
    Over,
}

/// The operator of a run.
pub struct Operator {
    shift: watch::Sender<Shift>,
    task: JoinHandle<()>,
}

impl Operator {
    pub fn start(seed: u64, desk: Desk, history: Arc<History>) -> Self {
        let shift = watch::Sender::new(Shift::Works);
        let mut person = Person { desk, history, random: Random::new(seed ^ 0x0b5e), decisions: 0 };
        let mut until = shift.subscribe();
        let task = tokio::spawn(async move {
            loop {
                // What is under way is brought to its end: its outcome belongs into the history.
                let shift = *until.borrow_and_update();
                match shift {
                    Shift::Works => person.work().await,
                    Shift::TidiesUp => person.tidy_up().await,
                    Shift::Over => return,
                }
                let _ = tokio::time::timeout(PERIOD, until.changed()).await;
            }
        });
        Self { shift, task }
    }

    pub(super) fn tidy_up(&self) {
        self.shift.send_replace(Shift::TidiesUp);
    }

    /// Sends the operator home, once the last command has ended.
    pub async fn end(self) {
        self.shift.send_replace(Shift::Over);
        self.task.await.expect("the operator does not panic");
    }
}

/// A record as `millpond dlq list --json` shows it.
#[derive(Debug, Clone, Deserialize)]
struct SetAside {
    partition: i32,
    offset: i64,
    topic: String,
    #[serde(default)]
    head: Option<i64>,
    class: String,
    #[serde(default)]
    wanted: Option<String>,
}

struct Person {
    desk: Desk,
    history: Arc<History>,
    random: Random,
    decisions: u64,
}

impl Person {
    /// One look, and one decision about what is seen.
    async fn work(&mut self) {
        let consumer = if self.random.below(5) == 0 { SKIPPING } else { PARKING };
        // Heads of lanes mostly, and sometimes what waits behind one, or was decided before and is not done yet.
        let any = self.random.below(6) == 0;
        let class: &[&str] = if any || consumer == SKIPPING { &[] } else { &["--class", REFUSED] };
        let seen: Vec<SetAside> = self.list(consumer, class).await;
        let open = |one: &&SetAside| any || (one.wanted.is_none() && one.head.is_none_or(|head| head == one.offset));
        let open: Vec<&SetAside> = seen.iter().filter(open).collect();
        if open.is_empty() {
            return;
        }
        // Now and then for all at once.
        if consumer == PARKING && open.len() > 3 && self.random.below(3) == 0 {
            self.decide_about_all().await;
            return;
        }
        let chosen = (*self.random.pick(&open)).clone();
        self.decide(consumer, &chosen).await;
    }

    async fn decide(&mut self, consumer: &'static str, chosen: &SetAside) {
        let SetAside { partition, offset, topic, class, .. } = chosen;
        let record = format!("{topic}/{partition}/{offset}");
        // Another one for each record, so that what was edited is told apart.
        let number = format!("n=-{offset}{partition}");
        // An id that stands for another record is no fault of the value.
        let conflict = class == "id_conflict";
        let (what, mends, fields): (_, _, &[&str]) = match self.random.below(10) {
            0..4 if !conflict => (Choice::Edit, true, &["--field", "poison=0", "--field", &number]),
            4 if !conflict => (Choice::Edit, false, &["--field", &number]),
            5 | 6 => (Choice::Redrive, false, &[]),
            _ => (Choice::Discard, true, &[]),
        };
        let words = [&[record.as_str()][..], fields].concat();
        self.command(consumer, Some((*partition, *offset)), what, mends, &words).await;
    }

    async fn decide_about_all(&mut self) {
        let (what, fields): (_, &[&str]) = match self.random.below(3) {
            0 => (Choice::Discard, &[]),
            _ => (Choice::Edit, &["--field", "poison=0"]),
        };
        self.command(PARKING, None, what, true, &[&["--class", REFUSED][..], fields].concat()).await;
    }

    /// Has everything that holds up a lane go on.
    async fn tidy_up(&mut self) {
        let seen = self.list(PARKING, &["--class", REFUSED]).await;
        if seen.iter().any(|one| one.wanted.is_none()) {
            self.decide_about_all().await;
        }
    }

    /// Runs one command that decides, and writes down what came of it.
    async fn command(
        &mut self,
        consumer: &'static str,
        record: Option<(i32, i64)>,
        what: Choice,
        mends: bool,
        words: &[&str],
    ) {
        self.decisions += 1;
        let by = format!("op-{}", self.decisions);
        let verb = match what {
            Choice::Redrive => "redrive",
            Choice::Edit => "edit",
            Choice::Discard => "discard",
        };
        let killed_after =
            (self.random.below(KILLED) == 0).then(|| Duration::from_millis(self.random.below(KILLED_WITHIN)));
        let words = [&["dlq", verb, consumer][..], words, &["--by", &by]].concat();
        let invoked = self.history.now();
        let said = self.run(&words, killed_after).await;
        let completed = self.history.now();
        let (outcome, answer) = match said {
            Ok(said) => (Outcome::Ok, said),
            Err(said) if REFUSALS.iter().any(|refusal| said.contains(refusal)) => (Outcome::Fail, said),
            Err(said) => (Outcome::Info, said),
        };
        // It met something that was gone a moment later.
        let nothing = outcome == Outcome::Ok && answer.contains(": 0 records will be");
        let outcome = if nothing { Outcome::Fail } else { outcome };
        self.history.decision(Decision { consumer, record, what, mends, by, invoked, completed, outcome, answer });
    }

    async fn list(&self, consumer: &str, filter: &[&str]) -> Vec<SetAside> {
        let words = [&["dlq", "list", consumer, "--json", "--limit", "300"][..], filter].concat();
        let said = self.run(&words, None).await.unwrap_or_default();
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What a command printed; the error is what it said when it failed, or that it was killed.
    async fn run(&self, words: &[&str], killed_after: Option<Duration>) -> Result<String, String> {
        let Desk { project, brokers, database } = &self.desk;
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(words);
        for setting in [
            format!("project.dir={}", project.display()),
            format!("kafka.brokers={brokers}"),
            format!("postgres.url={database}"),
            "log.level=error".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        command.current_dir(project).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let within = killed_after.unwrap_or(COMMAND_WITHIN);
        tokio::task::spawn_blocking(move || execute(command, within)).await.expect("running it does not panic")
    }
}

/// Runs a command, and kills it when it has not ended by then.
fn execute(mut command: Command, within: Duration) -> Result<String, String> {
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let said = scope.spawn(move || read(out));
        let errors = scope.spawn(move || read(err));
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if begun.elapsed() < within => std::thread::sleep(Duration::from_millis(5)),
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break None;
                }
            }
        };
        let (said, errors) = (said.join().expect("reads"), errors.join().expect("reads"));
        match status {
            None => Err("it was killed".to_owned()),
            Some(status) if status.success() => Ok(said),
            Some(_) => Err(errors),
        }
    })
}

fn read(mut from: impl Read) -> String {
    let mut text = String::new();
    let _ = from.read_to_string(&mut text);
    text
}
