//! `make bench`: Millpond beside the limits of the machine it runs on.
//!
//! Every figure comes from one run: a limit and Millpond take turns, repetition by repetition, with the same load generator,
//! broker and database, so that what else the machine does meets both. Only ratios mean anything elsewhere; `docs/performance.md`
//! says what is measured and how. Millpond runs as it ships: the release binary, a process per role, on a project of its own.
//!
//! `make bench ARGS="single bulk sink reads"` runs some of the sections; `ARGS=--quick` runs all of them once, briefly; with
//! `--ids` clients give ids to their events. `ARGS=price` measures in one run what ids, parked keys and transactions cost;
//! `ARGS=rebuild` measures rebuilds beside COPY and the live consumer.

mod bare;
mod http;
mod ingest;
mod kafka;
mod millpond;
mod price;
mod project;
mod reads;
mod rebuild;
mod report;
mod sink;
mod stats;

use std::{path::PathBuf, time::Duration};

use ::millpond::dev::{self, Progress, Servers};
use anyhow::{Context as _, bail};

use self::{project::Project, report::Report};

/// The four sections, in the order in which they run; `reads` needs the table that `sink` fills.
const SECTIONS: [&str; 4] = ["single", "bulk", "sink", "reads"];
/// Run only when they are named: one compares Millpond with itself, the other takes minutes.
const PRICE: &str = "price";
const REBUILD: &str = "rebuild";
/// Away from a `millpond dev` and from the tests on the same machine.
const KAFKA_PORT: u16 = 29_192;
const POSTGRES_PORT: u16 = 29_432;

/// What every section needs.
pub struct Bench {
    pub project: Project,
    pub brokers: String,
    pub postgres: String,
    /// Repetitions of every measurement.
    pub repetitions: usize,
    /// How long a contestant is under load in one repetition.
    pub span: Duration,
    /// Records in the backlog of the sink, and how many keys they have.
    pub backlog: (usize, usize),
    /// Whether clients send an `Idempotency-Key`.
    pub ids: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if arguments.first().is_some_and(|first| first == bare::ARGUMENT) {
        return runtime.block_on(bare::serve());
    }
    let quick = arguments.iter().any(|a| a == "--quick");
    let ids = arguments.iter().any(|a| a == "--ids");
    let named: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !["--quick", "--ids"].contains(a)).collect();
    if let Some(stray) = named.iter().find(|name| !SECTIONS.contains(name) && ![PRICE, REBUILD].contains(*name)) {
        bail!("there is no section {stray}; there are {}, {PRICE}, {REBUILD}", SECTIONS.join(", "));
    }
    let runs = |section: &str| named.is_empty() || named.contains(&section);

    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let servers = start_servers(&folder)?;
    let project = Project::write(&folder.join("project"))?;
    let bench = Bench {
        project,
        brokers: servers.brokers(),
        postgres: servers.postgres_url(),
        repetitions: if quick { 1 } else { 3 },
        span: Duration::from_secs(if quick { 2 } else { 4 }),
        backlog: if quick { (60_000, 12_000) } else { (600_000, 100_000) },
        ids,
    };
    let mut report = Report::new();
    let result = runtime.block_on(async {
        bench.project.push_schemas(&bench)?;
        if runs("single") {
            ingest::single(&bench, &mut report).await.context("single")?;
        }
        if runs("bulk") {
            ingest::bulk(&bench, &mut report).await.context("bulk")?;
        }
        if runs("sink") || runs("reads") {
            sink::run(&bench, &mut report, runs("sink")).await.context("sink")?;
        }
        if runs("reads") {
            reads::run(&bench, &mut report).await.context("reads")?;
        }
        if named.contains(&PRICE) {
            price::run(&bench, &mut report).await.context(PRICE)?;
        }
        if named.contains(&REBUILD) {
            rebuild::run(&bench, &mut report).await.context(REBUILD)?;
        }
        anyhow::Ok(())
    });
    drop(runtime);
    servers.stop()?;
    result?;
    report.print();
    Ok(())
}

fn start_servers(folder: &std::path::Path) -> anyhow::Result<Servers> {
    let options = dev::Options {
        reset: true,
        kafka_options: dev::kafka::Options { port: KAFKA_PORT, ..Default::default() },
        postgres_options: dev::postgres::Options { port: POSTGRES_PORT, ..Default::default() },
        ..dev::Options::new(folder.join("servers"))
    };
    Ok(Servers::start(&options, &Progress::lines())?)
}
