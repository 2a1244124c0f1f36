//! Consumers as the application sees them: compiled, versioned, started, reloaded; and the commands about them.

mod beside;
mod build;
mod command;
mod context;
mod expired;
mod sources;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use tracing::{info, warn};

use self::beside::Beside;
pub use self::{command::command, context::Context, expired::Expired, sources::collect};
use super::{project::Project, stopped::Stopped};
use crate::{
    consume::Member,
    spec::ConsumerSpec,
    store::{
        self,
        versions::{Ensured, OnChange},
    },
};

/// The consumers at work in this process.
pub struct Members {
    context: Context,
    /// Held while a folder is taken in.
    running: tokio::sync::Mutex<BTreeMap<String, Started>>,
    beside: Beside,
    stopped: Stopped,
}

/// A consumer at work, and the folder that it was started from.
struct Started {
    member: Member,
    spec: ConsumerSpec,
    /// The version that people read meanwhile, of one that is only being built.
    live: Option<i32>,
    /// Why it cannot take that one's place, as it was said last.
    said: String,
}

impl Started {
    fn new(member: Member, spec: &ConsumerSpec, ensured: &Ensured) -> Self {
        let live = if let Ensured::Building { live, .. } = ensured { Some(*live) } else { None };
        Self { member, spec: spec.clone(), live, said: String::new() }
    }

    /// Whether a folder asks for the rows that are built now, by the same policies.
    fn is_as(&self, spec: &ConsumerSpec, definition: &str) -> bool {
        let own = &self.spec;
        let beside = |spec: &ConsumerSpec| -> Vec<_> {
            spec.tables.values().map(|table| (table.grants.clone(), table.indexes.clone())).collect()
        };
        self.builds(definition)
            && self.live.is_none()
            && (own.on_error, own.unknown, own.batch) == (spec.on_error, spec.unknown, spec.batch)
            && beside(own) == beside(spec)
    }

    /// Whether its version is the one of `definition`, and still live.
    fn builds(&self, definition: &str) -> bool {
        self.member.engine.definition == definition && !self.member.engine.vitals.is_superseded()
    }
}

/// How often it is looked whether another version has become the live one, and what is stopped is tried again.
const FOLLOW: Duration = Duration::from_secs(1);

impl Members {
    /// Starts every consumer of a project; all faults of all of them in one error, before any runs.
    pub async fn start(context: Context, project: &Project) -> anyhow::Result<Self> {
        let mut connection = store::connect(&context.config.postgres.url, "millpond compile").await?;
        let (mut ready, mut faults) = (Vec::new(), Vec::new());
        for spec in &project.consumers {
            match context.prepare(project, spec, &mut connection).await {
                Ok(compiled) => ready.push((spec, compiled)),
                Err(error) => faults.push(format!("{error:#}")),
            }
        }
        if !faults.is_empty() {
            bail!("consumers cannot be started:\n  {}", faults.join("\n").replace('\n', "\n  "));
        }
        let mut running = BTreeMap::new();
        for (spec, compiled) in ready {
            let (member, ensured) = context.start(project, spec, compiled, &mut connection).await?;
            if let Ensured::Building { version, live } = ensured {
                tell(context.on_change, &spec.name, &build::begun(version, live));
            }
            running.extend(member.map(|member| (spec.name.clone(), Started::new(member, spec, &ensured))));
        }
        let running = tokio::sync::Mutex::new(running);
        Ok(Self { context, running, beside: Beside::default(), stopped: Stopped::default() })
    }

    /// Takes a new, changed or removed folder in.
    pub async fn reload(&self, project: &Project, name: &str) -> anyhow::Result<()> {
        let mut running = self.running.lock().await;
        let taken_in = self.take_in(&mut running, project, name).await;
        if let Err(error) = &taken_in {
            self.stopped.fail(name, &format!("{error:#}"));
        }
        taken_in
    }

    async fn take_in(
        &self,
        running: &mut BTreeMap<String, Started>,
        project: &Project,
        name: &str,
    ) -> anyhow::Result<()> {
        let Some(spec) = project.consumers.iter().find(|c| c.name == name) else {
            self.stopped.end(name);
            if let Some(started) = running.remove(name) {
                started.member.stop().await;
                self.tell(name, "its folder is gone; stopped, its tables stay");
            }
            return Ok(());
        };
        let mut connection = store::connect(&self.context.config.postgres.url, "millpond compile").await?;
        let compiled = self.context.prepare(project, spec, &mut connection).await?;
        let definition = self.context.definition_hash(spec, &compiled);
        // A README or a test case changes nothing.
        if running.get(name).is_some_and(|started| started.is_as(spec, &definition)) {
            return Ok(());
        }
        // From here on it is wanted and does not run, whatever happens: also if this future is dropped.
        let runs = running.get(name).map(|started| started.member.engine.version);
        let was_building = running.get(name).is_some_and(|started| started.live.is_some());
        let ran = self.stopped.begin(name, runs);
        if let Some(started) = running.remove(name) {
            started.member.stop().await;
        }
        let started = self.context.start(project, spec, compiled, &mut connection).await;
        // What its folder stands for was kept long enough; people read another version, which runs here.
        let refused = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(store::Error::Refused(_)));
        if let Err(error) = &started
            && refused(error)
            && self.beside.runs(name).await
        {
            info!(consumer = name, why = format!("{error:#}"), "its folder's version is gone; the live one goes on");
            self.stopped.end(name);
            return Ok(());
        }
        let (member, ensured) = started?;
        if let Some(what) = taken_in(name, &ensured, ran, was_building) {
            self.tell(name, &what);
        }
        running.extend(member.map(|member| (name.to_owned(), Started::new(member, spec, &ensured))));
        self.stopped.end(name);
        Ok(())
    }

    /// Makes what was built beside the live version the live one, once it has caught up.
    async fn finish_builds(&self, dir: &Path) -> anyhow::Result<()> {
        let building: Vec<build::Building> = {
            let running = self.running.lock().await;
            running
                .iter()
                .filter_map(|(name, started)| build::Building::of(name, &started.member, started.live?))
                .collect()
        };
        for one in building {
            match one.finish(&self.context.config).await {
                Ok(None) => {}
                Ok(Some(told)) => {
                    self.tell(&one.name, &told);
                    // From here on it is one of a group, as every live version.
                    self.reload(&Project::load(dir)?, &one.name).await?;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    let mut running = self.running.lock().await;
                    if let Some(started) = running.get_mut(&one.name).filter(|started| started.said != error) {
                        self.tell(&one.name, &format!("version {} is not live yet: {error}", one.version));
                        started.said = error;
                    }
                }
            }
        }
        Ok(())
    }

    /// The consumers that should run and do not; they are tried again every second.
    pub fn stopped(&self) -> Vec<String> {
        self.stopped.names()
    }

    /// Says what has changed: to the person at `millpond dev`, elsewhere to the log.
    fn tell(&self, consumer: &str, what: &str) {
        tell(self.context.on_change, consumer, what);
    }

    /// Compiles every consumer of a project, and starts none.
    pub async fn check_folders(&self, project: &Project) -> anyhow::Result<()> {
        let mut connection = store::connect(&self.context.config.postgres.url, "millpond compile").await?;
        let mut faults = Vec::new();
        for spec in &project.consumers {
            if let Err(error) = self.context.prepare(project, spec, &mut connection).await {
                faults.push(format!("{error:#}"));
            }
        }
        if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n  ")) }
    }

    /// Starts consumers anew whose version is no longer the live one, as after `consumer restart --from-zero`.
    pub async fn follow(self: Arc<Self>, dir: PathBuf) {
        let mut told: HashMap<String, String> = HashMap::new();
        let (mut versions, mut builds) = (None, None);
        loop {
            tokio::time::sleep(FOLLOW).await;
            note_look(&mut versions, "versions beside the folders' own", self.look_beside(&dir).await);
            note_look(&mut builds, "what is being built", self.finish_builds(&dir).await);
            let waiting: Vec<String> = {
                let running = self.running.lock().await;
                let superseded = running.iter().filter(|(_, s)| s.member.engine.vitals.is_superseded());
                superseded.map(|(name, _)| name.clone()).chain(self.stopped.names()).collect()
            };
            told.retain(|name, _| waiting.contains(name));
            for name in waiting {
                let reloaded = match Project::load(&dir) {
                    Ok(project) => self.reload(&project, &name).await,
                    Err(error) => {
                        self.stopped.fail(&name, &format!("{error:#}"));
                        Err(error)
                    }
                };
                let Err(error) = reloaded else { continue };
                let error = format!("{error:#}");
                if told.get(&name) != Some(&error) {
                    warn!(consumer = %name, error, "cannot be started anew; trying again every second");
                    told.insert(name, error);
                }
            }
        }
    }

    async fn look_beside(&self, dir: &Path) -> anyhow::Result<()> {
        let names = sources::consumers(dir)?;
        let own: Vec<(String, i32)> = {
            let running = self.running.lock().await;
            running.iter().map(|(name, started)| (name.clone(), started.member.engine.version)).collect()
        };
        self.beside.look(&self.context, &names, &own).await
    }

    /// Ready when every consumer has lately seen both Postgres and the ends of its partitions.
    pub fn check(&self) -> Result<(), String> {
        if let Some((name, why)) = self.stopped.failed() {
            return Err(format!("consumer {name} is stopped and tried again every second: {why}"));
        }
        // Held while a folder is taken in, which is no reason to be taken out of service.
        let Ok(running) = self.running.try_lock() else { return Ok(()) };
        if let Some(name) = self.stopped.names().first() {
            return Err(format!("consumer {name} is stopped, and is started anew within seconds"));
        }
        for (name, started) in running.iter() {
            if let Some(panic) = started.member.engine.vitals.panic() {
                return Err(format!("consumer {name} panicked while it polled Kafka, and joins anew: {panic}"));
            }
        }
        let silent = running.iter().filter(|(_, started)| !started.member.engine.vitals.has_reported());
        let silent: Vec<&str> = silent.map(|(name, _)| name.as_str()).collect();
        if silent.is_empty() {
            return self.beside.check();
        }
        Err(format!("no contact with Postgres or Kafka for consumers {}; run `millpond doctor`", silent.join(", ")))
    }

    /// Leaves all groups, each in order.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *self.running.lock().await);
        futures_util::future::join_all(running.into_values().map(|started| started.member.stop())).await;
        self.beside.stop().await;
    }
}

/// What is said of a folder that was taken in; `ran` is the version that ran before, perhaps one that was only being built.
fn taken_in(name: &str, ensured: &Ensured, ran: Option<i32>, was_building: bool) -> Option<String> {
    let version = ensured.version();
    Some(match ensured {
        // That it is live now has been told.
        Ensured::Unchanged(_) if was_building && ran == Some(version) => return None,
        Ensured::Unchanged(_) if ran == Some(version) => format!(
            "version {version} goes on with the changed settings; if it has halted: millpond consumer restart {name}"
        ),
        // The folder is back.
        Ensured::Unchanged(_) if was_building || ran.is_none() => format!("version {version} goes on"),
        Ensured::Building { live, .. } => build::begun(version, *live),
        Ensured::Beside(_) => format!("version {version} is not the live one; that one goes on"),
        // Made by us or, after `consumer restart --from-zero`, by another process.
        Ensured::Unchanged(_) | Ensured::Created(_) => format!("version {version} reads the log from its start"),
    })
}

/// Says something of a consumer: to the person at `millpond dev`, elsewhere to the log.
fn tell(on_change: OnChange, consumer: &str, what: &str) {
    match on_change {
        OnChange::Build => eprintln!("consumer {consumer}: {what}"),
        OnChange::Refuse => info!(consumer, "{what}"),
    }
}

/// Warns that something cannot be looked at, once for each reason: it is tried again every second.
fn note_look(told: &mut Option<String>, what: &str, looked: anyhow::Result<()>) {
    let failed = looked.err().map(|error| format!("{error:#}"));
    if let Some(error) = failed.as_ref().filter(|error| told.as_ref() != Some(*error)) {
        warn!(error, "cannot look at {what}; trying again every second");
    }
    *told = failed;
}

/// Tables and views are made and dropped under locks that any open transaction may be in the way of.
pub fn told_of_lock(consumer: &str, error: store::Error) -> anyhow::Error {
    let held = error.is_lock_timeout();
    let error = anyhow::Error::new(error);
    if !held {
        return error;
    }
    error.context(format!(
        "another session holds a lock on the tables or views of consumer {consumer}; end that transaction, such as one \
         that was left open in psql (select * from pg_stat_activity where state = 'idle in transaction')"
    ))
}
