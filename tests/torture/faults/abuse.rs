//! Clients that mean harm, or are broken: connections that say little, requests that are too large or mean two things, reads
//! that are given up. Those who behave go on meanwhile, and what came in by the back door would be a phantom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Fault, Field};

pub(super) const PATH: &str = "/v1/commands/Append";
/// A value of a client that sends none: should it be in the log, it came by the back door.
const HIDDEN: &str = r#"{"key":"list-0000","client":99,"n":1,"poison":0}"#;
/// Connections that send a byte now and then.
const SLOW: usize = 120;
/// How long an answer to abuse is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// I1: connections that say nothing, heads and bodies of a byte now and then.
pub async fn slow_clients(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let address = address(field, "ingest")?;
    // Longer than the server waits for a head, or for a body that hardly moves.
    let outage = field.outage(14, 17);
    let injected =
        field.begin(format!("150 idle connections, 60 slow heads and 60 slow bodies for {outage:?}")).await?;
    let acknowledged = field.workload.acknowledged();
    let mut all = JoinSet::new();
    for n in 0..270 {
        let first = match n {
            0..150 => String::new(),
            150..210 => format!("POST {PATH} HTTP/1.1\r\nhost: a\r\n"),
            _ => format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"),
        };
        let idle = first.is_empty();
        all.spawn(async move {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.write_all(first.as_bytes()).await.ok()?;
            let begun = Instant::now();
            while begun.elapsed() < outage {
                tokio::time::sleep(Duration::from_millis(400)).await;
                if !idle && stream.write_all(b"x").await.is_err() {
                    return None;
                }
            }
            Some((stream, idle))
        });
    }
    let (mut open, mut slow) = (0, 0);
    while let Some(ended) = all.join_next().await {
        let Some((_, idle)) = ended? else { continue };
        (open, slow) = (open + 1, slow + usize::from(!idle));
    }
    let meanwhile = field.workload.acknowledged() - acknowledged;
    let recovery = field.recovery(injected.at).await;
    let observed = format!("{} of 270 ended by the server, {meanwhile} values acknowledged meanwhile", 270 - open);
    let mut fault = field.end(injected, (slow < SLOW).then_some(observed), recovery);
    if slow > 0 {
        fault.wrong.push(format!(
            "{slow} of {SLOW} heads and bodies of a byte now and then are still waited for after {outage:.1?}"
        ));
    }
    if meanwhile == 0 {
        fault.wrong.push("nothing was acknowledged meanwhile".to_owned());
    }
    Ok(fault)
}

/// I2, I5: requests that are larger than they may be, lie about their length, or mean one thing to one reader and another
/// to the next.
pub async fn malformed_requests(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let address = address(field, "ingest")?;
    let requests = malformed();
    let outage = field.outage(3, 6);
    let injected = field.begin(format!("{} kinds of malformed requests for {outage:?}", requests.len())).await?;
    let (begun, mut told) = (Instant::now(), BTreeMap::<u16, usize>::new());
    while begun.elapsed() < outage {
        let mut all = JoinSet::new();
        for request in &requests {
            all.spawn(statuses(address, request.clone()));
        }
        while let Some(statuses) = all.join_next().await {
            for status in statuses? {
                *told.entry(status).or_default() += 1;
            }
        }
    }
    let recovery = field.recovery(injected.at).await;
    let refused: usize = told.range(400..500).map(|(_, count)| count).sum();
    let mut fault = field.end(injected, (refused > 0).then(|| format!("answered {told:?}")), recovery);
    let others = told.iter().filter(|(status, _)| !(400..500).contains(*status) && !matches!(**status, 429 | 503));
    fault.wrong.extend(others.map(|(status, count)| format!("{count} malformed requests were answered {status}")));
    Ok(fault)
}

fn malformed() -> Vec<Vec<u8>> {
    let head = |fields: &str| format!("POST {PATH} HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    let hidden = format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{HIDDEN}", HIDDEN.len());
    // What is shown is no value, so that nothing of it may be written either.
    let shown = "{}";
    let chunked = format!("{:x}\r\n{shown}\r\n0\r\n\r\n{hidden}", shown.len());
    let texts = [
        head(&format!("x: {}\r\n", "x".repeat(64 << 10))),
        head(&"a: b\r\n".repeat(2000)),
        format!("POST /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(70_000)),
        head("content-length: 99999999999\r\n"),
        head("connection: close\r\ncontent-length: 200000\r\n") + &format!("{{\"key\":{}", "[".repeat(199_993)),
        head(&format!("content-length: 2\r\ncontent-length: {}\r\n", 2 + hidden.len())) + shown + &hidden,
        head("content-length: 2, 3\r\n") + shown + &hidden,
        head("content-length: +2\r\n") + shown + &hidden,
        head("content-length : 2\r\n") + shown + &hidden,
        head("x: y\r\n content-length: 0\r\ncontent-length: 2\r\n") + shown + &hidden,
        head("transfer-encoding: xchunked\r\n") + &chunked,
        head(&format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", chunked.len())) + &chunked,
        head(&format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n", chunked.len())) + &chunked,
        format!("POST {PATH} HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: 2\r\n\r\n{shown}{hidden}"),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}

/// Sends a request and reads until the connection ends; the statuses of all answers.
async fn statuses(address: SocketAddr, request: Vec<u8>) -> Vec<u16> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // What is refused early is not taken to its end.
        let _ = stream.write_all(&request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.ok().and_then(Result::ok).unwrap_or_default();
    let text = String::from_utf8_lossy(&answer);
    text.match_indices("HTTP/1.1 ").filter_map(|(at, _)| text[at + 9..].get(..3)?.parse().ok()).collect()
}

/// P11: clients give up their reads while Postgres is at work for them.
pub async fn reads_given_up(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let address = address(field, "serve")?;
    let outage = field.outage(3, 6);
    let injected = field.begin(format!("reads that are given up after 0 to 20 ms, for {outage:?}")).await?;
    let (begun, mut given_up) = (Instant::now(), 0);
    while begun.elapsed() < outage {
        let mut all = JoinSet::new();
        for n in 0..100 {
            let (key, patience) = (field.random.below(crate::values::KEYS), field.random.below(20_000));
            // Every other one reads much, the others little.
            let path = if n % 2 == 0 { "appends?limit=1000".into() } else { format!("chains?key=eq.list-{key:04}") };
            let request = format!("GET /v1/views/{path} HTTP/1.1\r\nhost: a\r\n\r\n");
            all.spawn(async move {
                let mut stream = TcpStream::connect(address).await.ok()?;
                stream.write_all(request.as_bytes()).await.ok()?;
                tokio::time::sleep(Duration::from_micros(patience)).await;
                // A reset, as of a client that was killed.
                stream.set_zero_linger().ok()
            });
        }
        while let Some(ended) = all.join_next().await {
            given_up += usize::from(ended?.is_some());
        }
    }
    let stuck = stuck(field).await?;
    let recovery = field.recovery(injected.at).await;
    let observed = format!("{given_up} reads given up, {stuck} sessions of serve in an open transaction after it");
    let mut fault = field.end(injected, (given_up > 0).then_some(observed), recovery);
    if stuck > 0 {
        fault.wrong.push(format!("{stuck} sessions of serve are left in an open transaction"));
    }
    Ok(fault)
}

/// Sessions of `serve` that have been in a transaction for longer than any read takes.
async fn stuck(field: &Field<'_>) -> anyhow::Result<i64> {
    let sql = "select count(*) from pg_stat_activity where datname = current_database()
                and application_name like 'millpond serve%' and state like 'idle in transaction%'
                and state_change < now() - interval '1 s'";
    Ok(sqlx::query_scalar(sql).fetch_one(&mut field.arena.connect().await?).await?)
}

/// Where a process of a role listens.
fn address(field: &mut Field<'_>, role: &str) -> anyhow::Result<SocketAddr> {
    let slot = field.any(role)?;
    let web = field.arena.slots[slot].web.borrow().clone().context("it runs")?;
    Ok(web.base.trim_start_matches("http://").parse()?)
}
