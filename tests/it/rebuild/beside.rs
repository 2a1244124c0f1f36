//! What goes on beside the live version without another one being built, and what a build does beside it.

use serde_json::Value;
use sqlx::Executor as _;

use super::{lines, live, pay, totals};
use crate::cluster::{Cluster, Project, SOON};
use crate::harness::eventually_async;

/// Indexes are no part of a version: they are made and removed in place.
#[tokio::test(flavor = "multi_thread")]
async fn other_indexes_need_no_rebuild() {
    let cluster = Cluster::of("indexes", Project::sums).await;
    let manifest = |indexes: &str| {
        format!(
            "topics = [\"TOPIC\"]\n[tables.sums]\nkey = [\"account\"]\nmerge = {{ payments = \"sum\", total = \"sum\" }}\n\
             indexes = {indexes}\n"
        )
    };
    cluster.project.write("consumers/sums/consumer.toml", &manifest("[[\"total\"], [\"total\"]]"));
    let all = cluster.start("all", &[]);
    pay(&all, "a", 1).await;
    eventually_async(SOON, async || totals(&cluster).await == 1).await;
    all.stop();
    let plan = || {
        let output = cluster.run(&["plan", "--json"]);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        plan.as_array().unwrap().iter().find(|item| item["projection"] == "sums").unwrap().clone()
    };
    assert_eq!(plan()["step"], "same");

    cluster.project.write("consumers/sums/consumer.toml", &manifest("[[\"payments\", \"total\"]]"));
    // One that was not finished when its process ended.
    let unfinished = "create index \"_unfinished\" on p_sums_v1.sums (payments);
                      update pg_index set indisvalid = false where indexrelid = 'p_sums_v1._unfinished'::regclass";
    cluster.execute(unfinished).await;
    let planned = plan();
    assert_eq!(planned["step"], "indexed");
    assert_eq!(planned["indexes_made"], serde_json::json!(["_sums_by_payments,total"]));
    assert_eq!(planned["indexes_removed"], serde_json::json!(["_sums_by_total", "_unfinished"]));
    let all = cluster.start("all", &[]);
    pay(&all, "a", 2).await;
    eventually_async(SOON, async || plan()["step"] == "same").await;
    eventually_async(SOON, async || totals(&cluster).await == 3).await;
    assert_eq!(live(&cluster, "sums").await, Some(1));
    let left = "select count(*) from pg_indexes where schemaname = 'p_sums_v1' and tablename = 'sums'";
    assert_eq!(cluster.number(left).await, Some(2), "that of the key, and that which is wanted");
    all.stop();
}

/// Rows are loaded without the indexes of the folder; those are there before anybody reads the version.
#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_a_rebuild_are_made_after_its_rows_and_before_its_swap() {
    let cluster = Cluster::of("late", Project::sums).await;
    let all = cluster.start("all", &[]);
    pay(&all, "a", 2).await;
    eventually_async(SOON, async || totals(&cluster).await == 2).await;
    let manifest = "topics = [\"TOPIC\"]\n[tables.sums]\nkey = [\"account\"]\n\
                    merge = { payments = \"sum\", total = \"sum\" }\nindexes = [[\"total\"], [\"payments\"]]\n";
    cluster.project.write("consumers/sums/consumer.toml", manifest);
    let doubled = "select account, count(*) as payments, sum(amount * 2)::bigint as total from paid group by account";
    cluster.project.write("consumers/sums/sums.sql", doubled);

    // An index waits for a transaction that was open before, so that this one comes to no end.
    let mut psql = cluster.postgres().await;
    psql.execute("begin transaction isolation level repeatable read; select count(*) from millpond.versions")
        .await
        .unwrap();
    let mut rebuild = cluster.spawn(&["rebuild", "sums", "--swap"]);
    let waits =
        "select count(*) from pg_stat_activity where application_name = 'millpond indexes' and wait_event_type = 'Lock'
                    and datname = current_database()";
    eventually_async(SOON, async || cluster.number(waits).await == Some(1)).await;
    let built = "select total::int8 from p_sums_v2.sums where account = 'a'";
    assert_eq!(cluster.number(built).await, Some(4));
    rebuild.kill().unwrap();
    rebuild.wait().unwrap();
    eventually_async(SOON, async || cluster.number(waits).await == Some(0)).await;
    let refused = cluster.run(&["swap", "sums"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("has not been at the end of the log with all its indexes"),
        "{said}"
    );

    psql.execute("rollback").await.unwrap();
    let (ended_well, said) = lines(&cluster, &["rebuild", "sums", "--swap"]);
    assert!(ended_well && said.iter().any(|line| line["event"] == "made_indexes" && line["indexes"] == 2), "{said:?}");
    let there = "select count(*) from pg_index i join pg_class c on c.oid = i.indexrelid
                  where c.relnamespace = 'p_sums_v2'::regnamespace and c.relname like '\\_sums%' and i.indisvalid";
    assert_eq!(cluster.number(there).await, Some(2));
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(2), 4));
    all.stop();
}

/// A rebuild waits for live projections that are behind, as far as that goes.
#[tokio::test(flavor = "multi_thread")]
async fn rebuild_makes_room_for_a_live_projection_that_is_behind() {
    let cluster = Cluster::of("room", Project::sums).await;
    let all = cluster.start("all", &[]);
    for n in 1..=60 {
        pay(&all, &format!("a{}", n % 4), n).await;
    }
    eventually_async(SOON, async || totals(&cluster).await == 1830).await;
    all.stop();
    let is_behind = async || {
        let behind = "update millpond.fences set owner = gen_random_uuid(), applied_at = now(),
                             last_timestamp = now() - interval '10 s' where version = 1;
                      insert into millpond.ends (projection, version, topic, partition, end_offset, observed_at)
                      select projection, version, topic, partition, next_offset + 10, now() from millpond.fences where version = 1
                      on conflict (projection, version, topic, partition)
                      do update set end_offset = excluded.end_offset, observed_at = now()";
        cluster.execute(behind).await;
    };
    let doubled = "select account, count(*) as payments, sum(amount * 2)::bigint as total from paid group by account";
    cluster.project.write("consumers/sums/sums.sql", doubled);
    for (more, wanted) in [(&[][..], Value::from("sums")), (&["--full-speed"], Value::Null)] {
        is_behind().await;
        let rebuild = ["rebuild", "sums", "--parallel", "1", "--throttle", "30", "--swap", "--max-changed", "0"];
        let (ended_well, said) = lines(&cluster, &[&rebuild[..], more].concat());
        assert!(!ended_well, "rows differ");
        // Not on the first line of its progress: it takes two looks until that is certain.
        let told = said.iter().map(|line| line["makes_room_for"].clone()).find(|name| !name.is_null());
        assert_eq!(told.unwrap_or_default(), wanted, "{said:?}");
        cluster.succeeds(&["rebuild", "sums", "--give-up"]);
    }
}

/// The right to build is of one process, also when Postgres has ended the session that held it.
#[tokio::test(flavor = "multi_thread")]
async fn build_whose_session_is_ended_goes_on_alone_and_says_when_it_is_paused() {
    let cluster = Cluster::of("alone", Project::sums).await;
    let all = cluster.start("all", &[]);
    for n in 1..=60 {
        pay(&all, &format!("a{}", n % 4), n).await;
    }
    eventually_async(SOON, async || totals(&cluster).await == 1830).await;
    cluster.project.bound(Project::TOO_MUCH / 2);
    cluster.succeeds(&["consumer", "pause", "sums"]);
    let rebuild = cluster.spawn_heard(&["rebuild", "sums", "--swap"]);
    let holder = async || {
        let sql = "select max(a.pid)::int8 from pg_locks l join pg_stat_activity a using (pid)
                    where l.locktype = 'advisory' and a.application_name = 'millpond rebuild' and a.datname = current_database()";
        cluster.number(sql).await
    };
    let begun = "select count(*) from millpond.fences where projection = 'sums' and version = 2 and owner is not null";
    eventually_async(SOON, async || cluster.number(begun).await == Some(2)).await;
    let ended = holder().await;
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where application_name = 'millpond rebuild' and datname = current_database()";
    assert!(cluster.number(end).await >= Some(1));
    eventually_async(SOON, async || holder().await.is_some_and(|now| Some(now) != ended)).await;
    let second = cluster.run(&["rebuild", "sums"]);
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && error.contains("another process builds a version of sums"), "{error}");
    cluster.succeeds(&["consumer", "resume", "sums"]);
    eventually_async(SOON, async || live(&cluster, "sums").await == Some(2)).await;
    let output = rebuild.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("sums is paused"), "{said}");
    all.stop();
}
