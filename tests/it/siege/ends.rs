//! How processes and clients end (I6): by SIGTERM among slow clients, by SIGKILL, and clients in the midst of a request.
//! Whatever ends when, what was answered 202 is in the log, and what was not sent whole is not.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::target::{Good, PATH, Target, record};
use super::wire::{Wire, attacker, post};
use crate::cluster::SOON;

/// As often as answers come.
const AT_ONCE: Duration = Duration::from_millis(1);

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_among_slow_clients_ends_in_time_and_keeps_every_202() {
    let mut target = Target::start("sigterm", &["http.drain=3s"]).await;
    let mut slow = Vec::new();
    for number in 0..300 {
        let mut wire = Wire::connect_from(attacker(number / 100), target.address).await.unwrap();
        match number % 3 {
            0 => {}
            1 => drop(wire.send("POST / HTTP/1.1\r\nhost: a\r\nx: ").await),
            _ => drop(wire.send(format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n{{")).await),
        }
        slow.push(wire);
    }
    let good = Good::start(&target.web, 8, AT_ONCE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    target.ingest.terminate();
    let (took, well) = target.ingest.ended(Duration::from_secs(30));
    let told = good.finish().await;
    assert!(well, "{}", target.ingest.log());
    eprintln!("{:?}, ended after {took:.1?}", told.answers);
    // The drain is for those under way, and 5 s more for a debug build on a busy machine.
    assert!(took < Duration::from_secs(8), "{took:?}");
    let log = target.log().await;
    let lost: Vec<&String> = told.accepted.iter().filter(|id| !log.contains_key(*id)).collect();
    assert!(!told.accepted.is_empty() && lost.is_empty(), "accepted and not in the log: {lost:?}");
    assert!(told.answers.keys().all(|status| [0, 202, 503].contains(status)), "{:?}", told.answers);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_under_load_keeps_every_202_once() {
    let target = Target::start("sigkill", &[]).await;
    let good = Good::start(&target.web, 8, AT_ONCE);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let Target { cluster, ingest, .. } = target;
    ingest.kill_9();
    let told = good.finish().await;
    let target = Target::again(cluster, &[]);
    assert_eq!(target.post(&[("idempotency-key", "after")], &record("after", 1)).await, 202);
    let log = target.log().await;
    let wrong: Vec<&String> = told.accepted.iter().filter(|id| log.get(*id) != Some(&1)).collect();
    eprintln!("{:?}, {} in the log", told.answers, log.len());
    assert!(told.accepted.len() > 100 && wrong.is_empty(), "accepted and not once in the log: {wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_in_the_midst_of_a_request_writes_nothing_and_costs_nothing() {
    const REQUESTS: usize = 400;
    let target = Target::start("leaving", &[]).await;
    assert_eq!(target.post(&[], &record("first", 0)).await, 202);
    let (files, memory) = (target.files(), target.memory());
    let good = Good::start(&target.web, 4, Duration::from_millis(40));
    let seed = RandomState::new().hash_one(());
    eprintln!("seed {seed}");
    let mut random = seed;
    let mut left = Vec::new();
    for number in 0..REQUESTS {
        // Xorshift: what is wanted are places in a text, not secrets.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let records: Vec<String> = (0..1 + number % 40).map(|n| record("leaving", n)).collect();
        let body = format!("[{}]", records.join(","));
        let whole = post(PATH, &format!("idempotency-key: left-{number}\r\n"), &body);
        let sent = (random % whole.len() as u64) as usize;
        let mut wire = Wire::connect(target.address).await;
        wire.send(&whole[..sent]).await;
        if number % 2 == 0 {
            // Closed with what is not read yet, or reset at once.
            wire.stream.set_zero_linger().unwrap();
        }
        left.push(wire);
        if left.len() > 20 {
            drop(left.remove(0));
        }
    }
    drop(left);
    good.finish().await.all_accepted();
    target.recovered(files, memory, 32 << 20).await;
    let written: Vec<String> = target.log().await.into_keys().filter(|id| id.starts_with("left-")).collect();
    assert!(written.is_empty(), "written of requests that were not sent whole: {written:?}");
    let mut late = target.ingest;
    late.terminate();
    assert!(late.ended(SOON).1);
}
