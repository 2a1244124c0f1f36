//! `millpond consumer …`: what people do about consumers one at a time.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::told_of_lock;
use crate::{
    app::{project::Project, scaffold, trial, wiring},
    cli::{args::Consumer, say::say},
    config::Config,
    consume::Handlers,
    kafka::Reader,
    store::{
        PgConnection, status,
        versions::{self, Dropped},
    },
};

/// A process that applies a projection reports every second: one that has not for this long is gone, or has let it go.
const SILENT: Duration = Duration::from_secs(3);

/// Does what the command says.
pub async fn command(config: &Config, command: Consumer, handlers: &Handlers) -> anyhow::Result<ExitCode> {
    match command {
        Consumer::New { name, from } => {
            scaffold::consumer(&Project::load(&config.project.dir)?, &name, &from)?;
        }
        Consumer::Show { name, records, limit } => {
            return trial::show(config, &name, records, limit, handlers).await;
        }
        Consumer::Test { name, accept } => {
            return trial::test(config, &trial::Options { consumer: name, accept }, handlers).await;
        }
        Consumer::Pause { name } => set_paused(config, &name, true).await?,
        Consumer::Resume { name } => set_paused(config, &name, false).await?,
        Consumer::Drop { name, discard_unsent, even_if_applied } => {
            drop_projection(config, &name, discard_unsent, even_if_applied).await?;
        }
        Consumer::Restart { name, from_zero, skip_removed, no_breaker } => {
            restart(config, &name, from_zero, skip_removed, no_breaker).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses while the folder is there: the next look at it would build the projection again.
async fn drop_projection(config: &Config, name: &str, discard_unsent: bool, applied: bool) -> anyhow::Result<()> {
    let folder = config.project.dir.join("consumers").join(name);
    if folder.exists() {
        bail!("{} is still there, and would be built again; remove the folder first", folder.display());
    }
    let mut connection = wiring::database(config, "millpond consumer").await?;
    if !applied {
        refuse_while_applied(&mut connection, name).await?;
    }
    let dropped = versions::drop_projection(&mut connection, name, discard_unsent).await;
    match dropped.map_err(|error| told_of_lock(name, error))? {
        Dropped::Done => {}
        Dropped::Unknown => bail!("there is no projection {name} in this database; see `millpond status`"),
        Dropped::Unsent(rows) => bail!(
            "{rows} downstream events of {name} have not been sent yet: have a process with the role publish send them \
             first, or give them up with `millpond consumer drop {name} --discard-unsent`"
        ),
    }
    say!("{name}: dropped; its topic {name}.dlq stays, as every topic does");
    Ok(())
}

/// Refuses while a process says that it applies the projection. A folder that is not here may be another project's, with
/// the same database; and one that has just been stopped, or whose folder is just gone, is given the time to fall silent.
async fn refuse_while_applied(connection: &mut PgConnection, name: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let silent = status::silent_seconds(connection, name).await?;
        match silent {
            Some(seconds) if seconds < SILENT.as_secs_f64() => {}
            _ => return Ok(()),
        }
        if begun.elapsed() > 2 * SILENT {
            bail!(
                "a process applies {name}: it is another project's, or has to be stopped first. To remove the tables \
                 from under it: `millpond consumer drop {name} --even-if-applied`"
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Moves the fences of partitions whose log was cut to where the log starts now.
async fn skip_removed(config: &Config, name: &str, connection: &mut PgConnection) -> anyhow::Result<()> {
    let reader = Reader::open(&wiring::kafka_options(config))?;
    for at in status::cut_partitions(connection, name).await? {
        let (low, _) = reader.watermarks(&at.topic, at.partition)?;
        let from = status::skip_removed(connection, name, &at, low).await?;
        say!("{name}: {at} goes on at {low}; the records from {from} on to there are not in its tables");
    }
    Ok(())
}

async fn set_paused(config: &Config, name: &str, paused: bool) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond consumer").await?;
    if !status::set_paused(&mut connection, name, paused).await? {
        bail!("there is no projection {name} in this database; see `millpond status`");
    }
    say!("{name}: {} within a second, in every process", if paused { "pauses" } else { "goes on" });
    Ok(())
}

async fn restart(config: &Config, name: &str, from_zero: bool, skip: bool, no_breaker: bool) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond consumer").await?;
    if from_zero {
        let found = versions::start_over(&mut connection, name).await;
        if !found.map_err(|error| told_of_lock(name, error))? {
            bail!("there is no live version of {name} in this database; see `millpond status`");
        }
        say!(
            "{name}: its tables are gone; processes with the role consume make them anew and read the log from its start"
        );
        return Ok(());
    }
    if skip {
        skip_removed(config, name, &mut connection).await?;
    }
    if !status::projections(&mut connection).await?.iter().any(|p| p.projection == name) {
        bail!("there is no projection {name} in this database; see `millpond status`");
    }
    if no_breaker {
        status::rest_breaker(&mut connection, name).await?;
        say!("{name}: for ten minutes the breaker halts nothing, and what cannot be applied is set aside");
    }
    let ended = status::end_halts(&mut connection, name).await?;
    say!(
        "{name}: {ended} halted partition{} go{} on",
        if ended == 1 { "" } else { "s" },
        if ended == 1 { "es" } else { "" }
    );
    Ok(())
}
