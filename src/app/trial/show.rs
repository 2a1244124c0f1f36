//! `consumer show`: the rows that a consumer makes of real records. Kafka is only read, the live tables are not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    ops::ControlFlow,
    sync::Arc,
};

use anyhow::{Context as _, bail};

use super::{
    codec::Codec,
    lab::{FIRST, Lab, apply},
    server::kafka_answers,
    sheet::{Cell, Sheet},
};
use crate::{
    app::{
        Project,
        look::{cut, printable},
        schemas, wiring,
    },
    config::Config,
    consume::{Chunk, Handlers, Preparer, WriterSchemas},
    domain::TopicPartition,
    kafka::{self, Reader, Record, Registry, Start, TopicRange, subscription::Incoming},
    spec::ConsumerSpec,
    store::{scratch::ScratchDatabase, trial},
    telemetry::metrics::consume::MESSAGES,
};

/// Records of one batch: what a live consumer would take at once.
const BATCH: usize = 2000;
/// Widest column printed, in characters.
const MAX_WIDTH: usize = 40;
/// Reasons printed of each kind.
const MAX_REASONS: usize = 5;

/// The last records of a consumer's topics.
pub struct Read {
    registry: Arc<Registry>,
    topics: Vec<String>,
    /// By partition, in the order of offsets.
    pub records: BTreeMap<TopicPartition, Vec<Record>>,
    /// Records that the topics hold.
    held: i64,
}

impl Read {
    fn count(&self) -> usize {
        self.records.values().map(Vec::len).sum()
    }

    /// What to say when there is nothing to show.
    pub fn nothing(&self) -> String {
        format!(
            "there are no records in {}: post some (`millpond dev` posts flights by itself), then run this again",
            self.topics.join(", ")
        )
    }
}

/// Reads the last `records` of a consumer's topics, shared out evenly over their partitions.
pub async fn read(config: &Config, spec: &ConsumerSpec, records: usize) -> anyhow::Result<Read> {
    let brokers = &config.kafka.brokers;
    if !kafka_answers(brokers).await {
        bail!(
            "Kafka does not answer at {brokers}: start it (`millpond dev` does), or name another with --set \
             kafka.brokers=HOST:PORT; `millpond consumer test {}` needs no Kafka",
            spec.name
        );
    }
    let registry = schemas::connect(config).await?;
    let (reader, topics) = (Reader::open(&wiring::kafka_options(config))?, spec.topics.clone());
    let reading = tokio::task::spawn_blocking(move || read_all(&reader, &topics, records));
    let (records, held) =
        reading.await?.with_context(|| format!("cannot read the topics of consumer {}", spec.name))?;
    Ok(Read { registry, topics: spec.topics.clone(), records, held })
}

type ByPartition = BTreeMap<TopicPartition, Vec<Record>>;

fn read_all(reader: &Reader, topics: &[String], wanted: usize) -> Result<(ByPartition, i64), kafka::Error> {
    let mut ends = Vec::new();
    for topic in topics {
        for partition in (0..).take(reader.partitions_of(topic)?) {
            let (low, high) = reader.watermarks(topic, partition)?;
            ends.push((TopicPartition::new(topic.as_str(), partition), low, high));
        }
    }
    let held: Vec<i64> = ends.iter().map(|(_, low, high)| high - low).collect();
    let mut found = ByPartition::new();
    for ((at, _, high), share) in ends.iter().zip(shares(&held, wanted)).filter(|(_, share)| *share > 0) {
        let range = TopicRange {
            topic: Arc::clone(&at.topic),
            partitions: Some(vec![at.partition]),
            start: Start::Offset(high - share),
            key: None,
            limit: None,
            follow: false,
        };
        let mut records = Vec::new();
        reader.read(&range, |record| {
            records.push(record);
            ControlFlow::Continue(())
        })?;
        if !records.is_empty() {
            found.insert(at.clone(), records);
        }
    }
    Ok((found, held.iter().sum()))
}

/// How many to take of each: evenly, and what one cannot give the others do.
fn shares(held: &[i64], wanted: usize) -> Vec<i64> {
    let mut shares = vec![0; held.len()];
    let mut left = i64::try_from(wanted).unwrap_or(i64::MAX);
    let mut order: Vec<usize> = (0..held.len()).collect();
    order.sort_by_key(|at| held[*at]);
    for (done, at) in order.iter().enumerate() {
        let others = i64::try_from(held.len() - done).unwrap_or(1);
        shares[*at] = held[*at].min(left / others + i64::from(left % others > 0));
        left -= shares[*at];
    }
    shares
}

/// Applies what was read and prints the tables.
pub async fn show(
    scratch: &mut ScratchDatabase,
    project: &Project,
    spec: &ConsumerSpec,
    handlers: &Handlers,
    read: &Read,
    limit: usize,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let codec = Codec::new(project)?;
    let schemas = || WriterSchemas::Registry(Arc::clone(&read.registry));
    let mut lab = Lab::new(scratch, project, spec, handlers, &codec, schemas, &[FIRST]).await?;
    let engine = lab.version(FIRST)?;
    let mut skipped = 0;
    for (at, records) in &read.records {
        let first = records.first().map_or(0, |record| record.offset);
        let mut worker = lab.worker(FIRST, at, first).await?;
        let mut from = first;
        for records in records.chunks(BATCH) {
            let chunk = chunk(from, records);
            skipped += passed_over(&engine.preparer, at, &chunk).await?;
            apply(&mut worker, &chunk).await.with_context(|| format!("{at} cannot be applied"))?;
            from = records.last().map_or(from, |record| record.offset + 1);
        }
    }
    let faults = trial::dead_letters(lab.connection(), &spec.name, FIRST).await?;
    let refusals = trial::refusals(lab.connection(), &spec.name, FIRST).await?;
    let emitted = trial::outbox(lab.connection(), &spec.name, FIRST).await?;
    for table in lab.tables.clone() {
        let sheet = lab.sheet(FIRST, &table).await?;
        writeln!(out, "{}: {} of {} rows", table.name, sheet.rows.len().min(limit), sheet.rows.len())?;
        writeln!(out, "{}", aligned(&sheet, limit))?;
    }
    let (count, topics) = (read.count(), read.topics.join(", "));
    writeln!(out, "{count} records read, the last of the {} in {topics}", read.held)?;
    // This process has applied nothing else.
    let repeated = MESSAGES.with_label_values(&[spec.name.as_str(), "repeated"]).get();
    let repeated = usize::try_from(repeated).unwrap_or(usize::MAX);
    let applied = count.saturating_sub(skipped + faults.len() + repeated);
    writeln!(
        out,
        "{applied} applied, {skipped} of types that are not read here, {} that cannot be applied",
        faults.len()
    )?;
    if repeated > 0 {
        writeln!(out, "{repeated} that repeat a record before them, by the id of their client")?;
    }
    if !emitted.is_empty() {
        writeln!(out, "{} events would be emitted", emitted.len())?;
    }
    reasons(out, "refused", &refusals)?;
    reasons(out, "cannot be applied", &faults)?;
    if count < usize::try_from(read.held).unwrap_or(usize::MAX) {
        writeln!(out, "rows that began before the first record read are incomplete; --records N reads more")?;
    }
    Ok(())
}

/// How many records are of types that are not read. Those of schemas that are not in the registry are faulty from here
/// on: nobody waits here until somebody registers them.
async fn passed_over(preparer: &Preparer, at: &TopicPartition, chunk: &Chunk) -> anyhow::Result<usize> {
    let (mut skipped, mut done) = (0, 0);
    while done < chunk.records.len() {
        match preparer.prepare(&at.topic, at.partition, chunk, done..chunk.records.len(), &BTreeSet::new()) {
            Ok(prepared) => {
                skipped += prepared.skipped;
                done = prepared.end;
            }
            Err(unknown) => preparer.give_up(unknown.0).await?,
        }
    }
    Ok(skipped)
}

fn chunk(from: i64, records: &[Record]) -> Chunk {
    let mut chunk = Chunk::beginning_at(from);
    for record in records {
        let mut headers = record.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref()));
        chunk.push(Incoming {
            offset: record.offset,
            timestamp: record.timestamp.unwrap_or_default(),
            key: record.key.as_deref(),
            payload: record.payload.as_deref(),
            headers: &mut headers,
        });
    }
    chunk
}

fn reasons(out: &mut dyn Write, what: &str, judged: &[trial::Judged]) -> std::io::Result<()> {
    let mut by_code: BTreeMap<&str, Vec<&trial::Judged>> = BTreeMap::new();
    for one in judged {
        by_code.entry(&one.code).or_default().push(one);
    }
    for (code, all) in by_code {
        writeln!(out, "{} {what}: {code}", all.len())?;
        for one in all.iter().take(MAX_REASONS) {
            writeln!(out, "  {} offset {}: {}", one.place.at, one.place.offset, printable(&one.reason))?;
        }
    }
    Ok(())
}

/// Rows below their columns; numbers to the right, long values cut.
fn aligned(sheet: &Sheet, limit: usize) -> String {
    let rows: Vec<Vec<String>> =
        sheet.rows.values().take(limit).map(|row| row.iter().map(shortened).collect()).collect();
    let width = |at: usize| {
        let values = rows.iter().map(|row| row[at].chars().count());
        values.chain([sheet.columns[at].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..sheet.columns.len()).map(width).collect();
    let is_number = |text: &String| text.is_empty() || text.parse::<f64>().is_ok();
    let numeric: Vec<bool> = (0..sheet.columns.len())
        .map(|at| rows.iter().all(|row| is_number(&row[at])) && rows.iter().any(|row| !row[at].is_empty()))
        .collect();
    let line = |row: &[String]| {
        let field = |at: usize| {
            let width = widths[at];
            if numeric[at] { format!("{:>width$}", row[at]) } else { format!("{:<width$}", row[at]) }
        };
        let fields: Vec<String> = (0..row.len()).map(field).collect();
        format!("  {}", fields.join("  ")).trim_end().to_owned() + "\n"
    };
    std::iter::once(line(&sheet.columns)).chain(rows.iter().map(|row| line(row))).collect()
}

/// Null is nothing, as psql has it.
fn shortened(cell: &Cell) -> String {
    match cell {
        Cell::Null => String::new(),
        other => cut(printable(&other.to_string().replace(['\n', '\r', '\t'], " ")), MAX_WIDTH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_use_what_others_cannot_give() {
        assert_eq!(shares(&[100, 100, 100], 30), [10, 10, 10]);
        assert_eq!(shares(&[2, 100, 0], 30), [2, 28, 0]);
        assert_eq!(shares(&[2, 3], 30), [2, 3]);
        assert_eq!(shares(&[100, 100, 100], 31).iter().sum::<i64>(), 31);
        assert_eq!(shares(&[], 5), [0; 0]);
    }

    #[test]
    fn rows_are_aligned_below_their_columns() {
        let mut sheet = Sheet::new(["id", "n"].map(str::to_owned).to_vec(), &["id".to_owned()]);
        sheet.insert(vec![Cell::Text("a".to_owned()), Cell::Text("5".to_owned())]);
        sheet.insert(vec![Cell::Text("bcd".to_owned()), Cell::Null]);
        sheet.insert(vec![Cell::Text("x".repeat(50)), Cell::Text("12".to_owned())]);
        assert_eq!(aligned(&sheet, 2), "  id   n\n  a    5\n  bcd\n");
        assert!(aligned(&sheet, 3).contains(&format!("{}…", "x".repeat(39))));
    }

    #[test]
    fn values_cannot_command_the_terminal() {
        let text = Cell::Text("\u{1b}[2J\n\u{9b}1m".to_owned());
        assert_eq!(shortened(&text), r"\u{1b}[2J \u{9b}1m");
        assert_eq!(shortened(&Cell::Text("\u{1b}".repeat(50))).chars().count(), MAX_WIDTH);
    }
}
