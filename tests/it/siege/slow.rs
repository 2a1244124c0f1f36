//! Clients that keep connections and send little or nothing (I1), and more of them than there is room for.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::scale;
use super::target::{Good, PATH, Target, record};
use super::wire::{Wire, attacker, post};

const PAUSE: Duration = Duration::from_millis(40);
/// Between two bytes of a slow client.
const DRIP: Duration = Duration::from_millis(500);
/// Attackers that share an address.
const PER_ADDRESS: usize = 200;
/// What 10 KiB for each connection leaves behind in an allocator.
const SLACK: usize = 64 << 20;

/// How an attacker wastes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waste {
    Silent,
    Head,
    SecondHead,
    Body,
    NoBody,
    KeptAlive,
}

/// Wastes a connection until the other end closes it; the status that it was told, if any.
async fn waste(mut wire: Wire, number: usize, waste: Waste) -> (Waste, Option<u16>, Duration) {
    let whole = post(PATH, "", &record("attacker", number));
    if matches!(waste, Waste::SecondHead | Waste::KeptAlive) {
        wire.send(&whole).await;
        assert_eq!(wire.answer().await.unwrap().status, 202);
    }
    let begun = Instant::now();
    match waste {
        Waste::Silent | Waste::KeptAlive => {}
        Waste::Head | Waste::SecondHead => {
            wire.send("POST / HTTP/1.1\r\nhost: a\r\nx: ").await;
        }
        Waste::Body | Waste::NoBody => {
            wire.send(format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n")).await;
        }
    }
    let drips = !matches!(waste, Waste::Silent | Waste::KeptAlive | Waste::NoBody);
    let mut ticks = tokio::time::interval(DRIP);
    loop {
        tokio::select! {
            answer = wire.answer() => return (waste, answer.map(|answer| answer.status), begun.elapsed()),
            _ = ticks.tick(), if drips => drop(wire.stream.try_write(b"x")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_clients_are_closed_in_time_and_good_ones_are_answered() {
    let kinds = [
        (Waste::Silent, 2000 * scale()),
        (Waste::Head, 400 * scale()),
        (Waste::SecondHead, 100 * scale()),
        (Waste::Body, 200 * scale()),
        (Waste::NoBody, 100 * scale()),
        (Waste::KeptAlive, 100 * scale()),
    ];
    let all: usize = kinds.iter().map(|(_, count)| count).sum();
    let room = format!("http.max_connections={}", all + 500);
    let settings = ["http.head_timeout=3s", "http.idle_timeout=4s", "ingest.body_patience=3s", &room];
    let target = Target::start("slow", &settings).await;
    let calm = Good::start(&target.web, 8, PAUSE).finish_after(Duration::from_secs(3)).await;
    let (files, memory) = (target.files(), target.memory());

    let good = Good::start(&target.web, 8, PAUSE);
    let mut attackers = JoinSet::new();
    for (number, kind) in kinds.iter().flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count)).enumerate() {
        // One after another: whoever comes when the system's queue is full may never be known to the process.
        let wire = Wire::connect_from(attacker(number / PER_ADDRESS), target.address).await.unwrap();
        attackers.spawn(waste(wire, number, kind));
    }
    let mut longest = Duration::ZERO;
    while let Some(attacker) = attackers.join_next().await {
        let (waste, status, took) = attacker.unwrap();
        longest = longest.max(took);
        let expected = matches!(waste, Waste::Body | Waste::NoBody).then_some(408);
        assert_eq!(status, expected, "{waste:?}");
    }
    let told = good.finish().await;
    eprintln!("{all} attackers, gone after {longest:.1?} at most");
    told.all_accepted().hardly_slower_than(&calm);
    assert!(longest < Duration::from_secs(20), "{longest:?}");
    for (reason, least) in [("no_request", kinds[0].1 + kinds[1].1), ("slow_head", kinds[2].1), ("idle", kinds[5].1)] {
        assert!(target.closed(reason).await >= least as f64, "{reason}: {} closed", target.closed(reason).await);
    }
    target.recovered(files, memory, SLACK * scale()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_there_is_room_for_do_not_keep_newcomers_out() {
    const ROOM: usize = 300;
    const EACH: usize = 100;
    let (room, each) = (format!("http.max_connections={ROOM}"), format!("http.max_connections_per_client={EACH}"));
    let target = Target::start("full", &[&room, &each]).await;
    target.post(&[], &record("first", 0)).await;
    let (files, memory) = (target.files(), target.memory());

    // Silent connections without end, from many addresses, each as soon as one before it is gone.
    let mut attackers = JoinSet::new();
    for number in 0..2 * ROOM {
        let to = target.address;
        attackers.spawn(async move {
            loop {
                if let Ok(wire) = Wire::connect_from(attacker(number / 60), to).await {
                    wire.rest().await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    crate::harness::eventually_async(crate::cluster::SOON, async || target.closed("made_room").await >= 2.0).await;
    // A good client with a connection for every request, which has to get in each time.
    for number in 0..100 {
        let mut wire = Wire::connect(target.address).await;
        wire.send(post(PATH, "", &record("newcomer", number))).await;
        assert_eq!(wire.answer().await.map(|answer| answer.status), Some(202), "request {number}");
    }
    assert!(target.files() <= files + ROOM + 50, "{} open files, {files} before", target.files());
    attackers.shutdown().await;

    // One address that wants more than its share gets no more than that, and is in nobody's way.
    let mut greedy = Vec::new();
    for _ in 0..2 * EACH {
        greedy.push(Wire::connect_from(attacker(1000), target.address).await.unwrap());
    }
    let refused = "millpond_http_connections_refused_total{reason=\"client\"}";
    crate::harness::eventually_async(crate::cluster::SOON, async || target.metric(refused).await >= EACH as f64).await;
    assert_eq!(target.post(&[], &record("last", 0)).await, 202);
    drop(greedy);
    target.recovered(files, memory, SLACK).await;
}
