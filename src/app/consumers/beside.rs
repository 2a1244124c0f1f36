//! Versions that go on beside the folder's own: the live one while the folder is another one's, and those that are kept to
//! go back to. They are made of the files that were kept with them.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail};
use tracing::{info, warn};

use super::{Context, sources};
use crate::{
    app::project::Project,
    consume::Member,
    store::{
        self, PgConnection, swap,
        versions::{self, Kept},
    },
};

/// Members of this process for such versions.
#[derive(Default)]
pub struct Beside {
    members: tokio::sync::Mutex<BTreeMap<(String, i32), Member>>,
}

impl Beside {
    /// Starts what is missing, and ends what is not wanted any more. `own` is what runs of the folders of the project.
    pub async fn look(
        &self,
        context: &Context,
        project: &Project,
        own: &[(String, i32)],
        told: &mut HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let names: Vec<&str> = project.consumers.iter().map(|spec| spec.name.as_str()).collect();
        let mut connection = store::connect(&context.config.postgres.url, "millpond versions").await?;
        let wanted = versions::kept(&mut connection, &names).await?;
        for name in wanted.iter().filter(|kept| kept.is_over).map(|kept| kept.projection.as_str()) {
            for version in swap::drop_kept(&mut connection, name).await? {
                info!(consumer = name, version, "kept long enough to go back to; its tables are removed");
            }
        }
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
            let label = format!("{} version {}", kept.projection, kept.version);
            match start(context, kept, &mut connection).await {
                Ok(member) => {
                    info!(consumer = %kept.projection, version = kept.version, live = kept.live, "goes on beside the folder's own version");
                    told.remove(&label);
                    members.insert(at, member);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if told.get(&label) != Some(&error) {
                        warn!(version = %label, error, "cannot go on here");
                        told.insert(label, error);
                    }
                }
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
