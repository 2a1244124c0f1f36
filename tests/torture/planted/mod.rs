//! The rig put to the test: bugs are planted, one at a time, in the binary (`src/planted.rs`) and in a run's own database,
//! and each has to be found. Without any, the same runs have to find nothing.

mod bugs;
mod sql;
mod table;

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use millpond::planted::VARIABLE;
use sqlx::PgConnection;

use self::bugs::{BUGS, NONE, Planted};
use self::table::{Found, Row};
use crate::arguments::Runs;
use crate::campaign::Campaign;
use crate::report::Report;

/// Plants what of a bug is in the database.
pub async fn plant(connection: &mut PgConnection, bug: &str) -> anyhow::Result<()> {
    sql::plant(connection, bugs::find(bug)?).await
}

/// What comes before a program so that the bug is turned on in its process: it becomes the program.
pub fn wrapper(bug: Option<&str>) -> anyhow::Result<Vec<String>> {
    let Some(bug) = bug else { return Ok(Vec::new()) };
    let Some(bug) = bugs::find(bug)?.bug else { return Ok(Vec::new()) };
    ensure!(
        cfg!(feature = "planted"),
        "this build carries no bugs: `make torture ARGS=\"--plant {}\"` builds one that does",
        bug.name()
    );
    Ok(vec!["env".into(), format!("{VARIABLE}={}", bug.name())])
}

/// Looks for each bug that is asked for, or for all, then for none; whether each was found and nothing else.
pub async fn hunt(runs: &Runs, write: Option<&Path>) -> anyhow::Result<bool> {
    let all = || BUGS.iter().chain([&NONE]).collect();
    let wanted: Vec<&Planted> = match &runs.plant {
        None => all(),
        Some(names) => names.split(',').map(bugs::find).collect::<Result<_, _>>()?,
    };
    let mut campaign = Campaign::default();
    let mut rows = Vec::new();
    for bug in &wanted {
        eprintln!("planted {}: {}", bug.name, bug.what());
        let row = if bug.name == NONE.name {
            control(&mut campaign, runs, &wanted).await
        } else {
            look_for(&mut campaign, runs, bug).await
        };
        println!("{}", row.line());
        rows.push(row);
    }
    campaign.end();
    let text = table::text(&rows);
    println!("\n{text}");
    if let Some(folder) = write {
        let path = folder.join("planted.md");
        std::fs::create_dir_all(folder)?;
        std::fs::write(&path, table::page(&rows))?;
        println!("written to {}", path.display());
    }
    Ok(rows.iter().all(Row::is_well))
}

/// Runs what a bug is looked for in until it is found.
async fn look_for(campaign: &mut Campaign, runs: &Runs, bug: &Planted) -> Row {
    let (begun, mut row) = (Instant::now(), Row::new(bug.name, bug.what()));
    for (scenario, seed) in bug.runs() {
        let Some(report) = one(campaign, runs, bug, scenario, seed, &mut row).await else { continue };
        let found = report.violations.iter().find(|violation| bug.by.contains(&violation.check));
        if let Some(violation) = found {
            row.found = Some(Found::new(scenario, seed, begun.elapsed(), violation));
            break;
        }
        for noise in &report.violations {
            eprintln!("  not counted: check {}, {}: {:?}", noise.check, noise.name, noise.witness);
        }
    }
    row
}

/// Every run in which any of these bugs is looked for, or any at all, with none.
async fn control(campaign: &mut Campaign, runs: &Runs, wanted: &[&Planted]) -> Row {
    let mut all: Vec<(&str, u64)> = wanted.iter().flat_map(|bug| bug.runs()).collect();
    if all.is_empty() {
        all = BUGS.iter().flat_map(Planted::runs).collect();
    }
    all.sort_unstable();
    all.dedup();
    let (begun, mut row) = (Instant::now(), Row::new(NONE.name, NONE.what()));
    for (scenario, seed) in all {
        let Some(report) = one(campaign, runs, &NONE, scenario, seed, &mut row).await else { continue };
        if let (None, Some(violation)) = (&row.found, report.violations.first()) {
            row.found = Some(Found::new(scenario, seed, begun.elapsed(), violation));
        }
    }
    row
}

/// One run; none when it came to no end, which tells nothing.
async fn one(
    campaign: &mut Campaign,
    runs: &Runs,
    bug: &Planted,
    scenario: &str,
    seed: u64,
    row: &mut Row,
) -> Option<Report> {
    eprintln!("{scenario} with seed {seed}, planted {}", bug.name);
    let runs = Runs { plant: Some(bug.name.to_owned()), ..runs.clone() };
    let report = campaign.run(&runs, scenario, seed).await;
    report.print();
    if let Some(error) = &report.error {
        row.errors.push(format!("{scenario} with seed {seed}: {error}"));
        return None;
    }
    row.runs += 1;
    Some(report)
}
