//! Runs one after another: every scenario with every seed, on the same servers as long as these are sound.
//!
//! It may be killed at any time and goes on with `--resume`. A run that errs is written down as one and the next begins, on
//! new servers: what broke them for good must not be taken for a fault of Millpond's in a later run.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;

use crate::arguments::Runs;
use crate::report::{self, Report};
use crate::servers::Servers;
use crate::summary::{self, Line};
use crate::{faults, harness, run};

/// No run takes so long: one that does hangs, and the others shall have their turn.
const RUN_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Servers are replaced after so many runs, before what they keep of each (groups, markers, indexes, logs) is felt.
const RUNS_ON_SERVERS: usize = 60;
/// So many errors one after another have one cause, and the rest would only repeat it.
const ERRORS_IN_A_ROW: usize = 5;

/// Runs what is asked for.
pub async fn execute(runs: &Runs) -> anyhow::Result<Vec<Report>> {
    let mut scenarios = scenarios(runs)?;
    if scenarios.iter().any(|scenario| scenario == "P7") {
        faults::take_own_mounts();
    }
    scenarios.retain(|scenario| {
        let why = faults::hindrance(scenario);
        if let Some(why) = &why {
            println!("{scenario} is left out: {why}");
        }
        why.is_none()
    });
    let known = if runs.resume { summary::lines()? } else { Vec::new() };
    let commit = report::commit();
    let to_run = to_run(runs, &scenarios, &known, &commit);
    ensure!(!to_run.is_empty() || runs.resume, "nothing was run");
    let mut campaign = Campaign::default();
    let mut reports: Vec<Report> = Vec::new();
    for (number, (scenario, seed)) in (1..).zip(&to_run) {
        eprintln!("{scenario} with seed {seed} ({number} of {})", to_run.len());
        let report = campaign.run(runs, scenario, *seed).await;
        report.print();
        if runs.plant.is_none() {
            report::append(&report)?;
        }
        reports.push(report);
        let errors = reports.iter().rev().take_while(|report| report.error.is_some()).count();
        if errors == ERRORS_IN_A_ROW {
            bail!("{errors} runs one after another came to no end; mend the cause, then go on with --resume");
        }
    }
    campaign.end();
    Ok(reports)
}

fn scenarios(runs: &Runs) -> anyhow::Result<Vec<String>> {
    let known = |name: &str| faults::SCENARIOS.iter().any(|scenario| scenario.name == name);
    if let Some(stray) = runs.scenarios.iter().find(|name| !known(name)) {
        bail!("there is no scenario {stray}; `make torture ARGS=list` names them");
    }
    let all = || faults::SCENARIOS.iter().map(|scenario| scenario.name.to_owned()).collect();
    Ok(if runs.scenarios.is_empty() { all() } else { runs.scenarios.clone() })
}

/// Seed by seed, so that a campaign that is ended early has something of every scenario.
fn to_run(runs: &Runs, scenarios: &[String], known: &[Line], commit: &str) -> Vec<(String, u64)> {
    let all = runs.seeds.iter().flat_map(|seed| scenarios.iter().map(|scenario| (scenario.clone(), *seed)));
    all.filter(|(scenario, seed)| !summary::is_done(known, scenario, *seed, runs, commit)).collect()
}

/// Runs so far on the servers that are there.
#[derive(Default)]
pub struct Campaign {
    servers: Option<(Servers, usize)>,
}

impl Campaign {
    /// One run; what goes wrong with it is in its report.
    pub async fn run(&mut self, runs: &Runs, scenario: &str, seed: u64) -> Report {
        let (begun, instant) = (report::now(), Instant::now());
        let attempt =
            AssertUnwindSafe(tokio::time::timeout(RUN_WITHIN, self.attempt(runs, scenario, seed))).catch_unwind();
        let error = match attempt.await {
            Ok(Ok(Ok(report))) => return Report { begun, ..report },
            Ok(Ok(Err(error))) => format!("{error:#}"),
            Ok(Err(_)) => format!("it did not come to an end within {RUN_WITHIN:?}"),
            Err(panic) => format!("the rig panicked: {}", text_of(&*panic)),
        };
        let mut folder = None;
        if let Some((servers, _)) = self.servers.take() {
            folder = servers.keep_all().ok().map(|kept| kept.display().to_string());
            servers.remove();
        }
        Report {
            scenario: scenario.to_owned(),
            seed,
            begun,
            seconds: runs.seconds,
            scale: runs.scale,
            rate: runs.rate,
            lag: runs.lag,
            commit: report::commit(),
            planted: runs.plant.clone(),
            error: Some(error),
            took_s: instant.elapsed().as_secs_f64(),
            folder,
            ..Report::default()
        }
    }

    /// Removes the servers.
    pub fn end(self) {
        if let Some((servers, _)) = self.servers {
            servers.remove();
        }
    }

    async fn attempt(&mut self, runs: &Runs, scenario: &str, seed: u64) -> anyhow::Result<Report> {
        let (mut servers, before) = match self.servers.take() {
            Some((servers, before)) if before < RUNS_ON_SERVERS => (servers, before),
            worn => {
                if let Some((servers, _)) = worn {
                    servers.remove();
                }
                let folder = harness::own_folder("torture");
                (Servers::start(&folder, seed).await.context("the servers did not start")?, 0)
            }
        };
        // Whether one has died since; it is an error of this run, and the next has new ones.
        let sound = servers.check();
        let (servers, _) = self.servers.insert((servers, before + 1));
        sound.context("before the run")?;
        run::run(servers, scenario, seed, runs).await
    }
}

/// What a panic said.
fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
