//! Handlers that ask for another attempt: the key waits, the others go on, and it drains by itself; also over processes that
//! end, and past a record that ends them.

use std::{collections::HashMap, ffi::OsString, path::Path, process::ExitCode};

use millpond::handler::{Effects, Handler, HandlerError, Record, State, async_trait};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::FAST_REBALANCE;
use crate::cluster::{Cluster, Process, Project, SOON};
use crate::harness::eventually_async;

/// Where the process of a consumer finds its arguments.
const ARGUMENTS: &str = "MILLPOND_TEST_RETRY_ARGUMENTS";
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

/// The other process of the tests below.
#[test]
#[ignore = "a process of the two tests below, which run it by default"]
fn retrying_process() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let arguments: Vec<OsString> =
        serde_json::from_str::<Vec<String>>(&arguments).unwrap().into_iter().map(OsString::from).collect();
    assert_eq!(millpond::Application::new().handler("moody", Histories).main_from(arguments), ExitCode::SUCCESS);
}

fn moody(dir: std::path::PathBuf, unique: &str) -> Project {
    let project = Project::shop(dir, unique, 1);
    let manifest = "topics = [\"TOPIC\"]\ntypes = [\"Paid\"]\nhandler = \"rust\"\n[tables.moody]\nkey = [\"account\"]\n\
                    [tables.moody.columns]\naccount = \"text\"\nhistory = \"text\"\n";
    project.write("consumers/moody/consumer.toml", manifest);
    project
}

fn consume(cluster: &Cluster) -> Process {
    let own = std::env::current_exe().unwrap().into_os_string();
    let program =
        [own, "--exact".into(), "faults::retries::retrying_process".into(), "--ignored".into(), "--nocapture".into()];
    cluster.start_other(&program, ARGUMENTS, "consume", &FAST_REBALANCE)
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
