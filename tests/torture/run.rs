//! One run: a Millpond of its own under load, faults of one scenario, then peace, then judgement.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::{PgConnection, Row as _};

use crate::arena::Arena;
use crate::arguments::Runs;
use crate::checker::{self, Actual, Case, Log, Verdict, Violation};
use crate::faults::{self, Fault, Field};
use crate::random::Random;
use crate::report::Report;
use crate::servers::Servers;
use crate::watch::{Pids, Seen, Watch};
use crate::workload::Workload;
use crate::workload::history::{History, Outcome, Read, Request};

/// Load before the first fault, and after the last.
const PEACE: Duration = Duration::from_secs(2);
/// How long tables may take to have everything once the load has ended.
const SETTLES_WITHIN: Duration = Duration::from_secs(120);
/// A run that stands still for so long will not move any more.
const STANDS_STILL: Duration = Duration::from_secs(60);
/// Faults that are injected at most while none has shown an effect.
const TRIES: usize = 3;
/// Length of a window of availability.
const WINDOW: u64 = 250_000_000;
/// What no process may take.
const MEMORY_BUDGET_KIB: u64 = 400 * 1024;

/// Runs a scenario with a seed.
pub async fn run(servers: &mut Servers, scenario: &str, seed: u64, runs: &Runs) -> anyhow::Result<Report> {
    let (begun, mut parts) = (Instant::now(), Parts::begin());
    let (name, partitions) = (scenario.to_lowercase(), faults::partitions(scenario));
    let mut arena = Arena::open(servers, &name, seed, partitions, runs.plant.as_deref()).await?;
    parts.end("start");
    let history = Arc::new(History::create(&arena.folder().join("history.jsonl"))?);
    let pids = Pids::default();
    let addresses = |role| arena.of_role(role).into_iter().map(|slot| arena.slots[slot].web.subscribe()).collect();
    let workload =
        Workload::start(seed, runs, Arc::clone(&history), addresses("ingest"), addresses("serve"), arena.desk());
    let watch = Watch::start(arena.database.clone(), Arc::clone(&history), Arc::clone(&pids), workload.lag());
    let until = Instant::now() + Duration::from_secs(runs.seconds);

    let faults = {
        let random = Random::new(seed);
        let mut field = Field {
            servers,
            arena: &mut arena,
            workload: &workload,
            history: &history,
            pids: &pids,
            random,
            turn: seed.saturating_sub(1),
            scale: runs.scale,
        };
        field.note_pids();
        disturb(scenario, &mut field, until).await?
    };
    parts.end("load and faults");
    let load = Load { workload, watch, history };
    let went_back = faults::GO_BACK.contains(&scenario);
    let judged = end(servers, &mut arena, load, seed, &faults, went_back, &mut parts).await?;
    let Judged { verdict, requests, reads, log, seen, decisions, .. } = judged;
    let mut report = account(scenario, seed, runs, &requests, &reads, &faults, &seen);
    report.violations = verdict.violations;
    report.reads = verdict.reads_judged;
    report.repeated_downstream = verdict.repeated_credits;
    report.log_records = log.appends.len() + log.money.len() + log.lanes.len();
    (report.repeats, report.conflicts) = (verdict.repeats, verdict.conflicts);
    (report.decisions, report.verdicts) = (decisions, verdict.verdicts);
    report.brokers_mib = servers.broker_memory();
    if (!report.violations.is_empty() && runs.plant.is_none()) || runs.keep {
        report.folder = Some(keep(servers, &arena)?.display().to_string());
    }
    arena.remove(servers).await?;
    parts.end("remove");
    report.parts = parts.ended;
    report.took_s = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// How long each part of a run takes.
pub struct Parts {
    last: Instant,
    ended: Vec<(String, f64)>,
}

impl Parts {
    pub fn begin() -> Self {
        Self { last: Instant::now(), ended: Vec::new() }
    }

    /// Ends a part; the next one begins.
    fn end(&mut self, name: &str) {
        let seconds = (self.last.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        self.ended.push((name.to_owned(), seconds));
        self.last = Instant::now();
    }
}

/// Clients, and those who look on.
pub struct Load {
    pub workload: Workload,
    pub watch: Watch,
    pub history: Arc<History>,
}

/// What was judged, and over what.
pub struct Judged {
    pub verdict: Verdict,
    pub requests: Vec<Request>,
    pub reads: Vec<Read>,
    pub log: Log,
    pub actual: Actual,
    pub seen: Seen,
    /// How many decisions the operator has made.
    pub decisions: usize,
}

/// Ends all disturbance and the load, waits for everything to come to rest, ends all processes, and judges.
pub async fn end(
    servers: &mut Servers,
    arena: &mut Arena,
    load: Load,
    seed: u64,
    faults: &[Fault],
    went_back: bool,
    parts: &mut Parts,
) -> anyhow::Result<Judged> {
    servers.heal()?;
    arena.heal(servers)?;
    let operator = load.workload.finish().await;
    parts.end("heal");
    let settled = settle(servers, arena).await?;
    operator.end().await;
    parts.end("settle");
    let mut seen = load.watch.seen();
    drop(load.watch);
    if went_back {
        seen.bank.clear();
    }
    let decisions = load.history.decisions();
    let (requests, reads) = load.history.take();
    let log = read_log(servers, arena).await?;
    let actual = Actual::read(&mut arena.connect().await?).await?;
    parts.end("read");
    let case = Case {
        seed,
        requests: &requests,
        reads: &reads,
        log: &log,
        actual: &actual,
        decisions: &decisions,
        bank: &seen.bank,
        parked: &seen.parked,
        went_back,
    };
    let mut verdict = checker::judge(&case);
    verdict.violations.extend(liveness(faults, settled));
    verdict.violations.extend(faults::judged(faults));
    verdict.violations.extend(health(arena, &seen, &actual, (&requests, &reads)));
    parts.end("judge");
    arena.close();
    parts.end("stop");
    Ok(Judged { verdict, requests, reads, log, actual, seen, decisions: decisions.len() })
}

/// Injects faults until the time is over; at least one whose effect was seen, as far as a few tries lead to one.
async fn disturb(scenario: &str, field: &mut Field<'_>, until: Instant) -> anyhow::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    tokio::time::sleep(PEACE).await;
    // Before anything is broken it has to work.
    field.recovery(0).await.context("nothing worked before the first fault")?;
    let seen = |faults: &[Fault]| faults.iter().any(|fault| fault.observed.is_some());
    while (!seen(&faults) && faults.len() < TRIES) || Instant::now() + PEACE < until {
        let fault = faults::inject(scenario, field).await?;
        eprintln!("  {}", crate::report::line(&fault));
        field.note_pids();
        faults.push(fault);
        tokio::time::sleep(Duration::from_millis(field.random.between(200, 1500))).await;
    }
    tokio::time::sleep(PEACE).await;
    Ok(faults)
}

/// Waits until every table has everything that is in the log and the outbox is empty; whether that came.
async fn settle(servers: &Servers, arena: &Arena) -> anyhow::Result<bool> {
    let deadline = Instant::now() + SETTLES_WITHIN;
    let (mut last, mut moved) = (Vec::new(), Instant::now());
    let reader = checker::log::Reader::open(&servers.brokers())?;
    let mut connection = arena.connect().await?;
    loop {
        let missing = match missing(&reader, &mut connection, arena).await {
            Ok(missing) => missing,
            // What was healed may need a moment more.
            Err(error) => {
                connection = arena.connect().await?;
                vec![format!("it cannot be told: {error:#}")]
            }
        };
        if missing.is_empty() {
            return Ok(true);
        }
        if missing != last {
            (last, moved) = (missing, Instant::now());
        }
        if Instant::now() > deadline || moved.elapsed() > STANDS_STILL {
            eprintln!("  not settled: {}", last.join("; "));
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What is not applied yet.
async fn missing(
    reader: &checker::log::Reader,
    connection: &mut PgConnection,
    arena: &Arena,
) -> anyhow::Result<Vec<String>> {
    let ends = tokio::task::block_in_place(|| -> anyhow::Result<BTreeMap<&str, BTreeMap<i32, i64>>> {
        let all = [&arena.topics.appends, &arena.topics.transfers, &arena.topics.credits, &arena.topics.lanes];
        all.into_iter().map(|topic| Ok((topic.as_str(), reader.ends(topic)?))).collect()
    })?;
    let sql = "select projection, topic, partition, next_offset, state, coalesce(halt_reason, '') from rig.fences
                order by 1, 2, 3";
    let rows = sqlx::query(sql).fetch_all(&mut *connection).await?;
    let mut missing = Vec::new();
    for (projection, topic) in [
        ("appends", &arena.topics.appends),
        ("chains", &arena.topics.appends),
        ("accounts", &arena.topics.transfers),
        ("amounts", &arena.topics.transfers),
        ("credits", &arena.topics.credits),
        ("lanes", &arena.topics.lanes),
    ] {
        for (partition, end) in &ends[topic.as_str()] {
            let fence = rows.iter().find(|row| {
                row.get::<&str, _>(0) == projection
                    && row.get::<&str, _>(1) == topic
                    && row.get::<i32, _>(2) == *partition
            });
            let at = fence.map_or(0, |row| row.get::<i64, _>(3));
            if at < *end {
                let why = fence
                    .map_or_else(String::new, |row| format!(" ({} {})", row.get::<&str, _>(4), row.get::<&str, _>(5)));
                missing.push(format!("{projection} on {partition} is at {at} of {end}{why}"));
            }
        }
    }
    let outbox: i64 = sqlx::query_scalar("select count(*) from rig.outbox").fetch_one(&mut *connection).await?;
    if outbox > 0 {
        missing.push(format!("{outbox} rows are in the outbox"));
    }
    let parked: i64 = sqlx::query_scalar("select count(*) from rig.parked_keys").fetch_one(connection).await?;
    if parked > 0 {
        missing.push(format!("{parked} keys are parked"));
    }
    Ok(missing)
}

async fn read_log(servers: &Servers, arena: &Arena) -> anyhow::Result<Log> {
    let (brokers, topics) = (servers.brokers(), arena.topics.clone());
    tokio::task::spawn_blocking(move || Log::read(&brokers, &topics)).await?
}

/// Moves what a run leaves behind to where the next one does not clean up: history, logs, and the servers' logs.
pub fn keep(servers: &Servers, arena: &Arena) -> anyhow::Result<PathBuf> {
    let kept = crate::report::folder()?.join(arena.folder().file_name().context("a folder has a name")?);
    std::fs::rename(arena.folder(), &kept)?;
    servers.copy_logs(&kept)?;
    Ok(kept)
}

/// Everything has to work again after each fault, and to come to rest in the end.
fn liveness(faults: &[Fault], settled: bool) -> Option<Violation> {
    let mut witness: Vec<String> = faults
        .iter()
        .filter(|fault| fault.recovery_ms.is_none())
        .map(|fault| format!("nothing recovered from: {}", crate::report::line(fault)))
        .collect();
    if !settled {
        witness.push("tables and outbox did not come to rest; see what is printed above".into());
    }
    let count = witness.len();
    (count > 0).then(|| Violation { check: 14, name: "liveness".into(), count, witness })
}

/// Check 13: no panic, no process that ended by itself, no answer of 500, no session stuck, no process beyond its memory.
fn health(arena: &Arena, seen: &Seen, actual: &Actual, (requests, reads): (&[Request], &[Read])) -> Option<Violation> {
    let mut witness: Vec<String> = actual.stuck.clone();
    witness.extend(arena.died.iter().cloned());
    witness.extend(
        requests
            .iter()
            .find(|request| request.answer.starts_with("500"))
            .map(|request| format!("a request was answered {}", request.answer.chars().take(200).collect::<String>())),
    );
    witness.extend(
        reads.iter().find(|read| read.status == 500).map(|read| format!("a read of {} was answered 500", read.key)),
    );
    for log in arena.slots.iter().flat_map(|slot| &slot.logs) {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        witness.extend(text.lines().filter(|line| line.contains("panicked at")).map(|line| name_line(log, line)));
    }
    if actual.deadlocks > 0 {
        witness.push(format!("sessions of Millpond waited for each other in a circle, {} times", actual.deadlocks));
    }
    let fat = seen.memory.iter().filter(|(_, kib)| **kib > MEMORY_BUDGET_KIB);
    witness.extend(fat.map(|(name, kib)| format!("{name} took {} MiB", kib / 1024)));
    let count = witness.len();
    witness.truncate(5);
    (count > 0).then(|| Violation { check: 13, name: "health of processes".into(), count, witness })
}

fn name_line(log: &Path, line: &str) -> String {
    format!("{}: {line}", log.file_name().unwrap_or_default().to_string_lossy())
}

/// Counts what clients were told.
fn account(
    scenario: &str,
    seed: u64,
    runs: &Runs,
    requests: &[Request],
    reads: &[Read],
    faults: &[Fault],
    seen: &Seen,
) -> Report {
    let count = |outcome| requests.iter().map(|request| request.count(outcome)).sum();
    let in_force = |request: &&Request| {
        if faults::BESIDE.contains(&scenario) {
            return false;
        }
        let at = request.completed as f64 / 1e9;
        faults.iter().filter(|fault| fault.observed.is_some()).any(|fault| (fault.at..fault.until).contains(&at))
    };
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.answer != "202") {
        // Words of libraries about a broken connection are long.
        *answers.entry(request.answer.chars().take(60).collect()).or_default() += 1;
    }
    let mut cpu_s: BTreeMap<String, f64> = BTreeMap::new();
    for ((name, _), seconds) in &seen.cpu {
        *cpu_s.entry(name.clone()).or_default() += seconds;
    }
    let last = requests.iter().map(|request| request.completed).max().unwrap_or(1);
    let good: std::collections::BTreeSet<u64> = requests
        .iter()
        .filter(|request| request.count(Outcome::Ok) > 0)
        .map(|request| request.completed / WINDOW)
        .collect();
    Report {
        scenario: scenario.to_owned(),
        seed,
        seconds: runs.seconds,
        scale: runs.scale,
        rate: runs.rate,
        lag: runs.lag,
        commit: crate::report::commit(),
        acknowledged: count(Outcome::Ok),
        answers,
        planted: runs.plant.clone(),
        failed: count(Outcome::Fail),
        unknown: count(Outcome::Info),
        acknowledged_under_faults: requests.iter().filter(in_force).map(|request| request.count(Outcome::Ok)).sum(),
        reads_unanswered: reads.iter().filter(|read| read.status != 200).count(),
        per_second: count(Outcome::Ok) as f64 / (last as f64 / 1e9),
        undisturbed_per_second: undisturbed(requests, faults),
        availability: good.len() as f64 * 100.0 / (last / WINDOW + 1) as f64,
        greatest_lag: seen.greatest_lag,
        memory_mib: seen.memory.iter().map(|(name, kib)| (name.clone(), kib / 1024)).collect(),
        bank_looks: seen.bank_looks,
        cpu_s,
        faults: faults.to_vec(),
        ..Report::default()
    }
}

/// What was acknowledged a second before the first fault.
fn undisturbed(requests: &[Request], faults: &[Fault]) -> f64 {
    let until = faults.iter().map(|fault| fault.at).fold(f64::INFINITY, f64::min);
    if !until.is_finite() || until <= 0.0 {
        return 0.0;
    }
    let before = requests.iter().filter(|request| (request.completed as f64 / 1e9) < until);
    before.map(|request| request.count(Outcome::Ok)).sum::<usize>() as f64 / until
}
