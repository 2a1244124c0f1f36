//! What is asked for on the command line.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// What to do.
#[derive(Debug, Clone)]
pub enum Order {
    /// What `cargo test` asks for: a few scenarios, three minutes at most.
    Short,
    /// Runs of scenarios.
    Run(Runs),
    /// Runs with planted bugs, each of which has to be found, and the folder to write to what was.
    Planted(Runs, Option<PathBuf>),
    /// A few minutes for somebody who wants to see it.
    Demo,
    /// The sum of all runs so far, and the folder to write it to, if any.
    Report(Option<PathBuf>),
    /// Made-up worlds with one thing wrong, to see whether the judge finds it.
    Trial,
    /// Names and descriptions of all scenarios.
    List,
    /// `cargo test` with the name of a test of another target.
    Nothing,
}

/// Runs: every scenario with every seed.
#[derive(Debug, Clone)]
pub struct Runs {
    /// Names of scenarios; none for all.
    pub scenarios: Vec<String>,
    pub seeds: Vec<u64>,
    /// How long each is under load.
    pub seconds: u64,
    /// Factor on the length of outages.
    pub scale: f64,
    /// Events a second that clients offer.
    pub rate: u64,
    /// How many values tables may be behind before clients wait for them; while Postgres is away nobody waits.
    pub lag: i64,
    /// A bug to plant, to see whether it is found.
    pub plant: Option<String>,
    /// Leave out what the report has a run of.
    pub resume: bool,
    /// Leave folders of runs where they are.
    pub keep: bool,
}

impl Default for Runs {
    fn default() -> Self {
        let seeds = vec![1];
        Self {
            scenarios: Vec::new(),
            seeds,
            // All scenarios with one seed take less than forty minutes so.
            seconds: 15,
            scale: 1.0,
            // What the profile of `make torture` applies on two cores; clients of a slower build wait for the tables.
            rate: 5500,
            lag: 12_000,
            plant: None,
            resume: false,
            keep: false,
        }
    }
}

impl Runs {
    /// What a bug needs to show itself, and no more: there are many.
    pub fn planted() -> Self {
        Self { seconds: 10, rate: crate::SHORT_RATE, lag: crate::SHORT_LAG, ..Self::default() }
    }
}

pub const USAGE: &str = "make torture ARGS=\"…\"
  report                 the sum of all runs so far, the committed ones of docs/torture included
  report --write DIR     writes it, too: runs.jsonl, a line a run, and report.md
  list                   all scenarios
  trial                  the judge on trial: worlds with one thing wrong
  demo                   two to three minutes to look at; `make crash-demo`
  --scenario K1[,C1…]    these (default: all)
  --seed 7[,8…|..12]     these seeds (default: 1)
  --seconds 15           how long each is under load
  --scale 1              factor on the length of outages
  --rate 5500            events a second that clients offer
  --lag 12000            values that tables may be behind before clients wait for them
  planted                every planted bug, each in the runs that are to find it, then the same runs without any
  --plant m[,n|none]     these planted bugs alone; with --scenario in that, and it has to be found
  --write DIR            with planted: writes the table to planted.md there
  --resume               leave out what the report has a run of, as long as this one; what erred is run again, and what was
                         found at another commit
  --keep                 leave the folders of runs where they are";

/// Reads the arguments; those of a test runner mean nothing here.
pub fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Order> {
    let mut runs = Runs::default();
    let (mut asked, mut planted, mut write) = (false, false, None);
    let (mut seconds, mut rate, mut lag): (Option<u64>, Option<u64>, Option<i64>) = (None, None, None);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value\n{USAGE}"));
        match word.as_str() {
            "report" => return report(words),
            "list" => return Ok(Order::List),
            "trial" => return Ok(Order::Trial),
            "demo" => return Ok(Order::Demo),
            "short" => return Ok(Order::Short),
            "--scenario" => runs.scenarios = value()?.split(',').map(str::to_owned).collect(),
            "--seed" => runs.seeds = seeds(&value()?)?,
            "--seconds" => seconds = Some(value()?.parse().context("--seconds wants a whole number")?),
            "--scale" => runs.scale = value()?.parse().context("--scale wants a number")?,
            "--rate" => rate = Some(value()?.parse().context("--rate wants a whole number")?),
            "--lag" => lag = Some(value()?.parse().context("--lag wants a whole number")?),
            "planted" => planted = true,
            "--plant" => runs.plant = Some(value()?),
            "--write" => write = Some(PathBuf::from(value()?)),
            "--resume" => runs.resume = true,
            "--keep" => runs.keep = true,
            "--help" | "-h" => bail!("{USAGE}"),
            // `cargo test name`, `cargo test -- --list` and the like.
            _ => return Ok(Order::Nothing),
        }
        asked = true;
    }
    planted |= runs.plant.is_some() && runs.scenarios.is_empty();
    let usual = if planted { Runs::planted() } else { Runs::default() };
    runs.seconds = seconds.unwrap_or(usual.seconds);
    (runs.rate, runs.lag) = (rate.unwrap_or(usual.rate), lag.unwrap_or(usual.lag));
    Ok(match (asked, planted) {
        (true, true) => Order::Planted(runs, write),
        (true, false) => Order::Run(runs),
        (false, _) => Order::Short,
    })
}

/// What follows `report`.
fn report(mut words: impl Iterator<Item = String>) -> anyhow::Result<Order> {
    match (words.next().as_deref(), words.next()) {
        (None, _) => Ok(Order::Report(None)),
        (Some("--write"), Some(folder)) => Ok(Order::Report(Some(folder.into()))),
        (Some("--write"), None) => bail!("--write wants a folder, docs/torture for what is committed\n{USAGE}"),
        (Some(word), _) => bail!("report does not know {word}\n{USAGE}"),
    }
}

/// `7`, `7,9` or `7..12`, the last one included.
fn seeds(text: &str) -> anyhow::Result<Vec<u64>> {
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("{text} is no seed"));
    match text.split_once("..") {
        Some((first, last)) => Ok((number(first)?..=number(last)?).collect()),
        None => text.split(',').map(number).collect(),
    }
}
