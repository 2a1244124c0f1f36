//! `schema check`, `schema push`, `schema list`, and the creation of topics that goes with them.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};

use super::{project::Project, wiring};
use crate::{
    cli::args::Schema,
    cli::say::say,
    config::Config,
    kafka::{
        Admin,
        registry::{Registered, Registry, RegistryOptions},
    },
    schema::{
        self, RecordType, SchemaVersion,
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
                say!("{subject} v{version}: id {id}{}", if new { ", registered now" } else { "" });
            }
            Ok(ExitCode::SUCCESS)
        }
        Schema::List => {
            let registry = connect(config).await?;
            for subject in registry.subjects() {
                for found in registry.versions(&subject) {
                    say!("{subject} v{}: id {}", found.version, found.id);
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
    let changed: Vec<String> = project.schemas.iter().flat_map(|record| changed(record, &registry)).collect();
    if !changed.is_empty() {
        bail!("{}", changed.join("\n"));
    }
    for record in project.schemas.iter() {
        if let Some(more) = more_in_registry(record, &registry) {
            tracing::warn!(subject = %record.subject, "{more}");
        }
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

/// Whether every version of the folder could be registered; all that could not in one error.
pub fn check_compatible(project: &Project, registry: &Registry) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for record in project.schemas.iter() {
        faults.extend(changed(record, registry));
        for version in &record.versions {
            if registry.lookup(&record.subject, &version.text).is_none()
                && let Err(problem) = compatible(&version.text, &registry.versions(&record.subject))
            {
                faults.push(format!("{}: does not fit what is registered: {problem}", version.path.display()));
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n  ")) }
}

/// The files of `record` that are not what the registry has under their number: pushed, they would get another.
fn changed(record: &RecordType, registry: &Registry) -> Vec<String> {
    let registered = |version: &SchemaVersion| registry.version(&record.subject, i32::try_from(version.version).ok()?);
    let mut faults = Vec::new();
    for version in &record.versions {
        let Some(registered) = registered(version) else { continue };
        faults.extend(change(version, &registered.text, record.latest().version + 1));
    }
    faults
}

fn change(version: &SchemaVersion, registered: &str, next: u32) -> Option<String> {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let same = json(&version.text).is_some_and(|text| Some(text) == json(registered));
    (!same).then(|| {
        format!(
            "{} is not what is registered as v{}: published versions are never changed; restore it and write v{next}.avsc",
            version.path.display(),
            version.version
        )
    })
}

/// Other programs register too: what the folder does not have is no fault of it.
fn more_in_registry(record: &RecordType, registry: &Registry) -> Option<String> {
    let (latest, folder) = (registry.latest(&record.subject)?.version, record.latest().version);
    let more = u32::try_from(latest).is_ok_and(|latest| latest > folder);
    more.then(|| format!("the registry has v{latest}, the folder only v{folder}; another program registered it"))
}

/// FULL_TRANSITIVE against everything that is registered, for the log is read for ever.
fn compatible(text: &str, earlier: &[Arc<Registered>]) -> Result<(), String> {
    let new = schema::parse(text).map_err(|reasons| reasons.join("; "))?;
    let mut parsed = Vec::with_capacity(earlier.len());
    for registered in earlier {
        let version = registered.version.unsigned_abs();
        let old = schema::parse_registered(&registered.text)
            .map_err(|reasons| format!("registered v{version} cannot be compared: {}", reasons.join("; ")))?;
        parsed.push((version, old.schema));
    }
    let earlier: Vec<_> = parsed.iter().map(|(version, schema)| (*version, schema)).collect();
    let next = earlier.last().map_or(1, |(version, _)| version + 1);
    let found = compat::check(CompatibilityLevel::FullTransitive, (next, &new.schema), &earlier);
    let problems: Vec<String> = found.iter().map(ToString::to_string).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

/// The versions of a folder that do not fit those before them, and why.
fn unfit(record: &schema::RecordType) -> Vec<(u32, String)> {
    let versions: Vec<_> = record.versions.iter().map(|v| (v.version, &v.schema)).collect();
    let judged = versions.iter().enumerate().map(|(index, new)| {
        let found = compat::check(CompatibilityLevel::FullTransitive, *new, &versions[..index]);
        (new.0, found.iter().map(ToString::to_string).collect::<Vec<String>>().join("; "))
    });
    judged.filter(|(_, problem)| !problem.is_empty()).collect()
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
        for (version, problem) in unfit(record) {
            faults += 1;
            line.push_str(&format!("; v{version} does not fit the versions before it: {problem}"));
        }
        if let Some(registry) = &registry {
            for fault in changed(record, registry) {
                faults += 1;
                line.push_str(&format!("; {fault}"));
            }
            if let Some(more) = more_in_registry(record, registry) {
                line.push_str(&format!("; {more}"));
            }
            for version in &record.versions {
                let number = i32::try_from(version.version).unwrap_or(i32::MAX);
                if registry.version(&record.subject, number).is_some() {
                    continue;
                }
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
        say!("{line}");
    }
    if registry.is_none() && !offline {
        say!("the registry could not be asked: only the files were checked (--offline says that this is meant)");
    }
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_that_is_not_what_was_registered_is_refused_with_the_next_step() {
        let text = r#"{"type":"record","name":"Gate","fields":[{"name":"a","type":"int"}]}"#;
        let parsed = schema::parse(text).unwrap();
        let path = std::path::PathBuf::from("schemas/Gate/v2.avsc");
        let version = SchemaVersion { version: 2, text: text.to_owned(), schema: parsed.schema, path };
        assert_eq!(change(&version, &text.replace(':', " : "), 3), None);
        let fields_first = r#"{"fields":[{"type":"int","name":"a"}],"name":"Gate","type":"record"}"#;
        assert_eq!(change(&version, fields_first, 3), None);
        assert_eq!(
            change(&version, &text.replace("int", "long"), 3).unwrap(),
            "schemas/Gate/v2.avsc is not what is registered as v2: published versions are never changed; restore it and \
             write v3.avsc"
        );
    }
}
