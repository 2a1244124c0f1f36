//! Rebuild, swap and rollback, again and again, while people write and read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{event, lines, totals};
use crate::cluster::{Cluster, Project, SOON, Web, long};
use crate::harness::eventually_async;

const ACCOUNTS: i64 = 40;
/// Together 500 writes a second, in requests of ten, and 500 reads.
const WRITERS: i64 = 5;
const READERS: i64 = 10;
const WRITE_EVERY: Duration = Duration::from_millis(100);
const READ_EVERY: Duration = Duration::from_millis(20);

/// What clients have done and seen.
#[derive(Default)]
struct Seen {
    done: AtomicBool,
    written: AtomicI64,
    total: AtomicI64,
    reads: AtomicU64,
    slowest_ms: AtomicU64,
}

impl Seen {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

async fn write(web: Web, seen: Arc<Seen>, writer: i64) {
    let mut tick = tokio::time::interval(WRITE_EVERY);
    for n in 0.. {
        tick.tick().await;
        if seen.is_done() {
            return;
        }
        let amounts: Vec<i64> = (0..10).map(|k| writer + n + k).collect();
        let body = |(k, amount): (usize, &i64)| {
            let account = (writer + n * 10 + k as i64) % ACCOUNTS;
            format!(r#"{{"account": "a{account}", "amount": {amount}}}"#)
        };
        let body = format!("[{}]", amounts.iter().enumerate().map(body).collect::<Vec<_>>().join(","));
        let answer = web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        seen.written.fetch_add(10, Ordering::Relaxed);
        seen.total.fetch_add(amounts.iter().sum(), Ordering::Relaxed);
    }
}

/// Reads accounts by turns. Amounts are above zero, so a total that is less than before is of an earlier time.
async fn read(web: Web, seen: Arc<Seen>, reader: i64) {
    let mut tick = tokio::time::interval(READ_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = vec![0; ACCOUNTS as usize];
    for n in reader.. {
        tick.tick().await;
        if seen.is_done() {
            return;
        }
        let account = (n % ACCOUNTS) as usize;
        let begun = Instant::now();
        let answer = web.get(&format!("/v1/views/sums?account=eq.a{account}"), &[]).await;
        seen.slowest_ms.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        assert_eq!(answer.status, 200, "{}", answer.text);
        let rows: Value = serde_json::from_str(&answer.text).unwrap();
        let total = rows[0]["total"].as_i64().unwrap_or_default();
        assert!(total >= last[account], "account {account} went back from {} to {total}", last[account]);
        last[account] = total;
        seen.reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_rebuild_swap_and_rollback_are_not_seen_by_who_writes_and_reads() {
    let rounds = if long() { 20 } else { 2 };
    let cluster = Cluster::of("rounds", Project::sums).await;
    let all = cluster.start("all", &[]);
    let (seen, begun) = (Arc::new(Seen::default()), Instant::now());
    let mut clients = tokio::task::JoinSet::new();
    (0..WRITERS).for_each(|writer| drop(clients.spawn(write(all.web.clone(), Arc::clone(&seen), writer))));
    eventually_async(SOON, async || totals(&cluster).await > 0).await;
    (0..READERS).for_each(|reader| drop(clients.spawn(read(all.web.clone(), Arc::clone(&seen), reader))));
    let mut pauses = Vec::new();
    for _ in 0..rounds {
        for args in [&["rebuild", "sums", "--swap"][..], &["rollback", "sums"]] {
            let (ended_well, said) = tokio::task::block_in_place(|| lines(&cluster, args));
            assert!(ended_well, "{said:?}");
            pauses.push(event(&said, "swapped")["pause_ms"].as_f64().unwrap());
        }
    }
    let took = begun.elapsed().as_secs_f64();
    seen.done.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let total = seen.total.load(Ordering::Relaxed);
    eventually_async(SOON, async || totals(&cluster).await == total).await;
    let payments = "select sum(payments)::int8 from live.sums";
    assert_eq!(cluster.number(payments).await, Some(seen.written.load(Ordering::Relaxed)));
    pauses.sort_by(f64::total_cmp);
    let (reads, slowest) = (seen.reads.load(Ordering::Relaxed), seen.slowest_ms.load(Ordering::Relaxed));
    eprintln!(
        "{} swaps: pauses of {:.1} ms (median), {:.1} ms at most; {:.0} writes and {:.0} reads a second, the slowest in {slowest} ms",
        pauses.len(),
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1],
        seen.written.load(Ordering::Relaxed) as f64 / took,
        reads as f64 / took,
    );
    all.stop();
}
