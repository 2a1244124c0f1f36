//! One client that sends all that it can, beside one that sends little: the second hardly notices.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::target::{Good, PATH, Target, Told, record};
use super::wire::{Wire, post};
use crate::cluster::{Cluster, SOON, Web};
use crate::harness::eventually_async;

const PAUSE: Duration = Duration::from_millis(40);
/// How often one flood is looked at: whatever else the machine does makes a look worse, and nothing makes one better than
/// the process is.
const LOOKS: usize = 3;
const MODEST: (&str, &str) = ("authorization", "Bearer modest");

/// What the modest client waits for nine answers in ten, before and beside a flood whose requests take so long by the median.
#[derive(Debug)]
struct Look {
    before: Duration,
    now: Duration,
    greedy: Duration,
    /// What nine in ten answers that wait for nobody's turn take beside the flood: that much is the machine's doing.
    alive: Duration,
}

impl Look {
    /// The last hundredth is whose the machine's other work makes it. Where all is slow, a build without optimisation
    /// beside others, it has to be far less than what the greedy client takes.
    fn is_fair(&self) -> bool {
        self.now <= (2 * self.before + 3 * self.alive + Duration::from_millis(100)).max(self.greedy / 4)
    }
}

/// A process that tells its clients apart by their keys.
async fn target(name: &str, settings: &[&str]) -> Target {
    let cluster: Cluster = Target::cluster(name).await;
    let keys = cluster.project.dir.join("keys");
    let line = |name: &str| format!("{name} {} *\n", millpond::http::auth::hash_key(name));
    std::fs::write(&keys, line("modest") + &line("greedy")).unwrap();
    let keys = format!("http.keys_file={}", keys.display());
    Target::again(cluster, &[&[keys.as_str()], settings].concat())
}

/// So many lines of NDJSON.
fn lines(count: usize) -> String {
    (0..count).map(|n| record(&format!("greedy {n}"), n) + "\n").collect()
}

fn greedy(headers: &str, body: &str) -> Arc<str> {
    let headers = format!("authorization: Bearer greedy\r\ncontent-type: application/x-ndjson\r\n{headers}");
    post(PATH, &headers, body).into()
}

/// The same request again and again on one connection; notes how long each took that was accepted.
async fn send_without_end(to: SocketAddr, request: Arc<str>, accepted: Arc<Mutex<Vec<Duration>>>) {
    loop {
        let mut wire = Wire::connect(to).await;
        let mut begun = Instant::now();
        while wire.send(&*request).await {
            match wire.answer().await.map(|answer| answer.status) {
                Some(202) => accepted.lock().unwrap().push(begun.elapsed()),
                Some(429 | 503) => tokio::time::sleep(PAUSE).await,
                None => break,
                other => panic!("{other:?}"),
            }
            begun = Instant::now();
        }
    }
}

/// Asks whether the process lives, again and again; notes how long each answer took.
async fn ask_without_end(web: Web, took: Arc<Mutex<Vec<Duration>>>) {
    let mut ticks = tokio::time::interval(PAUSE / 2);
    loop {
        ticks.tick().await;
        let answer = web.get("/livez", &[]).await;
        took.lock().unwrap().push(answer.took);
    }
}

/// The duration within which so many percent are.
fn at(durations: &Mutex<Vec<Duration>>, percent: usize) -> Duration {
    let mut durations = std::mem::take(&mut *durations.lock().unwrap());
    durations.sort_unstable();
    durations[(durations.len() - 1) * percent / 100]
}

/// What the modest client is told while the greedy one sends `request` on so many connections; how long the latter's
/// requests take by the median, and nine in ten answers that wait for nobody's turn.
async fn beside(target: &Target, connections: usize, request: Arc<str>) -> (Told, Duration, Duration) {
    let (mut flood, accepted, alive) =
        (JoinSet::new(), Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
    for _ in 0..connections {
        flood.spawn(send_without_end(target.address, request.clone(), accepted.clone()));
    }
    flood.spawn(ask_without_end(Web::new(&target.web.base), alive.clone()));
    let good = Good::start_with(&target.web, 4, PAUSE, &[MODEST]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    // Fairness is not to starve the greedy one either.
    eventually_async(SOON, async || accepted.lock().unwrap().len() >= 4).await;
    let told = good.finish().await;
    flood.shutdown().await;
    (told, at(&accepted, 50), at(&alive, 90))
}

#[tokio::test(flavor = "multi_thread")]
async fn modest_client_is_answered_while_a_greedy_one_floods() {
    let target = target("fair", &[]).await;
    let calm = Good::start_with(&target.web, 4, PAUSE, &[MODEST]).finish_after(Duration::from_secs(3)).await;
    let files = target.files();
    let memory = target.memory();
    for (name, connections, request) in [
        ("large requests", 48, greedy("", &lines(10_000))),
        ("streams", 16, greedy("prefer: handling=lenient\r\n", &lines(10_000))),
        ("many requests", 128, greedy("", &lines(1))),
    ] {
        let mut looks = Vec::new();
        while looks.len() < LOOKS && !looks.last().is_some_and(Look::is_fair) {
            let (told, greedy, alive) = beside(&target, connections, request.clone()).await;
            told.all_accepted();
            eprintln!(
                "{name}: p99 {:.1?} before, {:.1?} beside requests that take {greedy:.1?}",
                calm.p99(),
                told.p99()
            );
            looks.push(Look { before: calm.at(90), now: told.at(90), greedy, alive });
            eprintln!("{name}: {:.1?}", looks.last());
        }
        assert!(looks.last().is_some_and(Look::is_fair), "{name}: {looks:?}");
    }
    target.recovered(files, memory, 160 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_one_client_holds_leaves_room_for_another() {
    const BODY: usize = 1 << 20;
    let target = target("shares", &["ingest.request_memory=16MiB", "http.max_connections=200"]).await;
    assert_eq!(target.post(&[MODEST], &record("modest", 0)).await, 202);
    // Bodies that are there but for the last byte, which never comes.
    let body = lines(BODY / 36);
    let whole = greedy("", &body);
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..24 {
        let mut wire = Wire::connect(target.address).await;
        wire.send(&whole[..whole.len() - 1]).await;
        // Whoever is over its share is told at once.
        match tokio::time::timeout(Duration::from_secs(1), wire.answer()).await {
            Ok(answer) => {
                let answer = answer.unwrap();
                assert_eq!(answer.status, 429, "{answer:?}");
                assert!(answer.body.contains("MP1018"), "{answer:?}");
                refused += 1;
            }
            Err(_) => held.push(wire),
        }
    }
    eprintln!("{} bodies of {} KiB are held, {refused} were refused", held.len(), body.len() >> 10);
    assert!(held.len() >= 8 && refused >= 8, "{} held, {refused} refused", held.len());
    let answer = target.web.post(PATH, &[MODEST, ("content-type", "application/x-ndjson")], &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    drop(held);
    eventually_async(SOON, async || target.metric("millpond_ingest_in_flight_bytes").await == 0.0).await;
}
