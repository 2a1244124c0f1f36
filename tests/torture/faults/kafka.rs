//! Faults of brokers and of the way to them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::MetadataPartition;

use super::{Fault, Field, SHOWS_WITHIN};
use crate::proxy::{Direction, Effect};
use crate::workload::history::{Outcome, Request};

/// The id that Millpond's clients give; the rig itself has another, and is left alone.
pub(super) const CLIENTS: &str = "millpond";

/// The leader of each partition of the appends; −1 for none.
async fn leaders(field: &Field<'_>) -> anyhow::Result<BTreeMap<i32, i32>> {
    leaders_of(field, &field.arena.topics.appends).await
}

/// The leader of each partition of a topic; −1 for none.
pub(super) async fn leaders_of(field: &Field<'_>, topic: &str) -> anyhow::Result<BTreeMap<i32, i32>> {
    let leaders = of_partitions(field, topic, |partition| (partition.id(), partition.leader())).await?;
    Ok(leaders.into_iter().collect())
}

/// What the brokers say now of each partition of a topic.
async fn of_partitions<T: Send + 'static>(
    field: &Field<'_>,
    topic: &str,
    of: fn(&MetadataPartition) -> T,
) -> anyhow::Result<Vec<T>> {
    let (brokers, topic) = (field.servers.brokers(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("client.id", "rig")
            .set("log_level", "0")
            .create()?;
        let metadata = client.fetch_metadata(Some(&topic), Duration::from_secs(3))?;
        let topic = metadata.topics().first().context("the topic is there")?;
        Ok(topic.partitions().iter().map(of).collect())
    })
    .await?
}

/// A broker that leads, and the partitions that it leads.
pub(super) async fn a_leader(field: &mut Field<'_>) -> anyhow::Result<(i32, Vec<i32>)> {
    let leaders = leaders(field).await?;
    let leading: Vec<i32> = leaders.values().copied().filter(|leader| *leader > 0).collect();
    let node = *field.random.pick(&leading);
    Ok((node, leaders.into_iter().filter(|(_, leader)| *leader == node).map(|(partition, _)| partition).collect()))
}

/// Waits until other brokers lead these partitions.
pub(super) async fn moved(field: &Field<'_>, topic: &str, since: u64, from: i32, partitions: &[i32]) -> Option<String> {
    let begun = Instant::now();
    while begun.elapsed() < SHOWS_WITHIN {
        if let Ok(leaders) = leaders_of(field, topic).await {
            let elsewhere = |partition| leaders.get(partition).is_some_and(|leader| *leader > 0 && *leader != from);
            if !partitions.is_empty() && partitions.iter().all(elsewhere) {
                let seconds = Duration::from_nanos(field.history.now() - since).as_secs_f64();
                return Some(format!("{} partitions have new leaders, seen after {seconds:.1} s", partitions.len()));
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    None
}

/// K1: the leader of a partition dies and comes back after a while.
pub async fn leader_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (node, partitions) = a_leader(field).await?;
    let outage = field.outage(6, 12);
    let injected = field.begin(format!("kill -9 of broker {node}, which leads {partitions:?}, for {outage:?}")).await?;
    kill(field, &[node])?;
    let observed = moved(field, &field.arena.topics.appends, injected.at, node, &partitions).await;
    let recovery = field.recovery(injected.at).await;
    wait_until(field, injected.at, outage).await;
    restart(field, &[node])?;
    Ok(field.end(injected, observed, recovery))
}

/// K2: a follower dies; what is left are two in sync, which is enough. Until it is taken for dead nothing is acknowledged, and
/// who asks meanwhile may be told to come back: how often is said, and not judged.
pub async fn follower_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (node, _) = a_leader(field).await?;
    // Restarted in good order it gives everything away that it leads, and follows from then on.
    tokio::task::block_in_place(|| {
        field.servers.kafka.node(node).context("a node")?.stop().map_err(anyhow::Error::from)
    })?;
    restart(field, &[node])?;
    field.recovery(field.history.now()).await;
    let topic = field.arena.topics.appends.clone();
    let follows = leaders_of(field, &topic).await?.values().all(|leader| *leader != node);
    let in_sync = in_sync(field, &topic).await?;
    let outage = field.outage(12, 15);
    let injected = field.begin(format!("kill -9 of broker {node}, which leads nothing, for {outage:?}")).await?;
    kill(field, &[node])?;
    let mut left = None;
    while left.is_none() && Duration::from_nanos(field.history.now() - injected.at) < SHOWS_WITHIN {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = self::in_sync(field, &topic).await.unwrap_or(in_sync);
        let seconds = Duration::from_nanos(field.history.now() - injected.at).as_secs_f64();
        left = (now < in_sync).then(|| format!("{in_sync} replicas in sync are {now} after {seconds:.1} s"));
    }
    let recovery = field.recovery(injected.at).await;
    wait_until(field, injected.at, outage).await;
    let (refused, unknown) = unacknowledged(field, injected.at);
    restart(field, &[node])?;
    let observed = left
        .filter(|_| follows)
        .map(|left| format!("{left}; {refused} requests refused, {unknown} of unknown outcome"));
    Ok(field.end(injected, observed, recovery))
}

/// Replicas in sync, over all partitions of a topic.
async fn in_sync(field: &Field<'_>, topic: &str) -> anyhow::Result<usize> {
    Ok(of_partitions(field, topic, |partition| partition.isr().len()).await?.into_iter().sum())
}

/// K3: two of three die. Nothing may be acknowledged until one is back.
pub async fn two_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (first, _) = a_leader(field).await?;
    let second = first % 3 + 1;
    let outage = field.outage(8, 12);
    let injected = field.begin(format!("kill -9 of brokers {first} and {second} for {outage:?}")).await?;
    kill(field, &[first, second])?;
    let gone = field.history.now();
    wait_until(field, injected.at, outage).await;
    let meanwhile = acknowledged_of_new(field, gone);
    let refused = unacknowledged_since(field, injected.at);
    restart(field, &[first, second])?;
    let recovery = field.recovery(injected.at).await;
    // Requests may wait for all of it and be answered after it: then nobody has been told anything.
    let waited = format!("of what was sent meanwhile {meanwhile} values acknowledged");
    let observed = refused.map_or(waited.clone(), |refused| format!("{refused}, {waited}"));
    let mut fault = field.end(injected, Some(observed), recovery);
    fault.wrong.extend(below_min_isr(meanwhile));
    Ok(fault)
}

/// Values acknowledged of requests that began after that moment: what began before may have been acknowledged by Kafka
/// already, and its answer may be slow.
pub(super) fn acknowledged_of_new(field: &Field<'_>, since: u64) -> usize {
    let new = |request: &&Request| request.invoked > since;
    field.history.look(|requests| requests.iter().filter(new).map(|request| request.count(Outcome::Ok)).sum())
}

/// One of three replicas is less than the least in-sync replicas: a 202 would be a lie.
fn below_min_isr(acknowledged: usize) -> Option<String> {
    (acknowledged > 0).then(|| format!("{acknowledged} values were acknowledged with one of three brokers"))
}

/// K4: a leader is frozen for longer than it takes to be replaced and than records wait for it; or it and a follower are, so
/// that nothing may be acknowledged. Then they thaw.
pub async fn leader_frozen(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    if field.way(&[false, true]) { two_frozen(field).await } else { one_frozen(field).await }
}

async fn two_frozen(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (first, _) = a_leader(field).await?;
    let nodes = [first, first % 3 + 1];
    let outage = field.outage(16, 24);
    let injected = field.begin(format!("SIGSTOP of brokers {nodes:?} for {outage:?}")).await?;
    for node in nodes {
        field.servers.kafka.node(node).context("a node")?.pause()?;
    }
    let gone = field.history.now();
    wait_until(field, injected.at, outage).await;
    let meanwhile = acknowledged_of_new(field, gone);
    let refused = unacknowledged_since(field, injected.at);
    for node in nodes {
        field.servers.kafka.node(node).context("a node")?.cont()?;
    }
    let recovery = field.recovery(injected.at).await;
    let observed =
        refused.map(|refused| format!("{refused}, of what was sent meanwhile {meanwhile} values acknowledged"));
    let mut fault = field.end(injected, observed, recovery);
    fault.wrong.extend(below_min_isr(meanwhile));
    Ok(fault)
}

async fn one_frozen(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (node, partitions) = a_leader(field).await?;
    let outage = field.outage(14, 20);
    let injected = field.begin(format!("SIGSTOP of broker {node}, which leads {partitions:?}, for {outage:?}")).await?;
    field.servers.kafka.node(node).context("a node")?.pause()?;
    // The frozen one would hold whoever asks it: only unanswered requests are looked at.
    wait_until(field, injected.at, outage).await;
    let observed = moved(field, &field.arena.topics.appends, injected.at, node, &partitions).await;
    field.servers.kafka.node(node).context("a node")?.cont()?;
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// K5: the leader of the controllers' quorum dies.
pub async fn controller_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let (epoch, node) = active_controller(field).context("a controller has said that it is the active one")?;
    let outage = field.outage(6, 12);
    let injected = field.begin(format!("kill -9 of broker {node}, the active controller, for {outage:?}")).await?;
    kill(field, &[node])?;
    let begun = Instant::now();
    let mut observed = None;
    while observed.is_none() && begun.elapsed() < SHOWS_WITHIN {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let next = active_controller(field).filter(|(now, _)| *now > epoch);
        let seconds = begun.elapsed().as_secs_f64();
        observed = next.map(|(_, node)| format!("{node} is the active controller after {seconds:.1} s"));
    }
    let recovery = field.recovery(injected.at).await;
    wait_until(field, injected.at, outage).await;
    restart(field, &[node])?;
    Ok(field.end(injected, observed, recovery))
}

/// Epoch and id of the controller that became the active one last, by what the nodes have logged.
fn active_controller(field: &Field<'_>) -> Option<(u64, i32)> {
    let told = |node: i32| {
        let log = field.servers.folder().join(format!("kafka-{node}/kafka/server.log"));
        let text = String::from_utf8_lossy(&std::fs::read(log).ok()?).into_owned();
        let (_, last) = text.rsplit_once("Becoming the active controller at epoch ")?;
        let digits: String = last.chars().take_while(char::is_ascii_digit).collect();
        Some((digits.parse().ok()?, node))
    };
    (1..=3).filter_map(told).max()
}

/// K6: every broker is stopped in good order and started again, one after another.
pub async fn rolled(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let before = leaders(field).await?;
    let injected = field.begin("rolling restart of all brokers").await?;
    let mut seen = Vec::new();
    for node in 1..=3 {
        let partitions: Vec<i32> =
            leaders(field).await?.into_iter().filter(|(_, leader)| *leader == node).map(|(id, _)| id).collect();
        tokio::task::block_in_place(|| {
            field.servers.kafka.node(node).context("a node")?.stop().map_err(anyhow::Error::from)
        })?;
        seen.extend(moved(field, &field.arena.topics.appends, injected.at, node, &partitions).await);
        restart(field, &[node])?;
        // The next one may go when this one is in sync again, as an operator would wait for.
        field.recovery(field.history.now()).await;
    }
    let after = leaders(field).await?;
    let moved = before.iter().filter(|(id, leader)| after.get(id) != Some(leader)).count();
    let observed = (seen.len() == 3).then(|| format!("three brokers restarted, {moved} leaders elsewhere than before"));
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// K7: all brokers die at once and come back.
pub async fn all_killed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let outage = field.outage(2, 5);
    let injected = field.begin(format!("kill -9 of all brokers for {outage:?}")).await?;
    tokio::task::block_in_place(|| field.servers.kafka.nodes().iter_mut().try_for_each(|node| node.kill_9()))?;
    wait_until(field, injected.at, outage).await;
    restart(field, &[1, 2, 3])?;
    let observed = unacknowledged_since(field, injected.at);
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, observed, recovery))
}

/// K9: the way between Millpond and one broker is disturbed.
pub async fn links_disturbed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let effects = [
        Effect::Latency { least: Duration::ZERO, most: Duration::from_millis(400) },
        Effect::Reset { per_mille: 10 },
        Effect::Stall(Direction::ToServer),
        Effect::Stall(Direction::ToClient),
        Effect::Drop(Direction::ToClient),
        Effect::CutAfter(Direction::ToClient, 20_000),
        Effect::Refuse,
    ];
    let effect = field.way(&effects);
    let (node, _) = a_leader(field).await?;
    let outage = field.outage(4, 9);
    let injected = field.begin(format!("{effect:?} between clients and broker {node} for {outage:?}")).await?;
    let proxy = &field.servers.nodes[usize::try_from(node - 1)?];
    let rule = proxy.apply(CLIENTS, effect);
    if matches!(effect, Effect::Refuse) {
        proxy.cut(CLIENTS);
    }
    wait_until(field, injected.at, outage).await;
    let proxy = &field.servers.nodes[usize::try_from(node - 1)?];
    proxy.lift(&rule);
    // What was thrown away leaves the connection out of step: it has to go.
    proxy.cut(CLIENTS);
    let touched = rule.touched();
    let recovery = field.recovery(injected.at).await;
    Ok(field.end(injected, (touched > 0).then(|| format!("{touched} pieces disturbed")), recovery))
}

/// What clients were told instead of 202 since then.
pub(super) fn unacknowledged_since(field: &Field<'_>, since: u64) -> Option<String> {
    let (fail, info) = unacknowledged(field, since);
    (fail + info > 0).then(|| format!("{fail} requests refused, {info} of unknown outcome"))
}

/// Requests that were refused, and those of unknown outcome, since then.
fn unacknowledged(field: &Field<'_>, since: u64) -> (usize, usize) {
    field.history.look(|requests| {
        let late = requests.iter().filter(|request| request.completed > since);
        late.fold((0, 0), |(fail, info), request| match request.outcome {
            Outcome::Fail => (fail + 1, info),
            Outcome::Info => (fail, info + 1),
            Outcome::Ok => (fail, info + usize::from(!request.others.is_empty())),
        })
    })
}

pub(super) async fn wait_until(field: &Field<'_>, since: u64, outage: Duration) {
    let gone = Duration::from_nanos(field.history.now() - since);
    tokio::time::sleep(outage.saturating_sub(gone)).await;
}

/// Kills these brokers as a crash would.
pub(super) fn kill(field: &mut Field<'_>, nodes: &[i32]) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| {
        for node in nodes {
            field.servers.kafka.node(*node).context("there is such a node")?.kill_9()?;
        }
        Ok(())
    })
}

/// Starts these brokers again, at once, and waits until all serve.
pub(super) fn restart(field: &mut Field<'_>, nodes: &[i32]) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let dead = (1..).zip(field.servers.kafka.nodes()).filter(|(id, _)| nodes.contains(id));
            let starting: Vec<_> = dead.map(|(_, node)| scope.spawn(|| node.restart())).collect();
            starting.into_iter().try_for_each(|node| node.join().expect("starting returns its errors"))
        })?;
        field.servers.kafka.wait_complete()
    })?;
    Ok(())
}
