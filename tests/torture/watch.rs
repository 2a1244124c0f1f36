//! What is seen of a run while it goes on: how far tables are behind, what processes take, whether the bank adds up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::task::JoinHandle;

use crate::checker;
use crate::workload::history::{History, Kind, Outcome};

const PERIOD: Duration = Duration::from_millis(250);
/// The bank is looked at in every so many periods.
const BANK_EVERY: u64 = 4;

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Most values that were acknowledged and not in every table yet.
    pub greatest_lag: i64,
    /// Most resident memory of a role's process, in KiB.
    pub memory: BTreeMap<String, u64>,
    /// Seconds of processor time by name and pid, the rig's own among them.
    pub cpu: BTreeMap<(String, i32), f64>,
    /// Snapshots in which the bank did not add up.
    pub bank: Vec<String>,
    /// Snapshots in which a record was applied before what it waits for, or parked keys and what waits did not agree.
    pub parked: Vec<String>,
    /// Snapshots of the bank in all.
    pub bank_looks: usize,
}

/// Watches a run until it is dropped.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// The processes that are watched: names and pids, as they are now.
pub type Pids = Arc<Mutex<BTreeMap<String, i32>>>;

impl Watch {
    /// Watches, and tells `lag` how far behind tables are.
    pub fn start(database: String, history: Arc<History>, pids: Pids, lag: Arc<AtomicI64>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(watch(database, history, pids, Arc::clone(&seen), lag));
        Self { seen, task }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(database: String, history: Arc<History>, pids: Pids, seen: Arc<Mutex<Seen>>, lag: Arc<AtomicI64>) {
    let mut connection: Option<PgConnection> = None;
    let rig = ("rig".to_owned(), std::process::id().cast_signed());
    // The rig outlives a run.
    let before = processor_time(rig.1).unwrap_or_default();
    for round in 0_u64.. {
        tokio::time::sleep(PERIOD).await;
        if connection.is_none() {
            connection = PgConnection::connect(&database).await.ok();
        }
        let look = tokio::time::timeout(Duration::from_secs(5), async {
            let connection = connection.as_mut()?;
            let applied = applied(connection).await.ok()?;
            let looks = round.is_multiple_of(BANK_EVERY);
            let bank = if looks { bank(connection).await.ok()? } else { None };
            let parked = if looks { parked(connection).await.ok()? } else { Vec::new() };
            Some((applied, bank, parked))
        });
        let looked = look.await.ok().flatten();
        let acknowledged: i64 = acknowledged(&history, 0).values().sum();
        let running = pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let cpu: Vec<((String, i32), f64)> = running
            .iter()
            .map(|(name, pid)| (name.clone(), *pid))
            .filter_map(|of| Some((of.clone(), processor_time(of.1)?)))
            .chain(processor_time(rig.1).map(|now| (rig.clone(), now - before)))
            .collect();
        let memory: Vec<(String, u64)> =
            running.into_iter().filter_map(|(name, pid)| Some((name, resident(pid)?))).collect();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.cpu.extend(cpu);
        for (name, kib) in memory {
            let most = seen.memory.entry(name).or_default();
            *most = kib.max(*most);
        }
        match looked {
            // It is away, or the connection is of no more use.
            None => connection = None,
            Some((applied, bank, parked)) => {
                lag.store(acknowledged - applied, Ordering::Relaxed);
                seen.greatest_lag = seen.greatest_lag.max(acknowledged - applied);
                seen.parked.extend(parked);
                if let Some(fault) = bank {
                    seen.bank_looks += 1;
                    seen.bank.extend(fault);
                }
            }
        }
    }
}

/// How many appends every projection has applied.
pub async fn applied(connection: &mut PgConnection) -> sqlx::Result<i64> {
    let sql = "select coalesce(min(applied), 0)::int8 from (
                 select sum(next_offset) as applied from rig.fences where projection in ('appends', 'chains')
                  group by projection) s";
    sqlx::query_scalar(sql).fetch_one(connection).await
}

/// In one snapshot: no credit before its debit, no balance below zero. The inner value is the fault, if there is one.
async fn bank(connection: &mut PgConnection) -> sqlx::Result<Option<Option<String>>> {
    let sql = "select (select coalesce(sum(amount), 0)::int8 from live.credits),
                      (select coalesce(sum(debited), 0)::int8 from live.accounts),
                      (select coalesce(min(deposited - debited), 0)::int8 from live.accounts)";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    let (credited, debited, least): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    let fault = (credited > debited || least < 0)
        .then(|| format!("a snapshot had {credited} credited of {debited} debited, and a balance of {least}"));
    Ok(Some(fault))
}

/// In one snapshot: what of a parked key was applied stands before its head, and as many records wait as it says.
async fn parked(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let sql = r#"
        select format('%s has applied %s, and %s@%s is parked', l.lane, l.last_offset, k.partition, k.head)
          from rig.parked_keys k join live.lanes l on k.key = convert_to(l.lane, 'UTF8')
         where k.projection = 'lanes' and l.last_offset >= k.head
        union all
        select format('parked at %s@%s are %s records from %s on, and %s from %s on wait',
                      k.partition, k.parked_at, k.records, k.head, count(d), min(d."offset"))
          from rig.parked_keys k
          left join rig.dead_letters d using (projection, version, topic, partition, parked_at)
         group by k.projection, k.version, k.topic, k.partition, k.parked_at, k.records, k.head
        having count(d) <> k.records or min(d."offset") is distinct from k.head"#;
    sqlx::query_scalar(sql).fetch_all(connection).await
}

/// Resident memory in KiB.
pub fn resident(pid: i32) -> Option<u64> {
    memory(pid, "VmRSS:")
}

/// What Linux says of a process's memory in that field, in KiB.
pub fn memory(pid: i32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Seconds of processor time that a process has taken so far.
pub fn processor_time(pid: i32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have spaces.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    // A hundred a second on every Linux that we know.
    Some((user + system) as f64 / 100.0)
}

/// How far each partition of appends is acknowledged by requests that began after `since`.
pub fn acknowledged(history: &History, since: u64) -> BTreeMap<i32, i64> {
    history.look(|requests| {
        let mut ends = BTreeMap::new();
        // The last few of each client say it all; all of them are looked at only while there are few.
        for request in requests.iter().rev().take(400) {
            if request.kind != Kind::Append || request.outcome != Outcome::Ok || request.invoked < since {
                continue;
            }
            for (partition, end) in checker::position(request.position.as_deref().unwrap_or_default()) {
                let most = ends.entry(partition).or_insert(0);
                *most = end.max(*most);
            }
        }
        ends
    })
}
