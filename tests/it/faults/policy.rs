//! What a consumer does with records that cannot be applied, at its limits: more parked keys than are kept in mind, and a
//! policy that changes while keys are parked.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::parked::{TOO_MUCH, becomes, fate, ledger_on, parked_keys, pay, pay_all, record, rows};
use crate::cluster::{Cluster, Process, SOON};
use crate::harness::eventually_async;

/// As many keys as one partition may have parked, and bytes of all of them together.
const MOST_KEYS: i64 = 10_000;
const MOST_KEY_BYTES: usize = 16 << 20;

/// Waits for a halt at a position; what it is told with.
async fn halts(serve: &Process, position: &str, code: &str) -> String {
    let entry = becomes(serve, position, "halted").await;
    assert_eq!(entry["halt"]["code"], code, "{entry}");
    entry["halt"]["reason"].as_str().unwrap().to_owned()
}

/// Types the command that ends a halt, and waits until it was looked at: a claim raises the epoch.
async fn restart(cluster: &Cluster) {
    const EPOCH: &str = "select max(epoch) from millpond.fences";
    let before = cluster.number(EPOCH).await;
    cluster.succeeds(&["consumer", "restart", "ledger"]);
    eventually_async(SOON, async || cluster.number(EPOCH).await > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_too_many_bytes_halt_the_partition_until_one_of_them_is_decided_about() {
    // A key and a value that holds it, in one record.
    const LENGTH: usize = 480_000;
    let room = MOST_KEY_BYTES / LENGTH + 1;
    let cluster = Cluster::of("long_keys", ledger_on("park_key", 1)).await;
    let all = cluster.start("all", &[]);
    // Among many that are well, for few failures are no faulty deploy.
    let keys: Vec<String> = (0..room).map(|n| format!("{n:02}{}", "x".repeat(LENGTH - 2))).collect();
    // Of a strict request key and value count, 8 MiB at most.
    for part in keys.chunks(5) {
        let mut payments: Vec<(&str, i64)> = part.iter().map(|key| (key.as_str(), TOO_MUCH)).collect();
        payments.resize(400, ("a", 1));
        pay_all(&all, &payments).await;
    }
    let one_more = pay(&all, &"y".repeat(LENGTH), TOO_MUCH).await;
    let behind = pay(&all, "a", 7).await;
    let reason = halts(&all, behind.position(), "too_many_parked_keys").await;
    assert!(reason.contains("of 16 MiB together") && reason.contains("millpond dlq discard ledger --all"), "{reason}");
    let room = i64::try_from(room).unwrap();
    assert_eq!(parked_keys(&cluster).await, Some(room), "all for which there is room");
    // Told to go on with nothing decided, it halts at the same record.
    restart(&cluster).await;
    halts(&all, one_more.position(), "too_many_parked_keys").await;
    assert_eq!(parked_keys(&cluster).await, Some(room));

    // What was decided about is drained first, and makes room.
    let first = cluster.number("select min(parked_at) from millpond.parked_keys").await.unwrap();
    cluster.succeeds(&["dlq", "discard", "ledger", &format!("{}/0/{first}", cluster.project.topic)]);
    restart(&cluster).await;
    becomes(&all, behind.position(), "applied").await;
    becomes(&all, one_more.position(), "parked").await;
    assert_eq!(parked_keys(&cluster).await, Some(room));
    cluster.succeeds(&["dlq", "discard", "ledger", "--all"]);
    eventually_async(SOON, async || parked_keys(&cluster).await == Some(0)).await;
    assert_eq!(rows(&cluster).await["a"].2, 7);
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_too_many_halts_the_partition_until_another_is_decided_about() {
    let cluster = Cluster::of("too_many", ledger_on("park_key", 1)).await;
    let (ingest, serve) = (cluster.start("ingest", &[]), cluster.start("serve", &[]));
    let consume = cluster.start("consume", &[]);
    let records = usize::try_from(MOST_KEYS).unwrap() - 1;
    pay_all(&ingest, &vec![("a", 1); records]).await;
    cluster.settled(&cluster.project.topic, 1).await;
    consume.stop();
    // As if each of them had been of a key of its own and had failed: one has to be read for each in twenty that are well.
    let parked = format!(
        "insert into millpond.dead_letters (projection, version, topic, partition, \"offset\", record_type, key, payload,
                                           recorded_at, reason_class, reason, parked_at)
         select 'ledger', 1, '{0}', 0, n, 'Paid', convert_to('k' || n, 'UTF8'), 'x', now(), 'decode', 'for the test', n
           from generate_series(0, {1}) n;
         insert into millpond.parked_keys (projection, version, topic, partition, parked_at, key, head, records, state)
         select 'ledger', 1, '{0}', 0, n, convert_to('k' || n, 'UTF8'), n, 1, 'parked' from generate_series(0, {1}) n",
        cluster.project.topic,
        MOST_KEYS - 2
    );
    cluster.execute(&parked).await;
    // In one batch: the first still has room.
    pay_all(&ingest, &[("b", TOO_MUCH), ("a", 2), ("c", TOO_MUCH)]).await;
    let behind = pay(&ingest, "a", 3).await;
    let consume = cluster.start("consume", &[]);
    let reason = halts(&serve, behind.position(), "too_many_parked_keys").await;
    assert!(reason.contains("more than 10000 keys"), "{reason}");
    assert_eq!((parked_keys(&cluster).await, rows(&cluster).await["a"].2), (Some(MOST_KEYS), 2));

    cluster.succeeds(&["dlq", "discard", "ledger", "--key", "k77"]);
    restart(&cluster).await;
    becomes(&serve, behind.position(), "applied").await;
    assert_eq!((parked_keys(&cluster).await, rows(&cluster).await["a"].2), (Some(MOST_KEYS), 3));
    consume.stop();
}

/// Writes another policy into the folder.
fn set_policy(cluster: &Cluster, policy: &str) {
    let manifest = "consumers/ledger/consumer.toml";
    let text = std::fs::read_to_string(cluster.project.dir.join(manifest)).unwrap();
    let on_error = |line: &str| line.starts_with("on_error").then(|| format!("on_error = \"{policy}\""));
    let lines: Vec<String> = text.lines().map(|line| on_error(line).unwrap_or_else(|| line.to_owned())).collect();
    cluster.project.write(manifest, &lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_that_changes_while_keys_are_parked_holds_for_what_fails_from_then_on() {
    let cluster = Cluster::of("policy", ledger_on("park_key", 1)).await;
    let all = cluster.start("all", &[]);
    let head = pay(&all, "a", TOO_MUCH).await;
    pay(&all, "a", 2).await;
    let second = pay(&all, "a", TOO_MUCH + 1).await;
    becomes(&all, pay(&all, "a", 3).await.position(), "parked").await;
    all.stop();

    // What is parked stays so, and what comes of the key goes behind; what fails of another one is a dead letter.
    set_policy(&cluster, "skip");
    let all = cluster.start("all", &[]);
    let behind = pay(&all, "a", 4).await;
    becomes(&all, behind.position(), "parked").await;
    let dead = pay(&all, "b", TOO_MUCH).await;
    let after = pay(&all, "b", 5).await;
    becomes(&all, after.position(), "applied").await;
    becomes(&all, dead.position(), "dead_lettered").await;
    // While it drains, too: the key does not wait for the next failure.
    cluster.succeeds(&["dlq", "edit", "ledger", &record(head.position()), "--field", "amount=7"]);
    becomes(&all, behind.position(), "applied").await;
    let told = fate(&all, second.position()).await;
    assert_eq!((&told["outcome"], &told["reason_class"]), (&json!("dead_lettered"), &json!("refused_by_postgres")));
    let expected = [("a".to_owned(), (4, 7 + 2 + 3 + 4, 4)), ("b".to_owned(), (1, 5, 5))];
    assert_eq!(rows(&cluster).await, BTreeMap::from(expected));
    assert_eq!(parked_keys(&cluster).await, Some(0));
    assert_eq!(cluster.number("select count(*) from millpond.versions").await, Some(1), "the same tables");
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_fails_again_under_halt_halts_the_partition_until_it_is_decided_otherwise() {
    let cluster = Cluster::of("to_halt", ledger_on("park_key", 1)).await;
    let all = cluster.start("all", &[]);
    let head = pay(&all, "a", TOO_MUCH).await;
    let behind = pay(&all, "a", 1).await;
    becomes(&all, behind.position(), "parked").await;
    all.stop();

    set_policy(&cluster, "halt");
    let all = cluster.start("all", &[]);
    // Parked before it halts nothing.
    becomes(&all, pay(&all, "b", 1).await.position(), "applied").await;
    cluster.succeeds(&["dlq", "redrive", "ledger", &record(head.position())]);
    let status = || -> Value { serde_json::from_slice(&cluster.run(&["status", "--json"]).stdout).unwrap() };
    eventually_async(SOON, async || status()[0]["state"] == "halted").await;
    let next = status()[0]["next"].as_str().unwrap().to_owned();
    let at = record(head.position());
    let (partition, offset) = at.rsplit_once('/').unwrap();
    assert!(next.contains(&format!("the record at {partition} offset {offset} cannot be applied")), "{next}");
    assert!(next.contains("park_key") && next.ends_with("(poison)"), "{next}");
    let waiting = pay(&all, "b", 2).await;
    halts(&all, waiting.position(), "poison").await;

    // Given up while the partition is halted, and told to go on.
    cluster.succeeds(&["dlq", "discard", "ledger", &at]);
    restart(&cluster).await;
    becomes(&all, waiting.position(), "applied").await;
    becomes(&all, behind.position(), "applied").await;
    let expected = [("a".to_owned(), (1, 1, 1)), ("b".to_owned(), (2, 3, 2))];
    assert_eq!(rows(&cluster).await, BTreeMap::from(expected));

    // Poison of the log halts; as the halt says, under `park_key` it waits instead.
    let poison = pay(&all, "c", TOO_MUCH).await;
    let after = pay(&all, "b", 3).await;
    halts(&all, after.position(), "poison").await;
    all.stop();
    set_policy(&cluster, "park_key");
    let all = cluster.start("all", &[]);
    restart(&cluster).await;
    becomes(&all, after.position(), "applied").await;
    becomes(&all, poison.position(), "parked").await;
    all.stop();
}
