//! The sum of all runs: those of this machine's build folder, and those that were committed.
//!
//! What is committed is a line of numbers a run, in `docs/torture/runs.jsonl`, and a page made of them. A run is known by
//! its scenario, its seed and the moment it began, so one that is in both places counts once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::arguments::Runs;
use crate::faults;
use crate::report::{self, Report, grouped, percentiles};

/// Where the committed runs are, from the root of the repository.
const COMMITTED: &str = "docs/torture";
const RUNS: &str = "runs.jsonl";
const PAGE: &str = "report.md";
/// An error is told in so many letters.
const ERROR_LETTERS: usize = 160;

/// The numbers of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    pub scenario: String,
    pub seed: u64,
    pub begun: u64,
    pub seconds: u64,
    /// Values a second that clients offered; 0 in lines that are older than this field.
    #[serde(skip_serializing_if = "is_zero")]
    pub rate: u64,
    /// As asked for; none in lines that are older than this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    pub commit: String,
    pub acknowledged: u64,
    pub failed: u64,
    pub unknown: u64,
    pub under_faults: u64,
    pub per_second: u64,
    /// The same before the first fault.
    #[serde(skip_serializing_if = "is_zero")]
    pub undisturbed_per_second: u64,
    pub log_records: u64,
    pub reads: u64,
    pub bank_looks: u64,
    pub repeated_downstream: u64,
    pub injected: u64,
    pub observed: u64,
    pub recoveries_ms: Vec<u64>,
    /// Percent, to a tenth.
    pub available: f64,
    pub greatest_lag: i64,
    /// Of the process that took most.
    pub memory_mib: u64,
    /// How often a check was found not to hold, by its number and name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub violations: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub took_s: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<&Report> for Line {
    fn from(report: &Report) -> Self {
        let mut violations = BTreeMap::new();
        for violation in &report.violations {
            *violations.entry(format!("{} {}", violation.check, violation.name)).or_default() += violation.count as u64;
        }
        Self {
            scenario: report.scenario.clone(),
            seed: report.seed,
            begun: report.begun,
            seconds: report.seconds,
            rate: report.rate,
            scale: (report.rate > 0).then_some(report.scale),
            lag: (report.lag > 0).then_some(report.lag),
            commit: report.commit.clone(),
            acknowledged: report.acknowledged as u64,
            failed: report.failed as u64,
            unknown: report.unknown as u64,
            under_faults: if beside(&report.scenario) { 0 } else { report.acknowledged_under_faults as u64 },
            per_second: report.per_second.round() as u64,
            undisturbed_per_second: report.undisturbed_per_second.round() as u64,
            log_records: report.log_records as u64,
            reads: report.reads as u64,
            bank_looks: report.bank_looks as u64,
            repeated_downstream: report.repeated_downstream as u64,
            injected: report.faults.len() as u64,
            observed: report.observed() as u64,
            recoveries_ms: report.faults.iter().filter_map(|fault| fault.recovery_ms).collect(),
            available: (report.availability * 10.0).round() / 10.0,
            greatest_lag: report.greatest_lag,
            memory_mib: report.memory_mib.values().copied().max().unwrap_or_default(),
            violations,
            error: report.error.as_ref().map(|error| error.chars().take(ERROR_LETTERS).collect()),
            took_s: report.took_s.round() as u64,
        }
    }
}

impl Line {
    fn name(&self) -> (&str, u64, u64) {
        (&self.scenario, self.seed, self.begun)
    }

    /// Whether it came to an end and broke something: else it says nothing.
    fn tells(&self) -> bool {
        self.error.is_none() && self.observed > 0
    }

    /// Whether it need not be run again: it came to an end, broke something, and found nothing. What a run found is looked
    /// for again once something was changed.
    fn settles(&self, runs: &Runs, commit: &str) -> bool {
        let found = !self.violations.is_empty() && self.commit != commit;
        let weaker = (self.rate > 0 && self.rate < runs.rate) || self.scale.is_some_and(|scale| scale < runs.scale);
        self.tells() && self.seconds >= runs.seconds && !weaker && !found
    }
}

/// All runs so far, in the order in which they began.
pub fn lines() -> anyhow::Result<Vec<Line>> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join(COMMITTED).join(RUNS);
    let here = report::read()?;
    let mut committed = report::read_lines(&committed)?;
    // Older lines count what was acknowledged while something beside was broken.
    committed.iter_mut().filter(|line: &&mut Line| beside(&line.scenario)).for_each(|line| line.under_faults = 0);
    Ok(join(committed, here.iter().filter(|report| report.planted.is_none()).map(Line::from)))
}

fn join(committed: Vec<Line>, here: impl Iterator<Item = Line>) -> Vec<Line> {
    let mut lines = committed;
    for line in here {
        match lines.iter_mut().find(|known| known.name() == line.name()) {
            Some(known) => *known = line,
            None => lines.push(line),
        }
    }
    lines.sort_by(|a, b| (a.begun, &a.scenario, a.seed).cmp(&(b.begun, &b.scenario, b.seed)));
    lines
}

/// Whether a run is among these that need not be run again.
pub fn is_done(lines: &[Line], scenario: &str, seed: u64, runs: &Runs, commit: &str) -> bool {
    lines.iter().any(|line| line.scenario == scenario && line.seed == seed && line.settles(runs, commit))
}

/// Whether every scenario and seed has a run that came to an end and broke something, and the last of them found nothing.
pub fn holds(lines: &[Line]) -> bool {
    let last = last_runs(lines);
    let pairs: BTreeSet<(&str, u64)> = lines.iter().map(|line| (&*line.scenario, line.seed)).collect();
    last.len() == pairs.len() && last.values().all(|line| line.violations.is_empty())
}

/// By scenario and seed the last run that says something, or that found something whatever it broke.
fn last_runs(lines: &[Line]) -> BTreeMap<(&str, u64), &Line> {
    let telling = lines.iter().filter(|line| line.tells() || !line.violations.is_empty());
    telling.map(|line| ((&*line.scenario, line.seed), line)).collect()
}

/// Whether its faults are met by a small Millpond beside the one under load.
fn beside(scenario: &str) -> bool {
    faults::BESIDE.contains(&scenario)
}

/// Writes lines and page into a folder.
pub fn write(folder: &Path, lines: &[Line]) -> anyhow::Result<()> {
    let writing = || format!("cannot write {}", folder.display());
    fs::create_dir_all(folder).with_context(writing)?;
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(line)?);
        text.push('\n');
    }
    fs::write(folder.join(RUNS), text).with_context(writing)?;
    fs::write(folder.join(PAGE), page(lines)).with_context(writing)
}

/// Prints totals and table.
pub fn print(lines: &[Line]) {
    print!("{}\n{}{}", table(lines), totals(lines), troubles(lines));
}

fn page(lines: &[Line]) -> String {
    let commits: BTreeSet<&str> = lines.iter().map(|line| &*line.commit).collect();
    let seconds: BTreeSet<u64> = lines.iter().map(|line| line.seconds).collect();
    let seconds: Vec<String> = seconds.iter().map(u64::to_string).collect();
    format!(
        "# Torture: what was run\n\n\
         Made by `make torture ARGS=\"report --write docs/torture\"` from [runs.jsonl](runs.jsonl), a line of numbers a run; \
         do not edit. What the scenarios do and what is checked is in [Torture](../torture.md).\n\n\
         ## Totals\n\n{}\n\
         ## Scenarios\n\n\
         *Under faults* are the values that were acknowledged while a fault was in force or being recovered from. \
         *Available* is the mean share of quarters of a second in which something was acknowledged, outages and waiting \
         clients included. *Recovery* is the time from the moment of the injection, so that an outage of a given length is in \
         it (in K6, C6, C9, O2, I1, I4 and P10 hardly anything else is), until every partition of the appends had taken a \
         write that began after it and both of their ordered tables showed it; that all tables and the outbox come to rest is \
         judged in the end of each run. *Seeds* are those with a run in which something was seen to break. *Lag* is the most values that were acknowledged and not in every table yet; *memory* \
         that of the process of Millpond that took most.\n\n\
         {}\n{}\
         ## How it was run\n\n\
         Commits: {}. Each run was under load for {} s at least. {}\n\n\
         Machine: {}. Load, three brokers, Postgres and Millpond share it.\n\n\
         ```sh\n\
         {}\
         make torture ARGS=\"--scenario K1 --seed 7\"               # one run again\n\
         make torture ARGS=\"report --write docs/torture\"          # this page\n\
         ```\n",
        totals(lines),
        table(lines),
        troubles(lines),
        commits.into_iter().map(|commit| format!("`{commit}`")).collect::<Vec<_>>().join(", "),
        seconds.join(" or "),
        rates(lines),
        machine(),
        commands(lines),
    )
}

/// The commands by which runs were made, as far as they were written down.
fn commands(lines: &[Line]) -> String {
    let mut ways: BTreeMap<(u64, u64, i64), usize> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.rate > 0) {
        *ways.entry((line.seconds, line.rate, line.lag.unwrap_or_default())).or_default() += 1;
    }
    let command = |((seconds, rate, lag), runs): (&(u64, u64, i64), &usize)| {
        let lag = if *lag > 0 { format!(" --lag {lag}") } else { String::new() };
        format!("make torture ARGS=\"--seed 1..10 --resume --seconds {seconds} --rate {rate}{lag}\"    # {runs} runs\n")
    };
    ways.iter().map(command).collect()
}

/// What clients offered, and how much of it was taken while nothing was broken.
fn rates(lines: &[Line]) -> String {
    let mut by_rate: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.rate > 0 && line.undisturbed_per_second > 0) {
        by_rate.entry(line.rate).or_default().push(line.undisturbed_per_second);
    }
    let median = |of: &mut Vec<u64>| {
        of.sort_unstable();
        of[of.len() / 2]
    };
    let told = by_rate.iter_mut().map(|(rate, taken)| {
        let (rate, runs, taken) = (grouped(*rate), taken.len(), grouped(median(taken)));
        format!("{rate} in {runs} of them, of which {taken} were acknowledged before the first fault (median)")
    });
    let told: Vec<String> = told.collect();
    let old = lines.iter().filter(|line| line.rate == 0).count();
    let old = if old == 0 { String::new() } else { format!("; not written down in {old} older runs") };
    format!("Values that clients offered a second: {}{old}.", told.join("; "))
}

fn totals(lines: &[Line]) -> String {
    let sum = |of: fn(&Line) -> u64| grouped(lines.iter().map(of).sum());
    let scenarios: BTreeSet<&str> = lines.iter().map(|line| &*line.scenario).collect();
    let (p50, p99) = percentiles(lines.iter().flat_map(|line| line.recoveries_ms.clone()).collect());
    let hours = lines.iter().map(|line| line.took_s).sum::<u64>() as f64 / 3600.0;
    let rows = [
        ("runs", format!("{}, of {} scenarios; {hours:.1} hours", grouped(lines.len() as u64), scenarios.len())),
        ("values acknowledged", sum(|line| line.acknowledged)),
        ("of them under faults", sum(|line| line.under_faults)),
        (
            "values refused or of unknown outcome",
            format!("{} and {}", sum(|line| line.failed), sum(|line| line.unknown)),
        ),
        ("records of the log compared", sum(|line| line.log_records)),
        ("reads judged", sum(|line| line.reads)),
        ("snapshots of the bank", sum(|line| line.bank_looks)),
        ("faults injected, and observed", format!("{}, {}", sum(|line| line.injected), sum(|line| line.observed))),
        ("recovery p50, p99", format!("{p50}, {p99}")),
        ("scenarios with a seed, judged with something broken", judged_pairs(lines)),
        ("runs that found a violation", sum(|line| u64::from(!line.violations.is_empty()))),
        ("runs that came to no end", sum(|line| u64::from(line.error.is_some()))),
    ];
    let mut text = String::from("| | |\n|---|---:|\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}

fn table(lines: &[Line]) -> String {
    let mut text = String::from(
        "| scenario | runs | seeds | acknowledged | under faults | faults injected | observed | violations | available \
         | recovery p50 | p99 | lag | memory |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let known = faults::SCENARIOS.iter().map(|scenario| scenario.name);
    // One that was renamed or taken out keeps its runs.
    let gone: BTreeSet<&str> = lines.iter().map(|line| &*line.scenario).collect();
    let gone = gone.into_iter().filter(|name| faults::SCENARIOS.iter().all(|scenario| scenario.name != *name));
    for name in known.chain(gone) {
        let of_it: Vec<Line> = lines.iter().filter(|line| line.scenario == name).cloned().collect();
        if !of_it.is_empty() {
            text.push_str(&row(name, &of_it));
        }
    }
    text + &row("**all**", lines)
}

fn row(name: &str, lines: &[Line]) -> String {
    let sum = |of: fn(&Line) -> u64| grouped(lines.iter().map(of).sum());
    let seeds: BTreeSet<u64> = lines.iter().filter(|line| line.tells()).map(|line| line.seed).collect();
    let (p50, p99) = percentiles(lines.iter().flat_map(|line| line.recoveries_ms.clone()).collect());
    let judged: Vec<&Line> = lines.iter().filter(|line| line.error.is_none()).collect();
    let available = judged.iter().fold(0.0, |sum, line| sum + line.available) / judged.len().max(1) as f64;
    let lag = lines.iter().map(|line| line.greatest_lag).max().unwrap_or_default();
    let memory = lines.iter().map(|line| line.memory_mib).max().unwrap_or_default();
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} | {} | {available:.1} % | {p50} | {p99} | {} | {memory} MiB |\n",
        lines.len(),
        ranges(&seeds),
        sum(|line| line.acknowledged),
        sum(|line| line.under_faults),
        sum(|line| line.injected),
        sum(|line| line.observed),
        sum(|line| line.violations.values().sum()),
        grouped(lag.max(0).unsigned_abs()),
    )
}

/// How many pairs of scenario and seed were judged, and what the last run of each found.
fn judged_pairs(lines: &[Line]) -> String {
    let last = last_runs(lines);
    let found: u64 = last.values().map(|line| line.violations.values().sum::<u64>()).sum();
    format!("{}; violations in the last run of each: {found}", grouped(last.len() as u64))
}

/// Runs that found something or came to no end, each with what became of its scenario and seed later.
fn troubles(lines: &[Line]) -> String {
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let what = match &line.error {
            Some(error) => format!("came to no end: {}", error.replace(['\n', '|'], " ")),
            None if line.violations.is_empty() => continue,
            None => {
                let found = line.violations.iter().map(|(check, count)| format!("check {check}, {count} times"));
                found.collect::<Vec<_>>().join("; ")
            }
        };
        let later = lines[at + 1..].iter().rfind(|later| later.scenario == line.scenario && later.seed == line.seed);
        let since = match later {
            None => "not run again since".to_owned(),
            Some(later) if later.error.is_none() && later.violations.is_empty() => {
                format!("found nothing at `{}`", later.commit)
            }
            Some(later) => format!("no better at `{}`", later.commit),
        };
        let _ = writeln!(text, "| {} | {} | `{}` | {what} | {since} |", line.scenario, line.seed, line.commit);
    }
    if text.is_empty() {
        return text;
    }
    format!(
        "\n## What was found\n\n| scenario | seed | commit | what | the same run later |\n|---|---|---|---|---|\n{text}\n"
    )
}

/// `1..4, 7`.
fn ranges(of: &BTreeSet<u64>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in of {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let text =
        ranges.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}..{last}") });
    text.collect::<Vec<_>>().join(", ")
}

/// What it runs on, in a line.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = memory.and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let system = std::env::consts::OS;
    format!("{cores} cores ({model}), {} GiB of memory, {system} {}", kib.div_ceil(1 << 20), kernel.trim())
}

/// Tries what decides whether a campaign is over and what is counted, in the words of the judge's trials.
pub fn trial() -> Vec<(String, Option<String>)> {
    let line = |seed, begun, commit: &str| Line {
        scenario: "K1".into(),
        seed,
        begun,
        seconds: 40,
        commit: commit.into(),
        observed: 1,
        acknowledged: 10,
        ..Line::default()
    };
    let found = Line { violations: BTreeMap::from([("5 table chains".into(), 2)]), ..line(2, 2, "old") };
    let error = Line { error: Some("Postgres is away".into()), ..line(3, 3, "new") };
    let unseen = Line { observed: 0, ..line(4, 4, "new") };
    let committed = vec![line(1, 1, "old"), found.clone()];
    let lines = join(committed, [found, error, unseen].into_iter());
    let runs = Runs { seconds: 40, ..Runs::default() };
    let done = |seed, commit: &str| is_done(&lines, "K1", seed, &runs, commit);
    let longer = Runs { seconds: 41, ..Runs::default() };
    let ended = join(lines.clone(), [line(2, 9, "new"), line(3, 9, "new")].into_iter());
    let mended = join(ended.clone(), [line(4, 9, "new")].into_iter());
    let expected = [
        ("report_counts_a_run_in_both_places_once", lines.len() == 4),
        ("resume_leaves_out_a_run_that_held", done(1, "new")),
        ("resume_leaves_out_what_was_found_at_the_same_commit", done(2, "old")),
        ("resume_looks_again_for_what_was_found_at_another_commit", !done(2, "new")),
        ("resume_repeats_a_run_that_came_to_no_end", !done(3, "new")),
        ("resume_repeats_a_run_without_an_observed_fault", !done(4, "new")),
        ("resume_repeats_a_run_that_was_shorter", !is_done(&lines, "K1", 1, &longer, "new")),
        ("report_fails_while_something_found_was_not_run_again", !holds(&lines)),
        ("report_fails_while_nothing_was_seen_to_break", !holds(&ended)),
        ("report_holds_when_every_last_run_held", holds(&mended)),
        ("report_keeps_what_was_found_once", troubles(&mended).contains("found nothing at `new`")),
        ("seeds_are_told_as_ranges", ranges(&BTreeSet::from([1, 2, 3, 7])) == "1..3, 7"),
    ];
    let told = |(name, held): (&str, bool)| (name.to_owned(), (!held).then(|| "it is not so".to_owned()));
    expected.into_iter().map(told).collect()
}
