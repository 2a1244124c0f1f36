//! Kafka away under load: refusals come at once, no 202 is a lie, and what was accepted is in the log once.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millpond::kafka::{self, Delivery, NotSent, Options, Reader, Reason, Start, TopicRange};
use tokio::task::JoinSet;

use super::{CONSUMERS, outage};
use crate::cluster::{Answer, Cluster, Exclusive, FlightCommand, Load, Pace, SOON, Slice, Web, days, post, shares};
use crate::harness::eventually_async;
use crate::publisher;

/// No client is kept longer than this to be told that nothing was written.
const PROMPT: Duration = Duration::from_secs(2);
/// How long ingest may take to notice that nothing is acknowledged any more. What comes before is in flight, and its
/// outcome may stay unknown.
const NOTICED: Duration = Duration::from_secs(4);

/// What clients were told, by the ids of their commands.
#[derive(Debug, Default)]
struct Told {
    accepted: HashSet<String>,
    unknown: HashSet<String>,
    refusals: usize,
    slowest_refusal: Duration,
}

impl Told {
    /// Notes an answer; whether the command is accepted.
    fn note(&mut self, command: &FlightCommand, answer: &Answer) -> bool {
        if answer.status == 202 {
            return self.accepted.insert(command.id());
        }
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        match (answer.status, answer.json()["outcome"].as_str()) {
            (503, Some("not_written")) => {
                self.refusals += 1;
                self.slowest_refusal = self.slowest_refusal.max(answer.took);
            }
            (504, Some("unknown")) => drop(self.unknown.insert(command.id())),
            _ => panic!("{answer:?}"),
        }
        false
    }

    fn add(&mut self, other: Told) {
        self.accepted.extend(other.accepted);
        self.unknown.extend(other.unknown);
        self.refusals += other.refusals;
        self.slowest_refusal = self.slowest_refusal.max(other.slowest_refusal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_away_under_load_is_a_prompt_503_and_loses_nothing_accepted() {
    let mut cluster = Cluster::flights("kafka").await;
    let all = cluster.start("all", &[]);
    let (options, topic) = (cluster.kafka(), cluster.project.topic.clone());
    let mut clients = JoinSet::new();
    for share in shares(days(&[1])) {
        clients.spawn(client(all.web.clone(), share, options.clone(), topic.clone()));
    }
    // Those who come while Kafka is away: with the first commands of flights that nobody has posted anything of.
    let (newcomers, later): (Vec<_>, Vec<_>) =
        days(&[2]).into_iter().partition(|command| command.record_type == "ScheduleFlight");
    let mut told = Told::default();
    let mut at_the_door = newcomers.iter().cloned();
    for kill in [false, true] {
        let ends = cluster.ends(&topic).await;
        eventually_async(SOON, async || cluster.ends(&topic).await > ends).await;
        told.add(away(&mut cluster, &all.web, &mut at_the_door, kill).await);
    }
    while let Some(client) = clients.join_next().await {
        told.add(client.unwrap());
    }
    let log = ids(&options, &topic).expect("Kafka is back");
    let rest = newcomers.into_iter().filter(|command| !log.contains_key(&command.id())).chain(later);
    Load::start(&all.web, rest.collect(), Pace::Free).finish().await;
    cluster.settled(&topic, CONSUMERS).await;

    eprintln!(
        "{} accepted, {} refused (slowest in {:.2?}), {} unknown",
        told.accepted.len(),
        told.refusals,
        told.slowest_refusal,
        told.unknown.len()
    );
    let log = ids(&options, &topic).expect("Kafka is there");
    let not_once: Vec<_> = log.iter().filter(|(_, count)| **count != 1).collect();
    assert!(not_once.is_empty(), "{not_once:?}");
    let lost: Vec<&String> = told.accepted.iter().filter(|id| !log.contains_key(*id)).collect();
    assert!(lost.is_empty(), "accepted and not in the log: {lost:?}");
    assert!(told.slowest_refusal < PROMPT, "{:?}", told.slowest_refusal);
    Slice::days(&[1, 2]).equals(&cluster, &all.web).await;
    // Clients without a broker report it many times a second; the log is for people.
    let lines = all.log().lines().count();
    assert!(lines < 2000, "{lines} lines in the log");
    all.stop();
}

/// Takes Kafka away for the time of an outage; somebody new comes ten times a second.
async fn away(
    cluster: &mut Cluster,
    web: &Web,
    newcomers: &mut impl Iterator<Item = FlightCommand>,
    kill: bool,
) -> Told {
    let kafka = cluster.servers.kafka();
    if kill {
        kafka.kill_9().unwrap()
    } else {
        kafka.stop().unwrap()
    }
    let (gone, mut told, mut posts) = (Instant::now(), Told::default(), JoinSet::new());
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    while gone.elapsed() < outage() + NOTICED {
        ticks.tick().await;
        let (web, command, noticed) = (web.clone(), newcomers.next().unwrap(), gone.elapsed() > NOTICED);
        posts.spawn(async move { (post(&web, &command).await.unwrap(), command, noticed) });
        while let Some(posted) = posts.try_join_next() {
            let (answer, command, noticed) = posted.unwrap();
            assert!(!told.note(&command, &answer), "a 202 without Kafka: {answer:?}");
            assert!(!noticed || answer.status == 503, "{answer:?}");
        }
    }
    assert!(told.refusals > 0);
    kafka.restart().unwrap();
    while let Some(posted) = posts.join_next().await {
        let (answer, command, _) = posted.unwrap();
        told.note(&command, &answer);
    }
    told
}

/// Posts its flights' commands one after another, each until it is in the log.
async fn client(web: Web, share: Vec<FlightCommand>, options: kafka::Options, topic: String) -> Told {
    let mut told = Told::default();
    for command in share {
        loop {
            let answer = post(&web, &command).await.unwrap();
            if told.note(&command, &answer) {
                break;
            }
            if answer.status == 504 && is_written(&options, &topic, &command.id()).await {
                break;
            }
            // What Retry-After asks for is a second and more.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    told
}

/// What the client of an unknown outcome has to find out before it goes on with the same flight.
async fn is_written(options: &kafka::Options, topic: &str, id: &str) -> bool {
    let (options, topic, id) = (options.clone(), topic.to_owned(), id.to_owned());
    let look = move || {
        let mut found = None;
        crate::harness::eventually(SOON * 2, || {
            found = ids(&options, &topic);
            found.is_some()
        });
        found.unwrap_or_default().contains_key(&id)
    };
    tokio::task::spawn_blocking(look).await.unwrap()
}

/// How often each event id is in the log; nothing while Kafka does not answer.
fn ids(options: &kafka::Options, topic: &str) -> Option<HashMap<String, usize>> {
    let mut ids = HashMap::new();
    let range = TopicRange {
        topic: topic.into(),
        partitions: None,
        start: Start::Beginning,
        key: None,
        limit: None,
        follow: false,
    };
    let read = Reader::open(options).ok()?.read(&range, |record| {
        let id = record.header("mp-event-id").expect("every record has an id");
        *ids.entry(String::from_utf8(id.to_vec()).unwrap()).or_insert(0) += 1;
        ControlFlow::Continue(())
    });
    read.ok().map(|_| ids)
}

/// A broker stands still, takes everything it was sent when it goes on, and the producer's second tries as well. As long
/// as these say which tries they are, it knows them again: see `MESSAGE_TIMEOUT`.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_waited_beside_one_that_was_given_up_are_in_the_log_once() {
    let mut servers = Exclusive::take();
    let options = Options { brokers: servers.brokers(), ..publisher::options() };
    let topic = publisher::new_topic_of(&options, 2).await;
    let publisher = publisher::ready(&options, &topic).await;
    let publish =
        |key: &str, payload: &str| publisher.publish(publisher::batch(&topic, &[(Some(key), Some(payload), "")]));
    assert!(publish("a", "first").unwrap().await.all_written());

    servers.kafka().pause().unwrap();
    let (mut pending, mut pace) = (Vec::new(), tokio::time::interval(Duration::from_millis(50)));
    loop {
        pace.tick().await;
        let number = pending.len().to_string();
        match publish(&number, &number) {
            Ok(receipt) => pending.push(receipt),
            Err(refused) => break assert!(matches!(refused, NotSent::Unavailable { .. }), "{refused}"),
        }
    }
    assert!(pending.len() > 5, "{}", pending.len());
    let mut receipts = vec![pending.remove(0).await];
    assert_eq!(receipts[0].deliveries, [Delivery::Unknown(Reason::TimedOut)]);
    servers.kafka().cont().unwrap();
    receipts.extend(join_all(pending).await);
    tokio::time::timeout(SOON, publisher.wait_ready()).await.expect("ready in time");
    for key in 0..8 {
        // Ready while one partition acknowledges: the other one may be in doubt yet, and is refused for that long.
        let mut receipt = None;
        crate::harness::eventually(SOON, || {
            receipt = publish(&key.to_string(), "last").ok();
            receipt.is_some()
        });
        assert!(receipt.unwrap().await.all_written());
    }

    let log = publisher::read_all_by(options, &topic, Reader::open).await;
    let copies = |payload: &str| log.iter().filter(|r| r.payload.as_deref() == Some(payload.as_bytes())).count();
    for (number, receipt) in receipts.iter().enumerate() {
        let allowed = if receipt.all_written() { 1..=1 } else { 0..=1 };
        let copies = copies(&number.to_string());
        assert!(allowed.contains(&copies), "{number} is in the log {copies} times, and its receipt is {receipt:?}");
    }
}
