//! `millpond doctor`: what a person would check first, checked.

use std::{process::ExitCode, time::Duration};

use super::{project::Project, wiring};
use crate::{
    cli::say::say,
    config::Config,
    kafka::{
        Admin,
        registry::{Registry, RegistryOptions},
    },
    store::{self, relay::Delivery},
};

/// What one check may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Clocks further apart than this make ages and logs misleading.
const CLOCK_SECONDS: f64 = 2.0;

/// Findings so far.
#[derive(Default)]
struct Report {
    failed: bool,
}

impl Report {
    fn note(&mut self, what: &str, result: Result<String, String>) {
        match result {
            Ok(text) => say!("ok    {what}: {text}"),
            Err(text) => {
                self.failed = true;
                say!("FAIL  {what}: {text}");
            }
        }
    }
}

/// Runs every check; the exit code says whether one failed.
pub async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    let project = Project::load(&config.project.dir);
    report.note(
        "project",
        match &project {
            Ok(p) => Ok(format!(
                "{} record types, {} producers, {} consumers in {}",
                p.schemas.iter().count(),
                p.producers.len(),
                p.consumers.len(),
                p.dir.display()
            )),
            Err(error) => Err(format!("{error:#}")),
        },
    );
    let broker = broker(config, project.as_ref().ok()).await;
    let reachable = broker.is_ok();
    report.note("kafka", broker);
    if reachable {
        report.note("schemas", registry(config, project.as_ref().ok()).await);
    }
    let database =
        tokio::time::timeout(LIMIT, database(config)).await.unwrap_or_else(|_| Err("no answer within 10 s".into()));
    report.note("postgres", database);
    if let Ok(Some(downstream)) = tokio::time::timeout(LIMIT, downstream(config)).await {
        report.note("downstream", downstream);
    }
    if let Ok(clock) = tokio::time::timeout(LIMIT, clock(config)).await {
        report.note("clock", clock);
    }
    Ok(if report.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn broker(config: &Config, project: Option<&Project>) -> Result<String, String> {
    let hint = |e: String| format!("{e}; is kafka.brokers = {} right, and does Kafka run there?", config.kafka.brokers);
    let admin = Admin::connect(&wiring::kafka_options(config)).map_err(|e| e.to_string())?;
    let topics = tokio::time::timeout(LIMIT, admin.list())
        .await
        .map_err(|_| hint("no answer within 10 s".to_owned()))?
        .map_err(|e| hint(e.to_string()))?;
    let leaderless: Vec<&str> = topics.iter().filter(|t| t.leaderless > 0).map(|t| t.name.as_str()).collect();
    if !leaderless.is_empty() {
        return Err(format!("partitions without a leader in {}: see the brokers' logs", leaderless.join(", ")));
    }
    let lagging: Vec<&str> = topics.iter().filter(|t| t.lagging > 0).map(|t| t.name.as_str()).collect();
    if !lagging.is_empty() {
        return Err(format!(
            "partitions without all of their replicas in sync in {}: a broker is away or cannot keep up; where fewer than \
             min.insync.replicas are in sync no write is taken; see the brokers' logs",
            lagging.join(", ")
        ));
    }
    let declared = project.map(Project::topics).unwrap_or_default();
    let missing: Vec<&str> =
        declared.iter().map(|t| t.name.as_str()).filter(|name| topics.iter().all(|t| t.name != *name)).collect();
    if !missing.is_empty() {
        return Err(format!(
            "topics that are declared but not there: {}; run `millpond schema push`",
            missing.join(", ")
        ));
    }
    let there = |name: &str| topics.iter().find(|topic| topic.name == name).map(|topic| topic.partitions);
    let of_producers = project.into_iter().flat_map(|project| &project.producers).flat_map(|producer| &producer.topics);
    let other = of_producers.filter_map(|(name, spec)| {
        let partitions = there(name).filter(|partitions| *partitions != spec.partitions as usize)?;
        Some(format!("{name} has {partitions} where its folder says {}", spec.partitions))
    });
    let other: Vec<String> = other.collect();
    if !other.is_empty() {
        return Err(format!(
            "numbers of partitions that are not the declared ones: {}; consumers halt on those that are not declared: see \
             partitions_added in docs/runbook/halted.md",
            other.join(", ")
        ));
    }
    Ok(format!("{} topics at {}", topics.len(), config.kafka.brokers))
}

async fn registry(config: &Config, project: Option<&Project>) -> Result<String, String> {
    let registry =
        Registry::start(&wiring::kafka_options(config), &RegistryOptions::default()).map_err(|e| e.to_string())?;
    if tokio::time::timeout(LIMIT, registry.wait_ready()).await.is_err() {
        return Err("the topic _schemas could not be read; run `millpond schema push`".to_owned());
    }
    let records: Vec<_> = project.into_iter().flat_map(|p| p.schemas.iter()).collect();
    let missing: Vec<String> = records
        .iter()
        .filter(|r| registry.lookup(&r.subject, &r.latest().text).is_none())
        .map(|r| format!("{} v{}", r.subject, r.latest().version))
        .collect();
    if missing.is_empty() {
        return Ok(format!("{} subjects, and all of the folder are registered", registry.subjects().len()));
    }
    Err(format!("not registered: {}; run `millpond schema push`", missing.join(", ")))
}

async fn database(config: &Config) -> Result<String, String> {
    let mut connection = store::connect(&config.postgres.url, "millpond doctor")
        .await
        .map_err(|e| format!("{e}; is postgres.url right, and does Postgres run there?"))?;
    let server = store::status::server(&mut connection).await.map_err(|e| e.to_string())?;
    if server.version < 150_000 {
        return Err(format!("server version {} is below 15", server.version));
    }
    if !server.fsync {
        return Err("fsync is off: a crash of the machine would lose what was committed; set fsync = on".to_owned());
    }
    let version = format!("version {}.{}", server.version / 10_000, server.version % 10_000);
    if store::has_tables(&mut connection).await.map_err(|e| e.to_string())? {
        return Ok(version);
    }
    Ok(format!("{version}; no tables of Millpond yet: the first process whose account may make them does"))
}

/// How downstream events are sent; nothing without a database, which is told of by its own check.
async fn downstream(config: &Config) -> Option<Result<String, String>> {
    let mut connection = store::connect(&config.postgres.url, "millpond doctor").await.ok()?;
    Some(match store::relay::delivery(&mut connection).await {
        Err(error) => Err(error.to_string()),
        Ok(None) => Ok("nothing was sent yet: no process with the role publish has led".to_owned()),
        Ok(Some(Delivery::NotAtAll(why))) => Err(format!("nothing is sent: {why}")),
        Ok(Some(Delivery::ExactlyOnce)) => Ok("exactly once, for readers of committed records".to_owned()),
        Ok(Some(Delivery::AtLeastOnce(why))) if config.publish.transactions == "off" => {
            Ok(format!("at least once, as it is set: {why}"))
        }
        Ok(Some(Delivery::AtLeastOnce(why))) => Err(format!(
            "at least once, not exactly once: {why}; let the relay's account use transactions (docs/operating.md, \
             Downstream events) and start publish again, or set publish.transactions = \"off\""
        )),
    })
}

async fn clock(config: &Config) -> Result<String, String> {
    let Ok(mut connection) = store::connect(&config.postgres.url, "millpond doctor").await else {
        return Ok("not compared: no database".to_owned());
    };
    let server = store::status::server(&mut connection).await.map_err(|e| e.to_string())?;
    let apart = (server.now - chrono::Utc::now().timestamp_millis() as f64 / 1000.0).abs();
    if apart > CLOCK_SECONDS {
        return Err(format!("this machine and Postgres are {apart:.1} s apart: run a time service on both"));
    }
    Ok(format!("{apart:.2} s from that of Postgres"))
}
