//! A database that takes its time, while members die, join and leave in the middle of their transactions.

use serde_json::json;

use super::FAST_REBALANCE;
use crate::cluster::{Cluster, Project, SOON, Web};
use crate::harness::eventually_async;

/// The statements of a batch wait here, after the fence has moved, as long as the test wants; Postgres cancels one that
/// has waited for 20 s.
const BRAKE: &str = "create table public.brake (held boolean); insert into public.brake values (false);
    create function public.brake() returns trigger language plpgsql volatile as $$
        begin while (select held from public.brake) loop perform pg_sleep(0.05); end loop; return null; end $$;
    create trigger brake before insert on p_sums_v1.sums for each statement execute function public.brake();";

/// Posts one payment of 1 for each of so many accounts.
async fn pay(web: &Web, accounts: usize) {
    for account in 0..accounts {
        let body = json!({"account": format!("a{account}"), "amount": 1}).to_string();
        let answer = web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
}

/// How many batches wait.
async fn braked(cluster: &Cluster) -> i64 {
    let sql = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and query like '%advance_fence%'
                  and datname = current_database()";
    cluster.number(sql).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_die_or_lose_partitions_in_slow_transactions_apply_everything_once() {
    let cluster = Cluster::of("slow", Project::sums).await;
    let ingest = cluster.start("ingest", &[]);
    let member = || cluster.start("consume", &FAST_REBALANCE);
    let first = member();
    pay(&ingest.web, 40).await;
    cluster.settled(&cluster.project.topic, 1).await;
    cluster.execute(BRAKE).await;

    // Killed while Postgres is at work on its batches: they stay, and hold their fences.
    cluster.execute("update public.brake set held = true").await;
    pay(&ingest.web, 40).await;
    eventually_async(SOON, async || braked(&cluster).await == 2).await;
    first.kill_9();
    let second = member();
    eventually_async(SOON, async || second.log().contains("ended a Postgres backend that blocked a claim")).await;
    eventually_async(SOON, async || braked(&cluster).await == 2).await;

    // One of its two partitions goes to another in the middle of a batch.
    let third = member();
    eventually_async(SOON, async || third.log().contains(r#""message":"assigned""#)).await;
    pay(&ingest.web, 40).await;
    eventually_async(SOON, async || braked(&cluster).await == 2).await;
    second.kill_9();
    cluster.execute("update public.brake set held = false").await;

    cluster.settled(&cluster.project.topic, 1).await;
    let wrong = "select count(*) from live.sums where payments <> 3 or total <> 3";
    assert_eq!(cluster.number(wrong).await, Some(0), "an account was paid more or less often than three times");
    assert_eq!(cluster.number("select count(*) from live.sums").await, Some(40));
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0));
    third.stop();
}
