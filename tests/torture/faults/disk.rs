//! Full disks.
//!
//! A broker is not let write a file beyond a length (`prlimit --fsize`), which fails as a write to a full disk does: in the
//! midst of a batch, with an error that ends the broker, for it has no other disk. It needs neither rights nor a file
//! system of its own, and there is room again for the process that is started next.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::kafka::{a_leader, acknowledged_of_new, restart, unacknowledged_since, wait_until};
use super::{Fault, Field, SHOWS_WITHIN};

/// Room that is left: less than a second's writes.
const ROOM: u64 = 2_000;
/// After so long there is none: once a broker is gone, what the others have room in may be what nobody can write to.
const ROOM_FOR: Duration = Duration::from_secs(2);

/// So many brokers gone leave less than the least in-sync replicas.
const ENOUGH: usize = 2;

/// K14: two or all three brokers have no room. Fewer than two replicas are left, so nothing may be acknowledged.
pub async fn full(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (first, _) = a_leader(field).await?;
    let count = field.way(&[2, 3]);
    let nodes: Vec<i32> = [first, first % 3 + 1, (first + 1) % 3 + 1].into_iter().take(count).collect();
    let outage = field.outage(6, 10);
    let injected = field.begin(format!("the disks of brokers {nodes:?} are full for {outage:?}")).await?;
    for node in &nodes {
        let data = field.servers.folder().join(format!("kafka-{node}/kafka/data"));
        let server = field.servers.kafka.node(*node).context("a node")?;
        let longest = lengths(&data, &field.arena.topics.appends)?.into_iter().max().unwrap_or_default();
        fill(server.pid(), longest + ROOM)?;
    }
    let mut alive = nodes.clone();
    let (begun, mut has_room) = (Instant::now(), true);
    // The third one may live on: with two gone nobody writes to it any more.
    while nodes.len() - alive.len() < ENOUGH && begun.elapsed() < SHOWS_WITHIN {
        let kafka = &mut field.servers.kafka;
        alive.retain(|node| kafka.node(*node).is_some_and(|server| server.check().is_ok()));
        if has_room && begun.elapsed() > ROOM_FOR {
            has_room = false;
            for node in &alive {
                let data = field.servers.folder().join(format!("kafka-{node}/kafka/data"));
                let shortest = lengths(&data, &field.arena.topics.appends)?.into_iter().min().unwrap_or_default();
                fill(field.servers.kafka.node(*node).context("a node")?.pid(), shortest)?;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = nodes.len() - alive.len();
    let gone = field.history.now();
    wait_until(field, injected.at, outage).await;
    let meanwhile = acknowledged_of_new(field, gone);
    let refused = unacknowledged_since(field, injected.at);
    restart(field, &nodes)?;
    let recovery = field.recovery(injected.at).await;
    let observed = refused.filter(|_| ended >= ENOUGH);
    let observed =
        observed.map(|refused| format!("{ended} brokers ended by it, {refused}, {meanwhile} acknowledged then"));
    let mut fault = field.end(injected, observed, recovery);
    if ended >= ENOUGH && meanwhile > 0 {
        fault.wrong.push(format!("{meanwhile} values were acknowledged with {} of three brokers", 3 - ended));
    }
    Ok(fault)
}

/// How long the segments of a topic on a broker are.
fn lengths(data: &Path, topic: &str) -> anyhow::Result<Vec<u64>> {
    let mut lengths = Vec::new();
    for folder in fs::read_dir(data)?.flatten() {
        if !folder.file_name().to_string_lossy().starts_with(&format!("{topic}-")) {
            continue;
        }
        for file in fs::read_dir(folder.path())?.flatten() {
            if file.path().extension().is_some_and(|extension| extension == "log") {
                lengths.push(file.metadata()?.len());
            }
        }
    }
    Ok(lengths)
}

fn fill(pid: i32, most: u64) -> anyhow::Result<()> {
    let mut prlimit = Command::new("prlimit");
    let status = prlimit.args(["--pid", &pid.to_string(), &format!("--fsize={most}")]).status();
    ensure!(status.context("prlimit (util-linux) cannot be run")?.success(), "prlimit failed");
    Ok(())
}
