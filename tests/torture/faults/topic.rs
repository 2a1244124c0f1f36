//! Topics that are not the ones that were applied: made anew, cut, given more partitions. On the topic of the small
//! Millpond, for the judge of the run wants its own whole.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

use super::{Fault, Field, RECOVERS_WITHIN, SHOWS_WITHIN};
use crate::checker;
use crate::side::Side;
use crate::side::judge::{Excused, Lost};
use crate::workload::history::Outcome;

/// Partitions that the topic of the small Millpond has, and that it is given.
const PARTITIONS: i32 = 3;
const MORE: i32 = 5;

/// K13, in one of its ways.
pub async fn changed(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    match field.way(&[0, 1, 2, 3]) {
        0 => made_anew(field, false).await,
        1 => made_anew(field, true).await,
        2 => cut_ahead(field).await,
        _ => partitions_added(field).await,
    }
}

/// The topic is deleted and made anew, and grows; with a member that is awake, or one that was frozen all the while and
/// finds another log that is longer than the one it knew.
async fn made_anew(field: &mut Field<'_>, frozen: bool) -> anyhow::Result<Fault> {
    let side = field.side().await?;
    let member = if frozen { "a frozen" } else { "an awake" };
    let injected = field.begin(format!("a topic is deleted and made anew under {member} member")).await?;
    side.freeze("consume", frozen);
    let applied: BTreeMap<i32, i64> =
        side.fences().await?.into_iter().map(|(at, fence)| (at, fence.next_offset)).collect();
    let kafka = millpond::kafka::Options { brokers: side.brokers.clone(), ..Default::default() };
    let admin = millpond::kafka::Admin::connect(&kafka)?;
    admin.delete(&side.topic).await?;
    let begun = Instant::now();
    while admin.describe(&side.topic).await?.is_some() && begun.elapsed() < SHOWS_WITHIN {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    side.succeeds(&["schema", "push"])?;
    let anew = Instant::now();
    if frozen {
        let longer =
            |ends: &BTreeMap<i32, i64>| applied.iter().all(|(at, next)| ends.get(at).is_some_and(|end| end > next));
        while !longer(&side.ends().await?) && anew.elapsed() < RECOVERS_WITHIN {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        side.freeze("consume", false);
    }
    let since = Instant::now();
    let partitions: Vec<i32> = applied.iter().filter(|(_, next)| **next > 0).map(|(at, _)| *at).collect();
    let halts = side.halted(&partitions, RECOVERS_WITHIN).await;
    let codes: Vec<&str> = halts.values().map(|(code, _)| code.as_str()).collect();
    let observed = format!("{codes:?} after {:.1?}", since.elapsed());
    let mut wrong = not_halted(&partitions, &halts, &["log_is_shorter", "log_is_another"]);
    if let Some((_, reason)) = halts.values().next() {
        side.obey(reason)?;
    }
    let lost: Lost = Box::new(move |sent| sent.invoked < anew);
    wrong.extend(field.leave(side, &Excused { lost: Some(lost), ..Excused::default() }).await?);
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, Some(observed), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// What retention does to a consumer that is too far behind: the log's start overtakes it.
async fn cut_ahead(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let mut side = field.side().await?;
    side.kill_9("consume");
    let fences = side.fences().await?;
    side.writer.more(300, RECOVERS_WITHIN).await;
    let injected = field.begin("the log's start overtakes its consumer").await?;
    let before = side.log().await?;
    let mut list = TopicPartitionList::new();
    let mut skipped = BTreeMap::new();
    for (at, end) in side.ends().await? {
        let next = fences.get(&at).map_or(0, |fence| fence.next_offset);
        let low = next + (end - next) / 2;
        if low > next {
            list.add_partition_offset(&side.topic, at, Offset::Offset(low))?;
            skipped.insert(at, (next, low));
        }
    }
    admin(&side)?.delete_records(&list, &AdminOptions::new()).await?;
    side.start("consume", "consume")?;
    let since = Instant::now();
    let partitions: Vec<i32> = skipped.keys().copied().collect();
    let halts = side.halted(&partitions, RECOVERS_WITHIN).await;
    let observed = format!("{} partitions halted after {:.1?}", halts.len(), since.elapsed());
    let mut wrong = not_halted(&partitions, &halts, &["log_was_cut"]);
    // Told to go on without a word about what is gone, it has to say the same again.
    side.succeeds(&["consumer", "restart", "notes"])?;
    let again = side.halted(&partitions, RECOVERS_WITHIN).await;
    wrong.extend(not_halted(&partitions, &again, &["log_was_cut"]));
    if let Some((_, reason)) = again.values().next() {
        side.obey(reason)?;
    }
    wrong.extend(field.leave(side, &Excused { removed: before, skipped, lost: None }).await?);
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, Some(observed), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// The topic is given partitions that no folder declares, and a stranger writes to them. Keys stay where they are until an
/// operator declares the new number.
async fn partitions_added(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let mut side = field.side().await?;
    let injected = field.begin(format!("a topic of {PARTITIONS} partitions is given {MORE}")).await?;
    let more = NewPartitions::new(&side.topic, usize::try_from(MORE)?);
    for result in admin(&side)?.create_partitions([&more], &AdminOptions::new()).await? {
        result.map_err(|(topic, code)| anyhow::anyhow!("{topic} is given no partitions: {code}"))?;
    }
    let added: Vec<i32> = (PARTITIONS..MORE).collect();
    write_past_ingest(&side, &added).await?;
    let since = Instant::now();
    let halts = side.halted(&added, RECOVERS_WITHIN).await;
    let observed = format!("{} partitions halted after {:.1?}", halts.len(), since.elapsed());
    let mut wrong = not_halted(&added, &halts, &["partitions_added"]);
    // Longer than ingest takes to look at its topics again while all is well.
    tokio::time::sleep(Duration::from_secs(31)).await;
    side.writer.more(300, RECOVERS_WITHIN).await;
    let moved = side.writer.sent().into_iter().find(|sent| {
        sent.outcome == Outcome::Ok && checker::position(&sent.position).keys().any(|at| *at >= PARTITIONS)
    });
    wrong.extend(moved.map(|sent| format!("keys moved without anybody's word: {sent:?}")));
    let contract = std::fs::read_to_string(side.project.join("producers/notes/producer.toml"))?;
    let (old, new) = (format!("partitions = {PARTITIONS}"), format!("partitions = {MORE}"));
    side.write("producers/notes/producer.toml", &contract.replace(&old, &new))?;
    for (name, role) in [("ingest", "ingest"), ("consume", "consume")] {
        side.kill_9(name);
        side.start(name, role)?;
    }
    if let Some((_, reason)) = halts.values().next() {
        side.obey(reason)?;
    }
    wrong.extend(field.leave(side, &Excused::default()).await?);
    let recovery = field.recovery(injected.at).await;
    let mut fault = field.end(injected, Some(observed), recovery);
    fault.wrong = wrong;
    Ok(fault)
}

/// Notes with numbers below zero, written by a client that knows nothing of Millpond, one to each of these partitions.
async fn write_past_ingest(side: &Side, partitions: &[i32]) -> anyhow::Result<()> {
    let id = schema_id(side)?;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &side.brokers).set("client.id", "rig").create()?;
    for at in partitions {
        let mut payload = vec![0];
        payload.extend(id.to_be_bytes());
        // A text of one byte, and a small number below zero.
        payload.extend([2, b'k', u8::try_from(2 * at - 1)?]);
        write(&producer, &side.topic, *at, &payload).await?;
    }
    Ok(())
}

/// Writes a record as it is.
pub(super) async fn write(producer: &FutureProducer, topic: &str, at: i32, payload: &[u8]) -> anyhow::Result<()> {
    let headers = OwnedHeaders::new().insert(Header { key: "mp-event-id", value: Some("a stranger's") });
    let record = FutureRecord::to(topic).key("k").payload(payload).partition(at).headers(headers);
    producer.send(record, RECOVERS_WITHIN).await.map_err(|(error, _)| error).context("a stranger cannot write")?;
    Ok(())
}

/// The id of the first schema of notes.
fn schema_id(side: &Side) -> anyhow::Result<u32> {
    let list = side.succeeds(&["schema", "list"])?;
    let version = format!("{}.Note v1", side.name);
    let found = list.lines().find_map(|line| line.strip_prefix(&version)?.strip_prefix(": id ")?.parse().ok());
    found.with_context(|| format!("there is no {version} in {list}"))
}

pub(super) fn admin(side: &Side) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", &side.brokers).set("client.id", "rig").create()?)
}

/// Those of the partitions that have not halted with one of these codes.
fn not_halted(partitions: &[i32], halts: &BTreeMap<i32, (String, String)>, codes: &[&str]) -> Vec<String> {
    let good = |at: &&i32| halts.get(at).is_some_and(|(code, _)| codes.contains(&code.as_str()));
    let bad = partitions.iter().filter(|at| !good(at));
    bad.map(|at| format!("partition {at} had to halt with one of {codes:?}, and shows {:?}", halts.get(at))).collect()
}
