//! Members of a consumer group on a real broker: what they are given, and whether its records come.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millpond::domain::TopicPartition;
use millpond::kafka::Publisher;
use millpond::kafka::subscription::{Assigned, Assignee, Flow, Incoming, Subscription};

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
