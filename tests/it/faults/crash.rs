//! The crash guard: a record that ends the process is set aside after three attempts; one around which the process is killed
//! is not.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use millpond::handler::{Effects, Handler, HandlerError, Record, State, async_trait};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Executor as _, Row as _};

use super::FAST_REBALANCE;
use super::foreign::{Foreigner, newest_schema};
use crate::cluster::{Cluster, Process, Project, SOON, run_with_handler};
use crate::harness::eventually_async;

/// An amount that ends the process which meets it.
const DEADLY: i64 = 666;
/// An amount that takes the handler longer than Postgres lets a transaction stand still (8 s), and than it may take to answer
/// (25 s).
pub const TIRESOME: i64 = 777;
const TAKES: Duration = Duration::from_secs(27);
const PAYMENTS: i64 = 40;

#[derive(Serialize, Deserialize)]
struct Sum {
    account: String,
    total: i64,
}

#[derive(Deserialize)]
struct Paid {
    account: String,
    amount: i64,
}

struct Sums;

#[async_trait]
impl Handler for Sums {
    fn revision(&self) -> u32 {
        1
    }

    async fn apply(
        &self,
        records: &[Record],
        state: &mut State<'_>,
        effects: &mut Effects,
    ) -> Result<(), HandlerError> {
        let accounts: Vec<String> = records.iter().filter_map(|record| record.key.clone()).collect();
        let mut sums: HashMap<String, Sum> = state.load("deadly", "account", &accounts).await?;
        for record in records {
            let Paid { account, amount } = record.decode()?;
            match amount {
                DEADLY => std::process::abort(),
                TIRESOME => tokio::time::sleep(TAKES).await,
                _ => {}
            }
            let sum = sums.entry(account.clone()).or_insert(Sum { account, total: 0 });
            sum.total += amount;
            effects.upsert("deadly", &*sum);
        }
        Ok(())
    }
}

/// The other process of the tests below, and of those in `handlers`.
#[test]
#[ignore = "a process of other tests, which run it by default"]
fn consumer_process() {
    run_with_handler("deadly", Sums);
}

pub fn deadly(dir: PathBuf, unique: &str) -> Project {
    deadly_on(dir, unique, 1)
}

fn deadly_on(dir: PathBuf, unique: &str, partitions: u32) -> Project {
    let project = Project::shop(dir, unique, partitions);
    let manifest = "topics = [\"TOPIC\"]\ntypes = [\"Paid\"]\nhandler = \"rust\"\n[tables.deadly]\nkey = [\"account\"]\n\
                    [tables.deadly.columns]\naccount = \"text\"\ntotal = \"int8\"\n";
    project.write("consumers/deadly/consumer.toml", manifest);
    project
}

pub fn consume(cluster: &Cluster) -> Process {
    cluster.start_application("faults::crash::consumer_process", "consume", &FAST_REBALANCE)
}

/// Payments of one account, of which one is deadly.
async fn pay(cluster: &Cluster, deadly: Option<i64>) -> i64 {
    let ingest = cluster.start("ingest", &[]);
    let amount = |n: i64| if Some(n) == deadly { DEADLY } else { n };
    let lines: Vec<String> = (0..PAYMENTS).map(|n| json!({"account": "a", "amount": amount(n)}).to_string()).collect();
    let answer =
        ingest.web.post("/v1/events/Paid", &[("content-type", "application/x-ndjson")], &lines.join("\n")).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    (0..PAYMENTS).filter(|n| Some(*n) != deadly).sum()
}

pub async fn total_is(cluster: &Cluster, total: i64) {
    let sum = "select coalesce(sum(total), 0)::int8 from live.deadly";
    eventually_async(SOON, async || cluster.number(sum).await == Some(total)).await;
}

/// Starts a consumer again and again until one has applied so many records; that one, and how many have ended before.
async fn until_it_lives(cluster: &Cluster, records: i64) -> (Process, usize) {
    let mut ends = 0;
    loop {
        let mut consume = consume(cluster);
        let deadline = std::time::Instant::now() + SOON;
        while !consume.has_ended() && cluster.applied().await != Some(records) {
            assert!(std::time::Instant::now() < deadline, "{}", consume.log());
            tokio::task::yield_now().await;
        }
        if !consume.has_ended() {
            return (consume, ends);
        }
        let (_, well) = consume.ended(SOON);
        assert!(!well, "{}", consume.log());
        ends += 1;
        assert!(ends < 20, "it goes on and on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn record_that_ends_the_process_is_set_aside_and_nothing_else_is() {
    const CULPRIT: i64 = 25;
    let cluster = Cluster::of("deadly", deadly).await;
    let total = pay(&cluster, Some(CULPRIT)).await;
    let (alive, ends) = until_it_lives(&cluster, PAYMENTS).await;
    total_is(&cluster, total).await;
    // In the whole batch; in a smaller one, or two; three times alone.
    assert!((4..=8).contains(&ends), "{ends} processes ended");
    let mut postgres = cluster.postgres().await;
    let dead = sqlx::query("select \"offset\", reason_class, reason from millpond.dead_letters");
    let dead = dead.fetch_all(&mut postgres).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].get::<i64, _>(0), dead[0].get::<&str, _>(1)), (CULPRIT, "crash"));
    assert!(dead[0].get::<&str, _>(2).contains("3 processes ended"));
    alive.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn record_around_which_the_process_is_killed_is_applied_all_the_same() {
    let cluster = Cluster::of("healthy", deadly).await;
    let total = pay(&cluster, None).await;
    let first = consume(&cluster);
    eventually_async(SOON, async || cluster.applied().await == Some(PAYMENTS)).await;
    first.kill_9();
    let total = total + pay(&cluster, None).await;
    // Handlers wait for the rows that they load, and the process is killed meanwhile, far more often than a record is tried.
    let mut lock = cluster.postgres().await;
    lock.execute("begin").await.unwrap();
    lock.execute("lock table p_deadly_v1.deadly in access exclusive mode").await.unwrap();
    let waits = "select count(*) from pg_locks where not granted and relation = 'p_deadly_v1.deadly'::regclass";
    for _ in 0..6 {
        let consume = consume(&cluster);
        eventually_async(SOON, async || cluster.number(waits).await == Some(1)).await;
        consume.kill_9();
        eventually_async(SOON, async || cluster.number(waits).await == Some(0)).await;
    }
    lock.execute("rollback").await.unwrap();
    let alive = consume(&cluster);
    total_is(&cluster, total).await;
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0));
    alive.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn record_that_waits_for_its_schema_while_the_process_is_killed_is_applied_all_the_same() {
    let cluster = Cluster::of("unread", deadly).await;
    let total = pay(&cluster, None).await;
    let first = consume(&cluster);
    eventually_async(SOON, async || cluster.applied().await == Some(PAYMENTS)).await;
    first.kill_9();
    let (foreigner, id) = (Foreigner::of(&cluster, 1), newest_schema(&cluster) + 7);
    // Five for `a`, under a schema that is registered later.
    let payload: Vec<u8> = [0].into_iter().chain(id.to_be_bytes()).chain([2, b'a', 10]).collect();
    foreigner.write(b"a", &payload).await;
    for _ in 0..5 {
        let consume = consume(&cluster);
        let waits = format!("schema id {id} is not in the registry");
        eventually_async(SOON, async || consume.log().contains(&waits)).await;
        consume.kill_9();
    }
    let alive = consume(&cluster);
    let schema = std::fs::read_to_string(cluster.project.dir.join("schemas/Paid/v1.avsc")).unwrap();
    foreigner.register_value(1, id, &schema).await;
    total_is(&cluster, total + 5).await;
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0), "{}", alive.log());
    alive.stop();
}

/// Which fences had an attempt begun in which epoch.
const BEGUN: &str = "create table public.begun (partition integer, epoch bigint, primary key (partition, epoch));
    create function public.note_begun() returns trigger language plpgsql as $$
        begin insert into public.begun values (new.partition, new.epoch) on conflict do nothing; return null; end $$;
    create trigger note_begun after update of attempts_at on millpond.fences
        for each row execute function public.note_begun();";

#[tokio::test(flavor = "multi_thread")]
async fn records_that_wait_for_a_session_while_the_process_is_killed_are_applied_all_the_same() {
    // Far more than a consumer has sessions: the first records of all are begun, and most wait for one.
    const PARTITIONS: u32 = 6;
    const ACCOUNTS: i64 = 60;
    let cluster = Cluster::of("queue", |dir, unique| deadly_on(dir, unique, PARTITIONS)).await;
    let ingest = cluster.start("ingest", &[]);
    let post = async || {
        let line = |n: i64| json!({"account": format!("a{n}"), "amount": 1}).to_string();
        let lines: Vec<String> = (0..ACCOUNTS).map(line).collect();
        let ndjson = [("content-type", "application/x-ndjson")];
        let answer = ingest.web.post("/v1/events/Paid", &ndjson, &lines.join("\n")).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    };
    post().await;
    let first = consume(&cluster);
    eventually_async(SOON, async || cluster.applied().await == Some(ACCOUNTS)).await;
    first.kill_9();
    post().await;
    cluster.execute(BEGUN).await;
    let mut lock = cluster.postgres().await;
    lock.execute("begin").await.unwrap();
    lock.execute("lock table p_deadly_v1.deadly in access exclusive mode").await.unwrap();
    let waits = "select count(*) from pg_locks where not granted and relation = 'p_deadly_v1.deadly'::regclass";
    let begun = "select count(*) from millpond.fences join public.begun using (partition, epoch)";
    for _ in 0..5 {
        let consume = consume(&cluster);
        eventually_async(SOON, async || cluster.number(begun).await == Some(PARTITIONS.into())).await;
        consume.kill_9();
        eventually_async(SOON, async || cluster.number(waits).await == Some(0)).await;
    }
    lock.execute("rollback").await.unwrap();
    let alive = consume(&cluster);
    total_is(&cluster, 2 * ACCOUNTS).await;
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0), "{}", alive.log());
    alive.stop();
}
