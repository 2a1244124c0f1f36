//! The table of what was planted and what found it.

use std::fmt::Write as _;
use std::time::Duration;

use super::bugs::NONE;
use crate::checker::Violation;
use crate::report;

/// Characters of a witness that fit into a row.
const WITNESS: usize = 160;

/// What became of one planted bug.
#[derive(Debug)]
pub struct Row {
    bug: &'static str,
    what: &'static str,
    /// Runs that came to their end.
    pub runs: usize,
    /// Runs that did not.
    pub errors: Vec<String>,
    pub found: Option<Found>,
}

/// What found a bug.
#[derive(Debug)]
pub struct Found {
    scenario: String,
    seed: u64,
    /// From the begin of the first run with the bug to the judgement.
    after: Duration,
    check: u8,
    name: String,
    witness: String,
}

impl Found {
    pub fn new(scenario: &str, seed: u64, after: Duration, violation: &Violation) -> Self {
        let witness = violation.witness.first().cloned().unwrap_or_default();
        let Violation { check, name, .. } = violation.clone();
        Self { scenario: scenario.to_owned(), seed, after, check, name, witness }
    }
}

impl Row {
    pub fn new(bug: &'static str, what: &'static str) -> Self {
        Self { bug, what, runs: 0, errors: Vec::new(), found: None }
    }

    /// Whether it was found, or, with nothing planted, nothing was.
    pub fn is_well(&self) -> bool {
        if self.bug == NONE.name { self.found.is_none() && self.errors.is_empty() } else { self.found.is_some() }
    }

    /// It in a line.
    pub fn line(&self) -> String {
        let judged = if self.is_well() { "ok" } else { "FAILED" };
        let found = match &self.found {
            Some(found) => format!(
                "found after {:.0} s by check {} ({}) in {} with seed {}",
                found.after.as_secs_f64(),
                found.check,
                found.name,
                found.scenario,
                found.seed
            ),
            None => "nothing found".to_owned(),
        };
        format!("planted {}: {judged}: {found}, in {} runs", self.bug, self.runs)
    }
}

/// All rows as a table.
pub fn text(rows: &[Row]) -> String {
    let mut text = String::from(
        "| bug | what is wrong | found in | seed | after | by | witness |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let (bug, what) = (row.bug, row.what);
        let _ = match &row.found {
            Some(Found { scenario, seed, after, check, name, witness }) => writeln!(
                text,
                "| {bug} | {what} | {scenario} | {seed} | {:.0} s | check {check}, {name} | {} |",
                after.as_secs_f64(),
                shown(witness)
            ),
            None if row.is_well() => writeln!(text, "| {bug} | {what} | {} runs | - | - | nothing found | |", row.runs),
            None => writeln!(text, "| {bug} | {what} | **not found in {} runs** | - | - | - | |", row.runs),
        };
    }
    text
}

/// The page of a run.
pub fn page(rows: &[Row]) -> String {
    let bugs = rows.iter().filter(|row| row.bug != NONE.name);
    let found = bugs.clone().filter(|row| row.is_well()).count();
    format!(
        "# Planted bugs\n\nWritten by `make torture ARGS=\"planted --write docs/torture\"` at commit {}; [torture](../torture.md#the-rig-on-trial) \
         says what it is. {found} of {} bugs were found. Seconds are those from the begin of the first run with the bug to \
         the judgement of the one that found it.\n\n{}",
        report::commit(),
        bugs.count(),
        text(rows)
    )
}

/// Short enough for a row, and without what would end a cell.
fn shown(witness: &str) -> String {
    let line = witness.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(WITNESS).collect();
    let cut = if short.len() < line.len() { "…" } else { "" };
    format!("{}{cut}", short.replace('|', "/"))
}
