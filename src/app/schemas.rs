//! `schema check`, `schema push`, `schema list`, and the creation of topics that goes with them.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};

use super::{project::Project, wiring};
use crate::{
    cli::args::Schema,
    config::Config,
    kafka::{
        Admin,
        registry::{Registered, Registry, RegistryOptions},
    },
    schema::{
        self,
        compat::{self, CompatibilityLevel},
    },
};

/// How long the registry's topic may take to be read to its end.
const READY: Duration = Duration::from_secs(20);

pub async fn run(config: &Config, command: Schema) -> anyhow::Result<ExitCode> {
    match command {
        Schema::Check { offline } => check(config, offline).await,
        Schema::Push => {
            let project = Project::load(&config.project.dir)?;
            create_topics(config, &project).await?;
            let registry = connect(config).await?;
            for (subject, version, id, new) in push(&project, registry).await? {
                println!("{subject} v{version}: id {id}{}", if new { ", registered now" } else { "" });
            }
            Ok(ExitCode::SUCCESS)
        }
        Schema::List => {
            let registry = connect(config).await?;
            for subject in registry.subjects() {
                for found in registry.versions(&subject) {
                    println!("{subject} v{}: id {}", found.version, found.id);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Creates the topics that the folders declare and that are not there; says what differs in those that are.
pub async fn create_topics(config: &Config, project: &Project) -> anyhow::Result<()> {
    let admin = Admin::connect(&wiring::kafka_options(config))?;
    for ensured in admin.ensure_topics(&project.topics()).await? {
        if ensured.created {
            tracing::info!(topic = %ensured.topic, "created");
        }
        for warning in ensured.warnings {
            tracing::warn!(topic = %ensured.topic, "{warning}");
        }
    }
    Ok(())
}

/// Starts the registry and waits until it has been read.
pub async fn connect(config: &Config) -> anyhow::Result<Arc<Registry>> {
    let registry = Registry::start(&wiring::kafka_options(config), &RegistryOptions::default())?;
    if tokio::time::timeout(READY, registry.wait_ready()).await.is_err() {
        bail!(
            "the schema registry (topic _schemas) could not be read from {} within {} s; if it does not exist yet, run \
             `millpond schema push`",
            config.kafka.brokers,
            READY.as_secs()
        );
    }
    Ok(Arc::new(registry))
}

/// Registers every version of every record type that is not there; returns subject, version, id, and whether it is new.
pub async fn push(project: &Project, registry: Arc<Registry>) -> anyhow::Result<Vec<(String, u32, i32, bool)>> {
    let mut wanted = Vec::new();
    for record in project.schemas.iter() {
        for version in &record.versions {
            wanted.push((record.subject.clone(), version.version, version.text.clone()));
        }
    }
    let register = move || {
        let mut done = Vec::new();
        for (subject, version, text) in wanted {
            let known = registry.lookup(&subject, &text).is_some();
            let registered = registry
                .register(&subject, &text, &|earlier: &[Arc<Registered>]| compatible(&text, earlier))
                .with_context(|| format!("cannot register {subject} v{version}"))?;
            done.push((subject, version, registered.id, !known));
        }
        anyhow::Ok(done)
    };
    tokio::task::spawn_blocking(register).await?
}

/// FULL_TRANSITIVE against everything that is registered, for the log is read for ever.
fn compatible(text: &str, earlier: &[Arc<Registered>]) -> Result<(), String> {
    let new = schema::parse(text).map_err(|reasons| reasons.join("; "))?;
    let mut parsed = Vec::with_capacity(earlier.len());
    for registered in earlier {
        let version = registered.version.unsigned_abs();
        let old = schema::parse(&registered.text)
            .map_err(|reasons| format!("registered v{version} cannot be compared: {}", reasons.join("; ")))?;
        parsed.push((version, old.schema));
    }
    let earlier: Vec<_> = parsed.iter().map(|(version, schema)| (*version, schema)).collect();
    let next = earlier.last().map_or(1, |(version, _)| version + 1);
    let found = compat::check(CompatibilityLevel::FullTransitive, (next, &new.schema), &earlier);
    let problems: Vec<String> = found.iter().map(ToString::to_string).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

async fn check(config: &Config, offline: bool) -> anyhow::Result<ExitCode> {
    let project = Project::load(&config.project.dir)?;
    let mut faults = 0;
    let registry = if offline { None } else { connect(config).await.map_err(|e| tracing::warn!("{e:#}")).ok() };
    for record in project.schemas.iter() {
        let mut line = format!(
            "{}: {} version{}",
            record.subject,
            record.versions.len(),
            if record.versions.len() == 1 { "" } else { "s" }
        );
        if let Some(registry) = &registry {
            for version in &record.versions {
                if registry.lookup(&record.subject, &version.text).is_some() {
                    continue;
                }
                match compatible(&version.text, &registry.versions(&record.subject)) {
                    Ok(()) => {
                        line.push_str(&format!("; v{} is not registered yet: millpond schema push", version.version))
                    }
                    Err(problem) => {
                        faults += 1;
                        line.push_str(&format!("; v{} does not fit what is registered: {problem}", version.version));
                    }
                }
            }
        }
        println!("{line}");
    }
    if registry.is_none() && !offline {
        println!("the registry could not be asked: only the files were checked (--offline says that this is meant)");
    }
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
