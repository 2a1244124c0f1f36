//! Faults: what is broken, how its effect is seen, and how it is mended.
//!
//! A fault is injected while requests are out. It counts only when what it does was seen from outside: a leader that has
//! moved, an epoch that was raised, a message that was held. Recovery is the time from the injection until every partition
//! has taken a write that began after it, and every table shows those writes.

mod abuse;
mod backlog;
mod bombs;
mod consumer;
mod disk;
mod group;
mod handler;
mod http2;
mod kafka;
mod measure;
mod narrow;
mod outbox;
mod postgres;
mod postgres_disk;
mod repeats;
mod schema;
mod tail;
mod topic;
mod versions;

pub use self::postgres_disk::take_own_mounts;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::arena::{Arena, PARTITIONS};
use crate::checker::Violation;
use crate::random::Random;
use crate::servers::Servers;
use crate::side::Side;
use crate::side::judge::Excused;
use crate::watch::{Pids, acknowledged};
use crate::workload::Workload;
use crate::workload::history::History;

/// How long the effect of a fault may take to show.
const SHOWS_WITHIN: Duration = Duration::from_secs(30);
/// How long everything may take to work again. Not a measurement: that is in the report.
const RECOVERS_WITHIN: Duration = Duration::from_secs(90);
/// How often it is looked whether something has happened.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A scenario: faults of one kind, again and again.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
}

/// Scenarios in which Postgres goes back in time. What had left the outbox by then comes before its cause is applied
/// again, so that a snapshot may show a credit before its debit.
pub const GO_BACK: [&str; 2] = ["P4", "P5"];

/// Partitions of the appends that a scenario wants.
pub fn partitions(scenario: &str) -> usize {
    if scenario == "C12" { backlog::PARTITIONS } else { PARTITIONS }
}

/// Why a scenario cannot be run on this machine.
pub fn hindrance(scenario: &str) -> Option<String> {
    (scenario == "P7").then(postgres_disk::hindrance).flatten()
}

const fn scenario(name: &'static str, what: &'static str) -> Scenario {
    Scenario { name, what }
}

/// All scenarios. The names are those of the list in `docs/torture.md`.
pub const SCENARIOS: &[Scenario] = &[
    scenario("K1", "kill -9 of a partition's leader, back after a while"),
    scenario("K2", "kill -9 of a broker that leads nothing"),
    scenario("K3", "kill -9 of two of three brokers: below the least in-sync replicas"),
    scenario("K4", "a leader is frozen, or it and a follower, and thaws"),
    scenario("K5", "kill -9 of the active controller"),
    scenario("K6", "rolling restart of all brokers"),
    scenario("K7", "kill -9 of all brokers at once"),
    scenario("K8", "power loss at a leader: kill -9, the tail of its segments cut, first to be back"),
    scenario("K8b", "power loss at all brokers: acknowledged records are gone, and who applied them has to notice"),
    scenario("K9", "clients' links to brokers: latency, resets, half-open, one direction lost"),
    scenario("K10", "consumers cannot reach their groups' coordinators, though they fetch"),
    scenario("K11", "kill -9 of a group's coordinator while its partitions are given to others"),
    scenario("K12", "offsets of a group set back, set forward, or deleted with it"),
    scenario("K13", "a topic is made anew, is cut ahead of its consumer, or is given more partitions"),
    scenario("K14", "the disks of two or three brokers are full"),
    scenario("P1", "kill -9 of Postgres, or of one of its backends"),
    scenario("P2", "the connection is lost around a COMMIT: request lost, answer lost"),
    scenario("P3", "Postgres is restarted, or stays away"),
    scenario("P4", "kill -9 of Postgres that acknowledges commits before they are on disk"),
    scenario("P5", "failover to a standby that lags: the last commits are gone"),
    scenario("P6", "Postgres is slow: locked tables, late answers"),
    scenario("P7", "Postgres' disk is full: that of its tables, or that of its log, of which it panics"),
    scenario("P8", "a stranger takes all connections"),
    scenario("P9", "deadlocks with a stranger's session"),
    scenario("P10", "a snapshot that is kept open for long"),
    scenario("P11", "reads that are given up while Postgres is at work for them"),
    scenario("P12", "vacuum full, analyze and reindex under load"),
    scenario("C1", "kill -9 of a consumer at a point of its protocol"),
    scenario("C2", "a consumer is frozen until it is taken for dead, and thaws"),
    scenario("C3", "a consumer is frozen inside a transaction; its last message arrives after it was replaced"),
    scenario("C4", "a consumer is frozen between assignment and claim, which arrives late"),
    scenario("C5", "consumers come and go all the time"),
    scenario("C6", "a handler that takes longer than a group waits for a member"),
    scenario("C7", "bursts of values of which half make a projection fail"),
    scenario("C8", "records that end the process that meets them, by abort and by a stack that overflows"),
    scenario("C9", "schemas change in the midst: a new version, one that does not fit, an unknown id, no registry"),
    scenario("C11", "ten times the same ids over two ingest nodes, while nodes and consumers die"),
    scenario("C12", "a backlog of 200,000 values on 50 partitions, caught up with in little memory"),
    scenario("O1", "the relay is killed, or frozen and replaced, between Kafka's acknowledgement and the outbox"),
    scenario(
        "C13",
        "a consumer is frozen inside a transaction; its last message arrives between a claim and its first batch",
    ),
    scenario("K16", "both followers are frozen, then their leader dies"),
    scenario("P13", "rows that partitions share are held by a stranger"),
    scenario("O3", "kill -9 of the relay at any moment"),
    scenario("I8", "kill -9 of an ingest node while nothing reaches Kafka"),
    scenario("O2", "Kafka is away for the relay alone"),
    scenario("I1", "idle connections, slow heads, slow bodies"),
    scenario("I2", "requests that are too large, lie about their length, or mean two things (and I5)"),
    scenario("I3", "bodies that unfold without end: gzip, zstd, stacked, cut off, before and after the key is known"),
    scenario("I4", "floods of HTTP/2: resets, continuations, settings, pings, no window"),
    scenario("S1", "a version is built beside the live one, killed ten times, and swapped in"),
    scenario("S2", "swaps and rollbacks, one after the other"),
    scenario("S3", "swaps that come too early, or are killed at any moment"),
    scenario("S4", "a rollback while those who apply are killed"),
    scenario("I6", "SIGTERM or kill -9 of an ingest node under load"),
];

/// One injected fault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    pub what: String,
    /// Seconds since the run began.
    pub at: f64,
    /// Requests that were out.
    pub in_flight: usize,
    /// What was seen of it; a fault without does not count.
    pub observed: Option<String>,
    /// Milliseconds until everything worked again; none when it did not.
    pub recovery_ms: Option<u64>,
    /// Seconds since the run began until which it was in force or being recovered from.
    pub until: f64,
    /// What was not as it has to be, of a fault that has a judge of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
}

/// What faults with a judge of their own have found.
pub fn judged(faults: &[Fault]) -> Option<Violation> {
    let witness: Vec<String> = faults
        .iter()
        .flat_map(|fault| fault.wrong.iter().map(move |wrong| format!("{}: {wrong}", fault.what)))
        .collect();
    let count = witness.len();
    (count > 0).then(|| Violation { check: 15, name: "what the fault itself demands".into(), count, witness })
}

/// Where faults are injected.
pub struct Field<'a> {
    pub servers: &'a mut Servers,
    pub arena: &'a mut Arena,
    pub workload: &'a Workload,
    pub history: &'a History,
    pub pids: &'a Pids,
    pub random: Random,
    /// Which of a scenario's ways is next: seed by seed, so that ten seeds meet as many of them as there are.
    pub turn: u64,
    pub scale: f64,
}

/// A fault under way: what it is and when it began.
struct Injected {
    what: String,
    at: u64,
    in_flight: usize,
}

/// Scenarios that break a small Millpond beside the one under load, which goes on undisturbed.
pub const BESIDE: [&str; 2] = ["K13", "C9"];

/// Injects one fault of a scenario, sees its effect, mends it, and waits until everything works again.
pub async fn inject(scenario: &str, field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let injected = inject_one(scenario, field).await;
    field.turn += 1;
    injected
}

async fn inject_one(scenario: &str, field: &mut Field<'_>) -> anyhow::Result<Fault> {
    match scenario {
        "K1" => kafka::leader_killed(field).await,
        "K2" => kafka::follower_killed(field).await,
        "K3" => kafka::two_killed(field).await,
        "K4" => kafka::leader_frozen(field).await,
        "K5" => kafka::controller_killed(field).await,
        "K6" => kafka::rolled(field).await,
        "K7" => kafka::all_killed(field).await,
        "K8" => tail::lost_by_leader(field).await,
        "K8b" => tail::lost_by_all(field).await,
        "K9" => kafka::links_disturbed(field).await,
        "K10" => group::coordinator_cut(field).await,
        "K11" => group::coordinator_killed(field).await,
        "K12" => group::offsets_changed(field).await,
        "K13" => topic::changed(field).await,
        "K14" => disk::full(field).await,
        "P1" => postgres::killed(field).await,
        "P2" => postgres::commit_lost(field).await,
        "P3" => postgres::restarted(field).await,
        "P4" => postgres::unflushed(field).await,
        "P5" => postgres::failed_over(field).await,
        "P6" => postgres::slow(field).await,
        "P7" => postgres_disk::full(field).await,
        "P8" => postgres::exhausted(field).await,
        "P9" => postgres::deadlocked(field).await,
        "P10" => postgres::long_snapshot(field).await,
        "P11" => abuse::reads_given_up(field).await,
        "P12" => postgres::maintained(field).await,
        "C1" => consumer::killed(field).await,
        "C2" => consumer::frozen(field).await,
        "C3" => consumer::late_message(field).await,
        "C4" => consumer::late_claim(field).await,
        "C5" => consumer::storm(field).await,
        "C6" => handler::slow(field).await,
        "C7" => consumer::poisoned(field).await,
        "C8" => handler::deadly(field).await,
        "C9" => schema::changed(field).await,
        "C11" => repeats::storm(field).await,
        "C12" => backlog::caught_up(field).await,
        "I1" => abuse::slow_clients(field).await,
        "I2" => abuse::malformed_requests(field).await,
        "I3" => bombs::unfold(field).await,
        "I4" => http2::floods(field).await,
        "I6" => consumer::ingest_gone(field).await,
        "O1" => outbox::relay_gone(field).await,
        "C13" => narrow::message_before_the_first(field).await,
        "K16" => narrow::leader_alone(field).await,
        "P13" => narrow::shared_rows_held(field).await,
        "O3" => narrow::relay_killed_anywhere(field).await,
        "I8" => narrow::ingest_gone_unheard(field).await,
        "S1" => versions::rebuilt(field).await,
        "S2" => versions::swapped(field).await,
        "S3" => versions::swap_killed(field).await,
        "S4" => versions::rolled_back(field).await,
        "O2" => outbox::relay_cut_off(field).await,
        other => bail!("there is no scenario {other}; `make torture ARGS=list` names them"),
    }
}

impl Field<'_> {
    /// Waits until requests are out, and says when that was.
    async fn begin(&self, what: impl Into<String>) -> anyhow::Result<Injected> {
        let begun = Instant::now();
        // Clients wait while tables are too far behind, and that may take as long as a recovery.
        while begun.elapsed() < RECOVERS_WITHIN {
            let in_flight = self.workload.in_flight();
            if in_flight > 0 {
                return Ok(Injected { what: what.into(), at: self.history.now(), in_flight });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bail!("no request was out for {RECOVERS_WITHIN:?}")
    }

    /// Ends the account of a fault.
    fn end(&self, injected: Injected, observed: Option<String>, recovery: Option<Duration>) -> Fault {
        let Injected { what, at, in_flight } = injected;
        let recovery_ms = recovery.map(|recovery| u64::try_from(recovery.as_millis()).unwrap_or(u64::MAX));
        Fault {
            what,
            at: seconds(at),
            in_flight,
            observed,
            recovery_ms,
            until: seconds(self.history.now()),
            wrong: Vec::new(),
        }
    }

    /// Waits until everything works again; how long that took from `since`, or nothing when it took too long.
    pub async fn recovery(&self, since: u64) -> Option<Duration> {
        let all = async {
            let (mut wanted, mut look) = (BTreeMap::new(), Look::at(self.arena));
            loop {
                if wanted.len() < self.arena.partitions {
                    wanted = acknowledged(self.history, since);
                } else if look.shows(&wanted).await.unwrap_or(false) {
                    return Duration::from_nanos(self.history.now() - since);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(RECOVERS_WITHIN, all).await.ok()
    }

    /// The sum of all epochs: it grows with every claim.
    async fn epochs(&self) -> Option<i64> {
        Look::at(self.arena).epochs().await
    }

    /// Waits until fences have been claimed anew; how many times.
    async fn claimed_since(&self, before: i64) -> Option<String> {
        let claimed = async {
            let mut look = Look::at(self.arena);
            loop {
                if let Some(now) = look.epochs().await.filter(|now| *now > before) {
                    return format!("{} claims", now - before);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(SHOWS_WITHIN, claimed).await.ok()
    }

    /// The length of an outage.
    fn outage(&mut self, least: u64, most: u64) -> Duration {
        let milliseconds = self.random.between(least * 1000, most * 1000);
        Duration::from_secs_f64(milliseconds as f64 / 1000.0 * self.scale)
    }

    /// A small Millpond beside the one under load, at work: its client was acknowledged so many notes, and they are applied.
    async fn side(&self) -> anyhow::Result<Side> {
        let side = Side::open(self.servers, self.arena.folder()).await?;
        ensure!(side.writer.more(300, RECOVERS_WITHIN).await, "the small Millpond takes nothing");
        let ends = side.ends().await?;
        ensure!(
            side.reaches(&ends, RECOVERS_WITHIN).await,
            "the small Millpond applies nothing: {:?}",
            side.fences().await
        );
        Ok(side)
    }

    /// Lets the client of the small Millpond end, waits until everything is applied, judges, and removes it all.
    async fn leave(&self, side: Side, excused: &Excused) -> anyhow::Result<Vec<String>> {
        self.leave_with(side, excused, 0).await
    }

    /// [`Self::leave`] where so many dead letters have to be there.
    async fn leave_with(&self, mut side: Side, excused: &Excused, dead: i64) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        if !side.writer.more(100, RECOVERS_WITHIN).await {
            wrong.push("the small Millpond takes nothing any more".to_owned());
        }
        side.writer.stop().await;
        let ends = side.ends().await?;
        if side.reaches(&ends, RECOVERS_WITHIN).await {
            wrong.extend(side.judge(excused).await?);
        } else {
            wrong.push(format!("the small Millpond does not come to rest at {ends:?}: {:?}", side.fences().await?));
        }
        let found = side.number("select count(*) from millpond.dead_letters").await?;
        if found != dead {
            wrong.push(format!("the small Millpond has {found} dead letters, and has to have {dead}"));
        }
        side.close(self.servers).await?;
        Ok(wrong)
    }

    /// Starts the process of a slot, and tells the watch.
    pub fn start(&mut self, slot: usize) -> anyhow::Result<()> {
        self.arena.start(self.servers, slot)?;
        self.note_pids();
        Ok(())
    }

    /// Tells the watch who runs now.
    pub fn note_pids(&self) {
        let running =
            self.arena.slots.iter().filter_map(|slot| Some((slot.name.clone(), slot.process.as_ref()?.pid())));
        *self.pids.lock().expect("nobody panics with it") = running.collect();
    }

    /// One of the ways in which a scenario breaks something.
    fn way<T: Copy>(&self, of: &[T]) -> T {
        of[usize::try_from(self.turn % of.len() as u64).expect("an index")]
    }

    /// A slot of a role, by chance.
    fn any(&mut self, role: &str) -> anyhow::Result<usize> {
        let slots = self.arena.of_role(role);
        ensure!(!slots.is_empty(), "nobody has the role {role}");
        Ok(*self.random.pick(&slots))
    }
}

/// Looks at fences again and again, on one connection as long as it lasts: logging in costs the machine more than looking.
struct Look<'a> {
    arena: &'a Arena,
    connection: Option<PgConnection>,
}

impl<'a> Look<'a> {
    fn at(arena: &'a Arena) -> Self {
        Self { arena, connection: None }
    }

    /// Whether the tables show everything below these offsets; nothing while Postgres is away.
    async fn shows(&mut self, wanted: &BTreeMap<i32, i64>) -> Option<bool> {
        let sql = "select projection, partition, next_offset from rig.fences
                    where projection in ('appends', 'chains')";
        let rows = self.rows(sql).await?;
        let there = |(partition, end): (&i32, &i64)| {
            let fences = rows.iter().filter(|row| row.get::<i32, _>(1) == *partition);
            fences.filter(|row| row.get::<i64, _>(2) >= *end).count() == 2
        };
        Some(wanted.iter().all(there))
    }

    async fn epochs(&mut self) -> Option<i64> {
        let rows = self.rows("select coalesce(sum(epoch), 0)::int8 from millpond.fences").await?;
        rows.first()?.try_get(0).ok()
    }

    async fn rows(&mut self, sql: &'static str) -> Option<Vec<PgRow>> {
        if self.connection.is_none() {
            self.connection = self.arena.connect().await.ok();
        }
        let rows = sqlx::query(sql).fetch_all(self.connection.as_mut()?).await.ok();
        if rows.is_none() {
            self.connection = None;
        }
        rows
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 1e6).round() / 1e3
}
