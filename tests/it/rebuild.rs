//! Another version beside the live one: built from the log, compared, swapped in, and back again.

mod beside;
mod decisions;
mod equality;
mod foreign;
mod replays;
mod rounds;

use serde_json::Value;
use sqlx::Executor as _;

use crate::cluster::{Cluster, Process, Project, SOON, Slice, all_days};
use crate::flights::post;
use crate::harness::eventually_async;

/// The lines that a command has printed, and whether it ended well.
fn lines(cluster: &Cluster, args: &[&str]) -> (bool, Vec<Value>) {
    let output = cluster.run(args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    eprintln!("millpond {}: {}\n{said}{errors}", args.join(" "), output.status);
    let lines = said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    (output.status.success(), lines)
}

fn event<'a>(lines: &'a [Value], name: &str) -> &'a Value {
    lines.iter().find(|line| line["event"] == name).unwrap_or_else(|| panic!("no {name} in {lines:?}"))
}

async fn live(cluster: &Cluster, name: &str) -> Option<i64> {
    let sql = format!("select live_version::int8 from millpond.projections where projection = '{name}'");
    cluster.number(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_projection_of_the_flights_is_rebuilt_equal_and_nothing_is_emitted_again() {
    let cluster = Cluster::flights("rebuilt").await;
    let all = cluster.start("all", &[]);
    post(&all, &all_days()).await;
    cluster.settled(&cluster.project.topic, 3).await;
    Slice::all().equals(&cluster, &all.web).await;
    let emitted = cluster.cat(&cluster.project.downstream).len();
    assert!(emitted > 0);
    for name in ["flights", "punctuality", "flight_rules"] {
        let (ended_well, said) = lines(&cluster, &["rebuild", name, "--swap", "--max-changed", "0"]);
        assert!(ended_well);
        assert_eq!(event(&said, "diff")["rows"], 0);
        assert_eq!((&event(&said, "swapped")["from"], &event(&said, "swapped")["to"]), (&1.into(), &2.into()));
        assert_eq!(live(&cluster, name).await, Some(2));
    }
    Slice::all().equals(&cluster, &all.web).await;
    let (ended_well, said) = lines(&cluster, &["rollback", "punctuality"]);
    assert!(ended_well);
    assert_eq!(event(&said, "swapped")["to"], 1);
    Slice::all().equals(&cluster, &all.web).await;
    let unsent = async || cluster.number("select count(*) from millpond.outbox where not held").await == Some(0);
    eventually_async(SOON, unsent).await;
    assert_eq!(cluster.cat(&cluster.project.downstream).len(), emitted);
    all.stop();
}

async fn pay(all: &Process, account: &str, amount: i64) {
    let body = format!(r#"{{"account": "{account}", "amount": {amount}}}"#);
    let answer = all.web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
}

async fn totals(cluster: &Cluster) -> i64 {
    cluster.number("select coalesce(sum(total), 0)::int8 from live.sums").await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_folder_is_built_beside_the_live_version_and_taken_back() {
    let cluster = Cluster::of("beside", Project::sums).await;
    let all = cluster.start("all", &[]);
    for n in 1..=20 {
        pay(&all, &format!("a{}", n % 4), n).await;
    }
    eventually_async(SOON, async || totals(&cluster).await == 210).await;

    // Accounts are counted by their first letter, and each amount twice.
    let select = "select account, count(*) as payments, sum(amount * 2)::bigint as total from paid where account <> 'a3' \
                  group by account";
    cluster.project.write("consumers/sums/sums.sql", select);
    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap", "--max-changed", "3"]);
    assert!(!ended_well, "four rows differ");
    let table = &event(&said, "diff")["diff"]["tables"][0];
    assert_eq!((&table["changed"], &table["removed"], &table["added"]), (&3.into(), &1.into(), &0.into()), "{table}");
    assert_eq!(table["columns"], serde_json::json!([["total", 3]]));
    let sample = |kind: &str| table["samples"].as_array().unwrap().iter().find(|s| s["kind"] == kind).unwrap().clone();
    assert_eq!(
        (sample("removed")["key"]["account"].clone(), sample("removed")["new"].clone()),
        ("a3".into(), Value::Null)
    );
    assert_eq!(sample("changed")["old"]["total"].as_i64().unwrap() * 2, sample("changed")["new"]["total"]);
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(1), 210));

    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well);
    assert_eq!(event(&said, "begun")["resumed"], true);
    let without_a3 = |total: i64, a3: i64| 2 * (total - a3);
    assert_eq!(
        (live(&cluster, "sums").await, totals(&cluster).await),
        (Some(2), without_a3(210, 3 + 7 + 11 + 15 + 19))
    );

    // The process that runs was started with the old folder: it goes on with both versions.
    pay(&all, "a0", 100).await;
    eventually_async(SOON, async || totals(&cluster).await == without_a3(310, 55)).await;
    let (ended_well, _) = lines(&cluster, &["rollback", "sums"]);
    assert!(ended_well);
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(1), 310));
    pay(&all, "a3", 5).await;
    eventually_async(SOON, async || totals(&cluster).await == 315).await;
    all.stop();

    // And one that is started with the new one.
    let again = cluster.start("all", &[]);
    pay(&again, "a3", 5).await;
    eventually_async(SOON, async || totals(&cluster).await == 320).await;
    let (ended_well, _) = lines(&cluster, &["rollback", "sums"]);
    assert!(ended_well);
    assert_eq!(totals(&cluster).await, without_a3(320, 65));

    // What its folder stands for is gone, and it goes on with what people read.
    let (ended_well, _) = lines(&cluster, &["rollback", "sums", "--keep", "0"]);
    assert!(ended_well);
    let gone = "select count(*) from information_schema.schemata where schema_name = 'p_sums_v2'";
    eventually_async(SOON, async || cluster.number(gone).await == Some(0)).await;
    pay(&again, "a3", 1).await;
    eventually_async(SOON, async || totals(&cluster).await == 321).await;
    eventually_async(SOON, async || again.web.get("/readyz", &[]).await.status == 200).await;
    let status = cluster.run(&["status"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    again.stop();
}

/// Rows are appended while all keys are new, and merged from the first on that is not.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_appended_come_out_as_those_that_are_merged() {
    let cluster = Cluster::of("appended", |dir, unique| {
        let project = Project::shop(dir, unique, 2);
        project.write("consumers/last_paid/consumer.toml", "topics = [\"TOPIC\"]\ntypes = [\"Paid\"]\n");
        let merge = "merge = { account = { last = \"at\" }, amount = { last = \"at\" } }";
        let manifest = format!("topics = [\"TOPIC\"]\n[tables.payments]\nkey = [\"id\"]\n{merge}\n");
        project.write("consumers/payments/consumer.toml", &manifest);
        let select = "select _event_id as id, _timestamp as at, account, amount from paid";
        project.write("consumers/payments/payments.sql", select);
        project
    })
    .await;
    let all = cluster.start("all", &[]);
    let bodies = |range: std::ops::Range<i32>, accounts: i32| {
        let body = |n: i32| format!(r#"{{"account": "a{}", "amount": {n}}}"#, n % accounts);
        format!("[{}]", range.map(body).collect::<Vec<_>>().join(","))
    };
    // Accounts that are new, and then some that are not.
    for (range, accounts) in [(0..400, 400), (400..450, 30)] {
        let answer =
            all.web.post("/v1/events/Paid", &[("content-type", "application/json")], &bodies(range, accounts)).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
    cluster.settled(&cluster.project.topic, 2).await;
    for (name, rows) in [("payments", 450), ("last_paid", 400)] {
        let (ended_well, said) = lines(&cluster, &["rebuild", name, "--swap", "--max-changed", "0"]);
        assert!(ended_well);
        assert_eq!(event(&said, "diff")["diff"]["tables"][0]["same"], rows, "{said:?}");
        assert_eq!(live(&cluster, name).await, Some(2));
    }
    // They go on as any version does.
    let answer = all.web.post("/v1/events/Paid", &[("content-type", "application/json")], &bodies(450..500, 500)).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    for (table, rows) in [("payments", 500), ("last_paid", 450)] {
        let count = format!("select count(*) from live.{table}");
        eventually_async(SOON, async || cluster.number(&count).await == Some(rows)).await;
    }
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_that_is_killed_ten_times_goes_on_where_it_was() {
    let cluster = Cluster::flights("killed").await;
    let all = cluster.start("all", &[]);
    post(&all, &all_days()).await;
    cluster.settled(&cluster.project.topic, 3).await;
    let records: i64 = cluster.ends(&cluster.project.topic).await.iter().sum();
    let built =
        "select coalesce(sum(next_offset), 0)::int8 from millpond.fences where projection = 'flights' and version = 2";
    for kill in 1..=10 {
        let mut rebuild =
            cluster.spawn(&["rebuild", "flights", "--throttle", "6000", "--set", "consume.max_records=100"]);
        let wanted = records * (kill - 1) / 11;
        eventually_async(SOON, async || cluster.number(built).await.is_some_and(|at| at > wanted)).await;
        rebuild.kill().unwrap();
        rebuild.wait().unwrap();
    }
    let left = records - cluster.number(built).await.unwrap();
    assert!(left > 0, "it was done before it was killed for the last time");
    let (ended_well, said) = lines(&cluster, &["rebuild", "flights", "--swap", "--max-changed", "0"]);
    assert!(ended_well);
    assert_eq!((&event(&said, "begun")["resumed"], &event(&said, "begun")["version"]), (&true.into(), &2.into()));
    assert_eq!(live(&cluster, "flights").await, Some(2));
    Slice::all().equals(&cluster, &all.web).await;
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn swap_that_is_killed_half_way_or_finds_a_lock_changes_nothing() {
    let cluster = Cluster::of("half", Project::sums).await;
    let all = cluster.start("all", &[]);
    for n in 1..=4 {
        pay(&all, &format!("a{n}"), n).await;
    }
    eventually_async(SOON, async || totals(&cluster).await == 10).await;
    cluster.project.bound(Project::TOO_MUCH / 2);
    let (_, said) = lines(&cluster, &["rebuild", "sums", "--swap", "--max-changed=-1"]);
    assert_eq!(event(&said, "diff")["rows"], 0);

    // As somebody does who has begun a transaction in psql and looks at the rows.
    let mut psql = cluster.postgres().await;
    psql.execute("begin").await.unwrap();
    psql.execute("select * from live.sums").await.unwrap();
    let output = cluster.run(&["swap", "sums"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("another session holds a lock"), "{error}");
    let mut swap = cluster.spawn(&["swap", "sums"]);
    let waits =
        "select count(*) from pg_stat_activity where application_name = 'millpond swap' and wait_event_type = 'Lock'
                    and datname = current_database()";
    eventually_async(SOON, async || cluster.number(waits).await == Some(1)).await;
    swap.kill().unwrap();
    swap.wait().unwrap();
    psql.execute("rollback").await.unwrap();
    eventually_async(SOON, async || cluster.number(waits).await == Some(0)).await;
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(1), 10));
    pay(&all, "a1", 5).await;
    eventually_async(SOON, async || totals(&cluster).await == 15).await;

    // What depends on the views is named, and nothing is dropped.
    psql.execute("create view public.mine as select * from live.sums").await.unwrap();
    let output = cluster.run(&["swap", "sums"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("public.mine depends on"), "{error}");
    psql.execute("drop view public.mine").await.unwrap();
    // It is behind by the payment, and nobody is at work on it.
    let output = cluster.run(&["swap", "sums"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("behind the live one on"), "{error}");
    let (ended_well, _) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well);
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(2), 15));

    // The one before is kept for no time at all from here on.
    let (ended_well, _) = lines(&cluster, &["rollback", "sums", "--keep", "0"]);
    assert!(ended_well);
    let gone = "select count(*) from information_schema.schemata where schema_name = 'p_sums_v2'";
    eventually_async(SOON, async || cluster.number(gone).await == Some(0)).await;
    let output = cluster.run(&["rollback", "sums"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no version to go back to"));
    all.stop();
}

/// A halt of a version that is being built is ended by who goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn build_that_has_halted_goes_on_once_the_record_is_decided_about() {
    let cluster = Cluster::of("stopped", Project::sums).await;
    let all = cluster.start("all", &[]);
    for amount in [1, Project::TOO_MUCH, 2] {
        pay(&all, "a", amount).await;
    }
    eventually_async(SOON, async || totals(&cluster).await == 3).await;
    let manifest = "topics = [\"TOPIC\"]\non_error = \"halt\"\n[tables.sums]\nkey = [\"account\"]\n\
                    merge = { payments = \"sum\", total = \"sum\" }\n";
    cluster.project.write("consumers/sums/consumer.toml", manifest);
    // Another version, too.
    cluster.project.bound(Project::TOO_MUCH / 2);
    let output = cluster.run(&["rebuild", "sums", "--swap"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("version 2 of sums has halted"), "{error}");
    cluster.succeeds(&["dlq", "discard", "sums", "--all"]);
    eventually_async(SOON, async || cluster.number("select count(*) from millpond.verdicts").await == Some(1)).await;
    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap", "--max-changed", "0"]);
    assert!(ended_well);
    assert_eq!(event(&said, "begun")["resumed"], true);
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(2), 3));
    all.stop();
}

/// A halted version is no obstacle to building one from a mended folder.
#[tokio::test(flavor = "multi_thread")]
async fn halted_projection_is_rebuilt_from_a_mended_folder() {
    let cluster = Cluster::of("mended", Project::sums).await;
    let manifest = "topics = [\"TOPIC\"]\non_error = \"halt\"\n[tables.sums]\nkey = [\"account\"]\n\
                    merge = { payments = \"sum\", total = \"sum\" }\n";
    cluster.project.write("consumers/sums/consumer.toml", manifest);
    let all = cluster.start("all", &[]);
    for amount in [1, Project::TOO_MUCH, 2] {
        pay(&all, "a", amount).await;
    }
    let halted =
        async || cluster.number("select count(*) from millpond.fences where state = 'halted'").await == Some(1);
    eventually_async(SOON, halted).await;
    let status = cluster.run(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("`millpond rebuild sums`"));
    cluster.project.bound(Project::TOO_MUCH * 2);
    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well);
    assert_eq!(event(&said, "diff")["diff"]["aligned"], false);
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(2), Project::TOO_MUCH + 3));
    let rate = "select (build_rate > 0)::int::int8 from millpond.versions where version = 2";
    assert_eq!(cluster.number(rate).await, Some(1));
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn column_of_another_type_is_compared_and_what_cannot_be_stands_in_the_way_of_a_bound() {
    let cluster = Cluster::of("types", Project::sums).await;
    cluster.project.write("consumers/last/consumer.toml", "topics = [\"TOPIC\"]\n[tables.last]\nkey = [\"account\"]\n");
    cluster.project.write("consumers/last/last.sql", "select account, amount from paid");
    let all = cluster.start("all", &[]);
    for n in 1..=8 {
        pay(&all, &format!("a{}", n % 4), n).await;
    }
    let rows = async || cluster.number("select sum(amount)::int8 from live.last").await == Some(5 + 6 + 7 + 8);
    eventually_async(SOON, rows).await;

    cluster.project.write("consumers/last/last.sql", "select account, amount::text as amount from paid");
    let (ended_well, said) = lines(&cluster, &["rebuild", "last", "--swap", "--max-changed", "0"]);
    assert!(ended_well);
    assert_eq!(event(&said, "diff")["diff"]["tables"][0]["same"], 4);
    assert_eq!(cluster.number("select count(*) from live.last where amount = '8'").await, Some(1));

    cluster.project.write("consumers/last/last.sql", "select account, amount + 1 as more from paid");
    let output = cluster.run(&["rebuild", "last", "--swap", "--max-changed", "100"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("it has no amount any more"), "{error}");
    assert_eq!(live(&cluster, "last").await, Some(2));
    cluster.succeeds(&["rebuild", "last", "--give-up"]);
    let left = "select count(*) from millpond.versions where projection = 'last' and state = 'building'";
    assert_eq!(cluster.number(left).await, Some(0));
    let output = cluster.run(&["rebuild", "last", "--give-up"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no version of last is being built"));

    // Its number is not given to another.
    let (ended_well, said) = lines(&cluster, &["rebuild", "last", "--swap"]);
    assert!(ended_well);
    assert_eq!(event(&said, "begun")["version"], 4);
    all.stop();
}
