//! Versions among what others have in the database and in the log: views of users, transactions left open, topics that only
//! one version reads, types without an equality.

use serde_json::{Value, json};
use sqlx::Executor as _;

use super::{event, lines, live, pay, totals};
use crate::cluster::{Cluster, Process, Project, SOON};
use crate::harness::eventually_async;

/// The lines of errors that a command ended with.
fn refused(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.run(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} ended well");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_millponds_is_not_dropped_with_a_version_and_holds_up_no_other() {
    let cluster = Cluster::of("foreign", Project::sums).await;
    let all = cluster.start("all", &[]);
    for n in 1..=4 {
        pay(&all, &format!("a{n}"), n).await;
    }
    eventually_async(SOON, async || totals(&cluster).await == 10).await;
    // Somebody has a view over the tables of one replay, and looks at those of another one, in a transaction that stays open.
    for version in [2, 3] {
        let (ended_well, said) = lines(&cluster, &["replay", "sums"]);
        assert!(ended_well && said.iter().any(|line| line["candidate"]["version"] == version), "{said:?}");
    }
    cluster.execute("create view public.mine as select total from p_sums_v2.sums").await;
    let mut psql = cluster.postgres().await;
    psql.execute("begin; select * from p_sums_v3.sums").await.unwrap();
    cluster.execute("update millpond.versions set kept_until = now() where state = 'scratch'").await;
    let told = |version: i32, why: &str| {
        let log = all.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut warnings = lines.filter(|line| line["level"] == "WARN" && line["version"] == version);
        warnings.any(|line| line["error"].as_str().is_some_and(|error| error.contains(why)))
    };
    eventually_async(SOON, async || told(2, "view mine depends on table p_sums_v2.sums")).await;
    eventually_async(SOON, async || told(3, "lock timeout")).await;

    // Other versions are begun, taken over and removed all the same; and so are other replays.
    cluster.project.bound(Project::TOO_MUCH / 2);
    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well && event(&said, "taken_over")["after_ms"].is_number(), "{said:?}");
    assert_eq!(live(&cluster, "sums").await, Some(4));
    pay(&all, "a1", 1).await;
    eventually_async(SOON, async || totals(&cluster).await == 11).await;
    assert!(lines(&cluster, &["replay", "sums", "--keep", "0"]).0);
    let there = async |version: i32| {
        let sql = format!("select count(*) from information_schema.schemata where schema_name = 'p_sums_v{version}'");
        cluster.number(&sql).await == Some(1)
    };
    eventually_async(SOON, async || !there(5).await).await;
    assert!(there(2).await && there(3).await);
    assert_eq!(cluster.number("select sum(total)::int8 from public.mine").await, Some(10));
    // Whoever asks for it is told, too.
    let error = refused(&cluster, &["replay", "sums", "--drop"]);
    assert!(error.contains("scratch version 3: another session holds a lock"), "{error}");
    assert!(error.contains("scratch version 2: version 2 of sums cannot be removed: view mine depends on"), "{error}");
    psql.execute("rollback").await.unwrap();
    eventually_async(SOON, async || !there(3).await).await;
    cluster.execute("drop view public.mine").await;
    eventually_async(SOON, async || !there(2).await).await;

    // The same for what is live, and for functions, which are no relations.
    cluster
        .execute(
            "create function public.total() returns bigint begin atomic select sum(total)::bigint from live.sums; end",
        )
        .await;
    cluster.project.bound(Project::TOO_MUCH / 4);
    let error = refused(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(error.contains("function public.total() depends on"), "{error}");
    let kept = "function total() depends on view live.sums";
    let error = refused(&cluster, &["consumer", "restart", "sums", "--from-zero"]);
    assert!(error.contains(kept), "{error}");
    let (folder, away) = (cluster.project.dir.join("consumers/sums"), cluster.project.dir.join("sums"));
    std::fs::rename(&folder, &away).unwrap();
    let error = refused(&cluster, &["consumer", "drop", "sums", "--even-if-applied"]);
    assert!(error.contains(kept), "{error}");
    std::fs::rename(&away, &folder).unwrap();
    cluster.execute("drop function public.total()").await;
    let (ended_well, _) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well);
    eventually_async(SOON, async || totals(&cluster).await == 11).await;
    all.stop();
}

async fn refund(all: &Process, account: &str, amount: i64) {
    let body = format!(r#"{{"account": "{account}", "amount": {amount}}}"#);
    let answer = all.web.post("/v1/events/Refunded", &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn version_with_a_topic_more_or_less_is_compared_and_takes_its_place_when_it_has_read_it() {
    let cluster = Cluster::of("topics", |dir, unique| {
        let project = Project::sums(dir, unique);
        let schema = r#"{"type": "record", "name": "Refunded", "fields": [
            {"name": "account", "type": "string"}, {"name": "amount", "type": "long"}]}"#;
        project.write("schemas/Refunded/v1.avsc", schema);
        let contract =
            "[events.Refunded]\ntopic = \"TOPIC.back\"\nkey = \"account\"\n[topics.\"TOPIC.back\"]\npartitions = 3\n";
        project.write("producers/desk/producer.toml", contract);
        project
    })
    .await;
    let all = cluster.start("all", &[]);
    for n in 1..=20 {
        pay(&all, &format!("a{}", n % 4), n).await;
    }
    for n in 0..300 {
        refund(&all, &format!("a{}", n % 7), 1).await;
    }
    eventually_async(SOON, async || totals(&cluster).await == 210).await;
    let manifest = |topics: &str, more: &str| {
        let merge = "key = [\"account\"]\nmerge = { payments = \"sum\", total = \"sum\" }\n";
        let text = format!("topics = [{topics}]\n[tables.sums]\n{merge}{more}");
        cluster.project.write("consumers/sums/consumer.toml", &text);
    };
    let refunds = "[tables.refunds]\nkey = [\"account\"]\nmerge = { refunds = \"sum\" }\n";
    manifest("\"TOPIC\", \"TOPIC.back\"", refunds);
    let select = "select account, count(*) as refunds from refunded group by account";
    cluster.project.write("consumers/sums/refunds.sql", select);

    // Long before it has read the topic that the live version does not, it is as far as that one on the other.
    let mut rebuild = cluster.spawn(&["rebuild", "sums", "--throttle", "10"]);
    let read = async |topic: &str| {
        let topic = topic.replace("TOPIC", &cluster.project.topic);
        let sql = format!(
            "select coalesce(sum(next_offset), 0)::int8 from millpond.fences where version = 2 and topic = '{topic}'"
        );
        cluster.number(&sql).await.unwrap_or_default()
    };
    eventually_async(SOON, async || read("TOPIC").await == 20).await;
    let error = refused(&cluster, &["swap", "sums"]);
    assert!(error.contains("has not been at the end of the log"), "{error}");
    rebuild.kill().unwrap();
    rebuild.wait().unwrap();
    assert!(read("TOPIC.back").await < 300, "the swap came too late to be refused");

    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well);
    let diff = &event(&said, "diff")["diff"];
    let back = format!("{}.back", cluster.project.topic);
    assert_eq!((&diff["only_new_topics"], &diff["only_old_topics"]), (&json!([back]), &json!([])), "{diff}");
    let of = |name: &str| diff["tables"].as_array().unwrap().iter().find(|t| t["table"] == name).unwrap().clone();
    assert_eq!(
        (&of("sums")["same"], &of("refunds")["not_compared"]),
        (&4.into(), &"only the new version has it".into())
    );
    let refunded =
        async || cluster.number("select sum(refunds)::int8 from live.sums_refunds").await.unwrap_or_default();
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await, refunded().await), (Some(2), 210, 300));

    // Both are followed, and each is gone back to, whatever the other one reads.
    pay(&all, "a0", 5).await;
    refund(&all, "a0", 1).await;
    eventually_async(SOON, async || totals(&cluster).await == 215 && refunded().await == 301).await;
    assert!(lines(&cluster, &["rollback", "sums"]).0);
    eventually_async(SOON, async || totals(&cluster).await == 215).await;
    refund(&all, "a0", 1).await;
    eventually_async(SOON, async || read("TOPIC.back").await == 302).await;
    assert!(lines(&cluster, &["rollback", "sums"]).0);
    assert_eq!((totals(&cluster).await, refunded().await), (215, 302));

    // And a topic less.
    manifest("\"TOPIC\"", "");
    std::fs::remove_file(cluster.project.dir.join("consumers/sums/refunds.sql")).unwrap();
    cluster.project.bound(Project::TOO_MUCH / 2);
    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well);
    assert_eq!(event(&said, "diff")["diff"]["only_old_topics"], json!([back]));
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(3), 215));
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_any_name_and_type_are_compared_and_shown_with_all_their_digits() {
    let cluster = Cluster::of("anytype", Project::sums).await;
    let select = |n: &str, x: &str| {
        format!(
            "select account, amount::text as r, amount + {n} as n, point(amount + {x}, 1) as p, array[to_json(amount)] as j,
                    int8range(amount, null) as \"o\" from paid"
        )
    };
    cluster.project.write("consumers/last/consumer.toml", "topics = [\"TOPIC\"]\n[tables.last]\nkey = [\"account\"]\n");
    cluster.project.write("consumers/last/last.sql", &select("0.12345678901234567890", "0"));
    let all = cluster.start("all", &[]);
    for n in 1..=3 {
        pay(&all, &format!("a{n}"), n).await;
    }
    eventually_async(SOON, async || cluster.number("select count(*) from live.last").await == Some(3)).await;

    cluster.project.write("consumers/last/last.sql", &select("0.12345678901234567891", "(account = 'a2')::int"));
    let (ended_well, said) = lines(&cluster, &["rebuild", "last", "--swap"]);
    assert!(ended_well);
    let table = &event(&said, "diff")["diff"]["tables"][0];
    assert_eq!((&table["changed"], &table["columns"]), (&3.into(), &json!([["n", 3], ["p", 1]])), "{table}");
    assert_eq!(table["samples"][1]["new"]["r"], "2");
    // As it is written: a parser of JSON makes doubles of the numbers.
    cluster.project.write("consumers/last/last.sql", &select("0.12345678901234567892", "0"));
    let shown = cluster.run(&["rebuild", "last", "--swap", "--max-changed", "0"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("1.12345678901234567891") && shown.contains("1.12345678901234567892"), "{shown}");
    all.stop();
}
