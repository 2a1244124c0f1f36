//! `make torture`: Millpond under load while everything around it breaks, and a checker that believes nobody.
//!
//! Three real Kafka brokers, a real Postgres, processes of the real binary, a proxy of our own between them. Clients remember
//! what they were told; in the end it is compared with the log and the tables, which a fold of the log of our own says the
//! rows of. `docs/torture.md` has the checks and the scenarios. Everything follows from a seed, the machine's own timing aside.
//!
//! Without arguments, as `cargo test` calls it, it runs the short form. Under the name `millpond` this program is the
//! application that is tested: the engine, with the handler of `project/consumers/accounts`.
#![allow(clippy::unwrap_used, reason = "the shared helpers of the tests panic when they cannot go on")]

mod arena;
mod arguments;
mod campaign;
mod checker;
mod demo;
mod faults;
#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the integration tests, which use all of it")]
mod harness;
mod planted;
#[path = "../it/cluster/process.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
mod process;
mod proxy;
mod random;
mod report;
mod run;
mod segments;
mod servers;
mod side;
mod summary;
mod values;
mod watch;
#[path = "../it/cluster/web.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
mod web;
#[path = "../it/siege/wire.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
mod wire;
mod workload;

#[path = "project/consumers/accounts/handler.rs"]
mod accounts;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::arguments::{Order, Runs};
use self::report::Report;
use self::web::Web;

/// Far more than a process takes to start, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);
/// The scenarios of the short form, and how long each is under load.
const SHORT: [&str; 3] = ["K1", "C1", "P1"];
const SHORT_SECONDS: u64 = 8;
/// What clients of the short form offer a second, and how many values tables may be behind: what a build without optimisation
/// applies on a machine that does much else, so that a recovery is not the time that a backlog takes.
const SHORT_RATE: u64 = 800;
const SHORT_LAG: i64 = 3000;

/// Where this program's source is.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture")
}

fn main() -> ExitCode {
    let called = std::env::args_os().next().map(PathBuf::from);
    if called.is_some_and(|name| name.file_name().is_some_and(|name| name == "millpond")) {
        return millpond::Application::new().handler("accounts", accounts::Accounts).main();
    }
    match order() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what is asked for; whether nothing was violated.
fn order() -> anyhow::Result<bool> {
    match arguments::read(std::env::args().skip(1))? {
        Order::Nothing => Ok(true),
        Order::Trial => Ok(trial()),
        Order::List => {
            for scenario in faults::SCENARIOS {
                println!("{:4} {}", scenario.name, scenario.what);
            }
            Ok(true)
        }
        Order::Report(write) => {
            let lines = summary::lines()?;
            summary::print(&lines);
            if let Some(folder) = write {
                summary::write(&folder, &lines)?;
                println!("\nwritten to {}", folder.display());
            }
            Ok(summary::holds(&lines))
        }
        Order::Demo => runtime()?.block_on(demo::show()),
        Order::Short => short(),
        Order::Planted(runs, write) => runtime()?.block_on(planted::hunt(&runs, write.as_deref())),
        Order::Run(runs) => {
            let reports = runtime()?.block_on(campaign::execute(&runs))?;
            println!();
            if let Some(bug) = &runs.plant {
                let found = reports.iter().filter(|report| !report.violations.is_empty()).count();
                println!("planted bug {bug}: found in {found} of {} runs", reports.len());
                return Ok(found > 0);
            }
            summary::print(&reports.iter().map(summary::Line::from).collect::<Vec<_>>());
            Ok(reports.iter().all(Report::holds))
        }
    }
}

/// The short form, in the words of a test runner.
fn short() -> anyhow::Result<bool> {
    let mut results = trials();
    let scenarios = SHORT.map(str::to_owned).to_vec();
    println!("\nrunning {} tests", results.len() + scenarios.len());
    let begun = Instant::now();
    let runs = Runs { scenarios, seconds: SHORT_SECONDS, rate: SHORT_RATE, lag: SHORT_LAG, ..Runs::default() };
    let reports = runtime()?.block_on(campaign::execute(&runs))?;
    results.extend(reports.iter().map(|report| {
        let unseen = (report.observed() == 0).then(|| "no fault was observed".to_owned());
        let violated =
            (!report.violations.is_empty()).then(|| format!("{} checks do not hold", report.violations.len()));
        let wrong = report.error.clone().or(violated).or(unseen);
        (format!("{}_seed_{}", report.scenario.to_lowercase(), report.seed), wrong)
    }));
    for (name, wrong) in &results {
        match wrong {
            None => println!("test torture::{name} ... ok"),
            Some(wrong) => println!("test torture::{name} ... FAILED\n    {wrong}"),
        }
    }
    let failed = results.iter().filter(|(_, wrong)| wrong.is_some()).count();
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        results.len() - failed,
        begun.elapsed().as_secs_f64()
    );
    Ok(failed == 0)
}

/// What the rig decides by itself, tried on what is made up: the judge, and what is counted.
fn trials() -> Vec<(String, Option<String>)> {
    let mut results = checker::trial::run();
    results.extend(summary::trial());
    results
}

/// The judge on trial alone.
fn trial() -> bool {
    let results = trials();
    for (name, wrong) in &results {
        println!("{name}: {}", wrong.as_deref().unwrap_or("ok"));
    }
    results.iter().all(|(_, wrong)| wrong.is_none())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()
}
