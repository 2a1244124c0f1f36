//! `make crash-demo`: a few minutes for somebody who wants to see it. Three processes are killed and Postgres is away for
//! half a minute while clients write; then everything is counted. The processes, the load and the judge are those of every
//! other run.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::arena::{Arena, PARTITIONS};
use crate::arguments::Runs;
use crate::faults::{Fault, Field};
use crate::proxy::{Action, Pattern, Trap};
use crate::random::Random;
use crate::report::grouped;
use crate::run::{self, Judged, Load, Parts};
use crate::servers::Servers;
use crate::watch::{Pids, Watch};
use crate::workload::Workload;
use crate::workload::history::{History, Outcome};

/// How long Postgres is away.
const AWAY: Duration = Duration::from_secs(30);
/// How long a broker is.
const BROKER_AWAY: Duration = Duration::from_secs(8);
/// Load between two faults.
const PEACE: Duration = Duration::from_secs(3);
/// Values a second: as much as is caught up with soon after half a minute without Postgres.
const RATE: u64 = 1200;
/// So far behind may tables be before clients wait for them, as a visitor would; while Postgres is away nobody waits.
const BEHIND: i64 = 3000;
/// How often the line is written anew, on a terminal and elsewhere.
const REDRAW: Duration = Duration::from_millis(500);
const LINES: Duration = Duration::from_secs(5);

/// Shows it; whether nothing was violated.
pub async fn show() -> anyhow::Result<bool> {
    println!("Millpond under load: three Kafka brokers, Postgres, and six processes of the real binary.");
    println!("Three processes are killed, Postgres is away for {AWAY:?}. Then every value is counted.\n");
    let begun = Instant::now();
    let seed = u64::from(std::process::id());
    let runs = Runs { rate: RATE, lag: BEHIND, ..Runs::default() };
    let mut servers = Servers::start(&crate::harness::own_folder("crash-demo"), seed).await?;
    let mut arena = Arena::open(&servers, "demo", seed, PARTITIONS, None).await?;
    println!("servers and processes are up after {} s\n", begun.elapsed().as_secs());

    let history = Arc::new(History::create(&arena.folder().join("history.jsonl"))?);
    let pids = Pids::default();
    let addresses = |role| arena.of_role(role).into_iter().map(|slot| arena.slots[slot].web.subscribe()).collect();
    let workload =
        Workload::start(seed, &runs, Arc::clone(&history), addresses("ingest"), addresses("serve"), arena.desk());
    let watch = Watch::start(arena.database.clone(), Arc::clone(&history), Arc::clone(&pids), workload.lag());
    let screen = Screen::start(&history, &workload);
    let faults = {
        let random = Random::new(seed);
        let (servers, arena, workload) = (&mut servers, &mut arena, &workload);
        let mut field = Field { servers, arena, workload, history: &history, pids: &pids, random, turn: 0, scale: 1.0 };
        field.note_pids();
        acts(&mut field, &screen).await?
    };
    screen.say("the clients stop; what is in the log is applied to its end, and judged");
    let load = Load { workload, watch, history };
    let judged = run::end(&mut servers, &mut arena, load, seed, &faults, false, &mut Parts::begin()).await?;
    drop(screen);
    table(&judged, &arena);
    println!("\nrecovery, from the fault until every partition had taken a write and every table showed it:");
    for fault in &faults {
        let took = fault.recovery_ms.map_or("never".into(), |ms| format!("{:.1} s", ms as f64 / 1e3));
        println!("  {took:>7}  {}", fault.what);
    }
    println!("\n{} s in all.", begun.elapsed().as_secs());
    let violations = &judged.verdict.violations;
    for violation in violations {
        println!("VIOLATION {}: {} times", violation.name, violation.count);
        violation.witness.iter().for_each(|witness| println!("  {witness}"));
    }
    if violations.is_empty() {
        arena.remove(&servers).await?;
    } else {
        println!("kept in {}", run::keep(&servers, &arena)?.display());
    }
    Ok(violations.is_empty())
}

/// What is done, one after the other.
async fn acts(field: &mut Field<'_>, screen: &Screen) -> anyhow::Result<Vec<Fault>> {
    screen.say("all is well");
    field.recovery(0).await;
    tokio::time::sleep(PEACE).await;
    let consumer = consumer_killed(field, screen).await?;
    let broker = broker_killed(field, screen).await?;
    let ingest = ingest_killed(field, screen).await?;
    let postgres = postgres_away(field, screen).await?;
    tokio::time::sleep(PEACE).await;
    Ok(vec![consumer, broker, ingest, postgres])
}

async fn consumer_killed(field: &mut Field<'_>, screen: &Screen) -> anyhow::Result<Fault> {
    let slot = field.arena.of_role("consume")[0];
    let pattern = Pattern::Done { tag: "SELECT", of: "millpond.advance_fence(" };
    let trap = Trap::new("millpond consume", pattern, Action::Hold);
    field.arena.slots[slot].postgres.set(&trap);
    let inside = trap.sprung(Duration::from_secs(20)).await;
    let what = "kill -9 of a consumer, inside a transaction: its rows are written and not committed";
    let begun = begin(field, screen, what);
    field.arena.kill_9(slot);
    field.start(slot)?;
    Ok(finish(field, screen, begun, inside).await)
}

async fn broker_killed(field: &mut Field<'_>, screen: &Screen) -> anyhow::Result<Fault> {
    let begun = begin(field, screen, "kill -9 of one of three Kafka brokers, which comes back after 8 s");
    tokio::task::block_in_place(|| field.servers.kafka.nodes()[1].kill_9())?;
    tokio::time::sleep(BROKER_AWAY).await;
    tokio::task::block_in_place(|| field.servers.kafka.nodes()[1].restart())?;
    Ok(finish(field, screen, begun, true).await)
}

async fn ingest_killed(field: &mut Field<'_>, screen: &Screen) -> anyhow::Result<Fault> {
    let slot = field.arena.of_role("ingest")[0];
    let begun = begin(field, screen, "kill -9 of an ingest node with requests on their way");
    field.arena.kill_9(slot);
    tokio::time::sleep(Duration::from_secs(1)).await;
    field.start(slot)?;
    Ok(finish(field, screen, begun, true).await)
}

async fn postgres_away(field: &mut Field<'_>, screen: &Screen) -> anyhow::Result<Fault> {
    let begun = begin(field, screen, "Postgres is stopped for 30 s: writes go on, reads do not");
    tokio::task::block_in_place(|| field.servers.postgres.stop())?;
    let before = field.workload.acknowledged();
    tokio::time::sleep(AWAY).await;
    let meanwhile = field.workload.acknowledged() - before;
    tokio::task::block_in_place(|| field.servers.postgres.restart())?;
    screen.say(&format!("Postgres is back; {} values were acknowledged without it", grouped(meanwhile)));
    Ok(finish(field, screen, begun, meanwhile > 0).await)
}

/// A fault that has begun.
struct Begun {
    what: String,
    at: u64,
    in_flight: usize,
}

fn begin(field: &Field<'_>, screen: &Screen, what: &str) -> Begun {
    screen.say(what);
    Begun { what: what.to_owned(), at: field.history.now(), in_flight: field.workload.in_flight() }
}

/// Waits until everything works again.
async fn finish(field: &mut Field<'_>, screen: &Screen, begun: Begun, observed: bool) -> Fault {
    field.note_pids();
    let Begun { what, at, in_flight } = begun;
    let recovery = field.recovery(at).await;
    screen.say("all is well again");
    tokio::time::sleep(PEACE).await;
    let recovery_ms = recovery.map(|recovery| u64::try_from(recovery.as_millis()).unwrap_or(u64::MAX));
    let (at, until) = (at as f64 / 1e9, field.history.now() as f64 / 1e9);
    Fault { what, at, in_flight, observed: observed.then(|| "seen".into()), recovery_ms, until, wrong: Vec::new() }
}

/// The line that says what goes on.
struct Screen {
    now: watch::Sender<String>,
    task: JoinHandle<()>,
}

impl Screen {
    fn start(history: &Arc<History>, workload: &Workload) -> Self {
        let now = watch::Sender::new(String::new());
        let (history, counter, lag) = (Arc::clone(history), workload.counter(), workload.lag());
        let (said, live) = (now.subscribe(), std::io::stdout().is_terminal());
        let task = tokio::spawn(async move {
            let (mut before, mut failed, mut applied, mut last) = (0, 0, 0, u64::MAX);
            let period = if live { REDRAW } else { LINES };
            loop {
                tokio::time::sleep(period).await;
                let acknowledged = counter();
                let rate = (acknowledged - before) as f64 / period.as_secs_f64();
                before = acknowledged;
                let now = history.look(|all| all.iter().filter(|one| one.outcome != Outcome::Ok).count());
                failed = now.max(failed);
                // While Postgres is away nobody can tell, and nothing is applied.
                let behind = lag.load(std::sync::atomic::Ordering::Relaxed).max(0).unsigned_abs();
                if behind != last {
                    (last, applied) = (behind, acknowledged.saturating_sub(behind));
                }
                let line = format!(
                    "{:>4} s  {} acknowledged ({rate:.0} a second), {} not in the tables yet, {failed} requests without a 202",
                    history.now() / 1_000_000_000,
                    grouped(acknowledged),
                    grouped(acknowledged - applied),
                );
                if live {
                    print!("\r\x1b[2K{line} | {}", said.borrow().chars().take(50).collect::<String>());
                } else {
                    println!("{line}");
                }
                let _ = std::io::stdout().flush();
            }
        });
        Self { now, task }
    }

    /// Says what happens now, in a line of its own that stays.
    fn say(&self, what: &str) {
        let clear = if std::io::stdout().is_terminal() { "\r\x1b[2K" } else { "" };
        println!("{clear}  ** {what}");
        self.now.send_replace(what.to_owned());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.task.abort();
        println!();
    }
}

/// What was looked at, and how often something was wrong with it.
fn table(judged: &Judged, arena: &Arena) {
    let Judged { verdict, requests, log, actual, seen, .. } = judged;
    let acknowledged: usize = requests.iter().map(|request| request.count(Outcome::Ok)).sum();
    let records = log.appends.len() + log.money.len() + log.lanes.len();
    let tables = &actual.tables;
    let lists = tables.appends.len() + tables.chains.len() + tables.lanes.len();
    let rows = lists + tables.accounts.len() + tables.credits.len();
    let lines: [(&str, Vec<u8>, String); 13] = [
        ("acknowledged and lost", vec![1], format!("{} values acknowledged", count(acknowledged))),
        ("doubled in the log", vec![2], format!("{} records in the log", count(records))),
        ("phantoms: in the log, though refused or never sent", vec![3], format!("{} records", count(records))),
        (
            "of one key in another order",
            vec![4],
            format!("{} keys", count(tables.chains.len() + tables.accounts.len())),
        ),
        ("rows lost, doubled, made up or different", vec![5], format!("{} rows of five tables", count(rows))),
        ("reads torn, or before their position", vec![6, 7], format!("{} reads", count(verdict.reads_judged))),
        ("money made or lost", vec![8], format!("{} snapshots of the bank", count(seen.bank_looks))),
        ("offsets applied twice or never", vec![9], format!("{} steps of fences", count(actual.steps.len()))),
        ("events downstream lost or made up", vec![10], format!("{} events", count(log.credits.len()))),
        ("dead letters missing or wrong", vec![11], format!("{} dead letters", count(tables.dead_letters.len()))),
        ("repeats with a second effect", vec![12], format!("{} repeats", count(verdict.repeats))),
        (
            "records that passed what they wait for, decisions lost or made up",
            vec![16, 17],
            format!("{} decisions", count(judged.decisions)),
        ),
        ("processes that panicked, hung or never recovered", vec![13, 14], format!("{} processes", arena.slots.len())),
    ];
    println!("| what could have gone wrong | looked at | found |");
    println!("|:---------------------------|:----------|------:|");
    for (what, checks, looked_at) in lines {
        let found = verdict.violations.iter().filter(|violation| checks.contains(&violation.check));
        println!("| {what} | {looked_at} | {} |", count(found.map(|violation| violation.count).sum()));
    }
}

fn count(number: usize) -> String {
    grouped(number as u64)
}
