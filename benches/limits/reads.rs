//! Reads by key over HTTP, beside prepared selects by primary key on the same table with pgbench.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, bail};

use crate::{
    Bench,
    http::{self, Requests, Until},
    millpond::Running,
    project::{Random, flight_id},
    report::Report,
    sink::{CONSUMER, connect},
    stats::Series,
};

const DIFFERENT: usize = 20_000;
const CONNECTIONS: usize = 64;
const PGBENCH_CLIENTS: &str = "8";

pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("reads by key");
    let client = connect(&bench.postgres).await?;
    let physical: String = client
        .query_one("select schema_name || '.' || $1 from millpond.versions where projection = $1", &[&CONSUMER])
        .await?
        .get(0);
    for statement in [&format!("vacuum analyze {physical}"), "checkpoint"] {
        client.batch_execute(statement).await?;
    }
    let script = bench.project.folder.join("select.sql");
    let keys = bench.backlog.1;
    let prefix = flight_id(0).trim_end_matches('0').to_owned();
    std::fs::write(
        &script,
        format!(
            "\\set n random(0, {})\nselect * from {physical} where flight_id = '{prefix}' || lpad(:n::text, 8, '0');\n",
            keys - 1
        ),
    )?;
    let mut random = Random(11);
    let request = |_| http::get(&format!("/v1/views/{CONSUMER}?flight_id=eq.{}", flight_id(random.below(keys as u64))));
    let requests: Requests = (0..DIFFERENT).map(request).collect();

    let serve = Running::role(bench, "serve", &bench.project, &[]).await?;
    let idle = serve.idle_memory().await?;
    let pgbench = pgbench()?;
    let (mut limit, mut ours) = (Series::default(), Series::default());
    let (mut p99, mut cpu) = (Series::default(), Series::default());
    for _ in 0..bench.repetitions {
        let (pgbench, script, url) = (pgbench.clone(), script.clone(), bench.postgres.clone());
        let seconds = bench.span.as_secs().to_string();
        limit.add(tokio::task::spawn_blocking(move || transactions(&pgbench, &script, &url, &seconds)).await??);
        let before = serve.cpu()?;
        let outcome = http::load(serve.address, CONNECTIONS, &requests, 200, Until::Elapsed(bench.span)).await?;
        ours.add(outcome.rate);
        p99.add(outcome.p99.as_secs_f64() * 1e3);
        cpu.add((serve.cpu()? - before) * 1e6 / outcome.requests as f64);
    }
    report.rate(&format!("pgbench, prepared select by key, {PGBENCH_CLIENTS} clients"), &limit, "reads/s", "");
    let more = format!("p99 {:.1} ms, CPU {:.1} µs each", p99.median(), cpu.median());
    report.rate(&format!("Millpond serve, GET by key, {CONNECTIONS} connections"), &ours, "reads/s", &more);
    report.ratio("point reads / pgbench", &ours, &limit, Some(0.5));
    report.memory("serve", idle, serve.peak_memory()?);
    serve.stop().await
}

fn pgbench() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin"];
    let mut folders = std::env::split_paths(&path).chain(usual.map(PathBuf::from));
    let found = folders.find_map(|folder| Some(folder.join("pgbench")).filter(|program| program.is_file()));
    found.context("pgbench not found: it comes with the Postgres server's or the contrib package; put it on the PATH")
}

/// Transactions per second.
fn transactions(program: &std::path::Path, script: &std::path::Path, url: &str, seconds: &str) -> anyhow::Result<f64> {
    let output = Command::new(program)
        .args(["-M", "prepared", "-n", "-c", PGBENCH_CLIENTS, "-j", "2", "-T", seconds, "-f"])
        .arg(script)
        .arg(url)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = "));
    match tps.and_then(|rest| rest.split(' ').next()?.parse().ok()) {
        Some(tps) if output.status.success() => Ok(tps),
        _ => bail!("pgbench failed: {text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}
