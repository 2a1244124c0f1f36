//! The schema registry on a real broker: one id, one schema, whoever registers and whoever dies.

use std::{
    collections::{BTreeMap, HashMap},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use millpond::kafka::{
    Admin, Options, Reader,
    registry::{RegisterError, Registered, Registry, RegistryOptions},
};
use uuid::Uuid;

use crate::harness::eventually_async;
use crate::publisher::{options, read_all, read_all_by};

/// Far more than it takes, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);

const TOPIC: &str = "MILLPOND_TEST_REGISTRY_TOPIC";
const NAME: &str = "MILLPOND_TEST_REGISTRANT";
/// Schemas that each registrant registers; `MILLPOND_TEST_SCHEMAS` sets another number.
const SCHEMAS: usize = 12;

pub async fn new_registry() -> RegistryOptions {
    let topic = format!("_schemas_{}", Uuid::new_v4().simple());
    let registry = RegistryOptions { transactional_id: topic.clone(), topic };
    Admin::connect(&options()).unwrap().ensure_topics(&[registry.topic_spec()]).await.unwrap();
    registry
}

fn schemas() -> usize {
    std::env::var("MILLPOND_TEST_SCHEMAS").ok().and_then(|n| n.parse().ok()).unwrap_or(SCHEMAS)
}

pub fn text(name: &str) -> String {
    format!(r#"{{"type":"record","name":"{name}","fields":[{{"name":"a","type":"int"}}]}}"#)
}

fn any(_: &[Arc<Registered>]) -> Result<(), String> {
    Ok(())
}

pub async fn register(registry: &Arc<Registry>, subject: &str, text: &str) -> Result<Arc<Registered>, RegisterError> {
    let (registry, subject, text) = (registry.clone(), subject.to_owned(), text.to_owned());
    tokio::task::spawn_blocking(move || registry.register(&subject, &text, &any)).await.unwrap()
}

pub async fn open(registry: &RegistryOptions) -> Arc<Registry> {
    let registry = Arc::new(Registry::start(&options(), registry).unwrap());
    tokio::time::timeout(SOON, registry.wait_ready()).await.expect("ready in time");
    registry
}

/// Every id in the log belongs to one schema, for readers of committed and of uncommitted records alike. Returns the
/// committed ones.
async fn assert_ids_are_unique(topic: &str) -> BTreeMap<i32, String> {
    let mut schema_of: BTreeMap<i32, String> = BTreeMap::new();
    for open in [Reader::open_uncommitted, Reader::open] {
        schema_of.clear();
        for payload in read_all_by(options(), topic, open).await.into_iter().filter_map(|record| record.payload) {
            let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            let (id, schema) = (value["id"].as_i64().unwrap() as i32, value["schema"].as_str().unwrap());
            let known = schema_of.entry(id).or_insert_with(|| schema.to_owned());
            assert_eq!(known, schema, "id {id} names two schemas");
        }
    }
    schema_of
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_asked_anew_tells_a_schema_that_is_not_there_from_one_it_cannot_ask_for() {
    let options = new_registry().await;
    let (writer, reader) = (open(&options).await, open(&options).await);
    let id = register(&writer, "s.Asked", &text("Asked")).await.unwrap().id;
    let holds = async |registry: &Arc<Registry>, id: i32| {
        let registry = registry.clone();
        tokio::task::spawn_blocking(move || registry.holds(id)).await.unwrap()
    };
    // What is committed is to be read a moment later.
    eventually_async(SOON, async || holds(&reader, id).await.unwrap()).await;
    assert!(!holds(&reader, id + 1).await.unwrap());
    Admin::connect(&crate::publisher::options()).unwrap().delete(&options.topic).await.unwrap();
    eventually_async(SOON, async || holds(&reader, id + 1).await.is_err()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_registered_again_has_the_same_id() {
    let at = new_registry().await;
    let registry = open(&at).await;
    let first = register(&registry, "a.First", &text("First")).await.unwrap();
    assert_eq!((first.id, first.version), (1, 1));
    let again = register(&registry, "a.First", &text("First").replace(':', ": ")).await.unwrap();
    assert_eq!(again.id, 1);
    let other = register(&registry, "a.Other", &text("Other")).await.unwrap();
    assert_eq!((other.id, other.version), (2, 1));
    let next = register(&registry, "a.First", &text("First").replace("int", "long")).await.unwrap();
    assert_eq!((next.id, next.version), (3, 2));
    // Another process, that knows nothing, finds the same.
    let second = open(&at).await;
    assert_eq!(register(&second, "a.First", &text("First")).await.unwrap().id, 1);
    assert_eq!(second.latest("a.First").unwrap().id, 3);
    assert_eq!(second.versions("a.First").iter().map(|r| r.version).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(second.subjects(), ["a.First", "a.Other"]);
    assert_eq!(second.schema_by_id(2).unwrap().text, text("Other"));
}

#[tokio::test(flavor = "multi_thread")]
async fn incompatible_schema_is_refused_with_the_reason_and_writes_nothing() {
    let at = new_registry().await;
    let registry = open(&at).await;
    register(&registry, "s", &text("S")).await.unwrap();
    let refused = {
        let registry = registry.clone();
        let check = |earlier: &[Arc<Registered>]| Err(format!("{} earlier", earlier.len()));
        tokio::task::spawn_blocking(move || registry.register("s", &text("T"), &check)).await.unwrap()
    };
    assert!(matches!(&refused, Err(RegisterError::Incompatible { why, .. }) if why == "1 earlier"), "{refused:?}");
    assert_eq!(read_all(&at.topic).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rivals_in_one_process_never_give_an_id_twice() {
    let at = new_registry().await;
    let count = schemas() / 2;
    let registries = [open(&at).await, open(&at).await];
    let rivals = registries.into_iter().enumerate().map(|(rival, registry)| {
        thread::spawn(move || {
            for i in 0..count {
                // Every third one is wanted by both.
                let name = if i % 3 == 0 { format!("Both{i}") } else { format!("R{rival}n{i}") };
                registry.register(&name, &text(&name), &any).unwrap();
            }
        })
    });
    let rivals: Vec<_> = rivals.collect();
    tokio::task::spawn_blocking(move || rivals.into_iter().for_each(|rival| rival.join().unwrap())).await.unwrap();
    let ids = assert_ids_are_unique(&at.topic).await;
    let shared = count.div_ceil(3);
    assert_eq!(ids.len(), 2 * (count - shared) + shared);
    let names: HashMap<&String, i32> = ids.iter().map(|(id, schema)| (schema, *id)).collect();
    assert_eq!(names.len(), ids.len(), "a schema has two ids");
}

/// The other process of the test below.
#[test]
#[ignore = "run by `registrants_that_are_killed_never_give_an_id_twice`"]
fn registrant_process() {
    let (Ok(topic), Ok(name)) = (std::env::var(TOPIC), std::env::var(NAME)) else { return };
    let registry = RegistryOptions { transactional_id: topic.clone(), topic };
    let registry = Registry::start(&options(), &registry).unwrap();
    for i in 0..schemas() {
        let schema = format!("{name}n{i}");
        registry.register(&schema, &text(&schema), &any).unwrap();
    }
}

fn registrant(topic: &str, name: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::registrant_process", "--ignored", "--nocapture"])
        .env(TOPIC, topic)
        .env("MILLPOND_TEST_KAFKA", crate::harness::brokers())
        .env("MILLPOND_TEST_POSTGRES", crate::harness::postgres_url())
        .env(NAME, name)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn registrants_that_are_killed_never_give_an_id_twice() {
    let at = new_registry().await;
    let topic = at.topic.clone();
    let watcher = open(&at).await;
    let mut seen = watcher.watch();
    let (mut steady, mut victim) = (registrant(&topic, "Steady"), registrant(&topic, "Victim"));
    let mut kills = 0;
    // Whenever the registry has grown, the victim dies: at whatever point of its next registration it is.
    let steady_ends = tokio::task::spawn_blocking(move || steady.wait().unwrap());
    tokio::pin!(steady_ends);
    let status = loop {
        tokio::select! {
            status = &mut steady_ends => break status.unwrap(),
            _ = seen.changed() => {
                victim.kill().unwrap();
                victim.wait().unwrap();
                kills += 1;
                victim = registrant(&topic, "Victim");
            }
        }
    };
    assert!(status.success());
    assert!(kills > 3, "the victim was killed only {kills} times");
    // Left alone, it finishes what it began.
    assert!(tokio::task::spawn_blocking(move || victim.wait().unwrap()).await.unwrap().success());
    let ids = assert_ids_are_unique(&topic).await;
    assert_eq!(ids.len(), 2 * schemas(), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_whose_topic_comes_later_gets_ready_then() {
    let topic = format!("_schemas_{}", Uuid::new_v4().simple());
    let at = RegistryOptions { transactional_id: topic.clone(), topic };
    let registry = Registry::start(&Options { ..options() }, &at).unwrap();
    assert_eq!(*registry.watch().borrow(), 0, "there is nothing to read yet");
    Admin::connect(&options()).unwrap().ensure_topics(&[at.topic_spec()]).await.unwrap();
    tokio::time::timeout(SOON, registry.wait_ready()).await.expect("ready in time");
    assert!(registry.subjects().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_whose_topic_is_made_anew_starts_over() {
    let at = new_registry().await;
    let registry = open(&at).await;
    for name in ["A", "B"] {
        register(&registry, name, &text(name)).await.unwrap();
    }
    let admin = Admin::connect(&options()).unwrap();
    admin.delete(&at.topic).await.unwrap();
    while admin.describe(&at.topic).await.unwrap().is_some() {}
    admin.ensure_topics(&[at.topic_spec()]).await.unwrap();
    let other = open(&at).await;
    assert_eq!(register(&other, "C", &text("C")).await.unwrap().id, 1);
    let found = registry.watch().wait_for(|_| registry.subjects() == ["C"]).await.is_ok();
    assert!(found);
}
