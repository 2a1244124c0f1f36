//! The sink: a backlog into a table, beside the fastest upserts of the same records by hand, and beside COPY.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{SinkExt as _, future::try_join_all};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};
use tokio_postgres::{Client, NoTls};

use crate::{
    Bench, ingest,
    millpond::Running,
    project::{BACKLOG, Backlog, COLUMNS, Flight, Random},
    report::Report,
    stats::Series,
};

/// Records of one statement of the limit, and of one batch of Millpond's by default.
const BATCH: usize = 5_000;
/// Name of the consumer whose table `reads` reads.
pub const CONSUMER: &str = "sink_c1_r0";
const DRAINED_WITHIN: Duration = Duration::from_secs(120);

/// Rows of one statement, each key once, sorted.
type Batch = Vec<Flight>;

/// Measures, if `measured`; else only fills the table that `reads` needs.
pub async fn run(bench: &Bench, report: &mut Report, measured: bool) -> anyhow::Result<()> {
    let (records, keys) = bench.backlog;
    eprintln!("sink: {records} records of {keys} keys");
    ingest::backlog(bench, &BACKLOG, records, keys).await?;
    let client = connect(&bench.postgres).await?;
    if !measured {
        drain(bench, &client, &Case::plain(CONSUMER, 1)).await?;
        return Ok(());
    }
    let batches = batches(records, keys);
    let mut idle = Series::default();
    for connections in [1, 2] {
        let (mut upserts, mut ours, mut copies) = (Series::default(), Series::default(), Series::default());
        let (mut cpu, mut peak) = (Series::default(), Series::default());
        for repetition in 0..bench.repetitions {
            upserts.add(records as f64 / by_hand(bench, &client, &batches, connections, Way::Upsert).await?);
            copies.add(records as f64 / by_hand(bench, &client, &batches, connections, Way::Copy).await?);
            let name = format!("sink_c{connections}_r{repetition}");
            let drained = drain(bench, &client, &Case::plain(&name, connections)).await?;
            ours.add(records as f64 / drained.seconds);
            cpu.add(drained.cpu * 1e6 / records as f64);
            idle.add(drained.idle);
            peak.add(drained.peak);
        }
        let plural = if connections == 1 { "1 connection".to_owned() } else { format!("{connections} connections") };
        report.rate(&format!("sorted unnest upserts of {BATCH}, {plural}"), &upserts, "records/s", "");
        report.rate(&format!("COPY of the same records, {plural}"), &copies, "records/s", "");
        let more = format!("CPU {:.1} µs each", cpu.median());
        report.rate(&format!("Millpond sink, {plural}"), &ours, "records/s", &more);
        report.ratio(&format!("sink, {plural} / sorted unnest upserts"), &ours, &upserts, Some(0.7));
        report.ratio(&format!("sink, {plural} / COPY"), &ours, &copies, None);
        report.memory(&format!("consume, {plural}"), idle.median(), peak.max());
    }
    Ok(())
}

/// A consumer that has a backlog before it.
pub struct Case<'a> {
    pub name: &'a str,
    pub backlog: &'a Backlog,
    pub on_error: &'a str,
    pub connections: usize,
}

impl<'a> Case<'a> {
    fn plain(name: &'a str, connections: usize) -> Self {
        Self { name, backlog: &BACKLOG, on_error: "skip", connections }
    }
}

pub struct Drained {
    pub seconds: f64,
    pub cpu: f64,
    idle: f64,
    peak: f64,
}

/// Runs a consumer on the whole backlog: from its first claim until every partition is applied to its end.
pub async fn drain(bench: &Bench, client: &Client, case: &Case<'_>) -> anyhow::Result<Drained> {
    let Case { name, connections, .. } = case;
    let project = bench.project.with_consumer(name, case.backlog, case.on_error)?;
    client.batch_execute("checkpoint").await?;
    let setting = format!("consume.connections={connections}");
    let consume = Running::role(bench, "consume", &project, &[&setting]).await?;
    let look = client
        .prepare(
            "select count(*), coalesce(sum(next_offset), 0)::int8, coalesce(max(halt_reason), '')
               from millpond.fences where projection = $1",
        )
        .await?;
    let wanted = ends(&bench.brokers, case.backlog.topic)?;
    let (begun, mut claimed) = (Instant::now(), None);
    let seconds = loop {
        let row = client.query_one(&look, &[name]).await?;
        let (fences, applied, halt): (i64, i64, String) = (row.get(0), row.get(1), row.get(2));
        if fences > 0 {
            claimed.get_or_insert_with(Instant::now);
        }
        if applied == wanted {
            break claimed.unwrap_or(begun).elapsed().as_secs_f64();
        }
        if !halt.is_empty() || begun.elapsed() > DRAINED_WITHIN {
            bail!("the consumer is at {applied} of {wanted}: {halt}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let (cpu, peak) = (consume.cpu()?, consume.peak_memory()?);
    let idle = consume.idle_memory().await?;
    consume.stop().await?;
    Ok(Drained { seconds, cpu, idle, peak })
}

/// Sum of the ends of all partitions of a backlog.
fn ends(brokers: &str, topic: &str) -> anyhow::Result<i64> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "bench").create()?;
    let limit = Duration::from_secs(10);
    let metadata = consumer.fetch_metadata(Some(topic), limit)?;
    let partitions = metadata.topics().first().context("no such topic")?.partitions();
    let mut sum = 0;
    for partition in partitions {
        sum += consumer.fetch_watermarks(topic, partition.id(), limit)?.1;
    }
    Ok(sum)
}

/// The records of the backlog as the limit has them: in the same batches of one partition each, every key once by its last
/// record, sorted by key. All of that is done before the clock runs. Batches of one partition are at the same index modulo
/// the number of partitions, so that two connections never meet in a row.
fn batches(records: usize, keys: usize) -> Vec<Batch> {
    const PARTITIONS: usize = 6;
    let mut random = Random(7);
    let mut open: Vec<(usize, BTreeMap<String, Flight>)> = vec![Default::default(); PARTITIONS];
    let mut queues: Vec<Vec<Batch>> = vec![Vec::new(); PARTITIONS];
    for number in 0..records as u64 {
        let key = random.below(keys as u64);
        let flight = Flight::new(key, number);
        let partition = key as usize % PARTITIONS;
        let (count, rows) = &mut open[partition];
        rows.insert(flight.flight_id.clone(), flight);
        *count += 1;
        if *count == BATCH {
            queues[partition].push(std::mem::take(rows).into_values().collect());
            *count = 0;
        }
    }
    for (queue, (_, rows)) in queues.iter_mut().zip(open) {
        queue.push(rows.into_values().collect());
    }
    let longest = queues.iter().map(Vec::len).max().unwrap_or_default();
    (0..longest).flat_map(|at| queues.iter().map(move |queue| queue.get(at).cloned().unwrap_or_default())).collect()
}

/// How rows are written by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Into a table with the primary key, `on conflict do update`.
    Upsert,
    /// Appended to a table with a plain index on the key, for COPY cannot replace rows.
    Copy,
}

/// Seconds from the first statement to the last commit, over so many connections.
async fn by_hand(
    bench: &Bench,
    client: &Client,
    batches: &[Batch],
    connections: usize,
    way: Way,
) -> anyhow::Result<f64> {
    let columns = COLUMNS.map(|(name, column)| format!("{name} {column} not null")).join(", ");
    let index = match way {
        Way::Upsert => "alter table limits.flights add primary key (flight_id)",
        Way::Copy => "create index on limits.flights (flight_id)",
    };
    client
        .batch_execute(&format!(
            "drop schema if exists limits cascade; create schema limits; create table limits.flights ({columns}); {index}"
        ))
        .await?;
    client.batch_execute("checkpoint").await?;
    let columns = batches.iter().map(|batch| Columns::new(batch, way)).collect::<Vec<_>>();
    let mut shares: Vec<Vec<Columns>> = (0..connections).map(|_| Vec::new()).collect();
    for (at, batch) in columns.into_iter().enumerate() {
        shares[at % connections].push(batch);
    }
    let clients = try_join_all((0..connections).map(|_| connect(&bench.postgres))).await?;
    let begun = Instant::now();
    let writers = clients.into_iter().zip(shares).map(|(client, share)| {
        tokio::spawn(async move {
            match way {
                Way::Upsert => upsert(&client, &share).await,
                Way::Copy => copy(&client, share).await,
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// One batch, ready to be sent.
#[derive(Default)]
struct Columns {
    texts: [Vec<String>; 5],
    numbers: [Vec<i32>; 2],
    times: Vec<DateTime<Utc>>,
    copy: Bytes,
}

impl Columns {
    fn new(batch: &Batch, way: Way) -> Self {
        let mut columns = Self::default();
        let midnight = DateTime::from_timestamp(1_356_998_400, 0).unwrap_or_default();
        let time = |flight: &Flight| midnight + TimeDelta::minutes(i64::from(flight.minute));
        if way == Way::Copy {
            let mut body = ::millpond::store::CopyBuffer::default();
            for flight in batch {
                body.begin_row(8);
                body.bytes(flight.flight_id.as_bytes());
                body.bytes(flight.carrier.as_bytes());
                body.int4(flight.flight_number);
                body.bytes(flight.origin.as_bytes());
                body.bytes(flight.destination.as_bytes());
                body.timestamp_millis(time(flight).timestamp_millis());
                body.int4(flight.distance_miles);
                body.bytes(flight.remarks.as_bytes());
            }
            columns.copy = body.finish().into();
            return columns;
        }
        for flight in batch {
            let texts = [&flight.flight_id, flight.carrier, flight.origin, flight.destination, &flight.remarks];
            for (column, text) in columns.texts.iter_mut().zip(texts) {
                column.push(text.to_owned());
            }
            columns.numbers[0].push(flight.flight_number);
            columns.numbers[1].push(flight.distance_miles);
            columns.times.push(time(flight));
        }
        columns
    }
}

async fn upsert(client: &Client, share: &[Columns]) -> anyhow::Result<()> {
    let names = COLUMNS.map(|(name, _)| name).join(", ");
    let sets = COLUMNS[1..].iter().map(|(name, _)| format!("{name} = excluded.{name}")).collect::<Vec<_>>().join(", ");
    let statement = client
        .prepare(&format!(
            "insert into limits.flights ({names})
             select * from unnest($1::text[], $2::text[], $3::int4[], $4::text[], $5::text[], $6::timestamptz[], $7::int4[], $8::text[])
             on conflict (flight_id) do update set {sets}"
        ))
        .await?;
    for Columns { texts: [id, carrier, origin, destination, remarks], numbers: [number, miles], times, .. } in share {
        client.execute(&statement, &[id, carrier, number, origin, destination, times, miles, remarks]).await?;
    }
    Ok(())
}

async fn copy(client: &Client, share: Vec<Columns>) -> anyhow::Result<()> {
    for columns in share {
        let sink = client.copy_in("copy limits.flights from stdin (format binary)").await?;
        let mut sink = std::pin::pin!(sink);
        sink.send(columns.copy).await?;
        sink.finish().await?;
    }
    Ok(())
}

/// A connection with nothing but the server's own settings.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
