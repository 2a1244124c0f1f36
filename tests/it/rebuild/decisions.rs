//! What is decided about records that were set aside, over versions.

use serde_json::Value;

use super::{lines, live, pay, totals};
use crate::cluster::{Cluster, Project, SOON};
use crate::harness::{eventually, eventually_async};

/// A record that was set aside is decided about while another version is built: the decision holds in both.
#[tokio::test(flavor = "multi_thread")]
async fn decisions_hold_in_the_version_that_is_built_and_in_the_one_that_is_kept() {
    let cluster = Cluster::of("decided", Project::sums).await;
    let manifest = "topics = [\"TOPIC\"]\non_error = \"park_key\"\n[tables.sums]\nkey = [\"account\"]\n\
                    merge = { payments = \"sum\", total = \"sum\" }\n";
    cluster.project.write("consumers/sums/consumer.toml", manifest);
    let all = cluster.start("all", &[]);
    for amount in [1, Project::TOO_MUCH, 2] {
        pay(&all, "a", amount).await;
    }
    pay(&all, "b", Project::TOO_MUCH + 1).await;
    pay(&all, "b", 4).await;
    let parked =
        async || cluster.number("select count(*) from millpond.parked_keys where version = 1").await == Some(2);
    eventually_async(SOON, parked).await;
    // An edit before the rebuild, which reads it as a verdict.
    cluster.succeeds(&["dlq", "edit", "sums", "--key", "a", "--field", "amount=10", "--class", "refused_by_postgres"]);
    eventually_async(SOON, async || totals(&cluster).await == 13).await;

    let mut rebuild = cluster.spawn(&["rebuild", "sums"]);
    let waits = "select count(*) from millpond.parked_keys where version = 2";
    eventually_async(SOON, async || cluster.number(waits).await == Some(1)).await;
    let other = "select coalesce(sum(total), 0)::int8 from p_sums_v2.sums";
    eventually_async(SOON, async || cluster.number(other).await == Some(13)).await;
    // A discard while both have the record set aside, and after the one that is built has tried it again by itself.
    let tried_again = "select count(millpond.set_back(projection, version, topic, partition, \"offset\", revision, \
                       reason_class, reason, false)::text) from millpond.dead_letters \
                       where version = 2 and reason_class <> 'waits'";
    assert_eq!(cluster.number(tried_again).await, Some(1));
    cluster.succeeds(&["dlq", "discard", "sums", "--key", "b", "--class", "refused_by_postgres"]);
    eventually_async(SOON, async || totals(&cluster).await == 17).await;
    eventually_async(SOON, async || cluster.number(other).await == Some(17)).await;
    let (ended_well, _) = lines(&cluster, &["swap", "sums", "--max-changed", "0"]);
    assert!(ended_well);
    eventually(SOON, || rebuild.try_wait().unwrap().is_some());
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(2), 17));

    // What was set aside has been told of once, whichever version found it.
    let of_ours = |record: &Value| record["headers"].to_string().contains(&cluster.project.topic);
    let mirrored = async || cluster.cat("sums.dlq").iter().filter(|record| of_ours(record)).count();
    let unsent = async || cluster.number("select count(*) from millpond.outbox where not held").await == Some(0);
    eventually_async(SOON, unsent).await;
    assert_eq!(mirrored().await, 2);

    // The kept version follows what is decided now.
    pay(&all, "c", Project::TOO_MUCH).await;
    pay(&all, "c", 3).await;
    let in_both = "select count(*) from millpond.parked_keys where version in (1, 2)";
    eventually_async(SOON, async || cluster.number(in_both).await == Some(2)).await;
    cluster.succeeds(&["dlq", "discard", "sums", "--key", "c", "--class", "refused_by_postgres"]);
    eventually_async(SOON, async || cluster.number(in_both).await == Some(0)).await;
    let (ended_well, _) = lines(&cluster, &["rollback", "sums"]);
    assert!(ended_well);
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(1), 20));
    eventually_async(SOON, unsent).await;
    assert_eq!(mirrored().await, 3);
    all.stop();
}

/// What was decided through the version that was live holds in the one that is live now, whether it was done already or not.
#[tokio::test(flavor = "multi_thread")]
async fn decision_of_one_version_is_not_replaced_through_another() {
    let cluster = Cluster::of("decided_once", Project::sums).await;
    let manifest = "topics = [\"TOPIC\"]\non_error = \"park_key\"\n[tables.sums]\nkey = [\"account\"]\n\
                    merge = { payments = \"sum\", total = \"sum\" }\n";
    cluster.project.write("consumers/sums/consumer.toml", manifest);
    let all = cluster.start("all", &[]);
    for amount in [1, Project::TOO_MUCH, 2] {
        pay(&all, "a", amount).await;
    }
    let parked = async |versions| cluster.number("select count(*) from millpond.parked_keys").await == Some(versions);
    eventually_async(SOON, async || parked(1).await).await;
    assert!(lines(&cluster, &["rebuild", "sums", "--swap", "--max-changed", "0"]).0);
    eventually_async(SOON, async || parked(2).await).await;

    // Version 2 is live. Nothing is done while the projection rests.
    cluster.succeeds(&["consumer", "pause", "sums"]);
    let edit = ["dlq", "edit", "sums", "--key", "a", "--field", "amount=10", "--class", "refused_by_postgres"];
    cluster.succeeds(&[&edit[..], &["--by", "first"]].concat());
    assert!(lines(&cluster, &["rollback", "sums"]).0);
    let discard = ["dlq", "discard", "sums", "--key", "a", "--class", "refused_by_postgres"];
    for other in [&discard[..], &edit] {
        let output = cluster.run(&[other, &["--by", "second"]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("were decided about through another version"), "{error}");
    }
    cluster.succeeds(&["consumer", "resume", "sums"]);
    eventually_async(SOON, async || parked(0).await).await;
    assert_eq!(totals(&cluster).await, 13);
    assert!(lines(&cluster, &["rollback", "sums"]).0);
    assert_eq!(totals(&cluster).await, 13);
    let by = "select count(*) from millpond.verdicts where decided_by = 'first'";
    assert_eq!(cluster.number(by).await, Some(1));
    all.stop();
}

/// What was decided through another version and cannot be done in the live one is no decision there.
#[tokio::test(flavor = "multi_thread")]
async fn decision_that_cannot_be_followed_does_not_stand_in_the_way_of_another() {
    let cluster = Cluster::of("decided_late", Project::sums).await;
    let manifest = "topics = [\"TOPIC\"]\non_error = \"skip\"\n[tables.sums]\nkey = [\"account\"]\n";
    cluster.project.write("consumers/sums/consumer.toml", manifest);
    let last = "select account, amount / (amount < 1000000)::integer as total from paid";
    cluster.project.write("consumers/sums/sums.sql", last);
    let all = cluster.start("all", &[]);
    pay(&all, "a", Project::TOO_MUCH).await;
    pay(&all, "a", 2).await;
    let dead = async |count| cluster.number("select count(*) from millpond.dead_letters").await == Some(count);
    eventually_async(SOON, async || dead(1).await && totals(&cluster).await == 2).await;
    // A version before this one, whose tables merged in any order, has applied it.
    let decided = "select millpond.decide(projection, topic, partition, \"offset\", ''::bytea, 'apply', null, \
                   reason_class, reason, 'somebody') from millpond.dead_letters";
    cluster.execute(decided).await;
    cluster.succeeds(&["dlq", "discard", "sums", "--key", "a"]);
    eventually_async(SOON, async || dead(0).await).await;
    all.stop();
}
