//! C11: a storm of repeats: the same ids over and over, to every node, while nodes and consumers die.

use std::time::Duration;

use anyhow::Context as _;

use super::{Fault, Field};

/// Requests that go out ten times each.
const REQUESTS: u64 = 4;

/// C11: ten times the same ids, over two ingest nodes, restarts of one of them and of a consumer.
pub async fn storm(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (ingest, consume) = (field.any("ingest")?, field.any("consume")?);
    let before = field.epochs().await.context("Postgres is there")?;
    let within = field.outage(4, 7);
    let names = [ingest, consume].map(|slot| field.arena.slots[slot].name.clone());
    let what = format!("{REQUESTS} requests ten times each within {within:.1?}; kill -9 of {}", names.join(" and "));
    let injected = field.begin(what).await?;
    let storms: Vec<_> =
        (0..REQUESTS).map(|_| field.workload.storm(field.random.fork(), within)).map(tokio::spawn).collect();
    for slot in [ingest, consume, consume] {
        let pause = Duration::from_millis(field.random.between(200, 1200));
        tokio::time::sleep(pause).await;
        field.arena.kill_9(slot);
        tokio::time::sleep(pause / 2).await;
        field.start(slot)?;
    }
    let mut acknowledged = 0;
    for storm in storms {
        acknowledged += storm.await?;
    }
    let claimed = field.claimed_since(before).await;
    let recovery = field.recovery(injected.at).await;
    // Without some that were written there was no storm.
    let observed = claimed.filter(|_| acknowledged >= 10);
    let observed = observed.map(|claimed| format!("{acknowledged} requests acknowledged, {claimed}"));
    Ok(field.end(injected, observed, recovery))
}
