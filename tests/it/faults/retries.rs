//! Handlers that ask for another attempt: the key waits, the others go on, and it drains by itself; also over processes that
//! end, and past a record that ends them.

use std::{collections::HashMap, path::Path};

use millpond::handler::{Effects, Handler, HandlerError, Record, State, async_trait};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::FAST_REBALANCE;
use crate::cluster::{Cluster, Process, Project, SOON, run_with_handler};
use crate::harness::eventually_async;

/// An amount that cannot be applied while there is a file of the account's name.
const LATER: i64 = 13;
/// An amount that ends the process which meets it.
const DEADLY: i64 = 666;

#[derive(Serialize, Deserialize)]
struct Row {
    account: String,
    history: String,
}

#[derive(Deserialize)]
struct Paid {
    account: String,
    amount: i64,
}

/// Writes down the amounts of an account in the order in which they come.
struct Histories;

#[async_trait]
impl Handler for Histories {
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
        let mut rows: HashMap<String, Row> = state.load("moody", "account", &accounts).await?;
        for record in records {
            let Paid { account, amount } = record.decode()?;
            match amount {
                DEADLY => std::process::abort(),
                LATER if Path::new(&account).exists() => {
                    asked(Path::new(&account));
                    return Err(HandlerError::retry(record, "not now"));
                }
                _ => {}
            }
            let row = rows.entry(account.clone()).or_insert(Row { account, history: String::new() });
            row.history = format!("{} {amount}", row.history);
            effects.upsert("moody", &*row);
        }
        Ok(())
    }
}

/// Writes down that the handler was asked once more.
fn asked(account: &Path) {
    let mut file = std::fs::OpenOptions::new().append(true).open(account).unwrap();
    std::io::Write::write_all(&mut file, b".").unwrap();
}

/// The other process of the tests below.
#[test]
#[ignore = "a process of the tests below, which run it by default"]
fn retrying_process() {
    run_with_handler("moody", Histories);
}

fn moody(dir: std::path::PathBuf, unique: &str) -> Project {
    moody_under("skip")(dir, unique)
}

fn moody_under(policy: &str) -> impl FnOnce(std::path::PathBuf, &str) -> Project {
    move |dir, unique| {
        let project = Project::shop(dir, unique, 1);
        let manifest = format!(
            "topics = [\"TOPIC\"]\ntypes = [\"Paid\"]\nhandler = \"rust\"\non_error = \"{policy}\"\n[tables.moody]\n\
             key = [\"account\"]\n[tables.moody.columns]\naccount = \"text\"\nhistory = \"text\"\n"
        );
        project.write("consumers/moody/consumer.toml", &manifest);
        project
    }
}

fn consume(cluster: &Cluster) -> Process {
    cluster.start_application("faults::retries::retrying_process", "consume", &FAST_REBALANCE)
}

async fn pay(ingest: &Process, account: &str, amounts: &[i64]) {
    let lines: Vec<String> =
        amounts.iter().map(|amount| json!({"account": account, "amount": amount}).to_string()).collect();
    let headers = [("content-type", "application/x-ndjson")];
    let answer = ingest.web.post("/v1/events/Paid", &headers, &lines.join("\n")).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
}

async fn history_is(cluster: &Cluster, account: &str, history: &str) {
    let sql = format!("select count(*) from live.moody where account = '{account}' and history = '{history}'");
    eventually_async(SOON, async || cluster.number(&sql).await == Some(1)).await;
}

const WAITING: &str = "select coalesce(sum(records), 0)::int8 from millpond.parked_keys";

#[tokio::test(flavor = "multi_thread")]
async fn record_that_is_to_be_tried_again_holds_up_its_key_and_no_other_until_it_is_applied() {
    let cluster = Cluster::of("retry", moody).await;
    let flag = cluster.project.dir.join("not_now");
    std::fs::write(&flag, "").unwrap();
    let account = flag.to_str().unwrap();
    let ingest = cluster.start("ingest", &[]);
    let first = consume(&cluster);
    pay(&ingest, account, &[1, LATER, 2]).await;
    pay(&ingest, "other", &[5]).await;
    history_is(&cluster, "other", " 5").await;
    history_is(&cluster, account, " 1").await;
    assert_eq!(cluster.number(WAITING).await, Some(2));
    let list = cluster.succeeds(&["dlq", "list", "moody", "--class", "retry"]);
    assert!(list.contains("not now") && list.contains("is tried again by itself at"), "{list}");
    // Attempts go on, and are not forgotten with the process.
    let attempts = "select max(attempts)::int8 from millpond.parked_keys";
    eventually_async(SOON, async || cluster.number(attempts).await >= Some(3)).await;
    first.kill_9();
    let second = consume(&cluster);
    eventually_async(SOON, async || cluster.number(attempts).await >= Some(4)).await;
    pay(&ingest, account, &[3]).await;
    eventually_async(SOON, async || cluster.number(WAITING).await == Some(3)).await;
    std::fs::remove_file(&flag).unwrap();
    history_is(&cluster, account, &format!(" 1 {LATER} 2 3")).await;
    eventually_async(SOON, async || cluster.number(WAITING).await == Some(0)).await;
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0));
    pay(&ingest, account, &[4]).await;
    history_is(&cluster, account, &format!(" 1 {LATER} 2 3 4")).await;
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn record_that_ends_the_process_while_its_key_drains_is_set_aside_and_nothing_else_is() {
    let cluster = Cluster::of("deadly_drain", moody).await;
    let flag = cluster.project.dir.join("not_now");
    std::fs::write(&flag, "").unwrap();
    let account = flag.to_str().unwrap();
    let ingest = cluster.start("ingest", &[]);
    let first = consume(&cluster);
    pay(&ingest, account, &[1, LATER, 2, DEADLY, 3]).await;
    eventually_async(SOON, async || cluster.number(WAITING).await == Some(4)).await;
    std::fs::remove_file(&flag).unwrap();
    let (mut alive, mut ends) = (first, 0);
    while cluster.number(WAITING).await != Some(0) {
        if alive.has_ended() {
            ends += 1;
            assert!(ends < 12, "it goes on and on");
            alive = consume(&cluster);
        }
        tokio::task::yield_now().await;
    }
    history_is(&cluster, account, &format!(" 1 {LATER} 2 3")).await;
    assert!((4..=8).contains(&ends), "{ends} processes ended");
    let crash = "select count(*) from millpond.dead_letters where reason_class = 'crash' and parked_at is null";
    assert_eq!(cluster.number(crash).await, Some(1));
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(1));
    // Whoever reads the log again does not try it.
    let verdict = "select count(*) from millpond.verdicts where what = 'dead_letter' and \"offset\" = 3";
    assert_eq!(cluster.number(verdict).await, Some(1));
    cluster.succeeds(&["consumer", "restart", "moody", "--from-zero"]);
    history_is(&cluster, account, &format!(" 1 {LATER} 2 3")).await;
    assert!(!alive.has_ended());
    alive.stop();
}

/// A key whose head has had all its attempts; the file that makes it fail, and says how often its handler was asked.
async fn given_up(cluster: &Cluster, ingest: &Process) -> std::path::PathBuf {
    let flag = cluster.project.dir.join("not_now");
    std::fs::write(&flag, "").unwrap();
    pay(ingest, flag.to_str().unwrap(), &[1, LATER, 2]).await;
    let attempts = "select max(attempts)::int8 from millpond.parked_keys";
    for made in 1..ATTEMPTS {
        eventually_async(SOON, async || cluster.number(attempts).await >= Some(made)).await;
        // Time that would pass until the next one: four minutes on average, over all of them.
        cluster.execute("update millpond.parked_keys set retry_at = now() where attempts > 0").await;
    }
    let reason = "from millpond.dead_letters where reason = 'not now (given up after 10 attempts)'";
    let halted = "from millpond.fences where halt_reason like '%not now (given up after 10 attempts)%'";
    let told = format!("select (select count(*) {reason}) + (select count(*) {halted})");
    eventually_async(SOON, async || cluster.number(&told).await == Some(1)).await;
    flag
}

/// As many as a record gets.
const ATTEMPTS: i64 = 10;

/// How often the handler was asked about the record.
fn times_asked(flag: &Path) -> u64 {
    std::fs::metadata(flag).unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn record_whose_attempts_are_used_up_is_a_dead_letter_that_no_reading_of_the_log_tries_again() {
    let cluster = Cluster::of("given_up", moody).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), consume(&cluster));
    let flag = given_up(&cluster, &ingest).await;
    let account = flag.to_str().unwrap();
    // The key goes on behind it.
    history_is(&cluster, account, " 1 2").await;
    let dead = "select count(*) from millpond.dead_letters where reason_class = 'handler' and parked_at is null";
    assert_eq!((cluster.number(dead).await, cluster.number(WAITING).await), (Some(1), Some(0)));
    let verdict = "select count(*) from millpond.verdicts where what = 'dead_letter' and \"offset\" = 1";
    assert_eq!(cluster.number(verdict).await, Some(1));
    // Once more where it stood in a batch.
    let asked = times_asked(&flag);
    assert!((10..=12).contains(&asked), "it was asked {asked} times");
    cluster.succeeds(&["consumer", "restart", "moody", "--from-zero"]);
    let again = "select count(*) from millpond.dead_letters where version = 2 and reason_class = 'handler'";
    eventually_async(SOON, async || cluster.number(again).await == Some(1)).await;
    history_is(&cluster, account, " 1 2").await;
    assert_eq!(times_asked(&flag), asked);
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn record_whose_attempts_are_used_up_waits_for_somebody_under_park_key() {
    let cluster = Cluster::of("given_up_parks", |dir, unique| moody_under("park_key")(dir, unique)).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), consume(&cluster));
    let flag = given_up(&cluster, &ingest).await;
    let account = flag.to_str().unwrap();
    pay(&ingest, account, &[3]).await;
    eventually_async(SOON, async || cluster.number(WAITING).await == Some(3)).await;
    let resting = "select count(*) from millpond.parked_keys where state = 'parked' and retry_at is null";
    assert_eq!(cluster.number(resting).await, Some(1));
    std::fs::remove_file(&flag).unwrap();
    cluster.succeeds(&["dlq", "redrive", "moody", "--class", "handler"]);
    history_is(&cluster, account, &format!(" 1 {LATER} 2 3")).await;
    // What was decided last is what holds.
    let verdict = "select count(*) from millpond.verdicts where what = 'apply' and \"offset\" = 1";
    assert_eq!(cluster.number(verdict).await, Some(1));
    cluster.succeeds(&["consumer", "restart", "moody", "--from-zero"]);
    let anew = "select count(*) from p_moody_v2.moody";
    eventually_async(SOON, async || cluster.number(anew).await == Some(1)).await;
    history_is(&cluster, account, &format!(" 1 {LATER} 2 3")).await;
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn record_whose_attempts_are_used_up_halts_under_halt_and_is_tried_when_told_to_go_on() {
    let cluster = Cluster::of("given_up_halts", |dir, unique| moody_under("halt")(dir, unique)).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), consume(&cluster));
    let flag = given_up(&cluster, &ingest).await;
    let account = flag.to_str().unwrap();
    assert_eq!(cluster.number("select count(*) from millpond.verdicts").await, Some(0), "nobody has given it up yet");
    std::fs::remove_file(&flag).unwrap();
    cluster.succeeds(&["consumer", "restart", "moody"]);
    history_is(&cluster, account, &format!(" 1 {LATER} 2")).await;
    assert_eq!(cluster.number(WAITING).await, Some(0));
    consume.stop();
}
