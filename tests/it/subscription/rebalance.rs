//! Members of a consumer group on a real broker: what they are given, and whether its records come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millpond::domain::TopicPartition;
use millpond::kafka::Publisher;
use millpond::kafka::subscription::{Ask, Assigned, Assignee, Command, Flow, Inbox, Incoming, Subscription};

use crate::harness::{eventually_async, unique};
use crate::publisher::{batch, new_topic, options};

/// Far more than a rebalance takes, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);

/// A member that can claim nothing at first, and everything later.
#[derive(Default)]
struct Member {
    claims: Mutex<bool>,
    owned: Mutex<BTreeSet<i32>>,
    /// Partitions of which a record has come.
    read: Mutex<BTreeSet<i32>>,
}

impl Assignee for Member {
    type Partition = i32;

    fn assigned(&self, partitions: Vec<TopicPartition>, _assignment: u64) -> Vec<Assigned<i32>> {
        let start = self.claims.lock().unwrap().then_some(0);
        self.owned.lock().unwrap().extend(partitions.iter().map(|at| at.partition));
        partitions.into_iter().map(|at| Assigned { partition: at.partition, start, at }).collect()
    }

    fn revoked(&self, partitions: Vec<TopicPartition>, _lost: bool) {
        self.owned.lock().unwrap().retain(|owned| !partitions.iter().any(|at| at.partition == *owned));
    }

    fn record(&self, partition: &i32, _record: Incoming<'_, '_>) -> Flow {
        self.read.lock().unwrap().insert(*partition);
        Flow::Continue
    }

    fn sought(&self, _partition: &i32, _offset: i64) {}

    fn lost_place(&self) {}

    fn failed(&self, error: &str) {
        eprintln!("{error}");
    }

    fn panicked(&self, message: &str) {
        panic!("{message}");
    }
}

fn join(group: &str, topic: &str, member: &Arc<Member>) -> Subscription {
    Subscription::start(&options(), group, &[topic.to_owned()], Arc::clone(member), drop).unwrap()
}

/// Waits until a member has so many of the two partitions.
async fn has(member: &Member, partitions: usize) {
    eventually_async(SOON, async || member.owned.lock().unwrap().len() == partitions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_taken_away_while_paused_is_read_when_it_comes_back() {
    let topic = new_topic(2).await;
    let publisher = Publisher::start(&options(), [topic.as_str()]).unwrap();
    publisher.wait_ready().await;
    let keys: Vec<String> = (0..20).map(|key| key.to_string()).collect();
    let records: Vec<_> = keys.iter().map(|key| (Some(key.as_str()), Some("value"), "id")).collect();
    assert!(publisher.publish(batch(&topic, &records)).unwrap().await.all_written());

    let group = unique("group");
    let (first, second) = (Arc::new(Member::default()), Arc::new(Member::default()));
    let stays = join(&group, &topic, &first);
    has(&first, 2).await;
    // Without a claim both are paused; one of them goes to the other member, and comes back when that leaves.
    *first.claims.lock().unwrap() = true;
    let leaves = join(&group, &topic, &second);
    has(&second, 1).await;
    has(&first, 1).await;
    let back = *second.owned.lock().unwrap().first().unwrap();
    tokio::task::spawn_blocking(|| leaves.stop()).await.unwrap();
    has(&first, 2).await;
    eventually_async(SOON, async || first.read.lock().unwrap().contains(&back)).await;
    tokio::task::spawn_blocking(|| stays.stop()).await.unwrap();
}

/// A member whose claims come when its partitions are assigned already: each is sought at once.
#[derive(Default)]
struct LateClaims {
    commands: OnceLock<Arc<Inbox>>,
    /// Offsets that came behind the seek, per partition.
    read: Mutex<BTreeMap<i32, Vec<i64>>>,
}

impl Assignee for LateClaims {
    type Partition = i32;

    fn assigned(&self, partitions: Vec<TopicPartition>, assignment: u64) -> Vec<Assigned<i32>> {
        for at in &partitions {
            let at = at.clone();
            self.commands.get().unwrap().send(Command::Ask { at, assignment, ask: Ask::Seek(0) });
        }
        partitions.into_iter().map(|at| Assigned { partition: at.partition, start: None, at }).collect()
    }

    fn revoked(&self, _partitions: Vec<TopicPartition>, _lost: bool) {}

    fn record(&self, partition: &i32, record: Incoming<'_, '_>) -> Flow {
        if let Some(offsets) = self.read.lock().unwrap().get_mut(partition) {
            offsets.push(record.offset);
        }
        Flow::Continue
    }

    fn sought(&self, partition: &i32, _offset: i64) {
        self.read.lock().unwrap().insert(*partition, Vec::new());
    }

    fn lost_place(&self) {}

    fn failed(&self, error: &str) {
        eprintln!("{error}");
    }

    fn panicked(&self, message: &str) {
        panic!("{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_sought_right_after_its_assignment_is_read_without_a_gap() {
    const PARTITIONS: u32 = 12;
    let topic = new_topic(PARTITIONS).await;
    let publisher = Publisher::start(&options(), [topic.as_str()]).unwrap();
    publisher.wait_ready().await;
    let member = Arc::new(LateClaims::default());
    let commands = Arc::clone(&member);
    let subscription = Subscription::start(
        &options(),
        &unique("group"),
        std::slice::from_ref(&topic),
        Arc::clone(&member),
        move |way| {
            commands.commands.set(way).unwrap();
        },
    )
    .unwrap();
    // Somebody writes all the while: an end that is looked up later is another.
    let keys: Vec<String> = (0..200).map(|key| key.to_string()).collect();
    let records: Vec<_> = keys.iter().map(|key| (Some(key.as_str()), Some("value"), "id")).collect();
    let mut written = 0;
    let sought = || member.read.lock().unwrap().len() == PARTITIONS as usize;
    let begun = std::time::Instant::now();
    let mut since = None;
    // Two seconds are four times what the client waits before it looks up an end once more.
    while since.is_none_or(|since: std::time::Instant| since.elapsed() < Duration::from_secs(2)) {
        assert!(begun.elapsed() < SOON, "not assigned");
        assert!(publisher.publish(batch(&topic, &records)).unwrap().await.all_written());
        written += records.len();
        since = since.or_else(|| sought().then(std::time::Instant::now));
    }
    let come = || member.read.lock().unwrap().values().map(Vec::len).sum::<usize>();
    let complete = async {
        while come() < written {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let complete = tokio::time::timeout(SOON, complete).await;
    for (partition, offsets) in &*member.read.lock().unwrap() {
        let gap = offsets.iter().zip(0..).find(|(offset, expected)| *offset != expected);
        assert!(gap.is_none(), "partition {partition}: {gap:?} of {} read", offsets.len());
    }
    assert!(complete.is_ok(), "{} of {written} have come", come());
    tokio::task::spawn_blocking(|| subscription.stop()).await.unwrap();
}
