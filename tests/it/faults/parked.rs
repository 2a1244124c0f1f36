//! Parked keys: a record that fails and those of its key behind it wait in order, other keys go on; what is decided about
//! them happens once, whatever dies meanwhile, and again when the log is read again.

use std::collections::BTreeMap;

use millpond::kafka::murmur2::partition_of;
use serde_json::{Value, json};
use sqlx::Row as _;

use super::FAST_REBALANCE;
use crate::cluster::{Answer, Cluster, Process, Project, SOON};
use crate::harness::{eventually, eventually_async};

/// Amounts from here on cannot be applied.
pub const TOO_MUCH: i64 = 1_000_000;

/// Payments, and per account how many there were, what they come to and which was the last: what is applied twice, out of
/// its order or not at all is seen.
fn ledger(policy: &str) -> impl FnOnce(std::path::PathBuf, &str) -> Project {
    ledger_on(policy, 2)
}

/// The same on so many partitions.
pub fn ledger_on(policy: &str, partitions: u32) -> impl FnOnce(std::path::PathBuf, &str) -> Project {
    move |dir, unique| {
        let project = Project::shop(dir, unique, partitions);
        let manifest = format!(
            "topics = [\"TOPIC\"]\non_error = \"{policy}\"\n[tables.ledger]\nkey = [\"account\"]\n\
             merge = {{ payments = \"sum\", total = \"sum\" }}\n"
        );
        project.write("consumers/ledger/consumer.toml", &manifest);
        let select = format!(
            "select account, 1 as payments, amount / (amount < {TOO_MUCH})::integer as total, amount as latest from paid"
        );
        project.write("consumers/ledger/ledger.sql", &select);
        project
    }
}

pub async fn pay(ingest: &Process, account: &str, amount: i64) -> Answer {
    let body = json!({"account": account, "amount": amount}).to_string();
    let answer = ingest.web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer
}

/// Many payments in a request, or in few.
pub async fn pay_all(ingest: &Process, payments: &[(&str, i64)]) {
    let lines: Vec<String> =
        payments.iter().map(|(account, amount)| json!({"account": account, "amount": amount}).to_string()).collect();
    for part in lines.chunks(5000) {
        let headers = [("content-type", "application/x-ndjson")];
        let answer = ingest.web.post("/v1/events/Paid", &headers, &part.join("\n")).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
}

/// Another account on the partition of `account`.
fn beside(account: &str) -> String {
    let at = partition_of(account.as_bytes(), 2);
    let mut others = (0..).map(|n| format!("{account}{n}"));
    others.find(|other| partition_of(other.as_bytes(), 2) == at).unwrap()
}

/// What became of a position.
pub async fn fate(serve: &Process, position: &str) -> Value {
    let answer = serve.web.get(&format!("/v1/positions/{}", position.replace('/', "%2F")), &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["projections"][0]["entries"][0].clone()
}

pub async fn becomes(serve: &Process, position: &str, outcome: &str) -> Value {
    eventually_async(SOON, async || fate(serve, position).await["outcome"] == outcome).await;
    fate(serve, position).await
}

/// `account → payments, total, latest`
pub async fn rows(cluster: &Cluster) -> BTreeMap<String, (i64, i64, i64)> {
    let sql = "select account, payments::int8, total::int8, latest::int8 from live.ledger";
    let Ok(rows) = sqlx::query(sql).fetch_all(&mut cluster.postgres().await).await else { return BTreeMap::new() };
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect()
}

/// The record that a position was given for, as `millpond dlq` names it.
pub fn record(position: &str) -> String {
    let (at, next) = position.split_once('@').unwrap();
    format!("{at}/{}", next.parse::<i64>().unwrap() - 1)
}

/// What a command that has to fail says.
fn fails(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.run(args);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub async fn parked_keys(cluster: &Cluster) -> Option<i64> {
    cluster.number("select count(*) from millpond.parked_keys").await
}

/// Reads the log again, and finds the same rows.
async fn from_zero_is_the_same(cluster: &Cluster, last: &[i64]) {
    let before = rows(cluster).await;
    cluster.succeeds(&["consumer", "restart", "ledger", "--from-zero"]);
    let wanted: i64 = last.iter().sum();
    let applied = "select coalesce(sum(next_offset), 0)::int8 from millpond.fences f join millpond.projections p
        on p.projection = f.projection and p.live_version = f.version";
    eventually_async(SOON, async || cluster.number(applied).await == Some(wanted)).await;
    assert_eq!(rows(cluster).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_failed_waits_in_order_and_goes_on_when_somebody_has_decided() {
    let cluster = Cluster::of("parks", ledger("park_key")).await;
    let all = cluster.start("all", &[]);
    let other = beside("a");
    pay(&all, "a", 1).await;
    let bad = pay(&all, "a", TOO_MUCH).await;
    let behind = pay(&all, "a", 2).await;
    let beside = pay(&all, &other, 10).await;
    let last = pay(&all, "a", 3).await;

    // The other key of the partition goes on, and this one does not.
    becomes(&all, beside.position(), "applied").await;
    let head = becomes(&all, bad.position(), "parked").await;
    assert_eq!((&head["reason_class"], &head["head"]), (&json!("refused_by_postgres"), &head["offset"]), "{head}");
    for waiting in [&behind, &last] {
        let told = becomes(&all, waiting.position(), "parked").await;
        assert_eq!(
            (&told["reason_class"], &told["head"], &told["next"]),
            (&json!("waits"), &head["offset"], &head["next"])
        );
    }
    assert_eq!(rows(&cluster).await, BTreeMap::from([("a".into(), (1, 1, 1)), (other.clone(), (1, 10, 10))]));
    let answer = all.web.get("/v1/views/ledger", &[("millpond-min-position", last.position())]).await;
    assert_eq!((answer.status, &answer.json()["code"]), (409, &json!("MP6020")), "{}", answer.text);
    is_told(&cluster, &record(bad.position()), &record(behind.position()));

    // Tried again with nothing mended it fails again, and the key waits on.
    cluster.succeeds(&["dlq", "redrive", "ledger", "--class", "refused_by_postgres"]);
    let fulfilled = "select count(*) from millpond.dead_letters where revision = 2 and wanted is null";
    eventually_async(SOON, async || cluster.number(fulfilled).await == Some(1)).await;
    assert_eq!(fate(&all, last.position()).await["outcome"], "parked");

    // A value that is none is refused, and so is one of another key; a sound one lets the key go on.
    let bad_record = record(bad.position());
    let edit = |field: &'static str| ["dlq", "edit", "ledger", bad_record.as_str(), "--field", field];
    assert!(fails(&cluster, &edit("amount=\"x\"")).contains("/amount: expected"));
    assert!(fails(&cluster, &edit("account=\"b\"")).contains("belongs to another key"));
    let said = cluster.succeeds(&[&edit("amount=5")[..], &["--by", "ann"]].concat());
    assert!(said.contains("1 record will be applied with the new value"), "{said}");
    becomes(&all, last.position(), "applied").await;
    let expected = BTreeMap::from([("a".to_owned(), (4, 1 + 5 + 2 + 3, 3)), (other.clone(), (1, 10, 10))]);
    assert_eq!(rows(&cluster).await, expected);
    assert_eq!(parked_keys(&cluster).await, Some(0));
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0));

    // One that is discarded has no effect, and nobody is told that it had.
    let dropped = pay(&all, "a", TOO_MUCH + 1).await;
    let after = pay(&all, "a", 4).await;
    becomes(&all, after.position(), "parked").await;
    cluster.succeeds(&["dlq", "discard", "ledger", &record(dropped.position()), "--by", "ann"]);
    becomes(&all, after.position(), "applied").await;
    let told = fate(&all, dropped.position()).await;
    assert_eq!((&told["outcome"], &told["reason_class"]), (&json!("dead_lettered"), &json!("discarded")), "{told}");
    assert_eq!(rows(&cluster).await["a"], (5, 15, 4));

    from_zero_is_the_same(&cluster, &cluster.ends(&cluster.project.topic).await).await;
    assert_eq!(
        cluster
            .number(
                "select count(*) from millpond.dead_letters d join millpond.projections p
        on p.live_version = d.version"
            )
            .await,
        Some(0)
    );
    verdicts_are_mirrored(&cluster, &[(&bad_record, "edit"), (&record(dropped.position()), "discard")]).await;
    all.stop();
}

/// What `status` and `dlq` say of a parked key.
fn is_told(cluster: &Cluster, head: &str, behind: &str) {
    // Healthy as soon as the consumer has reported.
    eventually(SOON, || cluster.run(&["status"]).status.success());
    let status = cluster.succeeds(&["status"]);
    assert!(
        status.contains("1 key parked, 3 records of them") && status.contains("next: millpond dlq list ledger"),
        "{status}"
    );
    let list = cluster.succeeds(&["dlq", "list", "ledger"]);
    assert!(list.contains("2  ledger: waits, Paid") && list.contains("1  ledger: refused_by_postgres, Paid"), "{list}");
    assert!(list.contains("waits for a decision") && list.contains("parked behind offset"), "{list}");
    let list = cluster.succeeds(&["dlq", "list", "ledger", "--class", "refused_by_postgres", "--json"]);
    let letter: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&letter["state"], &letter["offset"]), (&json!("parked"), &letter["head"]), "{letter}");
    let shown = cluster.succeeds(&["dlq", "show", "ledger", head]);
    assert!(shown.contains("dlq redrive ledger") && shown.contains(&TOO_MUCH.to_string()), "{shown}");
    let said = cluster.succeeds(&["dlq", "redrive", "ledger", "--key", "a", "--dry-run"]);
    assert!(said.contains("1 refused_by_postgres") && said.contains("2 more wait behind"), "{said}");
    assert!(fails(cluster, &["dlq", "redrive", "ledger", behind]).contains("only waits behind"));
    assert!(fails(cluster, &["dlq", "discard", "ledger"]).contains("--all"));
    assert!(fails(cluster, &["dlq", "discard", "ledger", "--key", "nobody"]).contains("no such records"));
}

/// The topic of verdicts has the last word about each record.
async fn verdicts_are_mirrored(cluster: &Cluster, expected: &[(&String, &str)]) {
    let waiting = "select count(*) from millpond.outbox where target_topic = 'millpond.verdicts'";
    eventually_async(SOON, async || cluster.number(waiting).await == Some(0)).await;
    let topic = cluster.cat("millpond.verdicts");
    for (record, what) in expected {
        let key = format!("ledger/{record}");
        let verdict = topic.iter().rfind(|verdict| verdict["key"] == json!(key)).unwrap_or_else(|| panic!("{key}"));
        let verdict: Value = serde_json::from_str(verdict["value"]["text"].as_str().unwrap()).unwrap();
        assert_eq!((&verdict["what"], &verdict["by"]), (&json!(what), &json!("ann")), "{verdict}");
        let sql = format!(
            "select count(*) from millpond.verdicts where what = '{what}' and topic || '/' || partition || '/' || \"offset\" \
             = '{record}'"
        );
        assert_eq!(cluster.number(&sql).await, Some(1), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_key_drains_in_batches_and_once_whoever_dies_meanwhile() {
    const PARKED: i64 = 20_000;
    let cluster = Cluster::of("hot", ledger("park_key")).await;
    let (ingest, serve) = (cluster.start("ingest", &[]), cluster.start("serve", &[]));
    let settings = ["consume.max_records=100", FAST_REBALANCE[0], FAST_REBALANCE[1]];
    let consume = cluster.start("consume", &settings);
    let other = beside("hot");
    let bad = pay(&ingest, "hot", TOO_MUCH).await;
    let mut payments: Vec<(&str, i64)> = (1..=PARKED).map(|n| ("hot", n % 100)).collect();
    // Another key in their midst.
    let mixed = (0..PARKED / 10).map(|n| ((n * 11) as usize, (other.as_str(), 1)));
    mixed.for_each(|(at, payment)| payments.insert(at, payment));
    pay_all(&ingest, &payments).await;
    let others = format!("select coalesce(sum(payments), 0)::int8 from live.ledger where account = '{other}'");
    eventually_async(SOON, async || cluster.number(&others).await == Some(PARKED / 10)).await;
    let records = "select coalesce(sum(records), 0)::int8 from millpond.parked_keys";
    eventually_async(SOON, async || cluster.number(records).await == Some(PARKED + 1)).await;
    assert_eq!(cluster.number("select count(*) from millpond.outbox where target_topic = 'ledger.dlq'").await, Some(1));

    cluster.succeeds(&["dlq", "edit", "ledger", &record(bad.position()), "--field", "amount=7"]);
    let mut alive = Some(consume);
    for share in [1, 4, 8] {
        eventually_async(SOON, async || cluster.number(records).await < Some(PARKED - PARKED * share / 16)).await;
        alive.take().expect("it runs").kill_9();
        let left = cluster.number(records).await.unwrap();
        assert!(left > 0, "it was killed while the key drained");
        let unlike = format!("select count(*) - ({records}) from millpond.dead_letters");
        assert_eq!(cluster.number(&unlike).await, Some(0));
        alive = Some(cluster.start("consume", &settings));
        // What comes now goes behind what waits.
        pay(&ingest, "hot", share).await;
    }
    let last = pay(&ingest, "hot", 99).await;
    becomes(&serve, last.position(), "applied").await;
    let total: i64 = 7 + (1..=PARKED).map(|n| n % 100).sum::<i64>() + (1 + 4 + 8) + 99;
    let expected =
        BTreeMap::from([("hot".to_owned(), (PARKED + 5, total, 99)), (other.clone(), (PARKED / 10, PARKED / 10, 1))]);
    assert_eq!(rows(&cluster).await, expected);
    assert_eq!(
        (parked_keys(&cluster).await, cluster.number("select count(*) from millpond.dead_letters").await),
        (Some(0), Some(0))
    );
    from_zero_is_the_same(&cluster, &cluster.ends(&cluster.project.topic).await).await;
    alive.expect("it runs").stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn late_record_is_applied_only_where_order_does_not_matter() {
    let make = |dir: std::path::PathBuf, unique: &str| {
        let project = ledger("skip")(dir, unique);
        let manifest = "topics = [\"TOPIC\"]\n[tables.sums]\nkey = [\"account\"]\n\
                        merge = { payments = \"sum\", total = \"sum\" }\n";
        project.write("consumers/sums/consumer.toml", manifest);
        project.bound(TOO_MUCH);
        project
    };
    let cluster = Cluster::of("late", make).await;
    let all = cluster.start("all", &[]);
    let bad = pay(&all, "a", TOO_MUCH).await;
    let last = pay(&all, "a", 2).await;
    cluster.settled(&cluster.project.topic, 2).await;
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters where parked_at is null").await, Some(2));
    let record = record(bad.position());
    for command in [&["redrive"][..], &["edit", "--field", "amount=5"]] {
        let args = [&["dlq", command[0], "ledger", &record][..], &command[1..]].concat();
        let said = fails(&cluster, &args);
        assert!(said.contains("depend on the order") && said.contains("--from-zero"), "{said}");
    }
    cluster.succeeds(&["dlq", "edit", "sums", &record, "--field", "amount=5"]);
    let sums = "select (payments * 1000 + total)::int8 from live.sums";
    eventually_async(SOON, async || cluster.number(sums).await == Some(2007)).await;
    // Given up it may be in any case.
    cluster.succeeds(&["dlq", "discard", "ledger", "--all"]);
    eventually_async(SOON, async || cluster.number("select count(*) from millpond.dead_letters").await == Some(0))
        .await;
    assert_eq!(rows(&cluster).await["a"], (1, 2, 2));
    let headers = [("millpond-min-position", bad.position())];
    let answer = all.web.get("/v1/views/ledger", &headers).await;
    assert_eq!((answer.status, &answer.json()["code"]), (409, &json!("MP6010")), "{}", answer.text);
    let answer = all.web.get("/v1/views/ledger", &[("millpond-min-position", last.position())]).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    // It was given up for one projection, and applied in the other.
    let path = format!("/v1/positions/{}", bad.position().replace('/', "%2F"));
    let told = all.web.get(&path, &[]).await.json();
    let outcomes: BTreeMap<&str, &str> = told["projections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (of["consumer"].as_str().unwrap(), of["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(outcomes, BTreeMap::from([("ledger", "dead_lettered"), ("sums", "applied")]), "{told}");

    cluster.succeeds(&["consumer", "restart", "sums", "--from-zero"]);
    let again = "select next_offset from millpond.fences f join millpond.versions v using (projection, version)
        where projection = 'sums' and v.state = 'live' and next_offset > 0";
    eventually_async(SOON, async || cluster.number(again).await == Some(2)).await;
    assert_eq!(cluster.number(sums).await, Some(2007));
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_and_conflicts_of_a_parked_key_wait_for_nobody() {
    let cluster = Cluster::of("parked_repeats", ledger("park_key")).await;
    let all = cluster.start("all", &[]);
    let pay = async |amount: i64, id: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", id)];
        let body = json!({"account": "a", "amount": amount}).to_string();
        let answer = all.web.post("/v1/events/Paid", &headers, &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        answer.position().to_owned()
    };
    let bad = pay(TOO_MUCH, "one").await;
    let behind = pay(2, "two").await;
    becomes(&all, &behind, "parked").await;
    // Both once more, and another payment under an id that is taken.
    pay(TOO_MUCH, "one").await;
    pay(2, "two").await;
    let conflict = becomes(&all, &pay(7, "two").await, "dead_lettered").await;
    assert_eq!(conflict["reason_class"], "id_conflict", "{conflict}");
    let waiting = "select count(*) from millpond.dead_letters where parked_at is not null";
    assert_eq!(cluster.number(waiting).await, Some(2));

    let last = pay(3, "three").await;
    becomes(&all, &last, "parked").await;
    cluster.succeeds(&["dlq", "edit", "ledger", &record(&bad), "--field", "amount=5"]);
    becomes(&all, &last, "applied").await;
    assert_eq!(rows(&cluster).await["a"], (3, 5 + 2 + 3, 3));
    assert_eq!(parked_keys(&cluster).await, Some(0));
    from_zero_is_the_same(&cluster, &cluster.ends(&cluster.project.topic).await).await;
    all.stop();
}
