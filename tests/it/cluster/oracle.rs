//! Tables and topics against `tests/oracle/expected.py`, which computes from the CSV and shares no code with us.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Cluster, Web};

const EVENT_COLUMNS: [&str; 7] =
    ["flight_id", "carrier", "origin", "destination", "scheduled_at", "departed_at", "delay_minutes"];

/// What was posted, as the oracle is told it.
pub struct Slice {
    csv: PathBuf,
    arguments: Vec<String>,
}

impl Slice {
    /// The committed slice.
    pub fn all() -> Self {
        let csv = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/flights/2013-01-01_06.csv.gz");
        Self { csv, arguments: Vec::new() }
    }

    /// These days of the committed slice.
    pub fn days(days: &[u32]) -> Self {
        let arguments = days.iter().flat_map(|day| ["--day".to_owned(), day.to_string()]).collect();
        Self { arguments, ..Self::all() }
    }

    /// The first month of the whole year's file.
    pub fn january(csv: PathBuf) -> Self {
        Self { csv, arguments: vec!["--month".to_owned(), "1".to_owned()] }
    }

    /// Every table as HTTP serves it and every event that was emitted: row by row what they have to be.
    pub async fn equals(&self, cluster: &Cluster, serve: &Web) {
        for (consumer, table) in
            [("flights", "flights"), ("punctuality", "punctuality"), ("flight_rules", "flight_states")]
        {
            self.compare(table, &table_csv(serve, consumer, table).await);
        }
        self.compare("flight_delayed", &events_csv(&cluster.cat(&cluster.project.downstream)));
        for what in ["dead_letters", "refusals"] {
            let sql = format!("select count(*) from millpond.{what}");
            assert_eq!(cluster.number(&sql).await, Some(0), "{what}");
        }
    }

    #[track_caller]
    fn compare(&self, table: &str, actual: &str) {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/expected.py");
        let mut oracle = Command::new("python3")
            .arg(program)
            .args(["--table", table, "--compare", "-", "--csv"])
            .arg(&self.csv)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        oracle.stdin.take().expect("piped").write_all(actual.as_bytes()).unwrap();
        let output = oracle.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A whole table over HTTP, page by page.
async fn table_csv(serve: &Web, consumer: &str, table: &str) -> String {
    let mut path = Some(format!("/v1/views/{consumer}/{table}?limit=1000"));
    let mut csv = String::new();
    while let Some(page) = path {
        let answer = serve.get(&page, &[("accept", "text/csv")]).await;
        assert_eq!(answer.status, 200, "{page}: {}", answer.text);
        let rows = if csv.is_empty() { answer.text.as_str() } else { answer.text.split_once('\n').unwrap().1 };
        csv.push_str(rows);
        path = answer.next();
    }
    csv
}

/// The first occurrence of each event, by its id.
fn events_csv(records: &[Value]) -> String {
    let mut seen = HashSet::new();
    let mut csv = EVENT_COLUMNS.join(",") + "\n";
    for record in records {
        assert_eq!(record["type"], "FlightDelayed", "{record}");
        let id = record["headers"]["mp-event-id"].as_str().expect("an event has an id");
        if seen.insert(id) {
            let field = |name: &&str| match &record["value"][*name] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            csv += &(EVENT_COLUMNS.iter().map(field).collect::<Vec<_>>().join(",") + "\n");
        }
    }
    csv
}
