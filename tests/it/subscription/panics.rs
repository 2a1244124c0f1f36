//! A panic on the poll thread: nothing is lost, and the member comes back.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use millpond::{
    domain::TopicPartition,
    kafka::{
        Publisher,
        subscription::{Assigned, Assignee, Flow, Incoming, Subscription},
    },
};

use crate::{
    harness::{eventually, unique},
    publisher::{batch, new_topic, options},
};

const SOON: Duration = Duration::from_secs(30);

/// Panics at one record, the first time that it comes.
#[derive(Default)]
struct Stumbler {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    taken: Vec<i64>,
    panics: Vec<String>,
    /// Whether what was taken away was lost.
    revoked: Vec<bool>,
}

impl Assignee for Stumbler {
    type Partition = ();

    fn assigned(&self, partitions: Vec<TopicPartition>, _assignment: u64) -> Vec<Assigned<()>> {
        partitions.into_iter().map(|at| Assigned { at, partition: (), start: Some(0) }).collect()
    }

    fn revoked(&self, partitions: Vec<TopicPartition>, lost: bool) {
        self.seen.lock().unwrap().revoked.extend(partitions.iter().map(|_| lost));
    }

    fn record(&self, (): &(), record: Incoming<'_, '_>) -> Flow {
        let mut seen = self.seen.lock().unwrap();
        if record.offset == 2 && seen.panics.is_empty() {
            drop(seen);
            panic!("over offset 2");
        }
        seen.taken.push(record.offset);
        Flow::Continue
    }

    fn sought(&self, (): &(), _offset: i64) {}

    fn lost_place(&self) {
        panic!("the consumer has lost its place");
    }

    fn failed(&self, error: &str) {
        panic!("{error}");
    }

    fn panicked(&self, message: &str) {
        self.seen.lock().unwrap().panics.push(message.to_owned());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn member_whose_thread_panics_gives_its_partitions_back_and_joins_anew() {
    let topic = new_topic(1).await;
    let publisher = Publisher::start(&options(), [topic.as_str()]).unwrap();
    publisher.wait_ready().await;
    let records: Vec<_> = ["a", "b", "c", "d"].iter().map(|key| (Some(*key), Some("payload"), "id")).collect();
    assert!(publisher.publish(batch(&topic, &records)).unwrap().await.all_written());
    let stumbler = Arc::new(Stumbler::default());
    let (group, topics) = (unique("group"), [topic]);
    let subscription = Subscription::start(&options(), &group, &topics, Arc::clone(&stumbler), drop).unwrap();
    eventually(SOON, || stumbler.seen.lock().unwrap().taken == [0, 1, 0, 1, 2, 3]);
    {
        let seen = stumbler.seen.lock().unwrap();
        // Leaving the group revokes once more what was given back before.
        assert_eq!((seen.panics.as_slice(), seen.revoked[0]), (&["over offset 2".to_owned()][..], true));
    }
    tokio::task::spawn_blocking(move || subscription.stop()).await.unwrap();
}
