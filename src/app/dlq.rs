//! `millpond dlq …`: records that were set aside, looked at and decided about.
//!
//! Nothing is applied here. A decision is written into the record's row; the process that has the partition carries it out
//! within a second or so, under its fence.

use std::{io::Read as _, sync::Arc};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::{
    look::{self, Decoder, cut, plural, printable, printable_key},
    project::Project,
    schemas, wiring,
};
use crate::{
    cli::{
        args::{Choice, Dlq, Filter},
        say::say,
        who,
    },
    config::Config,
    domain::TopicPartition,
    ingest,
    kafka::Registry,
    schema::{
        encode::{Captured, Encoder},
        framing,
    },
    store::{
        PgConnection,
        dead_letters::{self, DeadLetter, Met, Selection},
        parked::Wish,
        verdicts,
    },
};

/// Longest key that `dlq list` prints, in characters; `--json` and `dlq show` have it whole.
const MAX_KEY: usize = 60;
/// Records that one `dlq edit` changes: each is held in memory with its new value.
const MAX_EDITS: i64 = 1000;

pub async fn run(config: &Config, command: Dlq) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond dlq").await?;
    match command {
        Dlq::List { consumer, filter, limit, json } => {
            let selection = Selection { consumer, ..selection(&filter)? };
            list(&mut connection, &selection, limit, json).await
        }
        Dlq::Show { consumer, record } => show(config, &mut connection, &consumer, &record).await,
        Dlq::Redrive { choice } => decide(&mut connection, &choice, Wish::Apply).await,
        Dlq::Discard { choice } => decide(&mut connection, &choice, Wish::Discard).await,
        Dlq::Edit { choice, value, fields, of_type } => {
            let change = Change::read(value.as_deref(), &fields)?;
            edit(config, &mut connection, &choice, &change, of_type.as_deref()).await
        }
    }
}

fn selection(filter: &Filter) -> anyhow::Result<Selection> {
    let time = |text: &String| {
        let time = DateTime::parse_from_rfc3339(text);
        time.map(|time| time.with_timezone(&Utc))
            .with_context(|| format!("--since {text}: expected a time such as 2013-01-01T10:15:00Z"))
    };
    Ok(Selection {
        class: filter.class.clone(),
        record_type: filter.record_type.clone(),
        key: filter.key.clone().map(String::into_bytes),
        topic: filter.topic.clone(),
        since: filter.since.as_ref().map(time).transpose()?,
        ..Selection::default()
    })
}

/// The records that a decision is about; all of a consumer's only when that is said.
fn chosen(choice: &Choice) -> anyhow::Result<Selection> {
    let mut selection = Selection { consumer: Some(choice.consumer.clone()), ..selection(&choice.filter)? };
    let Filter { class, record_type, key, topic, since } = &choice.filter;
    let filters = [class, record_type, key, topic, since];
    match &choice.record {
        Some(record) => {
            let (topic, partition, offset) = coordinates(record)?;
            selection.topic = Some(topic.to_owned());
            (selection.partition, selection.offset) = (Some(partition), Some(offset));
        }
        None if !choice.all && filters.iter().all(|filter| filter.is_none()) => bail!(
            "name a record (TOPIC/PARTITION/OFFSET) or a filter (--class --type --key --topic --since), or say --all; see \
             `millpond dlq list {}`",
            choice.consumer
        ),
        None => {}
    }
    Ok(selection)
}

async fn list(connection: &mut PgConnection, selection: &Selection, limit: usize, as_json: bool) -> anyhow::Result<()> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let letters = dead_letters::list(connection, selection, limit).await?;
    if as_json {
        for letter in letters {
            say!("{}", serde_json::to_string(&letter)?);
        }
        return Ok(());
    }
    let counts = dead_letters::counts(connection, selection).await?;
    if counts.is_empty() {
        look::known(connection, selection.consumer.as_deref()).await?;
        say!("no dead letters");
        return Ok(());
    }
    for (consumer, class, record_type, count) in counts {
        let record_type = record_type.unwrap_or_else(|| "of no known type".to_owned());
        say!("{count:>8}  {consumer}: {class}, {record_type}");
    }
    say!("\nnewest:");
    for letter in &letters {
        let key = cut(printable_key(letter.key.as_deref()), MAX_KEY);
        let DeadLetter { consumer, topic, partition, offset, reason, .. } = letter;
        say!("{consumer} {topic}/{partition}/{offset} key {key}: {}", printable(reason));
        if let Some(state) = state(letter) {
            say!("    {state}");
        }
    }
    let name = selection.consumer.as_deref().unwrap_or("CONSUMER");
    say!("\nmillpond dlq show {name} TOPIC/PARTITION/OFFSET prints one, decoded");
    say!("millpond dlq redrive, edit or discard {name} … decides about them; --dry-run says what would be met");
    say!("millpond explain CLASS says what a class such as refused_by_postgres means, and its usual cause");
    Ok(())
}

/// Where a record that waits stands, and what is wanted of it.
fn state(letter: &DeadLetter) -> Option<String> {
    let mut parts = Vec::new();
    match letter.head {
        Some(head) if head == letter.offset => parts.push("its key is parked, and waits for a decision".to_owned()),
        Some(head) => parts.push(format!("parked behind offset {head}")),
        None => {}
    }
    if let Some(retry_at) = &letter.retry_at {
        parts = vec![format!("its key is parked, and is tried again by itself at {retry_at}")];
    }
    if let Some(wanted) = &letter.wanted {
        let by = letter.wanted_by.as_deref().unwrap_or("somebody");
        parts.push(format!("{wanted} wanted by {}", printable(by)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

async fn show(config: &Config, connection: &mut PgConnection, consumer: &str, record: &str) -> anyhow::Result<()> {
    let (topic, partition, offset) = coordinates(record)?;
    let found = dead_letters::find(connection, consumer, topic, partition, offset).await?;
    let verdict = verdicts::find(connection, consumer, &TopicPartition::new(topic, partition), offset).await?;
    let Some(letter) = found else {
        if let Some(verdict) = verdict {
            say!("{}", serde_json::to_string_pretty(&json!({ "offset": offset, "verdict": verdict }))?);
            return Ok(());
        }
        bail!("{consumer} has no dead letter at {record}; see `millpond dlq list {consumer}`")
    };
    let mut shown = serde_json::to_value(&letter)?;
    if letter.payload.is_some() || letter.edited.is_some() {
        let mut decoder = Decoder::new(schemas::connect(config).await?);
        let mut decoded = |payload: &[u8]| {
            let (_, value) = decoder.decode(payload);
            serde_json::from_str(&value).unwrap_or(Value::String(value))
        };
        if let Some(payload) = &letter.payload {
            shown["value"] = decoded(payload);
        }
        if let Some(edited) = &letter.edited {
            shown["edited"] = decoded(edited);
        }
    }
    if let Some(verdict) = verdict {
        shown["verdict"] = serde_json::to_value(verdict)?;
    }
    // Standard output is one document, for programs too.
    let deciding = letter.head.unwrap_or(offset);
    shown["next"] = json!(["redrive", "edit", "discard"].map(|what| {
        let more = if what == "edit" { " --field NAME=JSON" } else { "" };
        format!("millpond dlq {what} {consumer} {topic}/{partition}/{deciding}{more}")
    }));
    say!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(())
}

/// `redrive` and `discard`.
async fn decide(connection: &mut PgConnection, choice: &Choice, wish: Wish) -> anyhow::Result<()> {
    let selection = chosen(choice)?;
    let name = &choice.consumer;
    let met = dead_letters::meet(connection, &selection, wish).await?;
    check_order(name, &met)?;
    if met.classes.is_empty() {
        look::known(connection, Some(name)).await?;
        bail!("{}", nothing_met(connection, choice, &met).await?);
    }
    let told = by_class(&met);
    let verb = if wish == Wish::Apply { "applied after all" } else { "given up" };
    if choice.dry_run {
        say!("{name}: would be {verb}: {told}");
        behind(&met);
        say!("nothing was changed; the same without --dry-run does it");
        return Ok(());
    }
    let records = dead_letters::wish(connection, &selection, wish, &who::by(choice.by.as_deref())).await?;
    say!("{name}: {records} record{} will be {verb} ({told})", if records == 1 { "" } else { "s" });
    behind(&met);
    decided(&met);
    next(name);
    Ok(())
}

fn behind(met: &Met) {
    if met.behind > 0 {
        say!("    {} more wait behind and follow in their order, until one of them fails", met.behind);
    }
}

fn decided(met: &Met) {
    if met.decided > 0 {
        say!(
            "    {} more were decided about through another version: that holds, and is done here as well",
            met.decided
        );
    }
}

fn next(consumer: &str) {
    say!("the process that has the partition does it within a second or so; a paused or halted one when it goes on");
    say!("next: millpond dlq list {consumer}");
}

fn by_class(met: &Met) -> String {
    met.classes.iter().map(|(class, count)| format!("{count} {class}")).collect::<Vec<_>>().join(", ")
}

/// Refuses what would break the order of a key.
fn check_order(consumer: &str, met: &Met) -> anyhow::Result<()> {
    if met.late == 0 {
        return Ok(());
    }
    bail!(
        "{} of these records cannot be applied any more: later records of their keys have been, and the tables of {consumer} \
         depend on the order; post events that correct it, or mend the cause and build the tables anew with `millpond \
         consumer restart {consumer} --from-zero`, or give them up with `millpond dlq discard`; with on_error = \"park_key\" \
         in consumer.toml the records of a key wait for each other from now on",
        met.late
    )
}

/// Why a decision meets nothing, and what to type instead.
async fn nothing_met(connection: &mut PgConnection, choice: &Choice, met: &Met) -> anyhow::Result<String> {
    let name = &choice.consumer;
    let see = format!("see `millpond dlq list {name}`");
    if met.decided > 0 {
        return Ok(format!(
            "{} of these records were decided about through another version of {name}: that holds, and is done here as well, within a \
             second or so; one that fails all the same can be decided about again ({see})",
            met.decided
        ));
    }
    let Some(record) = &choice.record else {
        return Ok(format!("{name} has no such records; {see}"));
    };
    let (topic, partition, offset) = coordinates(record)?;
    let found = dead_letters::find(connection, name, topic, partition, offset).await?;
    match found.and_then(|letter| letter.head) {
        Some(head) if met.behind > 0 => Ok(format!(
            "the record at {record} only waits behind the one at offset {head}, and follows it: decide about that one, with \
             `millpond dlq redrive {name} {topic}/{partition}/{head}`"
        )),
        _ => Ok(format!("{name} has no such record; {see}")),
    }
}

/// What an edit does to a value.
enum Change {
    Whole(Vec<u8>),
    Fields(Vec<(String, Value)>),
}

impl Change {
    fn read(file: Option<&std::path::Path>, fields: &[String]) -> anyhow::Result<Self> {
        if let Some(path) = file {
            let mut text = Vec::new();
            if path.as_os_str() == "-" {
                std::io::stdin().read_to_end(&mut text).context("cannot read standard input")?;
            } else {
                text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            }
            return Ok(Self::Whole(text));
        }
        let field = |field: &String| {
            let (name, value) =
                field.split_once('=').with_context(|| format!("--field {field}: expected NAME=JSON"))?;
            let value = serde_json::from_str(value).with_context(|| {
                format!("--field {field}: {value} is not JSON; a text needs its quotes: --field '{name}=\"{value}\"'")
            })?;
            Ok((name.to_owned(), value))
        };
        Ok(Self::Fields(fields.iter().map(field).collect::<anyhow::Result<_>>()?))
    }

    /// The new value, of the one that the record has.
    fn of(&self, decoded: &str) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Whole(value) => Ok(value.clone()),
            Self::Fields(fields) => {
                let mut object: Map<String, Value> = serde_json::from_str(decoded)?;
                if object.contains_key("undecodable_hex") {
                    bail!("its value cannot be decoded: give a whole one with --value");
                }
                fields.iter().for_each(|(name, value)| drop(object.insert(name.clone(), value.clone())));
                Ok(serde_json::to_vec(&object)?)
            }
        }
    }
}

async fn edit(
    config: &Config,
    connection: &mut PgConnection,
    choice: &Choice,
    change: &Change,
    record_type: Option<&str>,
) -> anyhow::Result<()> {
    let (selection, name) = (chosen(choice)?, &choice.consumer);
    let met = dead_letters::meet(connection, &selection, Wish::Edit).await?;
    check_order(name, &met)?;
    if met.classes.is_empty() {
        look::known(connection, Some(name)).await?;
        bail!("{}", nothing_met(connection, choice, &met).await?);
    }
    let letters = dead_letters::editable(connection, &selection, MAX_EDITS + 1).await?;
    if i64::try_from(letters.len()).unwrap_or(i64::MAX) > MAX_EDITS {
        bail!("more than {MAX_EDITS} records are meant; narrow the filter and do it in several steps");
    }
    let editor = Editor::new(config, record_type).await?;
    // All or none: what does not fit is found before anything is written.
    let mut edited = Vec::with_capacity(letters.len());
    for letter in &letters {
        let at = format!("{}/{}/{}", letter.topic, letter.partition, letter.offset);
        edited.push(editor.edit(letter, change).with_context(|| format!("the record at {at}"))?);
    }
    if choice.dry_run {
        say!("{name}: would be edited and applied: {}; their new values fit", by_class(&met));
        say!("nothing was changed; the same without --dry-run does it");
        return Ok(());
    }
    let (by, mut records) = (who::by(choice.by.as_deref()), 0);
    for (letter, value) in letters.iter().zip(&edited) {
        records += i64::from(dead_letters::edit(connection, letter, value, &by).await?);
    }
    say!("{name}: {records} record{} will be applied with the new value ({})", plural(records), by_class(&met));
    decided(&met);
    let missed = i64::try_from(letters.len()).unwrap_or(i64::MAX) - records;
    if missed > 0 {
        say!("    {missed} changed meanwhile and were left as they are");
    }
    let waits = letters.iter().filter(|letter| letter.head.is_some_and(|head| head != letter.offset)).count();
    if waits > 0 {
        say!("    {waits} of them wait behind others: decide about the first of their keys as well");
    }
    next(name);
    Ok(())
}

/// Encodes new values by the schemas of the project, as ingest does.
struct Editor {
    project: Project,
    registry: Arc<Registry>,
    max_bytes: usize,
    /// Given by the person, for records whose own bytes do not tell.
    record_type: Option<String>,
}

impl Editor {
    async fn new(config: &Config, record_type: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self {
            project: Project::load(&config.project.dir)?,
            registry: schemas::connect(config).await?,
            max_bytes: config.ingest.max_record,
            record_type: record_type.map(str::to_owned),
        })
    }

    fn edit(&self, letter: &DeadLetter, change: &Change) -> anyhow::Result<Vec<u8>> {
        let payload = letter.edited.as_ref().or(letter.payload.as_ref()).context("it has no value")?;
        let (decoded_type, decoded) = Decoder::new(Arc::clone(&self.registry)).decode(payload);
        let name = self.record_type.clone().or_else(|| letter.record_type.clone()).or(decoded_type);
        let name = name.context("its bytes do not tell which type it is of: say it with --as TYPE")?;
        let record = self.project.schemas.get(&name).with_context(|| {
            let folder = self.project.dir.join("schemas");
            format!("there is no {name} in {}; run the command in the project's folder", folder.display())
        })?;
        let latest = record.latest();
        let registered = self.registry.lookup(&record.subject, &latest.text);
        let registered = registered
            .with_context(|| format!("the schema of {name} is not registered: run `millpond schema push`"))?;
        let keys = self.project.keys().remove(&name).unwrap_or_default();
        let (mut value, mut captured) = (Vec::new(), Captured::default());
        framing::write_header(u32::try_from(registered.id)?, &mut value);
        let encoder = Encoder::compile(&latest.schema, &keys)?;
        encoder.encode(&change.of(&decoded)?, &mut value, &mut captured).map_err(|faults| {
            let told = faults.iter().map(|f| format!("{}: expected {}, got {}", f.pointer, f.expected, f.got));
            anyhow::anyhow!("the new value is no {name}: {}", told.collect::<Vec<_>>().join("; "))
        })?;
        if value.len() > self.max_bytes {
            bail!("the new value has {} bytes, where {} are allowed (ingest.max_record)", value.len(), self.max_bytes);
        }
        if !keys.is_empty() && letter.key_bytes.is_some() && ingest::key_of(&keys, &captured) != letter.key_bytes {
            bail!(
                "the new value belongs to another key, by {}: an edit keeps the record where it stands; discard it, and post \
                 the event that was meant",
                keys.join(" and ")
            );
        }
        Ok(value)
    }
}

fn coordinates(record: &str) -> anyhow::Result<(&str, i32, i64)> {
    let parsed = || {
        let (rest, offset) = record.rsplit_once('/')?;
        let (topic, partition) = rest.rsplit_once('/')?;
        Some((topic, partition.parse().ok()?, offset.parse().ok()?))
    };
    parsed().with_context(|| format!("{record}: expected TOPIC/PARTITION/OFFSET, as `millpond dlq list` prints it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_changed_and_all_others_kept() {
        let change = Change::read(None, &["a=2".to_owned(), "b=\"x\"".to_owned()]).unwrap();
        assert_eq!(change.of(r#"{"a":1,"c":null}"#).unwrap(), br#"{"a":2,"c":null,"b":"x"}"#);
        assert!(change.of(r#"{"undecodable_hex":"00"}"#).unwrap_err().to_string().contains("--value"));
        assert!(Change::read(None, &["a=x".to_owned()]).err().unwrap().to_string().contains("a text needs its quotes"));
    }

    #[test]
    fn nothing_is_chosen_without_a_word() {
        let choice = |record: Option<&str>, all, key: Option<&str>| Choice {
            consumer: "c".to_owned(),
            record: record.map(str::to_owned),
            filter: Filter { key: key.map(str::to_owned), ..Filter::default() },
            all,
            dry_run: false,
            by: None,
        };
        assert!(chosen(&choice(None, false, None)).unwrap_err().to_string().contains("--all"));
        assert!(chosen(&choice(None, true, None)).is_ok() && chosen(&choice(None, false, Some("k"))).is_ok());
        let one = chosen(&choice(Some("a/b/3/7"), false, None)).unwrap();
        assert_eq!((one.topic.as_deref(), one.partition, one.offset), (Some("a/b"), Some(3), Some(7)));
        assert!(chosen(&choice(Some("7"), false, None)).is_err());
    }
}
