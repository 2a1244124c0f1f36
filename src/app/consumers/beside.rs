//! Versions that go on beside the folder's own: the live one while the folder is another one's, and those that are kept to
//! go back to. They are made of the files that were kept with them.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail};
use tracing::{info, warn};

use super::{Context, expired::Expired, sources};
use crate::{
    consume::Member,
    store::{
        self, PgConnection, builds,
        versions::{self, Kept},
    },
    telemetry::metrics::consume as metrics,
};

/// Members of this process for such versions.
#[derive(Default)]
pub struct Beside {
    members: tokio::sync::Mutex<BTreeMap<(String, i32), Member>>,
    looks: tokio::sync::Mutex<Looks>,
}

/// What is kept from one look to the next.
#[derive(Default)]
struct Looks {
    /// None after an error.
    connection: Option<PgConnection>,
    /// Why a version cannot be started here, as it was said last.
    told: HashMap<(String, i32), String>,
    expired: Expired,
}

impl Beside {
    /// Starts what is missing of the consumers of these names, and ends what is not wanted any more. `own` is what runs of
    /// their folders.
    pub async fn look(&self, context: &Context, names: &[String], own: &[(String, i32)]) -> anyhow::Result<()> {
        let mut looks = self.looks.lock().await;
        let looked = self.look_with(&mut looks, context, names, own).await;
        if looked.is_err() {
            looks.connection = None;
        }
        looked
    }

    async fn look_with(
        &self,
        Looks { connection, told, expired }: &mut Looks,
        context: &Context,
        names: &[String],
        own: &[(String, i32)],
    ) -> anyhow::Result<()> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(store::connect(&context.config.postgres.url, "millpond versions").await?),
        };
        let wanted = store::bounded(versions::kept(connection, names)).await?;
        measure(store::bounded(builds::beside(connection)).await?, names);
        let mut members = self.members.lock().await;
        let is_wanted = |at: &(String, i32)| {
            let found = wanted.iter().find(|kept| (&kept.projection, kept.version) == (&at.0, at.1));
            found.is_some_and(|kept| !kept.is_over) && !own.contains(at)
        };
        for at in members.keys().filter(|at| !is_wanted(at)).cloned().collect::<Vec<_>>() {
            if let Some(member) = members.remove(&at) {
                member.stop().await;
            }
        }
        for kept in wanted.iter().filter(|kept| !kept.is_over) {
            let at = (kept.projection.clone(), kept.version);
            if own.contains(&at) || members.contains_key(&at) {
                continue;
            }
            match start(context, kept, connection).await {
                Ok(member) => {
                    info!(consumer = %kept.projection, version = kept.version, live = kept.live, "goes on beside the folder's own version");
                    told.remove(&at);
                    members.insert(at, member);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if told.get(&at) != Some(&error) {
                        warn!(consumer = %kept.projection, version = kept.version, error, "cannot go on here");
                        told.insert(at, error);
                    }
                }
            }
        }
        // Last: what cannot be removed holds up nothing else.
        Ok(expired.remove(connection).await?)
    }

    /// Whether a version of the consumer runs that is not its folder's.
    pub async fn runs(&self, name: &str) -> bool {
        self.members.lock().await.keys().any(|(running, _)| running == name)
    }

    /// What is wrong with one of them; none while they are being started or ended.
    pub fn check(&self) -> Result<(), String> {
        let Ok(members) = self.members.try_lock() else { return Ok(()) };
        for ((name, version), member) in members.iter() {
            if let Some(panic) = member.engine.vitals.panic() {
                return Err(format!(
                    "version {version} of {name} panicked while it polled Kafka, and joins anew: {panic}"
                ));
            }
            if !member.engine.vitals.has_reported() {
                return Err(format!(
                    "no contact with Postgres or Kafka for version {version} of {name}; run `millpond doctor`"
                ));
            }
        }
        Ok(())
    }

    /// Leaves all groups, each in order.
    pub async fn stop(&self) {
        let members = std::mem::take(&mut *self.members.lock().await);
        futures_util::future::join_all(members.into_values().map(Member::stop)).await;
    }
}

/// Shows the versions of these projections that are not live.
fn measure(versions: Vec<builds::Beside>, names: &[String]) {
    for gauge in [&*metrics::VERSION_LAG, &*metrics::VERSION_PASSED, &*metrics::VERSION_HALTED] {
        gauge.reset();
    }
    for beside in versions.into_iter().filter(|beside| names.contains(&beside.projection)) {
        let version = beside.version.to_string();
        let labels = [beside.projection.as_str(), version.as_str(), beside.state.as_str()];
        if let Some(lag) = beside.lag {
            metrics::VERSION_LAG.with_label_values(&labels).set(lag);
        }
        metrics::VERSION_PASSED.with_label_values(&labels).set(beside.passed);
        metrics::VERSION_HALTED.with_label_values(&labels).set(beside.halted);
    }
}

async fn start(context: &Context, kept: &Kept, connection: &mut PgConnection) -> anyhow::Result<Member> {
    let files = versions::files(connection, &kept.projection, kept.version).await?;
    if files.is_empty() {
        bail!("it was made by an earlier release, which did not keep its files; its folder is needed");
    }
    let project = sources::load(&files).context("the files that were kept with it")?;
    let spec = project.consumer(&kept.projection)?;
    let compiled = context.prepare(&project, spec, connection).await?;
    if context.definition_hash(spec, &compiled) != kept.hash {
        bail!("this program's handler, or this release, makes other rows of the same files");
    }
    let engine = context.engine(&project, spec, compiled, kept.version)?;
    Member::start(&context.kafka, &spec.topics, engine).context("cannot start it")
}
