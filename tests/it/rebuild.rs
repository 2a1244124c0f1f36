//! Another version beside the live one: built from the log, compared, swapped in, and back again.

use serde_json::Value;

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
    again.stop();
}
