//! What the small Millpond has to hold: what was acknowledged is in the log, and the table is a fold of the log.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row as _;

use super::Side;
use super::writer::{self, Sent};
use crate::checker::log::{self, Note, Placed};
use crate::workload::history::Outcome;

/// Evidence that is told; the rest is counted.
const TOLD: usize = 3;

/// Whether the log may have lost what this request was told to be in it.
pub type Lost = Box<dyn Fn(&Sent) -> bool + Send>;

/// What a fault has taken from the log or kept from the table, and may be missing.
#[derive(Default)]
pub struct Excused {
    /// Records that were in the log and are not any more, but which the tables keep.
    pub removed: Vec<Placed<Note>>,
    /// Offsets that were never applied, for an operator has said so: from, to, by partition.
    pub skipped: BTreeMap<i32, (i64, i64)>,
    pub lost: Option<Lost>,
}

impl Side {
    /// The log, as a reader that shares no code with Millpond sees it.
    pub async fn log(&self) -> anyhow::Result<Vec<Placed<Note>>> {
        let (brokers, topic) = (self.brokers.clone(), self.topic.clone());
        tokio::task::spawn_blocking(move || log::notes(&brokers, &topic)).await?
    }

    /// Judges once everything has come to rest; what is wrong.
    pub async fn judge(&self, excused: &Excused) -> anyhow::Result<Vec<String>> {
        let log = self.log().await?;
        let sql =
            "select count(*) from information_schema.columns where table_schema = 'live' and column_name = 'extra'";
        let newer = self.number(sql).await? > 0;
        let extra = if newer { "extra" } else { "null::text as extra" };
        let sql = format!("select n, times::int8, key, {extra} from live.notes");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut self.connect().await?).await?;
        let rows: Rows = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect();
        let mut wrong = compare(&log, &self.writer.sent(), &rows, newer, excused);
        wrong.extend(self.panics());
        Ok(wrong)
    }
}

/// What is wrong with a log and a table, by what the client was told and what is excused.
pub fn compare(log: &[Placed<Note>], sent: &[Sent], rows: &Rows, newer: bool, excused: &Excused) -> Vec<String> {
    let mut wrong = lost(log, sent, excused);
    wrong.extend(differences(&expected(log, excused, newer), rows));
    wrong
}

/// Row by row: how often a note took effect, its key, and what the newer schema has of it.
pub type Rows = BTreeMap<i64, (i64, String, Option<String>)>;

pub fn expected(log: &[Placed<Note>], excused: &Excused, newer: bool) -> Rows {
    let mut rows = Rows::new();
    let places: BTreeSet<(i32, i64)> = log.iter().map(|placed| (placed.partition, placed.offset)).collect();
    let removed = excused.removed.iter().filter(|placed| !places.contains(&(placed.partition, placed.offset)));
    for Placed { partition, offset, value, .. } in log.iter().chain(removed) {
        if excused.skipped.get(partition).is_some_and(|(from, to)| (*from..*to).contains(offset)) {
            continue;
        }
        let row = rows.entry(value.n).or_insert_with(|| (0, value.key.clone(), None));
        row.0 += 1;
        if newer && value.extra.is_some() {
            row.2.clone_from(&value.extra);
        }
    }
    rows
}

fn lost(log: &[Placed<Note>], sent: &[Sent], excused: &Excused) -> Vec<String> {
    let mut times: BTreeMap<i64, usize> = BTreeMap::new();
    for placed in log.iter().chain(&excused.removed) {
        *times.entry(placed.value.n).or_default() += 1;
    }
    let mut wrong = Vec::new();
    for request in sent {
        let missing: Vec<i64> =
            (request.first..request.first + request.count).filter(|n| !times.contains_key(n)).collect();
        let may_be = excused.lost.as_ref().is_some_and(|lost| lost(request));
        match request.outcome {
            Outcome::Ok if !missing.is_empty() && !may_be => {
                wrong.push(format!("notes {missing:?} of {request:?} were acknowledged and are not in the log"));
            }
            Outcome::Fail if missing.len() < usize::try_from(request.count).unwrap_or_default() => {
                wrong.push(format!("{request:?} was refused, and only {missing:?} are not in the log"));
            }
            _ => {}
        }
    }
    // By the number of a note what it has to have in the field of the newer schema.
    let fields = |request: &Sent| {
        let newer = request.newer;
        (request.first..request.first + request.count).map(move |n| (n, newer.then(|| writer::extra(n))))
    };
    let known: BTreeMap<i64, Option<String>> = sent.iter().flat_map(fields).collect();
    for placed in log {
        let note = &placed.value;
        let as_sent = known.get(&note.n).is_some_and(|extra| *extra == note.extra);
        if note.n >= 0 && !(as_sent && note.key == writer::key(note.n)) {
            wrong.push(format!("{placed:?} was never sent"));
        }
    }
    told(wrong)
}

fn differences(expected: &Rows, rows: &Rows) -> Vec<String> {
    let mut wrong = Vec::new();
    for n in expected.keys().chain(rows.keys()).collect::<BTreeSet<_>>() {
        if expected.get(n) != rows.get(n) {
            wrong.push(format!("the row of note {n} has to be {:?} and is {:?}", expected.get(n), rows.get(n)));
        }
    }
    told(wrong)
}

fn told(mut wrong: Vec<String>) -> Vec<String> {
    let more = wrong.len().saturating_sub(TOLD);
    wrong.truncate(TOLD);
    if more > 0 {
        wrong.push(format!("and {more} more of the kind"));
    }
    wrong
}
