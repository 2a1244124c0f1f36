//! `millpond replay`: what a consumer's folder, or another one in its place, makes of a part of the log.
//!
//! The rows are those of a scratch version: applied by the same workers as those of any other, read by nobody but who asks,
//! never swapped, and gone after a while.

use std::{path::Path, process::ExitCode, sync::Arc};

use super::{eye::Eye, show::Voice};
use crate::{
    app::{
        consumers::{self, Expired, told_of_lock},
        database, folder,
        look::start,
        project::Project,
        roles, schemas, wiring,
    },
    cli::{args::Replay, say::say},
    config::Config,
    consume::{Condition, Handlers, Member, Only},
    domain::{Position, TopicPartition, ident, nearest, schema_name},
    kafka::{Reader, Start},
    spec::ConsumerSpec,
    store::{
        self, PgConnection,
        diff::{Diff, Scope},
        replays::{self, Part},
        versions::OnChange,
    },
};
use anyhow::{Context as _, bail};
use serde::Serialize;

/// A candidate at work.
struct Trial {
    /// The folder that it was made of, as it was called.
    folder: String,
    version: i32,
    tables: Vec<String>,
    member: Member,
}

/// What came of a candidate.
#[derive(Debug, Serialize)]
struct Outcome {
    folder: String,
    version: i32,
    records: i64,
    /// Rows of each table.
    rows: Vec<(String, i64)>,
    /// What it would have sent downstream, by record type.
    emitted: Vec<(String, i64)>,
    /// What it has set aside, by class.
    set_aside: Vec<(String, i64)>,
    /// None where there is no live version.
    diff: Option<Diff>,
    /// Opens psql among its tables.
    psql: String,
}

/// Tries candidates on a part of the log, side by side.
pub async fn run(config: &Config, arguments: Replay, handlers: Arc<Handlers>) -> anyhow::Result<ExitCode> {
    let mut connection = wiring::database(config, "millpond replay").await?;
    if arguments.drop {
        return remove_all(&mut connection, &arguments.name).await;
    }
    let keep = super::kept_for(arguments.hours)?;
    database::migrate(config).await?;
    if let Err(error) = Expired::default().remove(&mut connection).await {
        bail!("cannot look for scratch versions whose time is over: {error}");
    }
    let project = Project::load(&config.project.dir)?;
    let candidates = candidates(&project, &arguments)?;
    let registry = schemas::connect(config).await?;
    let context = consumers::Context::new(config, registry, handlers, OnChange::Refuse)?;
    let live = live_version(&mut connection, &arguments.name).await?;
    let chosen = choose(&context, &candidates[0].1, &arguments, live.is_some()).await?;
    let mut trials = Vec::new();
    for (folder, spec) in &candidates {
        match begin(&context, &project, (folder, spec), &chosen.parts, &arguments, &mut connection).await {
            Ok(trial) => trials.push(trial),
            Err(error) => {
                stop(trials).await;
                return Err(error.context(format!("candidate {folder}")));
            }
        }
    }
    let voice = Voice::new(arguments.json);
    voice.say(&chosen.told(&arguments));
    let work = judge(config, &arguments, &voice, &chosen, &trials, live);
    let judged = tokio::select! {
        judged = work => judged.map(Some),
        _ = roles::stop_signal() => Ok(None),
    };
    stop(trials).await;
    let Some(outcomes) = judged? else {
        voice.say(&format!("stopped; what was read is there: `millpond replay {} --drop` removes it", arguments.name));
        return Ok(ExitCode::from(130));
    };
    for outcome in &outcomes {
        replays::keep(&mut connection, &arguments.name, outcome.version, keep).await?;
        voice.replayed(&arguments.name, outcome, || outcome.text());
    }
    if outcomes.len() > 1 && !voice.is_json() {
        say!("{}", side_by_side(&outcomes));
    }
    voice.say(&format!("kept for {} h: `millpond replay {} --drop` removes it now", arguments.hours, arguments.name));
    Ok(ExitCode::SUCCESS)
}

/// Removes all scratch versions, as far as each can be.
async fn remove_all(connection: &mut PgConnection, name: &str) -> anyhow::Result<ExitCode> {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for version in replays::scratch(connection, name).await? {
        match replays::remove(connection, name, version).await {
            Ok(()) => removed.push(version),
            Err(error) => failed.push(format!("scratch version {version}: {:#}", told_of_lock(name, error))),
        }
    }
    say!("{name}: {} removed", versions(&removed));
    if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { bail!("{}", failed.join("\n")) }
}

fn versions(numbers: &[i32]) -> String {
    match numbers {
        [] => "nothing".to_owned(),
        [one] => format!("scratch version {one}"),
        _ => format!("scratch versions {}", numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

async fn stop(trials: Vec<Trial>) {
    futures_util::future::join_all(trials.into_iter().map(|trial| trial.member.stop())).await;
}

/// The folders to try: those that were named, or the project's own.
fn candidates(project: &Project, arguments: &Replay) -> anyhow::Result<Vec<(String, ConsumerSpec)>> {
    let name = arguments.name.as_str();
    if arguments.candidates.is_empty() {
        let spec = project.consumer(name)?;
        return Ok(vec![(format!("consumers/{name}"), spec.clone())]);
    }
    let load = |folder: &Path| {
        let spec = ConsumerSpec::load_as(name, folder).map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", faults.join("\n"))
        })?;
        Ok((folder.display().to_string(), spec))
    };
    let found = arguments.candidates.iter().map(|folder| load(folder)).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some((folder, _)) = found.iter().find(|(_, spec)| spec.topics != found[0].1.topics) {
        bail!("{folder} reads other topics than {}: candidates are compared on the same records", found[0].0);
    }
    Ok(found)
}

async fn live_version(connection: &mut PgConnection, name: &str) -> anyhow::Result<Option<i32>> {
    let projections = store::status::projections(connection).await?;
    Ok(projections.into_iter().find(|projection| projection.projection == name).and_then(|found| found.version))
}

/// The part of the log to read, and what to compare it with.
struct Chosen {
    parts: Vec<Part>,
    /// Whether something before it is not read: rows begin empty there.
    cut: bool,
    scope: Scope,
}

impl Chosen {
    fn told(&self, arguments: &Replay) -> String {
        let whole = |part: &Part| part.from == 0 && part.until.is_none();
        let place = |part: &Part| {
            let until = part.until.map_or("the end".to_owned(), |until| until.to_string());
            format!("{} from {} to {until}", part.at, part.from)
        };
        let places = if self.parts.iter().all(whole) {
            format!("all of {} partitions", self.parts.len())
        } else {
            self.parts.iter().map(place).collect::<Vec<_>>().join(", ")
        };
        let mut text = format!("{}: reads {places}", arguments.name);
        if self.cut {
            text.push_str(
                "; no table has anything from before that: what adds up over records (sum, count, min, max, first) counts only \
                 those that are read",
            );
        }
        text
    }
}

/// Where a part of the log begins or ends.
enum Mark {
    Start(Start),
    Position(Position),
}

impl Mark {
    fn read(text: &str) -> anyhow::Result<Self> {
        if text.contains('@') || text.starts_with("mp1.") {
            return Ok(Self::Position(text.parse()?));
        }
        Ok(Self::Start(start(text)?))
    }

    /// Refuses a position that is about something else than these topics, or lies beyond their ends.
    fn check(&self, reader: &Reader, topics: &[String]) -> anyhow::Result<()> {
        let Self::Position(position) = self else { return Ok(()) };
        for (at, span) in position.iter() {
            if !topics.iter().any(|topic| *topic == *at.topic) {
                let near = nearest(&at.topic, topics.iter().map(String::as_str));
                let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                bail!("the consumer does not read a topic `{}`{near}", at.topic);
            }
            let partitions = reader.partitions_of(&at.topic)?;
            if usize::try_from(at.partition).is_ok_and(|partition| partition >= partitions) {
                bail!("`{}` has {partitions} partitions, from 0 on", at.topic);
            }
            let (_, end) = reader.watermarks(&at.topic, at.partition)?;
            if span.next > end {
                bail!("{at} ends before {end}");
            }
        }
        Ok(())
    }

    /// The offset on each of the first partitions of a topic; none where it says nothing of one.
    fn on(&self, reader: &Reader, topic: &str, partitions: &[i32]) -> anyhow::Result<Vec<Option<i64>>> {
        Ok(match self {
            Self::Start(start) => reader.starts(topic, *start, partitions)?,
            Self::Position(position) => {
                partitions.iter().map(|p| position.get(&TopicPartition::new(topic, *p))).collect()
            }
        })
    }
}

/// Finds what to read of which partition.
async fn choose(
    context: &consumers::Context,
    spec: &ConsumerSpec,
    arguments: &Replay,
    is_live: bool,
) -> anyhow::Result<Chosen> {
    let from = Mark::read(&arguments.from).context("--from")?;
    let until = arguments.until.as_deref().map(Mark::read).transpose().context("--until")?;
    let (options, topics) = (context.kafka.clone(), spec.topics.clone());
    let (from_text, until_text) = (arguments.from.clone(), arguments.until.clone().unwrap_or_default());
    // Without a live version there is nothing that it had to follow.
    let ends = until.is_some() || !is_live;
    let look = move || -> anyhow::Result<(Vec<Part>, bool)> {
        let reader = Reader::open(&options)?;
        let (mut parts, mut cut) = (Vec::new(), false);
        from.check(&reader, &topics).with_context(|| format!("--from {from_text}"))?;
        if let Some(until) = &until {
            until.check(&reader, &topics).with_context(|| format!("--until {until_text}"))?;
        }
        for topic in &topics {
            let partitions: Vec<i32> = (0..reader.partitions_of(topic)? as i32).collect();
            let starts = from.on(&reader, topic, &partitions)?;
            let stops = match &until {
                Some(until) => until.on(&reader, topic, &partitions)?,
                None => vec![None; partitions.len()],
            };
            for ((partition, first), stop) in partitions.into_iter().zip(starts).zip(stops) {
                let (low, high) = reader.watermarks(topic, partition)?;
                let from = first.unwrap_or(low).clamp(low, high);
                let until = ends.then(|| stop.unwrap_or(high).clamp(low, high));
                cut |= from > 0;
                if until.is_none_or(|until| until > from) {
                    parts.push(Part { at: TopicPartition::new(topic.as_str(), partition), from, until });
                }
            }
        }
        Ok((parts, cut))
    };
    let (parts, cut) = tokio::task::spawn_blocking(look).await??;
    if parts.is_empty() {
        bail!("there is no record from {} to {}", arguments.from, arguments.until.as_deref().unwrap_or("the end"));
    }
    let filtered = arguments.key.is_some() || !arguments.conditions.is_empty();
    let touched = cut || filtered || arguments.until.is_some();
    Ok(Chosen { parts, cut, scope: Scope { samples: arguments.samples, touched, aligned: !ends } })
}

/// What of the records is looked at.
fn only(project: &Project, spec: &ConsumerSpec, arguments: &Replay) -> anyhow::Result<Only> {
    let read = |text: &String| text.parse::<Condition>().map_err(anyhow::Error::msg).context("--where");
    let conditions = arguments.conditions.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let relations = folder::relations(project, spec)?;
    let fields = || relations.iter().flat_map(|relation| relation.columns.iter().map(|column| column.name.as_str()));
    for condition in &conditions {
        let field = condition.path[0].as_str();
        if fields().all(|known| known != field) {
            let near = nearest(field, fields()).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            bail!("--where: no record type of this project has a field `{field}`{near}");
        }
        let is_number = |pg_type: &str| {
            ["smallint", "integer", "bigint", "real", "double precision", "numeric"]
                .iter()
                .any(|name| pg_type.starts_with(name))
        };
        let types = || relations.iter().flat_map(|relation| &relation.columns).filter(|column| column.name == field);
        if condition.path.len() == 1 && types().all(|column| is_number(&column.sql_type)) && !condition.is_of_number() {
            bail!("--where: `{field}` is a number, and is compared with one, such as {field}>=15");
        }
    }
    Ok(Only::new(arguments.key.as_deref(), conditions))
}

/// Makes a scratch version of a folder and begins to fill it.
async fn begin(
    context: &consumers::Context,
    project: &Project,
    (folder, spec): (&str, &ConsumerSpec),
    parts: &[Part],
    arguments: &Replay,
    connection: &mut PgConnection,
) -> anyhow::Result<Trial> {
    let only = only(project, spec, arguments)?;
    let compiled = context.prepare(project, spec, connection).await?;
    let tables = compiled.tables().into_iter().map(|table| table.name).collect();
    let begin =
        async |definition: &store::versions::Definition<'_>| replays::begin(connection, definition, parts).await;
    let begun = context.defined(project, spec, &compiled, begin).await?;
    let version = begun.map_err(|error| told_of_lock(&spec.name, error))?;
    let mut engine = context.engine(project, spec, compiled, version)?;
    engine.preparer = engine.preparer.only(only);
    super::throttle(&mut engine, arguments.throttle);
    let partitions = parts.iter().map(|part| part.at.clone()).collect();
    Ok(Trial { folder: folder.to_owned(), version, tables, member: context.follow(engine, partitions)? })
}

/// Waits for the candidates, and looks at what they have made.
async fn judge(
    config: &Config,
    arguments: &Replay,
    voice: &Voice,
    chosen: &Chosen,
    trials: &[Trial],
    live: Option<i32>,
) -> anyhow::Result<Vec<Outcome>> {
    let name = arguments.name.as_str();
    let mut outcomes = Vec::new();
    for Trial { folder, version, tables, member } in trials {
        let version = *version;
        let mut eye = Eye::new(config, name, version);
        let pace = (!arguments.full_speed).then_some(&member.engine.pace);
        eye.catch_up(voice, chosen.parts.len(), pace).await?;
        let diff = match live {
            Some(live) => Some(store::diff::compare(&config.postgres.url, name, (live, version), chosen.scope).await?),
            None => None,
        };
        let mut connection = wiring::database(config, "millpond replay").await?;
        // Counting rows may take its time.
        store::run(&mut connection, "set statement_timeout = 0").await?;
        let places = store::builds::places(&mut connection, name, version).await?;
        let first = |at: &TopicPartition| chosen.parts.iter().find(|part| part.at == *at).map_or(0, |part| part.from);
        let mut rows = Vec::new();
        for table in tables {
            let relation = format!("{}.{}", ident(&schema_name(name, version)), ident(table));
            rows.push((table.clone(), replays::rows(&mut connection, &relation).await?));
        }
        outcomes.push(Outcome {
            folder: folder.clone(),
            version,
            records: places.iter().map(|place| place.next_offset - first(&place.at)).sum(),
            rows,
            emitted: replays::emitted(&mut connection, name, version).await?,
            set_aside: replays::set_aside(&mut connection, name, version).await?,
            diff,
            psql: psql(&config.postgres.url, &schema_name(name, version)),
        });
    }
    Ok(outcomes)
}

/// A line that opens psql among the tables of a schema; who has a password knows it.
fn psql(url: &str, schema: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let (host, query) = rest.split_once('?').map_or((rest, None), |(host, query)| (host, Some(query)));
    let host = match host.rsplit_once('@') {
        Some((user, host)) => format!("{}@{host}", user.split(':').next().unwrap_or_default()),
        None => host.to_owned(),
    };
    let query = query.map_or_else(String::new, |query| format!("{query}&"));
    format!("psql '{scheme}://{host}?{query}options=-csearch_path%3D{schema}'")
}

impl Outcome {
    fn text(&self) -> String {
        let list = |what: &str, of: &[(String, i64)]| {
            let parts: Vec<String> = of.iter().map(|(name, count)| format!("{count} {name}")).collect();
            if parts.is_empty() { String::new() } else { format!("\n  {what}: {}", parts.join(", ")) }
        };
        let mut text = format!("{}: version {} has read {} records", self.folder, self.version, self.records);
        text.push_str(&list("rows", &self.rows));
        text.push_str(&list("would have sent", &self.emitted));
        text.push_str(&list("set aside", &self.set_aside));
        match &self.diff {
            Some(diff) => text.push_str(&format!("\n{}", super::show::text(diff))),
            None => text.push_str("\n  there is no live version to compare it with"),
        }
        text + &format!("\n  look around: {}", self.psql)
    }
}

/// A line for each candidate.
fn side_by_side(outcomes: &[Outcome]) -> String {
    let mut text = format!("{:<32} {:>4} {:>10} {:>10} {:>10}", "candidate", "ver", "rows", "added", "changed");
    for Outcome { folder, version, rows, diff, .. } in outcomes {
        let rows: i64 = rows.iter().map(|(_, rows)| rows).sum();
        let of = |count: fn(&store::diff::TableDiff) -> i64| {
            diff.as_ref().map_or("-".to_owned(), |diff| diff.tables.iter().map(count).sum::<i64>().to_string())
        };
        let (added, changed) = (of(|table| table.added), of(|table| table.changed));
        text.push_str(&format!("\n{folder:<32} {version:>4} {rows:>10} {added:>10} {changed:>10}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psql_line_opens_the_schema_and_has_no_password() {
        assert_eq!(
            psql("postgres://ann:secret@host:5432/db", "p_sums_v3"),
            "psql 'postgres://ann@host:5432/db?options=-csearch_path%3Dp_sums_v3'"
        );
        assert_eq!(
            psql("postgres://host/db?sslmode=require", "p"),
            "psql 'postgres://host/db?sslmode=require&options=-csearch_path%3Dp'"
        );
    }

    #[test]
    fn marks_are_starts_or_positions() {
        assert!(matches!(Mark::read("12").unwrap(), Mark::Start(Start::Offset(12))));
        assert!(matches!(Mark::read("start").unwrap(), Mark::Start(Start::Beginning)));
        assert!(matches!(Mark::read("2013-01-02T00:00:00Z").unwrap(), Mark::Start(Start::Timestamp(_))));
        let Mark::Position(position) = Mark::read("t/1@7").unwrap() else { panic!("a position") };
        assert_eq!(position.get(&TopicPartition::new("t", 1)), Some(7));
        assert!(Mark::read("yesterday").is_err());
    }
}
