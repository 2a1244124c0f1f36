//! `millpond plan`: what the folders ask for that this database does not have yet, what it takes, and what to type.
//! It changes nothing.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    consumers::{self, collect},
    look::{SILENT_SECONDS, printable},
    project::Project,
    schemas, wiring,
};
use crate::{
    cli::say::say,
    config::Config,
    consume::Handlers,
    kafka::{self, Admin},
    spec::ConsumerSpec,
    store::{
        PgConnection,
        indexes::{self, Difference},
        status,
        versions::{self, OnChange, Standing},
    },
};

/// What becomes of a projection when the folders are deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// Its folder is what the live version was built of.
    Same,
    /// It is, but for indexes, which are made and removed in place.
    Indexed,
    /// The next process with the role consume builds it, and it is live from its start.
    Made,
    /// A version of the folder has to be built beside the live one first.
    Rebuilt,
    /// That version is being built.
    Building,
    /// That version is kept to go back to; another one is live.
    Kept,
    /// The folder does not compile, or its topics are not there.
    Refused,
    /// Its folder is not there.
    Left,
}

/// A projection, and what it takes.
#[derive(Debug, Serialize)]
struct Item {
    projection: String,
    step: Step,
    /// The live version.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i32>,
    /// Files that are not as they were when the live version was built.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changed: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    indexes_made: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    indexes_removed: Vec<String>,
    /// Records that would be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<i64>,
    /// How long that takes, by how fast a version was built before.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// What to type.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Shows the plan; with `check` it fails while processes with these folders would refuse to run some of them.
pub async fn run(config: &Config, check: bool, json: bool, handlers: Arc<Handlers>) -> anyhow::Result<ExitCode> {
    let project = Project::load(&config.project.dir)?;
    let mut connection = wiring::database(config, "millpond plan").await?;
    let standings = versions::standings(&mut connection).await?;
    let context = consumers::Context::new(config, schemas::connect(config).await?, handlers, OnChange::Refuse)?;
    let admin = Admin::connect(&context.kafka)?;
    let mut items = Vec::new();
    for spec in &project.consumers {
        let planner = Planner { context: &context, project: &project, admin: &admin, standings: &standings };
        items.push(planner.item(spec, &mut connection).await?);
    }
    items.extend(left(&project, &standings, &mut connection).await?);
    items.sort_by(|a, b| a.projection.cmp(&b.projection));
    if json {
        say!("{}", serde_json::to_string_pretty(&items)?);
    } else {
        print(&items);
    }
    let hindered = items.iter().any(|item| matches!(item.step, Step::Rebuilt | Step::Refused));
    Ok(if check && hindered { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Projections of this database that no folder is about.
async fn left(project: &Project, standings: &[Standing], connection: &mut PgConnection) -> anyhow::Result<Vec<Item>> {
    let is_left = |standing: &&Standing| {
        standing.state == "live" && project.consumers.iter().all(|spec| spec.name != standing.projection)
    };
    let mut items = Vec::new();
    for standing in standings.iter().filter(is_left) {
        let name = &standing.projection;
        let silent = status::silent_seconds(connection, name).await?;
        let next = if silent.is_some_and(|seconds| seconds < SILENT_SECONDS) {
            format!(
                "leave it if it is another project's, for a process applies it; else end that, and: millpond consumer drop {name}"
            )
        } else {
            format!("bring its folder back, or: millpond consumer drop {name}")
        };
        items.push(Item { version: Some(standing.version), next: Some(next), ..Item::of(name, Step::Left) });
    }
    Ok(items)
}

struct Planner<'a> {
    context: &'a consumers::Context,
    project: &'a Project,
    admin: &'a Admin,
    standings: &'a [Standing],
}

impl Planner<'_> {
    async fn item(&self, spec: &ConsumerSpec, connection: &mut PgConnection) -> anyhow::Result<Item> {
        let name = spec.name.as_str();
        let compiled = match self.context.prepare(self.project, spec, connection).await {
            Ok(compiled) => compiled,
            Err(error) => return Ok(Item { why: Some(format!("{error:#}")), ..Item::of(name, Step::Refused) }),
        };
        let hash = self.context.definition_hash(spec, &compiled);
        let own = || self.standings.iter().filter(|standing| standing.projection == name);
        let Some(live) = own().find(|standing| standing.state == "live") else {
            let next = "a process with the role consume makes it";
            return self.with_work(spec, Item { next: Some(next.to_owned()), ..Item::of(name, Step::Made) }).await;
        };
        let item = Item { version: Some(live.version), ..Item::of(name, Step::Same) };
        if live.hash == hash {
            let schema = compiled.schema_name(live.version);
            let difference = indexes::difference(connection, &schema, &compiled.indexes()).await?;
            return Ok(item.with_indexes(difference));
        }
        let beside = own().find(|standing| standing.hash == hash && standing.state != "scratch");
        let changed = self.changed(spec, live, connection).await?;
        let (step, next) = match beside.map(|standing| standing.state.as_str()) {
            Some("building") => {
                (Step::Building, format!("millpond rebuild {name} goes on with it, millpond swap {name} makes it live"))
            }
            Some(_) => {
                (Step::Kept, format!("millpond rollback {name}, or bring the folder of version {} back", live.version))
            }
            None => (Step::Rebuilt, format!("millpond rebuild {name}")),
        };
        let item = Item { step, changed, next: Some(next), ..item };
        if step == Step::Rebuilt { self.with_work(spec, item).await } else { Ok(item) }
    }

    /// Adds how much has to be read.
    async fn with_work(&self, spec: &ConsumerSpec, item: Item) -> anyhow::Result<Item> {
        let mut records = 0;
        for topic in &spec.topics {
            match self.admin.watermarks(topic).await {
                Ok(ends) => records += ends.iter().map(|(low, high)| high - low).sum::<i64>(),
                Err(kafka::Error::NoTopic { .. }) => {}
                Err(error) => return Err(error).with_context(|| format!("the records of {topic} cannot be counted")),
            }
        }
        let rate = self.rate(&spec.name);
        Ok(Item { records: Some(records), seconds: rate.map(|rate| records as f64 / rate), ..item })
    }

    /// How fast a version of the projection was built last, or of any other.
    fn rate(&self, name: &str) -> Option<f64> {
        let built = || self.standings.iter().filter(|standing| standing.build_rate.is_some_and(|rate| rate > 0.0));
        let own = built().filter(|standing| standing.projection == name).max_by_key(|standing| standing.version);
        own.or_else(|| built().next()).and_then(|standing| standing.build_rate)
    }

    /// The files that are not what the live version was made of.
    async fn changed(
        &self,
        spec: &ConsumerSpec,
        live: &Standing,
        connection: &mut PgConnection,
    ) -> anyhow::Result<Vec<String>> {
        let before: BTreeMap<String, Vec<u8>> =
            versions::files(connection, &spec.name, live.version).await?.into_iter().collect();
        let now: BTreeMap<String, Vec<u8>> = collect(&self.project.dir, spec)?.into_iter().collect();
        if before.is_empty() {
            return Ok(Vec::new());
        }
        let own = format!("consumers/{}/", spec.name);
        let differs = |name: &&String| before.get(*name) != now.get(*name);
        let mut changed: Vec<String> = before.keys().chain(now.keys()).filter(differs).cloned().collect();
        changed.sort();
        changed.dedup();
        // Of other folders only what may be the cause.
        if changed.iter().any(|name| name.starts_with(&own)) {
            changed.retain(|name| name.starts_with(&own) || name.starts_with("schemas/"));
        }
        Ok(changed)
    }
}

impl Item {
    fn of(name: &str, step: Step) -> Self {
        let projection = name.to_owned();
        Self {
            projection,
            step,
            version: None,
            changed: Vec::new(),
            indexes_made: Vec::new(),
            indexes_removed: Vec::new(),
            records: None,
            seconds: None,
            why: None,
            next: None,
        }
    }

    fn with_indexes(self, difference: Difference) -> Self {
        if difference.is_none() {
            return self;
        }
        let Difference { missing, left } = difference;
        let next = "a process with the role consume does it when it starts".to_owned();
        let missing = missing.into_iter().map(|index| index.name).collect();
        Self { step: Step::Indexed, next: Some(next), indexes_made: missing, indexes_removed: left, ..self }
    }

    fn text(&self) -> String {
        let version = self.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        let (word, what) = match self.step {
            Step::Same => ("same", "nothing to do"),
            Step::Indexed => ("indexed", "asks for other indexes: made and removed in place, without a rebuild"),
            Step::Made => ("made", "is new"),
            Step::Rebuilt => ("rebuilt", "has changed: built anew beside the live version"),
            Step::Building => ("building", "has changed: a version of it is being built"),
            Step::Kept => ("kept", "is what an earlier version was built of, which is kept"),
            Step::Refused => ("refused", "cannot be run"),
            Step::Left => ("left", "has no folder here"),
        };
        let mut text = format!("{:<24} {version:>4} {word:<9} {what}", self.projection);
        if let Some(records) = self.records {
            let seconds = self.seconds.map_or_else(
                || "how long that takes is known once one was built".to_owned(),
                |seconds| format!("some {} by the rate of the last build", duration(seconds)),
            );
            text.push_str(&format!("; {records} records, {seconds}"));
        }
        for file in &self.changed {
            text.push_str(&format!("\n    changed: {}", printable(file)));
        }
        for (what, names) in [("made", &self.indexes_made), ("removed", &self.indexes_removed)] {
            names.iter().for_each(|name| text.push_str(&format!("\n    {what}: {}", printable(name))));
        }
        if let Some(why) = &self.why {
            text.push_str(&format!("\n    {}", why.replace('\n', "\n    ")));
        }
        if let Some(next) = &self.next {
            text.push_str(&format!("\n    next: {next}"));
        }
        text
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 100.0 { format!("{:.0} s", seconds.ceil()) } else { format!("{:.0} min", (seconds / 60.0).ceil()) }
}

fn print(items: &[Item]) {
    if items.is_empty() {
        say!("there is no consumer in this project, and no projection in this database");
        return;
    }
    say!("{:<24} {:>4} {:<9}", "projection", "live", "plan");
    items.iter().for_each(|item| say!("{}", item.text()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_says_what_it_takes_and_what_to_type() {
        let item = Item {
            version: Some(3),
            changed: vec!["consumers/sums/sums.sql".to_owned()],
            records: Some(1_200),
            seconds: Some(0.4),
            next: Some("millpond rebuild sums".to_owned()),
            ..Item::of("sums", Step::Rebuilt)
        };
        let text = item.text();
        for part in [
            "sums",
            "3 rebuilt",
            "1200 records, some 1 s",
            "changed: consumers/sums/sums.sql",
            "next: millpond rebuild",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(
            (duration(99.2), duration(100.0), duration(3600.0)),
            ("100 s".into(), "2 min".into(), "60 min".into())
        );
    }
}
