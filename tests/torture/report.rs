//! What runs have found: a line of JSON each, appended to one file, and their sum.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::checker::Violation;
use crate::faults::Fault;

/// One run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub scenario: String,
    pub seed: u64,
    pub seconds: u64,
    pub scale: f64,
    pub commit: String,
    /// The bug that was planted; such a run is to find something, and is in no sum.
    pub planted: Option<String>,
    /// Values by what their clients were told.
    pub acknowledged: usize,
    pub failed: usize,
    pub unknown: usize,
    /// Requests by what they were answered, but for 202.
    pub answers: BTreeMap<String, usize>,
    /// Of the acknowledged, those while an observed fault was in force or being recovered from.
    pub acknowledged_under_faults: usize,
    /// Acknowledged a second.
    pub per_second: f64,
    /// Records of clients in the log.
    pub log_records: usize,
    /// Reads that were answered and judged, and others.
    pub reads: usize,
    pub reads_unanswered: usize,
    /// Downstream events that are in Kafka more than once.
    pub repeated_downstream: usize,
    /// Records that were passed over as repeats, and those under ids of others, over all consumers.
    pub repeats: usize,
    pub conflicts: usize,
    /// Decisions of the operator, and records that were decided about in the end.
    pub decisions: usize,
    pub verdicts: usize,
    /// Snapshots of the bank.
    pub bank_looks: usize,
    /// Percent of quarters of a second in which something was acknowledged.
    pub availability: f64,
    /// Most values acknowledged and not applied.
    pub greatest_lag: i64,
    /// Most resident memory of each process.
    pub memory_mib: BTreeMap<String, u64>,
    /// Seconds of processor time of each process, over all its lives, and of the rig.
    pub cpu_s: BTreeMap<String, f64>,
    pub faults: Vec<Fault>,
    pub violations: Vec<Violation>,
    pub took_s: f64,
    /// Where history and logs are, when they were kept.
    pub folder: Option<String>,
}

/// Where the reports of all runs are, and what was kept of them.
pub fn folder() -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("torture");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn path() -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("report.jsonl"))
}

pub fn append(report: &Report) -> anyhow::Result<()> {
    let path = path()?;
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    writeln!(file, "{}", serde_json::to_string(report)?)?;
    Ok(())
}

pub fn read() -> anyhow::Result<Vec<Report>> {
    let text = match fs::read_to_string(path()?) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    text.lines().map(|line| serde_json::from_str(line).context("a line of the report")).collect()
}

/// What is checked out, and whether it was changed.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let output =
            std::process::Command::new("git").args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".into());
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if changed { format!("{head}+") } else { head }
}

/// A fault in a line.
pub fn line(fault: &Fault) -> String {
    let seen = fault.observed.as_deref().unwrap_or("NOT OBSERVED");
    let recovery =
        fault.recovery_ms.map_or_else(|| "not recovered".into(), |ms| format!("recovered in {:.1} s", ms as f64 / 1e3));
    format!("{:>6.1} s  {}: {seen}; {recovery}; {} requests out", fault.at, fault.what, fault.in_flight)
}

impl Report {
    pub fn observed(&self) -> usize {
        self.faults.iter().filter(|fault| fault.observed.is_some()).count()
    }

    pub fn print(&self) {
        println!(
            "scenario {} seed {} ({} s, scale {}, {})",
            self.scenario, self.seed, self.seconds, self.scale, self.commit
        );
        println!(
            "  values     {} acknowledged ({:.0}/s), {} refused, {} unknown; {} while faults were in force",
            self.acknowledged, self.per_second, self.failed, self.unknown, self.acknowledged_under_faults
        );
        if !self.answers.is_empty() {
            let answers: Vec<String> =
                self.answers.iter().map(|(answer, count)| format!("{count} × {answer}")).collect();
            println!("  answers    {}", answers.join(", "));
        }
        println!(
            "  judged     {} records in the log, {} reads ({} unanswered), {} snapshots of the bank, {} repeated downstream",
            self.log_records, self.reads, self.reads_unanswered, self.bank_looks, self.repeated_downstream
        );
        println!(
            "  repeats    {} passed over, {} conflicts; {} decisions of the operator, {} verdicts",
            self.repeats, self.conflicts, self.decisions, self.verdicts
        );
        println!("  faults     {} injected, {} observed", self.faults.len(), self.observed());
        let (p50, p99) = percentiles(recoveries(std::slice::from_ref(self)));
        println!(
            "  service    available {:.1} %, recovery p50 {p50} p99 {p99}, greatest lag {} values",
            self.availability, self.greatest_lag
        );
        let memory: Vec<String> = self.memory_mib.iter().map(|(name, mib)| format!("{name} {mib}")).collect();
        println!("  memory     {} MiB", memory.join(", "));
        let cpu: Vec<String> = self.cpu_s.iter().map(|(name, seconds)| format!("{name} {seconds:.1}")).collect();
        println!("  processor  {} s", cpu.join(", "));
        if self.violations.is_empty() {
            println!("  violations 0   ({:.0} s)", self.took_s);
        }
        for violation in &self.violations {
            println!("  VIOLATION  check {}: {}, {} times", violation.check, violation.name, violation.count);
            for witness in &violation.witness {
                println!("             {witness}");
            }
        }
        if let Some(folder) = &self.folder {
            println!("  kept       {folder}");
        }
    }
}

fn recoveries(reports: &[Report]) -> Vec<u64> {
    reports.iter().flat_map(|report| &report.faults).filter_map(|fault| fault.recovery_ms).collect()
}

fn percentiles(mut of: Vec<u64>) -> (String, String) {
    of.sort_unstable();
    let at = |percent: usize| {
        let index = (of.len() * percent).div_ceil(100).saturating_sub(1);
        of.get(index).map_or_else(|| "-".into(), |ms| format!("{:.1} s", *ms as f64 / 1e3))
    };
    (at(50), at(99))
}

/// Prints the sum of runs.
pub fn sum(reports: &[Report]) {
    println!(
        "| scenario | runs | seeds | acknowledged | under faults | faults observed | recovery p50 | p99 | violations |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut by_name: BTreeMap<&str, Vec<Report>> = BTreeMap::new();
    for report in reports {
        by_name.entry(&report.scenario).or_default().push(report.clone());
    }
    for (name, reports) in &by_name {
        row(name, reports);
    }
    row("**all**", reports);
}

fn row(name: &str, reports: &[Report]) {
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    let mut seeds: Vec<u64> = reports.iter().map(|report| report.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let (p50, p99) = percentiles(recoveries(reports));
    println!(
        "| {name} | {} | {} | {} | {} | {} of {} | {p50} | {p99} | {} |",
        reports.len(),
        seeds.len(),
        sum(|report| report.acknowledged),
        sum(|report| report.acknowledged_under_faults),
        sum(Report::observed),
        sum(|report| report.faults.len()),
        sum(|report| report.violations.len()),
    );
}
