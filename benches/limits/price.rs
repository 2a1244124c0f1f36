//! The price of being sure, in one run: Millpond with ids of clients, parked keys and a relay in transactions beside Millpond
//! without. Both take turns, repetition by repetition; what is told is their ratio.

use std::time::{Duration, Instant};

use anyhow::bail;
use tokio_postgres::Client;

use crate::{
    Bench,
    http::Requests,
    ingest::{self, BULK, BULK_CONNECTIONS, Measured},
    millpond::Running,
    project::{BACKLOG, BACKLOG_WITH_IDS, Backlog, COMMAND, Flight, LIMIT_TOPIC},
    report::Report,
    sink::{self, Case},
    stats::Series,
};

/// Connections that post one event a request.
const CONNECTIONS: usize = 256;
/// Events of the bulk requests, which differ.
const BULK_EVENTS: u64 = 100_000;
/// How often relays take turns: one without transactions is slow, and takes most of the time.
const RELAYED: usize = 2;
/// Events that a relay sends in one repetition: with transactions, and one by one.
const IN_TRANSACTIONS: i64 = 30_000;
const ONE_BY_ONE: i64 = 1_500;
/// Source partitions of the backlog.
const PARTITIONS: i64 = 6;
const SENT_WITHIN: Duration = Duration::from_secs(30);

pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    posting(bench, report).await?;
    let client = sink::connect(&bench.postgres).await?;
    applying(bench, &client, report).await?;
    relaying(bench, &client, report).await
}

/// Ingest: without ids, and with an `Idempotency-Key` in each request.
async fn posting(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("price: posting with ids of clients");
    let bulk = |ids| ingest::bulk_requests(ids, COMMAND, (0..BULK_EVENTS).map(|n| Flight::new(n, n)));
    let single = [false, true].map(ingest::single_requests);
    let bulk = [false, true].map(bulk);
    let kinds: [(&str, usize, u64, &[Requests; 2]); 2] =
        [("single events", CONNECTIONS, 1, &single), ("bulk", BULK_CONNECTIONS, BULK, &bulk)];
    let process = Running::role(bench, "ingest", &bench.project, &[]).await?;
    ingest::warm_up(&process, &bulk[0], BULK_CONNECTIONS).await?;
    for (what, connections, records, requests) in kinds {
        let mut measured: [Measured; 2] = Default::default();
        for _ in 0..bench.repetitions {
            for (measured, requests) in measured.iter_mut().zip(requests) {
                let (outcome, cpu, _) = ingest::under_load(&process, connections, requests, bench).await?;
                measured.add((outcome, cpu, records));
            }
        }
        let [without, with] = &measured;
        report.rate(&format!("ingest, {what}, no ids"), &without.rate, "events/s", &without.more());
        report.rate(&format!("ingest, {what}, ids of clients"), &with.rate, "events/s", &with.more());
        report.ratio(&format!("ingest, {what}: ids / no ids"), &with.rate, &without.rate, None);
    }
    process.stop().await
}

/// A way to run consumers and the relay beside them.
struct Way {
    name: &'static str,
    what: &'static str,
    backlog: &'static Backlog,
    on_error: &'static str,
    transactions: &'static str,
}

const WAYS: [Way; 3] = [
    Way { name: "bare", what: "no ids, skip, plain relay", backlog: &BACKLOG, on_error: "skip", transactions: "off" },
    Way {
        name: "parks",
        what: "no ids, park_key, transactions",
        backlog: &BACKLOG,
        on_error: "park_key",
        transactions: "required",
    },
    Way {
        name: "sure",
        what: "ids and dedupe, park_key, transactions",
        backlog: &BACKLOG_WITH_IDS,
        on_error: "park_key",
        transactions: "required",
    },
];

/// The sink over two connections, with a relay at its side.
async fn applying(bench: &Bench, client: &Client, report: &mut Report) -> anyhow::Result<()> {
    // Half of what `sink` has: there are two backlogs.
    let (records, keys) = (bench.backlog.0 / 2, bench.backlog.1);
    eprintln!("price: applying {records} records of {keys} keys, without ids and with");
    for backlog in [&BACKLOG, &BACKLOG_WITH_IDS] {
        ingest::backlog(bench, backlog, records, keys).await?;
    }
    let mut rates: [Series; 3] = Default::default();
    let mut cpus: [Series; 3] = Default::default();
    for repetition in 0..bench.repetitions {
        for (way, (rate, cpu)) in WAYS.iter().zip(rates.iter_mut().zip(&mut cpus)) {
            let publish = relay(bench, way.transactions).await?;
            let name = format!("price_{}_r{repetition}", way.name);
            let case = Case { name: &name, backlog: way.backlog, on_error: way.on_error, connections: 2 };
            let drained = sink::drain(bench, client, &case).await?;
            rate.add(records as f64 / drained.seconds);
            cpu.add(drained.cpu * 1e6 / records as f64);
            publish.stop().await?;
        }
    }
    for (way, (rate, cpu)) in WAYS.iter().zip(rates.iter().zip(&cpus)) {
        let more = format!("CPU {:.1} µs each", cpu.median());
        report.rate(&format!("sink, {}", way.what), rate, "records/s", &more);
    }
    for (way, rate) in WAYS.iter().zip(&rates).skip(1) {
        report.ratio(&format!("sink: {} / {}", way.what, WAYS[0].what), rate, &rates[0], None);
    }
    Ok(())
}

async fn relay(bench: &Bench, transactions: &str) -> anyhow::Result<Running> {
    Running::role(bench, "publish", &bench.project, &[&format!("publish.transactions={transactions}")]).await
}

/// The relay alone, on an outbox that is filled at once.
async fn relaying(bench: &Bench, client: &Client, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("price: relaying downstream events");
    let (mut plain, mut in_transactions) = (Series::default(), Series::default());
    let mut first = 1;
    for _ in 0..RELAYED.min(bench.repetitions) {
        for (transactions, events, series) in
            [("off", ONE_BY_ONE, &mut plain), ("required", IN_TRANSACTIONS, &mut in_transactions)]
        {
            let publish = relay(bench, transactions).await?;
            // It leads, and knows the topic.
            fill(client, &mut first, PARTITIONS).await?;
            emptied(client).await?;
            fill(client, &mut first, events).await?;
            let begun = Instant::now();
            emptied(client).await?;
            series.add(events as f64 / begun.elapsed().as_secs_f64());
            publish.stop().await?;
        }
    }
    report.rate("relay, one by one", &plain, "events/s", "");
    report.rate("relay, in transactions", &in_transactions, "events/s", "");
    report.ratio("relay: in transactions / one by one", &in_transactions, &plain, None);
    Ok(())
}

/// Puts `events` events of 300 bytes into the outbox, from number `first` on, as many of each source partition.
async fn fill(client: &Client, first: &mut i64, events: i64) -> anyhow::Result<()> {
    let each = events / PARTITIONS;
    let sql = format!(
        "insert into millpond.outbox (projection, version, topic, partition, out_seq, source_offset, index, event_id,
            target_topic, record_type, key, payload)
         select 'price_bare_r0', 1, '{topic}', p, {first} + n, {first} + n, 0, gen_random_uuid(), '{LIMIT_TOPIC}', 'E',
                convert_to(n::text, 'UTF8'), decode(repeat('ab', 300), 'hex')
           from generate_series(0, {PARTITIONS} - 1) p cross join generate_series(0, {each} - 1) n",
        topic = BACKLOG.topic
    );
    client.batch_execute(&sql).await?;
    *first += each;
    Ok(())
}

async fn emptied(client: &Client) -> anyhow::Result<()> {
    let look = client.prepare("select exists (select from millpond.outbox)").await?;
    let begun = Instant::now();
    while client.query_one(&look, &[]).await?.get(0) {
        if begun.elapsed() > SENT_WITHIN {
            bail!("the outbox is not empty after {} s", SENT_WITHIN.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
