//! Examples: what a producer's clients send, and the problems they get when they send it wrong.
//!
//! `examples/valid/*.json` holds `{"type": …, "body": {…}}`, `examples/invalid/*.json` also the problem it must get:
//! `"problem": {"pointer": "/carrier", "expected": "a string"}`. `expected` and `hint` are optional and need only be a part
//! of the text; at least one fault of the answer must fit.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ProducerSpec, RecordSpec};
use crate::schema::Fault;

/// One example file.
#[derive(Debug)]
pub struct Example {
    /// Record type of the body.
    pub record_type: String,
    /// The JSON as it stands in the file, as a client would send it.
    pub body: Box<RawValue>,
    pub expectation: Expectation,
}

/// What must become of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    Accepted,
    /// Refused with a fault at this pointer whose texts contain these.
    Refused {
        pointer: String,
        expected: Option<String>,
        hint: Option<String>,
    },
}

/// What became of one example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    AsExpected,
    /// Why not, for people.
    Otherwise(String),
}

/// One example and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub path: PathBuf,
    pub outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "type")]
    record_type: String,
    body: Box<RawValue>,
    problem: Option<ExpectedProblem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedProblem {
    pointer: String,
    expected: Option<String>,
    hint: Option<String>,
}

/// Runs every example of the folder through `check`, which is what ingest does with a body of that type.
///
/// Reports come in the order of the paths. A folder without examples gives none.
pub fn run_examples(spec: &ProducerSpec, check: impl Fn(&RecordSpec, &[u8]) -> Result<(), Vec<Fault>>) -> Vec<Report> {
    let mut reports = Vec::new();
    for (folder, valid) in [("invalid", false), ("valid", true)] {
        for path in json_files(&spec.dir.join("examples").join(folder)) {
            let outcome = match read(&path, valid) {
                Ok(example) => judge(spec, &example, &check),
                Err(fault) => Outcome::Otherwise(fault),
            };
            reports.push(Report { path, outcome });
        }
    }
    reports
}

/// The examples in `examples/valid`, in the order of their paths; files that cannot be read are left to [`run_examples`].
pub fn valid_examples(spec: &ProducerSpec) -> Vec<Example> {
    let paths = json_files(&spec.dir.join("examples").join("valid"));
    paths.iter().filter_map(|path| read(path, true).ok()).collect()
}

fn judge(
    spec: &ProducerSpec,
    example: &Example,
    check: impl Fn(&RecordSpec, &[u8]) -> Result<(), Vec<Fault>>,
) -> Outcome {
    let Some(record) = spec.records.get(&example.record_type) else {
        let known: Vec<&str> = spec.records.keys().map(String::as_str).collect();
        let (got, name) = (&example.record_type, &spec.name);
        return Outcome::Otherwise(format!("type {got:?} is not in producer {name}: known are {}", known.join(", ")));
    };
    match (check(record, example.body.get().as_bytes()), &example.expectation) {
        (Ok(()), Expectation::Accepted) => Outcome::AsExpected,
        (Ok(()), Expectation::Refused { pointer, .. }) => {
            Outcome::Otherwise(format!("was accepted, and should be refused at {pointer:?}"))
        }
        (Err(faults), Expectation::Accepted) => Outcome::Otherwise(format!("was refused: {}", list(&faults))),
        (Err(faults), wanted) if faults.iter().any(|fault| wanted.fits(fault)) => Outcome::AsExpected,
        (Err(faults), wanted) => {
            Outcome::Otherwise(format!("was refused otherwise than {wanted:?}: {}", list(&faults)))
        }
    }
}

impl Expectation {
    fn fits(&self, fault: &Fault) -> bool {
        let Self::Refused { pointer, expected, hint } = self else { return false };
        let contains = |part: &Option<String>, text: &str| part.as_deref().is_none_or(|part| text.contains(part));
        fault.pointer == *pointer
            && contains(expected, &fault.expected)
            && contains(hint, fault.hint.as_deref().unwrap_or_default())
    }
}

fn list(faults: &[Fault]) -> String {
    let texts: Vec<String> = faults
        .iter()
        .map(|fault| format!("at {:?} expected {}, got {}", fault.pointer, fault.expected, fault.got))
        .collect();
    texts.join("; ")
}

fn read(path: &Path, valid: bool) -> Result<Example, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let shape = if valid {
        r#"{"type": …, "body": {…}}"#
    } else {
        r#"{"type": …, "body": {…}, "problem": {"pointer": …}}"#
    };
    let file: File = serde_json::from_str(&text).map_err(|error| format!("is not {shape}: {error}"))?;
    let expectation = match (file.problem, valid) {
        (None, true) => Expectation::Accepted,
        (Some(ExpectedProblem { pointer, expected, hint }), false) => Expectation::Refused { pointer, expected, hint },
        (None, false) => {
            return Err("says no problem: add \"problem\": {\"pointer\": …} with the place of the fault".into());
        }
        (Some(_), true) => return Err("is in valid/ and says a problem: move it to invalid/".into()),
    };
    Ok(Example { record_type: file.record_type, body: file.body, expectation })
}

fn json_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
    paths.sort();
    paths
}
