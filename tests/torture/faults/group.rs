//! Faults of the consumer group: its coordinator out of reach or dead, its offsets changed by somebody else.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::kafka::{CLIENTS, kill, leaders_of, moved, restart, wait_until};
use super::{Fault, Field};
use crate::proxy::Effect;

/// The group whose coordinator and offsets are disturbed.
const GROUP: &str = "millpond.chains.v1";
/// Where Kafka keeps the offsets of groups.
const OFFSETS: &str = "__consumer_offsets";
/// How long the group may take to notice that its members are gone.
const EMPTY_WITHIN: Duration = Duration::from_secs(20);

/// K10: consumers cannot reach the coordinator of their group, though they fetch as before: taken for dead, they are at
/// work.
pub async fn coordinator_cut(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let before = field.epochs().await.context("Postgres is there")?;
    let outage = field.outage(5, 10);
    let injected = field.begin(format!("half of the ways to coordinators of groups are silent for {outage:?}")).await?;
    let rules: Vec<_> = field.servers.nodes.iter().map(|proxy| proxy.apply(CLIENTS, Effect::SilenceMembers)).collect();
    wait_until(field, injected.at, outage).await;
    let touched: u64 = rules.iter().map(|rule| rule.touched()).sum();
    for (proxy, rule) in field.servers.nodes.iter().zip(&rules) {
        proxy.lift(rule);
        // What was thrown away leaves connections out of step.
        proxy.cut(CLIENTS);
    }
    let claimed = field.claimed_since(before).await.filter(|_| touched > 0);
    let observed = claimed.map(|claimed| format!("{touched} pieces thrown away, {claimed}"));
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// K11: the broker that coordinates a group dies while the group has to give partitions to others.
pub async fn coordinator_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let leaders = leaders_of(field, OFFSETS).await?;
    let partition = partition_of(GROUP, leaders.len())?;
    let node = *leaders.get(&partition).context("the group has a partition")?;
    let slot = field.any("consume")?;
    let before = field.epochs().await.context("Postgres is there")?;
    let outage = field.outage(4, 8);
    let name = field.arena.slots[slot].name.clone();
    let what = format!("kill -9 of {name} and of broker {node}, which coordinates {GROUP}, for {outage:?}");
    let injected = field.begin(what).await?;
    field.arena.kill_9(slot);
    kill(field, &[node])?;
    let moved = moved(field, OFFSETS, injected.at, node, &[partition]).await;
    let claimed = field.claimed_since(before).await;
    wait_until(field, injected.at, outage).await;
    restart(field, &[node])?;
    field.start(slot)?;
    let recovery = field.recovery(injected.at).await;
    let observed = moved.zip(claimed).map(|(moved, claimed)| format!("{moved}, {claimed}"));
    Ok(field.end(injected, observed, recovery))
}

/// The partition of [`OFFSETS`] that a group's offsets are on: Java's hash of its name.
fn partition_of(group: &str, partitions: usize) -> anyhow::Result<i32> {
    let hash = group.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    Ok((hash & i32::MAX) % i32::try_from(partitions)?)
}

/// K12: while all consumers are away, somebody sets the group's offsets back to the start, forward to the end, or deletes
/// the group.
pub async fn offsets_changed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let way = field.way(&["set back to 0", "set forward to the end", "deleted with their group"]);
    let before = field.epochs().await.context("Postgres is there")?;
    let slots = field.arena.of_role("consume");
    let injected = field.begin(format!("kill -9 of all consumers; offsets of {GROUP} are {way}")).await?;
    for slot in &slots {
        field.arena.kill_9(*slot);
    }
    let changed = change_offsets(field, way).await?;
    for slot in slots {
        field.start(slot)?;
    }
    let claimed = field.claimed_since(before).await;
    let recovery = field.recovery(injected.at).await;
    let observed = changed.zip(claimed).map(|(changed, claimed)| format!("{changed}, {claimed}"));
    Ok(field.end(injected, observed, recovery))
}

/// Changes them as soon as Kafka believes that the members are gone; what is committed then.
async fn change_offsets(field: &Field<'_>, way: &'static str) -> anyhow::Result<Option<String>> {
    let (brokers, topic) = (field.servers.brokers(), field.arena.topics.appends.clone());
    let begun = std::time::Instant::now();
    loop {
        let (brokers, topic) = (brokers.clone(), topic.clone());
        let changed = if way.starts_with("deleted") {
            delete_group(&brokers).await
        } else {
            tokio::task::spawn_blocking(move || commit(&brokers, &topic, way)).await?
        };
        match changed {
            Ok(changed) => return Ok(Some(changed)),
            Err(error) if begun.elapsed() > EMPTY_WITHIN => {
                eprintln!("  offsets could not be changed: {error:#}");
                return Ok(None);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("client.id", "rig").set("log_level", "0").set("group.id", GROUP);
    config
}

fn commit(brokers: &str, topic: &str, way: &str) -> anyhow::Result<String> {
    let limit = Duration::from_secs(5);
    let consumer: BaseConsumer = client(brokers).set("enable.auto.commit", "false").create()?;
    let metadata = consumer.fetch_metadata(Some(topic), limit)?;
    let found = metadata.topics().first().context("the topic is there")?;
    let mut list = TopicPartitionList::new();
    for partition in found.partitions() {
        let (_, end) = consumer.fetch_watermarks(topic, partition.id(), limit)?;
        let offset = if way.ends_with("to 0") { 0 } else { end };
        list.add_partition_offset(topic, partition.id(), Offset::Offset(offset))?;
    }
    consumer.commit(&list, CommitMode::Sync)?;
    let committed = consumer.committed_offsets(list, limit)?;
    let offsets: Vec<i64> = committed.elements().iter().filter_map(|one| one.offset().to_raw()).collect();
    Ok(format!("committed are {offsets:?}"))
}

async fn delete_group(brokers: &str) -> anyhow::Result<String> {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
    for result in admin.delete_groups(&[GROUP], &AdminOptions::new()).await? {
        result.map_err(|(group, code)| anyhow::anyhow!("{group}: {code}"))?;
    }
    Ok("the group is gone".into())
}
