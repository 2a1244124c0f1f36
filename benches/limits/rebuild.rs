//! Rebuilds: a version that is made from the log beside the live one, beside COPY of the rows that it comes to, and beside
//! the live consumer that worked off the same log.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use chrono::{DateTime, Days, NaiveDate, SecondsFormat, Utc};
use flate2::read::GzDecoder;
use futures_util::{SinkExt as _, TryStreamExt as _, future::try_join_all};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio_postgres::Client;

use crate::{
    Bench,
    http::{self, Until},
    ingest::{BULK, BULK_CONNECTIONS},
    millpond::Running,
    project::Project,
    report::Report,
    sink,
    stats::Series,
};

const TOPIC: &str = "flights.commands.v1";
/// The order of a flight's life, and what each command is called.
const TYPES: [&str; 4] = ["ScheduleFlight", "RecordDeparture", "CancelFlight", "RecordArrival"];
/// Days between two repetitions of the data, which are six.
const DAYS: u64 = 6;
/// Commands in the log, in all and with `--quick`.
const RECORDS: (usize, usize) = (1_000_000, 60_000);
const WITHIN: Duration = Duration::from_secs(180);

/// A projection that is rebuilt.
struct Kind {
    consumer: &'static str,
    what: &'static str,
    /// Indexes beside those of the keys, in the words of `consumer.toml`.
    indexes: &'static str,
    /// What has to come of the ratio to COPY over one connection.
    wanted: Option<f64>,
}

const KINDS: [Kind; 4] = [
    Kind { consumer: "commands", what: "insert-only", indexes: "", wanted: Some(0.8) },
    Kind { consumer: "indexed", what: "insert-only with indexes", indexes: INDEXES, wanted: None },
    Kind { consumer: "punctuality", what: "aggregate", indexes: "", wanted: None },
    Kind { consumer: "flights", what: "keyed", indexes: "", wanted: None },
];

/// Two on each of the largest tables. COPY fills tables that have them, too.
const INDEXES: &str = "
[tables.schedule_flight]
indexes = [[\"origin\", \"destination\"], [\"scheduled_at\"]]
[tables.record_departure]
indexes = [[\"tail_number\"], [\"departed_at\"]]
";

pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let project = project(bench)?;
    project.push_schemas(bench)?;
    let wanted = if bench.repetitions == 1 { RECORDS.1 } else { RECORDS.0 };
    let records = post(bench, &project, wanted).await?;
    eprintln!("rebuild: {records} commands");
    let client = sink::connect(&bench.postgres).await?;
    for kind in &KINDS {
        let mut live = Series::default();
        let mut rebuilt = Series::default();
        let mut copies: [Series; 2] = Default::default();
        let mut rows = 0;
        for repetition in 0..bench.repetitions {
            let name = format!("{}_{repetition}", kind.consumer);
            let of = with_consumer(&project, kind, &name)?;
            live.add(records as f64 / consume(bench, &client, &of, &name, records).await?);
            rebuilt.add(records as f64 / rebuild(bench, &client, &of, &name, records).await?);
            for (connections, series) in [1, 2].into_iter().zip(&mut copies) {
                let (count, seconds) = copy(bench, &client, &name, connections).await?;
                rows = count;
                series.add(count as f64 / seconds);
            }
            remove(bench, (&project, &of), &name)?;
        }
        let what = kind.what;
        report.rate(&format!("live consumer, {what}"), &live, "records/s", "");
        report.rate(&format!("rebuild, {what}"), &rebuilt, "records/s", &format!("{rows} rows"));
        for (connections, series) in ["1 connection", "2 connections"].into_iter().zip(&copies) {
            report.rate(&format!("COPY of {what}'s rows, {connections}"), series, "rows/s", "");
            let wanted = kind.wanted.filter(|_| connections == "1 connection");
            report.ratio(&format!("rebuild, {what} / COPY, {connections}"), &rebuilt, series, wanted);
        }
        report.ratio(&format!("rebuild, {what} / live consumer"), &rebuilt, &live, None);
    }
    Ok(())
}

/// The project of the repository, without its consumers.
fn project(bench: &Bench) -> anyhow::Result<Project> {
    let folder = bench.project.folder.with_file_name("project-rebuild");
    fs::remove_dir_all(&folder).ok();
    for part in ["schemas", "producers"] {
        copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join(part), &folder.join(part))?;
    }
    Ok(Project { folder })
}

/// The same with one of the kinds as its consumer, under another name.
fn with_consumer(project: &Project, kind: &Kind, name: &str) -> anyhow::Result<Project> {
    let folder = project.folder.with_file_name(format!("project-{name}"));
    fs::remove_dir_all(&folder).ok();
    copy_folder(&project.folder, &folder)?;
    let consumer = folder.join("consumers").join(name);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("consumers").join(kind.consumer);
    if own.exists() {
        copy_folder(&own, &consumer)?;
    } else {
        // Every command is a row: a table for each type, by its flight.
        fs::create_dir_all(&consumer)?;
        let types = TYPES.map(|name| format!("\"{name}\"")).join(", ");
        fs::write(
            consumer.join("consumer.toml"),
            format!("topics = [\"{TOPIC}\"]\ntypes = [{types}]\n{}", kind.indexes),
        )?;
    }
    Ok(Project { folder })
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// Posts the commands of the repository's flights again and again, each time some days later, until there are so many;
/// returns how many.
async fn post(bench: &Bench, project: &Project, wanted: usize) -> anyhow::Result<usize> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/flights/commands.ndjson.gz");
    let lines = BufReader::new(GzDecoder::new(File::open(&path).context(format!("{}", path.display()))?)).lines();
    let mut of_type: [Vec<Value>; 4] = Default::default();
    for line in lines {
        let mut line: Value = serde_json::from_str(&line?)?;
        let at = TYPES.iter().position(|name| line["type"] == *name).context("a command of another type")?;
        of_type[at].push(line["body"].take());
    }
    let ingest = Running::role(bench, "ingest", project, &[]).await?;
    let (mut posted, mut repetition) = (0, 0);
    while posted < wanted {
        for (name, bodies) in TYPES.iter().zip(&of_type) {
            let path = format!("/v1/commands/{name}");
            let mut requests = Vec::new();
            for chunk in bodies[..bodies.len().min(wanted - posted)].chunks(BULK as usize) {
                let lines: Vec<String> = chunk.iter().map(|body| later(body, repetition * DAYS).to_string()).collect();
                requests.push(http::post(&path, "application/x-ndjson", None, lines.join("\n").as_bytes()));
                posted += chunk.len();
            }
            if !requests.is_empty() {
                http::load(ingest.address, BULK_CONNECTIONS, &Arc::from(requests), 202, Until::Sent).await?;
            }
        }
        repetition += 1;
    }
    ingest.stop().await?;
    Ok(posted)
}

/// A command, so many days later: its times, and the date in the id of its flight.
fn later(body: &Value, days: u64) -> Value {
    let shifted = |text: &str| {
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            let time = time.with_timezone(&Utc) + Days::new(days);
            return time.to_rfc3339_opts(SecondsFormat::Secs, true);
        }
        let parts = text.split('-').map(|part| match NaiveDate::parse_from_str(part, "%Y%m%d") {
            Ok(date) if part.len() == 8 => (date + Days::new(days)).format("%Y%m%d").to_string(),
            _ => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("-")
    };
    let field = |value: &Value| value.as_str().map_or_else(|| value.clone(), |text| shifted(text).into());
    body.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), field(value))).collect()
}

/// Seconds that a consumer takes for the log, from its first claim on.
async fn consume(bench: &Bench, client: &Client, project: &Project, name: &str, records: usize) -> anyhow::Result<f64> {
    client.batch_execute("checkpoint").await?;
    let process = Running::role(bench, "consume", project, &[]).await?;
    let seconds = applied(client, name, 1, records).await?;
    process.stop().await?;
    Ok(seconds)
}

/// Seconds that `millpond rebuild` takes for the log, from its first claim on.
async fn rebuild(bench: &Bench, client: &Client, project: &Project, name: &str, records: usize) -> anyhow::Result<f64> {
    client.batch_execute("checkpoint").await?;
    let log = File::create(project.folder.join("rebuild.log"))?;
    let mut command = Running::command(bench, project);
    let mut process = command.args(["rebuild", name, "--json"]).stderr(log).spawn()?;
    let seconds = applied(client, name, 2, records).await;
    end(&mut process)?;
    seconds.with_context(|| fs::read_to_string(project.folder.join("rebuild.log")).unwrap_or_default())
}

/// Ctrl-C, and the end.
fn end(process: &mut Child) -> anyhow::Result<()> {
    kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGINT)?;
    process.wait()?;
    Ok(())
}

/// Seconds from the first claim of a version until it has applied so many records and has its indexes.
async fn applied(client: &Client, name: &str, version: i32, records: usize) -> anyhow::Result<f64> {
    let look = client
        .prepare(
            "select count(*), coalesce(sum(next_offset), 0)::int8, coalesce(max(halt_reason), ''), bool_and(v.indexed)
               from millpond.fences f join millpond.versions v using (projection, version)
              where f.projection = $1 and f.version = $2",
        )
        .await?;
    let (begun, mut claimed) = (Instant::now(), None);
    loop {
        let row = client.query_one(&look, &[&name, &version]).await?;
        let (fences, applied, halt): (i64, i64, String) = (row.get(0), row.get(1), row.get(2));
        if fences > 0 {
            claimed.get_or_insert_with(Instant::now);
        }
        let is_indexed: Option<bool> = row.get(3);
        if usize::try_from(applied)? == records && is_indexed == Some(true) {
            return Ok(claimed.unwrap_or(begun).elapsed().as_secs_f64());
        }
        if !halt.is_empty() || begun.elapsed() > WITHIN {
            bail!("version {version} of {name} is at {applied} of {records}: {halt}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Rows of the live version's tables, and the seconds in which COPY fills tables of the same columns and primary key with
/// them, over so many connections.
async fn copy(bench: &Bench, client: &Client, name: &str, connections: usize) -> anyhow::Result<(u64, f64)> {
    client.batch_execute("drop schema if exists limits cascade; create schema limits").await?;
    let schema = format!("p_{name}_v1");
    let tables =
        client.query("select tablename from pg_tables where schemaname = $1 and tablename !~ '^_'", &[&schema]).await?;
    let mut pieces: Vec<(String, Vec<Bytes>)> = Vec::new();
    for table in tables {
        let table: &str = table.get(0);
        client.batch_execute(&format!("create table limits.{table} (like {schema}.{table} including indexes)")).await?;
        for part in 0..connections {
            // In the order of the log, as near as the heap has it.
            let share = format!(
                "copy (select * from {schema}.{table} t where (t.ctid::text::point)[0]::int8 % {connections} = {part})
                 to stdout (format binary)"
            );
            let bytes: Vec<Bytes> = client.copy_out(&share).await?.try_collect().await?;
            pieces.push((format!("copy limits.{table} from stdin (format binary)"), bytes));
        }
    }
    client.batch_execute("checkpoint").await?;
    let clients = try_join_all((0..connections).map(|_| sink::connect(&bench.postgres))).await?;
    let mut shares: Vec<Vec<(String, Vec<Bytes>)>> = vec![Vec::new(); connections];
    for (at, piece) in pieces.into_iter().enumerate() {
        shares[at % connections].push(piece);
    }
    let begun = Instant::now();
    let writers = clients.into_iter().zip(shares).map(|(client, share)| tokio::spawn(copy_in(client, share)));
    let mut rows = 0;
    for writer in writers.collect::<Vec<_>>() {
        rows += writer.await??;
    }
    Ok((rows, begun.elapsed().as_secs_f64()))
}

async fn copy_in(client: Client, share: Vec<(String, Vec<Bytes>)>) -> anyhow::Result<u64> {
    let mut rows = 0;
    for (statement, bytes) in share {
        let mut sink = std::pin::pin!(client.copy_in::<_, Bytes>(&statement).await?);
        for bytes in bytes {
            sink.send(bytes).await?;
        }
        rows += sink.finish().await?;
    }
    Ok(rows)
}

/// Removes the projection, so that the next repetition begins with as full a disk. Its folder has to be gone for that.
fn remove(bench: &Bench, (without, with): (&Project, &Project), name: &str) -> anyhow::Result<()> {
    let give_up = ["rebuild", name, "--give-up"];
    let drop = ["consumer", "drop", name, "--discard-unsent"];
    for (project, arguments) in [(with, &give_up[..]), (without, &drop)] {
        let output = Running::command(bench, project).args(arguments).stdout(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("`millpond {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}
