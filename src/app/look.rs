//! What an operator looks at: `status`, `topic`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json, value::RawValue};

use super::{schemas, wiring};
use crate::{
    cli::args::{Format, Topic},
    cli::say::say,
    config::Config,
    domain::nearest,
    kafka::{Admin, Reader, Record, Registry, Start, TopicRange},
    schema::{JsonDecoder, framing, parse_registered},
    store::{
        PgConnection,
        builds::{self, Beside},
        relay::{self, Delivery},
        status::{self, PartitionStatus, ProjectionStatus},
    },
};

/// From this lag in seconds on a projection that makes no progress is called behind.
const BEHIND_SECONDS: f64 = 30.0;
/// A consumer that has not looked at its partitions for this long is not running.
pub(super) const SILENT_SECONDS: f64 = 10.0;

/// How a projection is doing, in one word, with what to do about it.
struct Verdict {
    state: &'static str,
    advice: Option<String>,
    healthy: bool,
}

/// `project`: where the folders are, if this is a place that has them.
fn judge(projection: &ProjectionStatus, project: &Path) -> Verdict {
    let name = &projection.projection;
    let bad = |state, advice: String| Verdict { state, advice: Some(advice), healthy: false };
    let folders = project.join("consumers");
    let silent = |p: &PartitionStatus| p.seen_seconds.is_none_or(|s| s > SILENT_SECONDS);
    let nobody = projection.partitions.is_empty() || projection.partitions.iter().all(silent);
    // One that is applied all the same is another project's in the same database.
    if nobody && folders.exists() && !folders.join(name).exists() {
        let advice = format!("its folder is gone: bring it back, or millpond consumer drop {name}");
        return bad("no folder", advice);
    }
    if projection.version.is_none() {
        return bad("empty", format!("start a process with the role consume; it reads the log again for {name}"));
    }
    if let Some(advice) = halts(projection) {
        return bad("halted", advice);
    }
    if projection.paused {
        return bad("paused", format!("millpond consumer resume {name}"));
    }
    if nobody {
        let advice = "no process with the role consume has reported for 10 s: start one (millpond consume), or wait a moment \
                      after a start; if one runs, see its log and run `millpond doctor`";
        return bad("not running", advice.to_owned());
    }
    if projection.partitions.iter().any(|p| p.age_seconds.is_some_and(|a| a > BEHIND_SECONDS)) {
        return bad(
            "behind",
            "see the lag of each partition with `millpond status --json`, and run `millpond doctor`".to_owned(),
        );
    }
    if projection.outbox_seconds.is_some_and(|s| s > BEHIND_SECONDS) {
        let waiting = format!("{} downstream events wait", projection.outbox);
        return bad(
            "not sending",
            format!(
                "{waiting}: start a process with the role publish (millpond publish), or see in its log what holds them"
            ),
        );
    }
    let parked = projection.parked_keys > 0;
    let advice = (projection.dead_letters > 0 || parked).then(|| format!("millpond dlq list {name}"));
    Verdict { state: "running", advice, healthy: true }
}

pub async fn status(config: &Config, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut connection = wiring::database(config, "millpond status").await?;
    let projections = status::projections(&mut connection).await?;
    let delivery = relay::delivery(&mut connection).await?;
    let others = builds::beside(&mut connection).await?;
    let others = |name: &str| others.iter().filter(|other| other.projection == name).collect::<Vec<_>>();
    let project = config.project.dir.as_path();
    let healthy = projections.iter().all(|p| judge(p, project).healthy);
    if as_json {
        let all: Vec<Value> = projections
            .iter()
            .map(|p| {
                let verdict = judge(p, project);
                let mut value = serde_json::to_value(p).unwrap_or_default();
                value["state"] = json!(verdict.state);
                value["lag"] = json!(lag(p));
                value["age_seconds"] = json!(age(p));
                value["next"] = json!(verdict.advice);
                value["beside"] = json!(others(&p.projection));
                value["downstream"] = json!(delivery.as_ref().map(word));
                value
            })
            .collect();
        say!("{}", serde_json::to_string_pretty(&all)?);
    } else if projections.is_empty() {
        say!(
            "no projection has been built yet: start a process with the role consume (millpond consume, or millpond dev)"
        );
    } else {
        print_table(&projections, project, others);
    }
    match &delivery {
        _ if as_json => {}
        Some(Delivery::AtLeastOnce(why)) => say!("downstream events are sent at least once: {}", printable(why)),
        Some(Delivery::NotAtAll(why)) => say!("downstream events are not sent: {}", printable(why)),
        Some(Delivery::ExactlyOnce) | None => {}
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line for each projection, and below it what there is to tell of it.
fn print_table<'a>(projections: &[ProjectionStatus], project: &Path, others: impl Fn(&str) -> Vec<&'a Beside>) {
    say!("{:<24} {:>4} {:<12} {:>9} {:>9} {:>6} {:>6}", "projection", "ver", "state", "lag", "age", "dlq", "parked");
    for projection in projections {
        let verdict = judge(projection, project);
        say!(
            "{:<24} {:>4} {:<12} {:>9} {:>9} {:>6} {:>6}",
            projection.projection,
            projection.version.map_or("-".to_owned(), |v| v.to_string()),
            verdict.state,
            lag(projection).map_or("?".to_owned(), |l| l.to_string()),
            age(projection).map_or("?".to_owned(), |a| format!("{a:.1} s")),
            projection.dead_letters,
            projection.parked_keys,
        );
        if projection.parked_keys > 0 {
            let (keys, records) = (projection.parked_keys, projection.parked_records);
            say!("    {keys} key{} parked, {records} record{} of them", plural(keys), plural(records));
        }
        others(&projection.projection).iter().for_each(|other| say!("    {}", beside_text(other)));
        for Told { error, of, seconds } in last_errors(projection) {
            say!("    last error of {of}: {} ({seconds:.0} s ago)", printable(error));
        }
        if let Some(advice) = verdict.advice {
            say!("    next: {}", printable(&advice));
        }
        for code in halt_codes(projection) {
            say!("    more: millpond explain {}", printable(code));
        }
    }
}

/// A line about a version that is not the live one.
fn beside_text(other: &Beside) -> String {
    let Beside { projection, version, state, lag, kept_until, halt_reason, .. } = other;
    if state == "scratch" {
        let until = kept_until.as_deref().unwrap_or("further notice");
        return format!(
            "version {version} is scratch of a replay, there until {until}: `millpond replay {projection} --drop` removes it"
        );
    }
    let lag = lag.map_or("?".to_owned(), |lag| lag.to_string());
    let halted = halt_reason.as_ref().map_or_else(String::new, |why| format!("; halted: {}", printable(why)));
    if state == "standby" {
        let until = kept_until.as_deref().unwrap_or("further notice");
        return format!(
            "version {version} is kept until {until}, lag {lag}: `millpond rollback {projection}` goes back to it{halted}"
        );
    }
    format!(
        "version {version} is being built, lag {lag}: `millpond rebuild {projection}` goes on with it, `millpond swap {projection}` makes it live{halted}"
    )
}

/// How downstream events are sent, for programs.
fn word(delivery: &Delivery) -> &'static str {
    match delivery {
        Delivery::ExactlyOnce => "exactly_once",
        Delivery::AtLeastOnce(_) => "at_least_once",
        Delivery::NotAtAll(_) => "not_at_all",
    }
}

pub(super) fn plural(n: i64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Why partitions have halted and what ends it, once for each code; none when none has.
fn halts(projection: &ProjectionStatus) -> Option<String> {
    let mut by_code: BTreeMap<&str, Vec<&PartitionStatus>> = BTreeMap::new();
    for halted in projection.partitions.iter().filter(|p| p.state == "halted") {
        by_code.entry(halted.halt_code.as_deref().unwrap_or("unknown")).or_default().push(halted);
    }
    let told = by_code.into_iter().map(|(code, halted)| {
        let reason = halted[0].halt_reason.as_deref().unwrap_or_default();
        let others: Vec<String> = halted[1..].iter().map(|p| format!("{}/{}", p.topic, p.partition)).collect();
        match others[..] {
            [] => format!("{reason} ({code})"),
            _ => format!("{reason} ({code}; so have {})", others.join(", ")),
        }
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join("; besides: "))
}

/// Why partitions have halted, each reason once.
fn halt_codes(projection: &ProjectionStatus) -> BTreeSet<&str> {
    let halted = projection.partitions.iter().filter(|p| p.state == "halted");
    halted.filter_map(|p| p.halt_code.as_deref()).collect()
}

/// An error of the last minute.
struct Told<'a> {
    error: &'a str,
    /// The partitions that have it.
    of: String,
    /// Since the last of them.
    seconds: f64,
}

/// Errors of the last minute, each once; those that halted are told of already.
fn last_errors(projection: &ProjectionStatus) -> Vec<Told<'_>> {
    let mut errors: Vec<Told<'_>> = Vec::new();
    for partition in projection.partitions.iter().filter(|p| p.state != "halted") {
        let Some(error) = partition.last_error.as_deref() else { continue };
        let at = format!("{}/{}", partition.topic, partition.partition);
        let seconds = partition.last_error_seconds.unwrap_or_default().max(0.0);
        match errors.iter_mut().find(|told| told.error == error) {
            Some(told) => {
                told.of = format!("{}, {at}", told.of);
                told.seconds = told.seconds.min(seconds);
            }
            None => errors.push(Told { error, of: at, seconds }),
        }
    }
    errors
}

fn lag(projection: &ProjectionStatus) -> Option<i64> {
    projection.partitions.iter().map(|p| Some((p.end_offset? - p.next_offset).max(0))).sum()
}

fn age(projection: &ProjectionStatus) -> Option<f64> {
    let ages = projection.partitions.iter().filter_map(|p| p.age_seconds);
    // Written in the transaction that is still under way here, it may be of a later moment.
    ages.reduce(f64::max).map(|age| age.max(0.0))
}

pub async fn topic(config: &Config, command: Topic) -> anyhow::Result<()> {
    match command {
        Topic::List => {
            let admin = Admin::connect(&wiring::kafka_options(config))?;
            say!("{:<40} {:>10} {:>12}", "topic", "partitions", "records");
            for topic in admin.list().await? {
                let ends = admin.watermarks(&topic.name).await?;
                let records: i64 = ends.iter().map(|(low, high)| high - low).sum();
                say!("{:<40} {:>10} {:>12}", topic.name, topic.partitions, records);
            }
            Ok(())
        }
        Topic::Cat { topic, from, key, partition, limit, format } => {
            let registry = schemas::connect(config).await?;
            let range = TopicRange {
                topic: topic.as_str().into(),
                partitions: partition.map(|p| vec![p]),
                start: start(&from).context("--from")?,
                key: key.map(String::into_bytes),
                limit: Some(limit),
                follow: from == "end",
            };
            let reader = Reader::open(&wiring::kafka_options(config))?;
            let cat = move || {
                reader.partitions_of(&range.topic)?;
                for partition in range.partitions.iter().flatten() {
                    reader.watermarks(&range.topic, *partition)?;
                }
                let mut decoder = Decoder::new(registry);
                if matches!(format, Format::Table) {
                    say!("{:>4} {:>10} {:<24} {:<28} {:<20} value", "part", "offset", "time", "key", "type");
                }
                reader.read(&range, |record| {
                    print_record(&record, &mut decoder, format);
                    ControlFlow::Continue(())
                })
            };
            tokio::task::spawn_blocking(cat).await??;
            Ok(())
        }
    }
}

/// `start`, `end`, an offset or a time.
pub(super) fn start(from: &str) -> anyhow::Result<Start> {
    if matches!(from, "start" | "beginning") {
        return Ok(Start::Beginning);
    }
    if from == "end" {
        return Ok(Start::Timestamp(Utc::now().timestamp_millis()));
    }
    if let Ok(offset) = from.parse() {
        return Ok(Start::Offset(offset));
    }
    let time = DateTime::parse_from_rfc3339(from)
        .with_context(|| format!("{from}: expected start, end, an offset or a time such as 2013-01-01T10:15:00Z"))?;
    Ok(Start::Timestamp(time.timestamp_millis()))
}

/// Decodes values by the schema they were written with.
pub(super) struct Decoder {
    registry: Arc<Registry>,
    /// By schema id: simple name and decoder; or why there is none.
    known: HashMap<i32, Result<(String, JsonDecoder), String>>,
}

impl Decoder {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, known: HashMap::new() }
    }

    /// Record type and JSON; or no type and what the bytes are.
    pub(super) fn decode(&mut self, payload: &[u8]) -> (Option<String>, String) {
        let (id, body) = match framing::split(payload) {
            Ok((id, body)) => (i32::try_from(id).unwrap_or(i32::MAX), body),
            Err(error) => return (None, undecodable(payload, &error.to_string())),
        };
        let registry = &self.registry;
        let known = self.known.entry(id).or_insert_with(|| {
            let absent = || format!("schema id {id} is not in the registry");
            let registered = registry.schema_by_id(id).ok_or_else(absent)?;
            decoder_of(&registered.text).map_err(|why| format!("schema id {id} cannot be read: {why}"))
        });
        let (name, decoder) = match known {
            Ok(known) => known,
            Err(why) => return (None, undecodable(payload, why)),
        };
        let mut json = Vec::new();
        let text = match decoder.append_json(body, &mut json) {
            Ok(()) => String::from_utf8_lossy(&json).into_owned(),
            Err(fault) => {
                undecodable(payload, &format!("{}: expected {}, got {}", fault.pointer, fault.expected, fault.got))
            }
        };
        (Some(name.clone()), text)
    }
}

/// Simple name of the record that a registered schema describes, and what decodes it.
fn decoder_of(text: &str) -> Result<(String, JsonDecoder), String> {
    let schema = parse_registered(text).map_err(|faults| faults.join("; "))?.schema;
    let decoder = JsonDecoder::compile(&schema, &schema).map_err(|error| error.to_string())?;
    Ok((schema.name().map(|name| name.name().to_owned()).unwrap_or_default(), decoder))
}

/// Bytes that are no record that is known: why not, and as text too where they are one.
fn undecodable(payload: &[u8], why: &str) -> String {
    let mut shown = json!({ "undecodable_hex": hex::encode(payload), "why": why });
    if let Ok(text) = std::str::from_utf8(payload)
        && !text.chars().any(char::is_control)
    {
        shown["text"] = json!(text);
    }
    shown.to_string()
}

fn time(millis: Option<i64>) -> String {
    let Some(millis) = millis else { return "-".to_owned() };
    DateTime::from_timestamp_millis(millis)
        .map_or_else(|| millis.to_string(), |t| t.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Text of a record for a terminal: whoever wrote it may have put control characters into it.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// At most `max` characters of it.
pub(super) fn cut(text: String, max: usize) -> String {
    if text.chars().count() <= max {
        return text;
    }
    text.chars().take(max - 1).chain(['…']).collect()
}

pub(super) fn printable_key(key: Option<&str>) -> String {
    key.map_or_else(|| "-".to_owned(), printable)
}

fn print_record(record: &Record, decoder: &mut Decoder, format: Format) {
    let (record_type, value) = match &record.payload {
        Some(payload) => decoder.decode(payload),
        None => (None, "null".to_owned()),
    };
    let key = record.key.as_ref().map(|k| String::from_utf8_lossy(k).into_owned());
    match format {
        Format::Jsonl => {
            let headers: serde_json::Map<String, Value> = record
                .headers
                .iter()
                .map(|h| (h.name.clone(), h.value.as_ref().map_or(Value::Null, |v| json!(String::from_utf8_lossy(v)))))
                .collect();
            let line = json!({
                "partition": record.partition, "offset": record.offset, "timestamp": time(record.timestamp),
                "key": key, "type": record_type, "headers": headers,
                "value": serde_json::from_str::<&RawValue>(&value).ok(),
            });
            say!("{line}");
        }
        Format::Table => say!(
            "{:>4} {:>10} {:<24} {:<28} {:<20} {}",
            record.partition,
            record.offset,
            time(record.timestamp),
            printable_key(key.as_deref()),
            record_type.unwrap_or_else(|| "-".to_owned()),
            printable(&value),
        ),
    }
}

/// Refuses the name of a projection that is not there, for nothing is said of it either.
pub(super) async fn known(connection: &mut PgConnection, name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else { return Ok(()) };
    let projections = status::projections(connection).await?;
    let names = || projections.iter().map(|of| of.projection.as_str());
    if names().any(|known| known == name) {
        return Ok(());
    }
    match nearest(name, names()) {
        Some(near) => bail!("there is no projection {name} in this database; did you mean {near}?"),
        None => bail!("there is no projection {name} in this database; see `millpond status`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_all_else_is_kept() {
        assert_eq!(printable("a\u{1b}[2J\0\n\u{9b}1mé…"), "a\\u{1b}[2J\\u{0}\\n\\u{9b}1mé…");
    }

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(cut("é".repeat(4), 4), "éééé");
        assert_eq!(cut("é".repeat(5), 4), "ééé…");
    }
}
