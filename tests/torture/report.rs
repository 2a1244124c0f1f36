//! What a run has found: printed, and appended as a line of JSON to one file.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checker::Violation;
use crate::faults::Fault;

/// One run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub scenario: String,
    pub seed: u64,
    /// Milliseconds since 1970 when it began; scenario, seed and this tell a run from all others.
    pub begun: u64,
    pub seconds: u64,
    pub scale: f64,
    /// Values a second that clients offered; 0 in reports that are older than this field.
    pub rate: u64,
    /// Values that tables might be behind before clients waited.
    pub lag: i64,
    pub commit: String,
    /// Why it came to no end. Nothing was judged then: it tells nothing of Millpond.
    pub error: Option<String>,
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
    /// Acknowledged a second, outages and what clients waited included.
    pub per_second: f64,
    /// The same before the first fault, while nothing was broken yet.
    pub undisturbed_per_second: f64,
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
    /// Resident memory of each broker as the run ended: it must not grow from run to run.
    pub brokers_mib: Vec<u64>,
    /// Seconds of processor time of each process, over all its lives, and of the rig.
    pub cpu_s: BTreeMap<String, f64>,
    pub faults: Vec<Fault>,
    pub violations: Vec<Violation>,
    pub took_s: f64,
    /// Of these seconds, those of each part in turn.
    pub parts: Vec<(String, f64)>,
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

/// Appends a report, in one write: who is killed meanwhile leaves a whole line or none.
pub fn append(report: &Report) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    OpenOptions::new().create(true).append(true).open(path()?)?.write_all(&line)?;
    Ok(())
}

pub fn read() -> anyhow::Result<Vec<Report>> {
    read_lines(&path()?)
}

/// What a file of JSON lines holds; nothing when there is none.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("line {number} of {} is no run", path.display()))
    };
    (1..).zip(text.lines()).map(parse).collect()
}

/// What was checked out when this program was started, and whether it was changed. Later is too late: it goes on for hours.
pub fn commit() -> String {
    static COMMIT: LazyLock<String> = LazyLock::new(|| {
        let git = |args: &[&str]| {
            let output =
                std::process::Command::new("git").args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let head = git(&["rev-parse", "--short=9", "HEAD"]).unwrap_or_else(|| "unknown".into());
        // Reports are written into the repository; they change nothing of what runs.
        let status = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"];
        let changed = git(&status).is_some_and(|text| !text.is_empty());
        if changed { format!("{head}+") } else { head }
    });
    COMMIT.clone()
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A fault in a line.
pub fn line(fault: &Fault) -> String {
    let seen = fault.observed.as_deref().unwrap_or("NOT OBSERVED");
    let recovery =
        fault.recovery_ms.map_or_else(|| "not recovered".into(), |ms| format!("recovered in {:.1} s", ms as f64 / 1e3));
    format!("{:>6.1} s  {}: {seen}; {recovery}; {} requests out", fault.at, fault.what, fault.in_flight)
}

impl Report {
    /// Whether it came to an end and found nothing.
    pub fn holds(&self) -> bool {
        self.error.is_none() && self.violations.is_empty()
    }

    pub fn observed(&self) -> usize {
        self.faults.iter().filter(|fault| fault.observed.is_some()).count()
    }

    pub fn print(&self) {
        println!(
            "scenario {} seed {} ({} s, scale {}, {} offered a second, {})",
            self.scenario, self.seed, self.seconds, self.scale, self.rate, self.commit
        );
        if let Some(error) = &self.error {
            println!("  ERROR      {error}");
            println!("  nothing was judged   ({:.0} s)", self.took_s);
            self.print_folder();
            return;
        }
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
        let (p50, p99) = percentiles(self.faults.iter().filter_map(|fault| fault.recovery_ms).collect());
        println!(
            "  service    available {:.1} %, recovery p50 {p50} p99 {p99}, greatest lag {} values",
            self.availability, self.greatest_lag
        );
        let memory: Vec<String> = self.memory_mib.iter().map(|(name, mib)| format!("{name} {mib}")).collect();
        println!("  memory     {} MiB; brokers {:?} MiB", memory.join(", "), self.brokers_mib);
        let cpu: Vec<String> = self.cpu_s.iter().map(|(name, seconds)| format!("{name} {seconds:.1}")).collect();
        println!("  processor  {} s", cpu.join(", "));
        let parts: Vec<String> = self.parts.iter().map(|(name, seconds)| format!("{name} {seconds:.1}")).collect();
        println!("  time       {} s", parts.join(", "));
        if self.violations.is_empty() {
            println!("  violations 0   ({:.0} s)", self.took_s);
        }
        for violation in &self.violations {
            println!("  VIOLATION  check {}: {}, {} times", violation.check, violation.name, violation.count);
            for witness in &violation.witness {
                println!("             {witness}");
            }
        }
        self.print_folder();
    }

    fn print_folder(&self) {
        if let Some(folder) = &self.folder {
            println!("  kept       {folder}");
        }
    }
}

/// The median and the 99th percentile of milliseconds, in seconds.
pub fn percentiles(mut of: Vec<u64>) -> (String, String) {
    of.sort_unstable();
    let at = |percent: usize| {
        let index = (of.len() * percent).div_ceil(100).saturating_sub(1);
        of.get(index).map_or_else(|| "-".into(), |ms| format!("{:.1} s", *ms as f64 / 1e3))
    };
    (at(50), at(99))
}

/// A number with a comma before every third digit.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
