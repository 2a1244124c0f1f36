//! The poll thread of a consumer group on a real broker: what it fetches, and whom it obeys.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millpond::domain::TopicPartition;
use millpond::kafka::Publisher;
use millpond::kafka::murmur2::partition_of;
use millpond::kafka::subscription::{Ask, Assigned, Assignee, Command, Flow, Inbox, Incoming, Subscription};

use crate::harness::{eventually, unique};
use crate::publisher::{batch, new_topic, options};

const SOON: Duration = Duration::from_secs(60);
const PARTITIONS: u32 = 2;

/// Takes both partitions from their beginning and notes what comes.
#[derive(Default)]
struct Notes {
    commands: OnceLock<Arc<Inbox>>,
    assignment: OnceLock<u64>,
    offsets: Mutex<HashMap<i32, Vec<i64>>>,
    sought: Mutex<Vec<(i32, i64)>>,
}

impl Assignee for Notes {
    type Partition = i32;

    fn assigned(&self, partitions: Vec<TopicPartition>, assignment: u64) -> Vec<Assigned<i32>> {
        if !partitions.is_empty() {
            self.assignment.set(assignment).expect("one member is assigned once");
        }
        partitions.into_iter().map(|at| Assigned { partition: at.partition, at, start: Some(0) }).collect()
    }

    fn revoked(&self, _: Vec<TopicPartition>, _: bool) {}

    fn record(&self, partition: &i32, record: Incoming<'_, '_>) -> Flow {
        self.offsets.lock().unwrap().entry(*partition).or_default().push(record.offset);
        Flow::Continue
    }

    fn sought(&self, partition: &i32, offset: i64) {
        self.sought.lock().unwrap().push((*partition, offset));
    }

    fn lost_place(&self) {}

    fn failed(&self, error: &str) {
        panic!("{error}");
    }

    fn panicked(&self, message: &str) {
        eprintln!("{message}");
    }
}

impl Notes {
    fn offsets(&self, partition: i32) -> Vec<i64> {
        self.offsets.lock().unwrap().get(&partition).cloned().unwrap_or_default()
    }

    fn ask(&self, topic: &str, partition: i32, assignment: u64, ask: Ask) {
        let at = TopicPartition::new(topic, partition);
        self.commands.get().unwrap().send(Command::Ask { at, assignment, ask });
    }

    /// Waits until what was asked before has been done: commands are obeyed in their order.
    fn obeyed(&self, topic: &str, partition: i32) {
        let before = self.sought.lock().unwrap().len();
        let end = i64::try_from(self.offsets(partition).len()).unwrap();
        self.ask(topic, partition, *self.assignment.get().unwrap(), Ask::Seek(end));
        eventually(SOON, || self.sought.lock().unwrap().len() > before);
    }
}

/// A key of each partition.
fn key(partition: i32) -> String {
    let mut keys = (0..).map(|n: i32| format!("k{n}"));
    keys.find(|key| partition_of(key.as_bytes(), PARTITIONS) == partition).unwrap()
}

async fn write(publisher: &Publisher, topic: &str, partition: i32, records: usize) {
    let key = key(partition);
    let records = vec![(Some(key.as_str()), Some("payload"), "id"); records];
    assert!(publisher.publish(batch(topic, &records)).unwrap().await.all_written());
}

fn numbers(range: Range<i64>) -> Vec<i64> {
    range.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_is_closed_is_not_fetched_until_it_is_sought() {
    let topic = new_topic(PARTITIONS).await;
    let publisher = Publisher::start(&options(), [topic.as_str()]).unwrap();
    publisher.wait_ready().await;
    let notes = Arc::new(Notes::default());
    let connect = |commands| notes.commands.set(commands).unwrap();
    let group = unique("group");
    let subscription =
        Subscription::start(&options(), &group, std::slice::from_ref(&topic), Arc::clone(&notes), connect).unwrap();
    for partition in 0..2 {
        write(&publisher, &topic, partition, 10).await;
        eventually(SOON, || notes.offsets(partition).len() == 10);
    }
    let mine = *notes.assignment.get().unwrap();

    // A worker of an earlier assignment closes nothing.
    notes.ask(&topic, 0, mine - 1, Ask::Pause);
    notes.obeyed(&topic, 1);
    write(&publisher, &topic, 0, 10).await;
    eventually(SOON, || notes.offsets(0).len() == 20);

    notes.ask(&topic, 0, mine, Ask::Pause);
    notes.obeyed(&topic, 1);
    write(&publisher, &topic, 0, 100).await;
    // The other goes on, and what it gets was written later.
    write(&publisher, &topic, 1, 100).await;
    eventually(SOON, || notes.offsets(1).len() == 110);
    assert_eq!(notes.offsets(0), numbers(0..20));

    notes.ask(&topic, 0, mine, Ask::Seek(15));
    eventually(SOON, || notes.offsets(0).len() == 125);
    let expected: Vec<i64> = (0..20).chain(15..120).collect();
    assert_eq!(notes.offsets(0), expected);
    assert_eq!(notes.offsets(1), numbers(0..110));
    tokio::task::spawn_blocking(move || subscription.stop()).await.unwrap();
}
