//! What is attacked, what it takes meanwhile, and the good clients.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millpond::kafka::{Reader, Start, TopicRange};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Process, Project, SOON, Web};
use crate::harness::eventually_async;

pub const PATH: &str = "/v1/events/Reading";
/// Subjects are shared by all projects of a registry.
const SCHEMA: &str = r#"{"type": "record", "name": "Reading", "namespace": "siege", "fields": [
    {"name": "sensor", "type": "string"}, {"name": "value", "type": "long"}, {"name": "note", "type": "string", "default": ""}
]}"#;
const CONTRACT: &str = "[events.Reading]\ntopic = \"TOPIC\"\nkey = \"sensor\"\n[topics.\"TOPIC\"]\npartitions = 3\n";
/// Open files that may be left over: a connection to a broker that was not needed before, a timer, one more of a client.
const FILES: usize = 12;

/// One process of `millpond ingest`, and all that it needs.
pub struct Target {
    pub cluster: Cluster,
    pub ingest: Process,
    pub address: SocketAddr,
    pub web: Web,
}

impl Target {
    pub async fn start(name: &str, settings: &[&str]) -> Self {
        Self::again(Self::cluster(name).await, settings)
    }

    /// A project with one type of event, and its topic.
    pub async fn cluster(name: &str) -> Cluster {
        let make = |dir, unique: &str| {
            let project = Project::empty(dir, unique);
            project.write("schemas/Reading/v1.avsc", SCHEMA);
            project.write("producers/sensors/producer.toml", CONTRACT);
            project
        };
        Cluster::of(name, make).await
    }

    /// Starts a process on a project that is there.
    pub fn again(cluster: Cluster, settings: &[&str]) -> Self {
        let ingest = cluster.start("ingest", settings);
        let web = ingest.web.clone();
        let address = web.base.trim_start_matches("http://").parse().unwrap();
        Self { cluster, ingest, address, web }
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> usize {
        self.status("VmRSS:")
    }

    /// The most that it was since [`Self::forget_peak`].
    pub fn peak_memory(&self) -> usize {
        self.status("VmHWM:")
    }

    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.ingest.pid()), "5").ok();
    }

    fn status(&self, field: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.ingest.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or_default() * 1024
    }

    /// Open files; none where the system does not tell.
    pub fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.ingest.pid())).map_or(0, Iterator::count)
    }

    /// CPU time so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.ingest.pid())).unwrap_or_default();
        let (_, rest) = stat.rsplit_once(") ").unwrap_or_default();
        // The 14th and 15th field, in hundredths of a second on every Linux that there is.
        let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(10 * ticks)
    }

    /// The value of a metric; 0 while it has none.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.web.get("/metrics", &[]).await.text;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// How many connections were closed for that reason.
    pub async fn closed(&self, reason: &str) -> f64 {
        self.metric(&format!("millpond_http_connections_closed_total{{reason=\"{reason}\"}}")).await
    }

    /// Waits until the process is as it was: as many open files, nothing held for requests, little more memory.
    pub async fn recovered(&self, files: usize, memory: usize, slack: usize) {
        eventually_async(SOON, async || self.files() <= files + FILES).await;
        eventually_async(SOON, async || self.metric("millpond_ingest_in_flight_bytes").await == 0.0).await;
        eventually_async(SOON, async || self.metric("millpond_http_requests_in_flight").await <= 1.0).await;
        let now = self.memory();
        assert!(now <= memory + slack, "{} MiB, and {} MiB before", now >> 20, memory >> 20);
    }

    /// Posts one record.
    pub async fn post(&self, headers: &[(&str, &str)], body: &str) -> u16 {
        self.web.post(PATH, headers, body).await.status
    }

    /// How often each event id is in the log.
    pub async fn log(&self) -> HashMap<String, usize> {
        let (options, topic) = (self.cluster.kafka(), self.cluster.project.topic.clone());
        let read = move || {
            let mut ids = HashMap::new();
            let range = TopicRange {
                topic: topic.into(),
                partitions: None,
                start: Start::Beginning,
                key: None,
                limit: None,
                follow: false,
            };
            let count = |record: millpond::kafka::Record| {
                let id = record.header("mp-event-id").expect("every record has an id");
                *ids.entry(String::from_utf8(id.to_vec()).unwrap()).or_insert(0) += 1;
                ControlFlow::Continue(())
            };
            Reader::open(&options).unwrap().read(&range, count).unwrap();
            ids
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }
}

/// A record for a body.
pub fn record(sensor: &str, value: usize) -> String {
    format!(r#"{{"sensor": "{sensor}", "value": {value}}}"#)
}

/// Clients that do what clients should, one record after another, at a steady pace.
pub struct Good {
    clients: JoinSet<Told>,
    ended: Arc<AtomicBool>,
}

/// What good clients were told.
#[derive(Debug, Default)]
pub struct Told {
    pub latencies: Vec<Duration>,
    pub accepted: Vec<String>,
    /// Answers by status; 0 stands for none, since the connection broke.
    pub answers: BTreeMap<u16, usize>,
}

impl Good {
    pub fn start(web: &Web, clients: usize, pause: Duration) -> Self {
        Self::start_with(web, clients, pause, &[])
    }

    pub fn start_with(web: &Web, clients: usize, pause: Duration, headers: &[(&str, &str)]) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut set = JoinSet::new();
        for client in 0..clients {
            set.spawn(good(Web::new(&web.base), client, pause, headers.clone(), ended.clone()));
        }
        Self { clients: set, ended }
    }

    /// Lets them go on for so long, and ends them.
    pub async fn finish_after(self, time: Duration) -> Told {
        tokio::time::sleep(time).await;
        self.finish().await
    }

    pub async fn finish(mut self) -> Told {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        while let Some(told) = self.clients.join_next().await {
            let told = told.unwrap();
            all.latencies.extend(told.latencies);
            all.accepted.extend(told.accepted);
            for (status, count) in told.answers {
                *all.answers.entry(status).or_default() += count;
            }
        }
        all.latencies.sort_unstable();
        all
    }
}

async fn good(
    web: Web,
    client: usize,
    pause: Duration,
    headers: Vec<(String, String)>,
    ended: Arc<AtomicBool>,
) -> Told {
    let mut told = Told::default();
    // At fixed times, whatever the answers take: a client that waits for a slow answer must not make the load lighter.
    let mut ticks = tokio::time::interval(pause);
    while !ended.load(Ordering::Relaxed) {
        ticks.tick().await;
        let id = uuid::Uuid::new_v4().to_string();
        let mut all: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        all.push(("idempotency-key", &id));
        let begun = Instant::now();
        let answer = web.try_post(PATH, &all, &record(&format!("good {client}"), told.latencies.len())).await;
        let status = answer.map_or(0, |answer| answer.status);
        told.latencies.push(begun.elapsed());
        *told.answers.entry(status).or_default() += 1;
        if status == 202 {
            told.accepted.push(id);
        }
    }
    told
}

impl Told {
    /// What so many percent of the answers took at most.
    pub fn at(&self, percent: usize) -> Duration {
        self.latencies[self.latencies.len() * percent / 100]
    }

    pub fn p99(&self) -> Duration {
        self.at(99)
    }

    /// All were accepted.
    #[track_caller]
    pub fn all_accepted(&self) -> &Self {
        assert_eq!(self.answers.keys().collect::<Vec<_>>(), [&202], "{:?}", self.answers);
        self
    }

    /// In times of attack answers may take twice as long; on a machine that attackers share, the tests of others too, and
    /// some moments more.
    #[track_caller]
    pub fn hardly_slower_than(&self, calm: &Told) -> &Self {
        let (before, now) = (calm.p99(), self.p99());
        eprintln!("p99 {before:.1?} before, {now:.1?} under attack, of {} answers", self.latencies.len());
        assert!(now <= 2 * before + Duration::from_millis(500), "p99 {before:.1?} before, {now:.1?} under attack");
        self
    }
}
