//! What an answer says of each value of its request.

use serde::Deserialize;

use super::history::Outcome;
use crate::harness::Answer;

/// What an answer says of each of so many values.
pub fn told(answer: &Answer, count: usize) -> (Outcome, Vec<(usize, Outcome)>, String, Option<String>) {
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        outcome: Option<String>,
        #[serde(default)]
        records: Vec<Record>,
        #[serde(default)]
        records_omitted: usize,
        /// Where lenient handling stopped: what follows was not sent.
        stopped_before: Option<usize>,
    }
    #[derive(Deserialize)]
    struct Record {
        index: usize,
        outcome: String,
    }
    let position = answer.header("millpond-position").map(str::to_owned);
    if answer.status == 202 {
        return (Outcome::Ok, Vec::new(), "202".into(), position);
    }
    let Ok(problem) = serde_json::from_str::<Problem>(&answer.text) else {
        return (Outcome::Info, Vec::new(), format!("{} {}", answer.status, answer.text), None);
    };
    let said = format!("{} {} {}", answer.status, problem.code, problem.outcome.as_deref().unwrap_or("-"));
    let of = |outcome: &str| match outcome {
        "written" => Outcome::Ok,
        "not_written" => Outcome::Fail,
        _ => Outcome::Info,
    };
    match problem.outcome.as_deref() {
        Some("not_written") => (Outcome::Fail, Vec::new(), said, None),
        // Those that are not listed are written, when all others are listed.
        Some("partly_written" | "unknown")
            if problem.records_omitted == 0 && (problem.stopped_before.is_some() || !problem.records.is_empty()) =>
        {
            let listed = problem.records.iter().map(|record| (record.index, of(&record.outcome)));
            let rest = (problem.stopped_before.unwrap_or(count)..count).map(|index| (index, Outcome::Fail));
            (Outcome::Ok, listed.chain(rest).collect(), said, None)
        }
        None if answer.status < 500 && answer.status != 408 => (Outcome::Fail, Vec::new(), said, None),
        _ => (Outcome::Info, Vec::new(), said, None),
    }
}
