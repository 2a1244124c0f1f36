//! `millpond rebuild`, `diff`, `swap`, `rollback` and `replay`: other versions beside the live one, and which of them people read.

mod eye;
mod replay;
mod show;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::Instant;

pub use self::replay::run as replay;
use self::{
    eye::{Eye, LOOK},
    show::Voice,
};
use super::{
    consumers::{self, told_of_lock},
    database,
    project::Project,
    roles, schemas, wiring,
};
use crate::{
    cli::{
        args::{DiffFormat, Keep, Rebuild},
        say::say,
        who,
    },
    config::Config,
    consume::{Engine, Handlers, Member, Pace},
    store::{
        self, PgConnection,
        builds::{self, Build},
        diff::{Diff, Scope},
        indexes,
        versions::{self, Definition, OnChange},
    },
};

/// Builds a version beside the live one, shows what differs, and makes it the live one if that is wanted.
pub async fn run(config: &Config, arguments: Rebuild, handlers: Arc<Handlers>) -> anyhow::Result<ExitCode> {
    let voice = Voice::new(arguments.json);
    if arguments.give_up {
        return give_up(config, &arguments.name).await;
    }
    database::migrate(config).await?;
    let name = arguments.name.as_str();
    // Whoever builds holds it: no other process begins meanwhile.
    let mut holder = wiring::database(config, "millpond rebuild").await?;
    if !builds::reserve(&mut holder, name).await? {
        bail!(
            "another process builds a version of {name} just now; `millpond diff {name}` looks at it, `millpond swap {name}` makes it live"
        );
    }
    let (build, member) = begin(config, &arguments, handlers, &mut holder).await?;
    let partitions = member.followed.unwrap_or_default();
    voice.begun(name, build, partitions);
    let mut built = tokio::select! {
        built = follow(&member.engine, config, &arguments, &voice, build, partitions) => built,
        lost = stay_holder(config, name, holder) => Err(lost),
    };
    if let Err(error) = &built
        && is_live(config, name, build.version).await
    {
        // By somebody else, before we had looked at it or were asked.
        voice.say(&format!(
            "version {} of {name} was made live meanwhile, by another command ({error:#})",
            build.version
        ));
        built = Ok(Followed::Live);
    }
    if matches!(built, Ok(Followed::Live)) {
        built = hand_over(config, name, build.version, &voice, &member).await.map(|()| Followed::Live);
    }
    member.stop().await;
    Ok(match built? {
        Followed::Stopped => ExitCode::from(130),
        Followed::Live | Followed::Ended => ExitCode::SUCCESS,
    })
}

/// How often it is looked whether the session that holds the right to build is there.
const HELD: Duration = Duration::from_secs(1);

/// Keeps the right to build a projection's versions, also when its session is lost, as with a Postgres that restarts; comes
/// back when another process has taken it.
async fn stay_holder(config: &Config, name: &str, mut holder: PgConnection) -> anyhow::Error {
    loop {
        tokio::time::sleep(HELD).await;
        if store::bounded(store::run(&mut holder, "select")).await.is_ok() {
            continue;
        }
        let Ok(mut again) = wiring::database(config, "millpond rebuild").await else { continue };
        match store::bounded(builds::reserve(&mut again, name)).await {
            Ok(true) => holder = again,
            Ok(false) => {
                return anyhow::anyhow!(
                    "the session that held the right to build versions of {name} was lost, and another process builds one now; \
                     this one ends"
                );
            }
            Err(_) => {}
        }
    }
}

/// Whether people read a version; not, as far as can be found out.
async fn is_live(config: &Config, name: &str, version: i32) -> bool {
    let Ok(mut connection) = wiring::database(config, "millpond rebuild").await else { return false };
    store::bounded(versions::live(&mut connection, name)).await.is_ok_and(|live| live == Some(version))
}

/// What became of a version.
enum Followed {
    /// People read it now.
    Live,
    /// Somebody gave it up.
    Ended,
    /// Somebody stopped us.
    Stopped,
}

/// How long a process with the role consume is waited for: it looks every second or two, and its group forms within 3 s
/// (Kafka's own delay for a new one).
const TAKE_OVER: Duration = Duration::from_secs(30);

/// Goes on applying what is live now until another process does, so that nobody waits for it: each partition is given up as
/// it is claimed.
async fn hand_over(config: &Config, name: &str, version: i32, voice: &Voice, member: &Member) -> anyhow::Result<()> {
    member.engine.vitals.yield_fences();
    let mut connection = wiring::database(config, "millpond rebuild").await?;
    let (began, ours) = (Instant::now(), builds::epochs(&mut connection, name, version).await?);
    let taken = async {
        loop {
            match store::bounded(builds::epochs(&mut connection, name, version)).await {
                Ok(now) if ours.iter().all(|(at, epoch)| now.get(at).is_none_or(|now| now > epoch)) => return,
                Ok(_) => tokio::time::sleep(LOOK).await,
                // The swap is done: that Postgres is away for a moment does not undo it.
                Err(_) => {
                    tokio::time::sleep(LOOK).await;
                    connection = wiring::database(config, "millpond rebuild").await.unwrap_or(connection);
                }
            }
        }
    };
    tokio::select! {
        () = taken => voice.taken_over(name, version, Some(began.elapsed())),
        () = tokio::time::sleep(TAKE_OVER) => voice.taken_over(name, version, None),
        _ = roles::stop_signal() => {}
    }
    Ok(())
}

/// The version, and the member that fills it.
async fn begin(
    config: &Config,
    arguments: &Rebuild,
    handlers: Arc<Handlers>,
    connection: &mut PgConnection,
) -> anyhow::Result<(Build, Member)> {
    let project = Project::load(&config.project.dir)?;
    let spec = project.consumer(&arguments.name)?;
    let registry = schemas::connect(config).await?;
    let context = consumers::Context::new(config, registry, handlers, OnChange::Refuse)?;
    let compiled = context.prepare(&project, spec, connection).await?;
    let partitions = context.partitions(&spec.topics).await?;
    context.check_whole(&spec.name, &spec.topics).await?;
    let unindexed = compiled.loads_without_indexes();
    let create = |version| compiled.create_unindexed_sql(version);
    let begin = async |definition: &Definition<'_>| {
        let create: &(dyn Fn(i32) -> Vec<String> + Sync) = if unindexed { &create } else { definition.create };
        builds::begin(connection, &Definition { create, ..*definition }).await
    };
    let begun = context.defined(&project, spec, &compiled, begin).await?;
    let build = begun.map_err(|error| told_of_lock(&spec.name, error))?;
    let mut engine = context.engine(&project, spec, compiled, build.version)?;
    throttle(&mut engine, arguments.throttle);
    if let Some(parallel) = arguments.parallel {
        engine.sessions.allow_batches(parallel.into());
    }
    Ok((build, context.follow(engine, partitions)?))
}

/// Bounds the records a second. A transaction has a tenth of them at most, so that they come evenly.
fn throttle(engine: &mut Engine, per_second: Option<u32>) {
    let Some(rate) = per_second.filter(|rate| *rate > 0) else { return };
    engine.pace = Pace::of(Some(rate));
    engine.bounds.max_records = engine.bounds.max_records.min((rate as usize / 10).max(1));
}

/// Waits until the version has caught up, and for what becomes of it then.
async fn follow(
    engine: &Engine,
    config: &Config,
    arguments: &Rebuild,
    voice: &Voice,
    build: Build,
    partitions: usize,
) -> anyhow::Result<Followed> {
    let name = arguments.name.as_str();
    let mut eye = Eye::new(config, name, build.version);
    let work = async {
        let pace = (!arguments.full_speed).then_some(&engine.pace);
        if let Some(rate) = eye.catch_up(voice, partitions, pace).await? {
            eye.note_rate(rate).await;
        }
        make_indexes(engine, config, voice).await?;
        // Another one may have been made live since the build began.
        let (_, live) = candidate(&mut wiring::database(config, "millpond rebuild").await?, name).await?;
        let versions = (live, build.version);
        let diff = store::diff::compare(&config.postgres.url, name, versions, Scope::whole(arguments.samples)).await?;
        voice.diff(&diff);
        let wanted = if arguments.swap {
            refuse_changed(&diff, arguments.max_changed)?;
            true
        } else {
            voice.ask(name).await?
        };
        if wanted {
            swap_once_near(config, name, build.version, &arguments.keep, voice).await?;
            return Ok(Followed::Live);
        }
        voice.follows(name);
        while eye.places().await?.is_some() {
            tokio::time::sleep(LOOK).await;
        }
        voice.ended(name, build.version);
        let live = versions::live(&mut wiring::database(config, "millpond rebuild").await?, name).await?;
        Ok(if live == Some(build.version) { Followed::Live } else { Followed::Ended })
    };
    tokio::select! {
        done = work => done,
        _ = roles::stop_signal() => {
            voice.say(&format!("stopped; `millpond rebuild {name}` goes on where it was"));
            Ok(Followed::Stopped)
        }
    }
}

/// Makes the indexes that rows were loaded without, beside the batches that still come in; and those that the folder has asked
/// for since the build began.
async fn make_indexes(engine: &Engine, config: &Config, voice: &Voice) -> anyhow::Result<()> {
    let (name, version) = (engine.projection.as_str(), engine.version);
    let mut connection = wiring::database(config, "millpond rebuild").await?;
    let wanted = engine.compiled.indexes();
    let missing = indexes::difference(&mut connection, &engine.schema, &wanted).await?.missing;
    if !missing.is_empty() {
        voice.makes_indexes(name, missing.len());
        let began = Instant::now();
        let cannot = || format!("the indexes of version {version} of {name} cannot be made");
        // One that was ended in the midst of it has the turn for a moment more.
        while indexes::bring_in(&config.postgres.url, &engine.schema, &wanted).await.with_context(cannot)?.is_none() {
            tokio::time::sleep(LOOK).await;
        }
        voice.made_indexes(name, missing.len(), began.elapsed());
    }
    Ok(builds::note_loaded(&mut connection, name, version).await?)
}

/// Removes what is being built; who is at work on it ends.
async fn give_up(config: &Config, name: &str) -> anyhow::Result<ExitCode> {
    let mut connection = wiring::database(config, "millpond rebuild").await?;
    let given_up = builds::give_up_all(&mut connection, name).await?;
    match given_up.as_slice() {
        [] => bail!("no version of {name} is being built"),
        versions => {
            let versions: Vec<String> = versions.iter().map(i32::to_string).collect();
            say!("{name}: version {} is given up, and its tables are removed", versions.join(", "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse_changed(diff: &Diff, most: Option<i64>) -> anyhow::Result<()> {
    let Some(most) = most else { return Ok(()) };
    let unseen = |table: &&store::diff::TableDiff| table.not_compared.is_some() || !table.only_old.is_empty();
    if let Some(table) = diff.tables.iter().find(unseen) {
        let why =
            table.not_compared.clone().unwrap_or_else(|| format!("it has no {} any more", table.only_old.join(", ")));
        bail!("not all of {} can be compared ({why}), which --max-changed asks for; not swapped", table.table);
    }
    match Some(most).filter(|most| diff.rows() > *most) {
        Some(most) => bail!("{} rows differ, where {most} are allowed (--max-changed); not swapped", diff.rows()),
        None => Ok(()),
    }
}

/// How long a swap that comes too early is tried again: under load a build is some batches behind, more and fewer by turns.
const NEAR_WITHIN: Duration = Duration::from_secs(60);

/// [`swap_to`] of a version that this process builds. Each attempt waits for 2 s.
async fn swap_once_near(config: &Config, name: &str, version: i32, keep: &Keep, voice: &Voice) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let mut connection = wiring::database(config, "millpond swap").await?;
        match swap_to(&mut connection, name, version, keep, voice).await {
            Err(error)
                if began.elapsed() < NEAR_WITHIN && matches!(error.downcast_ref(), Some(store::Error::Behind(_))) => {}
            done => return done,
        }
    }
}

async fn swap_to(
    connection: &mut PgConnection,
    name: &str,
    version: i32,
    keep: &Keep,
    voice: &Voice,
) -> anyhow::Result<()> {
    let by = who::by(keep.by.as_deref());
    let kept = kept_for(keep.hours)?;
    let began = Instant::now();
    let swapped = store::swap::swap(connection, name, version, kept, &by).await;
    let swapped = swapped.map_err(|error| told_of_lock(name, error))?;
    voice.swapped(name, &swapped, began.elapsed(), keep.hours);
    Ok(())
}

/// `millpond diff`
pub async fn diff(config: &Config, name: &str, format: DiffFormat, samples: usize) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond diff").await?;
    let (version, live) = candidate(&mut connection, name).await?;
    let diff = store::diff::compare(&config.postgres.url, name, (live, version), Scope::whole(samples)).await?;
    show::print(&diff, format)
}

/// `millpond swap`
pub async fn swap(config: &Config, name: &str, max_changed: Option<i64>, keep: &Keep) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond swap").await?;
    let (version, live) = candidate(&mut connection, name).await?;
    if max_changed.is_some() {
        let diff = store::diff::compare(&config.postgres.url, name, (live, version), Scope::whole(0)).await?;
        refuse_changed(&diff, max_changed)?;
    }
    swap_to(&mut connection, name, version, keep, &Voice::new(false)).await
}

/// `millpond rollback`
pub async fn rollback(config: &Config, name: &str, keep: &Keep) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond rollback").await?;
    let Some(version) = store::swap::previous(&mut connection, name).await? else {
        bail!("{name} has no version to go back to: it was not swapped, or the one before is not kept any more");
    };
    swap_to(&mut connection, name, version, keep, &Voice::new(false)).await
}

/// What is kept longer than this is kept for good, and is more than an interval of Postgres should be asked for.
const LONGEST: f64 = 24.0 * 365.0 * 100.0;

/// The words of `--keep`.
fn kept_for(hours: f64) -> anyhow::Result<Duration> {
    if !(0.0..=LONGEST).contains(&hours) {
        bail!("--keep: {hours} is no number of hours from 0 to {LONGEST} (a hundred years)");
    }
    Ok(Duration::from_secs_f64(hours * 3600.0))
}

async fn candidate(connection: &mut PgConnection, name: &str) -> anyhow::Result<(i32, i32)> {
    let found = builds::candidate(connection, name).await?;
    found.with_context(|| format!("no version of {name} is being built: `millpond rebuild {name}` begins one"))
}
