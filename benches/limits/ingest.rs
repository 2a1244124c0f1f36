//! Ingest, one event a request and 500, beside a bare HTTP handler and librdkafka alone.

use std::{sync::Arc, time::Duration};

use crate::{
    Bench, bare,
    http::{self, Outcome, Requests, Until},
    kafka::{self, Headers},
    millpond::Running,
    project::{Backlog, COMMAND, Flight},
    report::Report,
    stats::Series,
};

/// Requests that differ.
const DIFFERENT: u64 = 20_000;
/// Records of one bulk request.
pub const BULK: u64 = 500;
/// Connections that post in bulk.
pub const BULK_CONNECTIONS: usize = 16;
/// Records that librdkafka alone writes in one repetition.
const LIMIT_RECORDS: usize = 1_000_000;

/// See [`warm_up`].
const BROKER_WARM_UP: Duration = Duration::from_secs(15);

/// Rates, latencies and CPU time of one contestant.
#[derive(Debug, Default)]
pub struct Measured {
    pub rate: Series,
    p50: Series,
    p99: Series,
    /// Microseconds a request.
    cpu: Series,
}

impl Measured {
    pub fn add(&mut self, (outcome, cpu, records): (Outcome, f64, u64)) {
        self.rate.add(outcome.rate * records as f64);
        self.p50.add(outcome.p50.as_secs_f64() * 1e3);
        self.p99.add(outcome.p99.as_secs_f64() * 1e3);
        // The warm-up is in the CPU time and not among the requests: a tenth, and the same for all.
        self.cpu.add(cpu * 1e6 / (outcome.requests * records) as f64);
    }

    pub fn more(&self) -> String {
        format!(
            "p50 {:.1} ms, p99 {:.1} ms, CPU {:.1} µs each",
            self.p50.median(),
            self.p99.median(),
            self.cpu.median()
        )
    }
}

/// One event a request, with 256 and with 64 connections.
pub async fn single(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("single events over HTTP");
    let requests = single_requests(bench.ids);
    let limit = bare::start().await?;
    let ingest = Running::role(bench, "ingest", &bench.project, &[]).await?;
    let idle = ingest.idle_memory().await?;

    let records = kafka::records()?;
    let mut alone = Series::default();
    let mut measured: [[Measured; 2]; 2] = Default::default();
    warm_up(&ingest, &requests, 256).await?;
    for _ in 0..bench.repetitions {
        let (brokers, records) = (bench.brokers.clone(), records.clone());
        let produce = move || kafka::produce(&brokers, &records, LIMIT_RECORDS, Headers::None);
        alone.add(tokio::task::spawn_blocking(produce).await??);
        for (connections, [bare, ours]) in [256, 64].into_iter().zip(&mut measured) {
            bare.add(under_load(&limit, connections, &requests, bench).await?);
            ours.add(under_load(&ingest, connections, &requests, bench).await?);
        }
    }
    report.rate("librdkafka alone, keyed", &alone, "records/s", "");
    for (connections, [bare, ours]) in [256, 64].into_iter().zip(&measured) {
        report.rate(&format!("bare axum handler, {connections} connections"), &bare.rate, "requests/s", &bare.more());
        report.rate(&format!("Millpond ingest, {connections} connections"), &ours.rate, "events/s", &ours.more());
        let target = (connections == 256).then_some(0.45);
        report.ratio(
            &format!("single events, {connections} connections / bare handler"),
            &ours.rate,
            &bare.rate,
            target,
        );
        report.ratio(&format!("single events, {connections} connections / librdkafka alone"), &ours.rate, &alone, None);
    }
    report.memory("ingest, single events", idle, ingest.peak_memory()?);
    ingest.stop().await
}

/// Requests with one event each.
pub fn single_requests(ids: bool) -> Requests {
    let path = format!("/v1/commands/{COMMAND}");
    let flights = (0..DIFFERENT).map(|n| Flight::new(n, n).json());
    let post = |(n, json): (usize, String)| http::post(&path, "application/json", ids.then_some(n), json.as_bytes());
    flights.enumerate().map(post).collect()
}

/// Has the broker run this load for a while before anything is measured: it compiles itself as it goes, on the CPUs that
/// everybody shares, and what it costs meanwhile nobody meets who runs it for longer than a minute.
pub async fn warm_up(ingest: &Running, requests: &Requests, connections: usize) -> anyhow::Result<()> {
    http::load(ingest.address, connections, requests, 202, Until::Elapsed(BROKER_WARM_UP)).await.map(drop)
}

/// Outcome, CPU seconds, records a request.
pub async fn under_load(
    process: &Running,
    connections: usize,
    requests: &Requests,
    bench: &Bench,
) -> anyhow::Result<(Outcome, f64, u64)> {
    let before = process.cpu()?;
    let outcome = http::load(process.address, connections, requests, 202, Until::Elapsed(bench.span)).await?;
    Ok((outcome, process.cpu()? - before, 1))
}

/// 500 events a request.
pub async fn bulk(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("bulk of {BULK} over HTTP");
    let requests = bulk_requests(bench.ids, COMMAND, (0..DIFFERENT * 5).map(|n| Flight::new(n, n)));
    let ingest = Running::role(bench, "ingest", &bench.project, &[]).await?;
    let idle = ingest.idle_memory().await?;
    let records = kafka::records()?;
    let (mut alone, mut with_headers, mut ours) = (Series::default(), Series::default(), Measured::default());
    warm_up(&ingest, &requests, BULK_CONNECTIONS).await?;
    for _ in 0..bench.repetitions {
        for (series, headers) in [(&mut alone, Headers::None), (&mut with_headers, Headers::AsIngest)] {
            let (brokers, records) = (bench.brokers.clone(), records.clone());
            let produce = move || kafka::produce(&brokers, &records, LIMIT_RECORDS, headers);
            series.add(tokio::task::spawn_blocking(produce).await??);
        }
        let (outcome, cpu, _) = under_load(&ingest, BULK_CONNECTIONS, &requests, bench).await?;
        ours.add((outcome, cpu, BULK));
    }
    report.rate("librdkafka alone, keyed (bulk's turn)", &alone, "records/s", "");
    report.rate("librdkafka alone, with ingest's headers", &with_headers, "records/s", "");
    report.rate(&format!("Millpond ingest, bulk of {BULK}"), &ours.rate, "events/s", &ours.more());
    report.ratio("bulk / librdkafka alone", &ours.rate, &alone, Some(0.6));
    report.ratio("bulk / librdkafka alone with the same headers", &ours.rate, &with_headers, None);
    report.memory("ingest, bulk", idle, ingest.peak_memory()?);
    ingest.stop().await
}

/// Posts a backlog for the sink: `records` of `keys` keys, in an order that looks random.
pub async fn backlog(bench: &Bench, of: &Backlog, records: usize, keys: usize) -> anyhow::Result<()> {
    let ingest = Running::role(bench, "ingest", &bench.project, &[]).await?;
    let mut random = crate::project::Random(7);
    let flights = (0..records as u64).map(|n| Flight::new(random.below(keys as u64), n));
    let requests = bulk_requests(bench.ids || of.ids, of.record, flights);
    http::load(ingest.address, BULK_CONNECTIONS, &requests, 202, Until::Sent).await?;
    ingest.stop().await
}

pub fn bulk_requests(ids: bool, record: &str, mut flights: impl Iterator<Item = Flight>) -> Requests {
    let path = format!("/v1/commands/{record}");
    let mut requests = Vec::new();
    loop {
        let lines: Vec<String> = flights.by_ref().take(BULK as usize).map(|flight| flight.json()).collect();
        if lines.is_empty() {
            return Arc::from(requests);
        }
        let key = ids.then_some(requests.len());
        requests.push(http::post(&path, "application/x-ndjson", key, lines.join("\n").as_bytes()));
    }
}
