//! The poll thread on a real broker: what it hands over, and what it keeps back when told to.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use millpond::{
    domain::TopicPartition,
    kafka::{
        Publisher,
        subscription::{Ask, Assigned, Assignee, Command, Flow, Inbox, Incoming, Subscription},
    },
};

use crate::{
    harness::{eventually, unique},
    publisher::{batch, new_topic, options},
};

/// More than librdkafka fetches ahead for one partition.
const RECORDS: usize = 40_000;
/// Offsets that are taken of the first partition before it is held.
const ROOM: usize = 10;
const SOON: Duration = Duration::from_secs(30);

/// Takes all of the second partition, and of the first as much as there is room for.
#[derive(Default)]
struct Taker {
    taken: [Mutex<Vec<i64>>; 2],
    room: Mutex<usize>,
    inbox: OnceLock<Arc<Inbox>>,
    assignment: AtomicU64,
}

impl Taker {
    fn taken(&self, partition: usize) -> Vec<i64> {
        self.taken[partition].lock().unwrap().clone()
    }

    fn make_room(&self, room: usize) {
        *self.room.lock().unwrap() = room;
    }

    fn ask(&self, at: &TopicPartition, ask: Ask) {
        let assignment = self.assignment.load(Ordering::Relaxed);
        self.inbox.get().unwrap().send(Command::Ask { at: at.clone(), assignment, ask });
    }
}

impl Assignee for Taker {
    type Partition = usize;

    fn assigned(&self, partitions: Vec<TopicPartition>, assignment: u64) -> Vec<Assigned<usize>> {
        self.assignment.store(assignment, Ordering::Relaxed);
        let assigned = |at: TopicPartition| Assigned { partition: at.partition as usize, at, start: Some(0) };
        partitions.into_iter().map(assigned).collect()
    }

    fn revoked(&self, _: Vec<TopicPartition>, _: bool) {}

    fn record(&self, partition: &usize, record: Incoming<'_, '_>) -> Flow {
        let mut taken = self.taken[*partition].lock().unwrap();
        taken.push(record.offset);
        if *partition == 0 && taken.len() >= *self.room.lock().unwrap() { Flow::Hold } else { Flow::Continue }
    }

    fn sought(&self, partition: &usize, _: i64) {
        self.taken[*partition].lock().unwrap().clear();
    }

    fn lost_place(&self) {
        panic!("the consumer has lost its place");
    }

    fn failed(&self, error: &str) {
        panic!("{error}");
    }

    fn panicked(&self, message: &str) {
        eprintln!("{message}");
    }
}

/// A member that holds the first of two partitions, the other one taken to its end; and where the two end.
async fn held_member() -> (Subscription, Arc<Taker>, TopicPartition, Vec<i64>) {
    let topic = new_topic(2).await;
    let publisher = Publisher::start(&options(), [topic.as_str()]).unwrap();
    publisher.wait_ready().await;
    let keys: Vec<String> = (0..RECORDS).map(|number| number.to_string()).collect();
    for keys in keys.chunks(10_000) {
        let records: Vec<_> = keys.iter().map(|key| (Some(key.as_str()), Some("payload"), "id")).collect();
        assert!(publisher.publish(batch(&topic, &records)).unwrap().await.all_written());
    }
    let taker = Arc::new(Taker::default());
    taker.make_room(ROOM);
    let connect = |inbox| taker.inbox.set(inbox).unwrap();
    let name = unique("group");
    let subscription =
        Subscription::start(&options(), &name, std::slice::from_ref(&topic), Arc::clone(&taker), connect).unwrap();
    let first = keys.iter().filter(|key| millpond::kafka::murmur2::partition_of(key.as_bytes(), 2) == 0).count();
    let second = RECORDS - first;
    eventually(SOON, || taker.taken(1).len() >= second && taker.taken(0).len() >= ROOM);
    let all = (0..first as i64).collect();
    (subscription, taker, TopicPartition::new(topic.as_str(), 0), all)
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_is_held_goes_on_where_it_was_and_holds_up_no_other() {
    let (subscription, taker, held, all) = held_member().await;
    assert_eq!(taker.taken(0), all[..ROOM]);
    for room in [2 * ROOM, usize::MAX] {
        taker.make_room(room);
        taker.ask(&held, Ask::Resume);
        eventually(SOON, || taker.taken(0).len() >= room.min(all.len()));
        assert_eq!(taker.taken(0), all[..room.min(all.len())]);
    }
    tokio::task::spawn_blocking(move || subscription.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_is_sought_while_held_gives_nothing_from_before() {
    let (subscription, taker, held, all) = held_member().await;
    taker.make_room(usize::MAX);
    taker.ask(&held, Ask::Seek(3));
    eventually(SOON, || taker.taken(0).len() >= all.len() - 3);
    assert_eq!(taker.taken(0), all[3..]);
    tokio::task::spawn_blocking(move || subscription.stop()).await.unwrap();
}
