//! I3: bodies that unfold without end. They are refused for what they are, in the memory that a request may take, and unread
//! before the key is known; good clients go on meanwhile.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;

use super::abuse::PATH;
use super::measure::{forget_peak, peak, resident};
use super::{Fault, Field, SHOWS_WITHIN};
use crate::random::Random;
use crate::wire::{Wire, answers};

/// What all bombs of one round may take of a process together, beside what good clients do.
const MOST_MIB: u64 = 128;
const MIB: usize = 1 << 20;
/// What small bombs unfold to.
const UNFOLDED: usize = 512 * MIB;
/// A key, and the node that wants one.
const KEY: &str = "torture";
const LOCKED: &str = "ingest-locked";
const LOCKED_SETTINGS: &[&str] = &["http.keys_file=keys"];

/// One kind of request, and what it has to be answered.
struct Bomb {
    name: &'static str,
    locked: bool,
    expected: u16,
    request: Arc<Vec<u8>>,
}

/// Throws all kinds of bombs, again and again.
pub async fn unfold(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let open = field.any("ingest")?;
    let locked = locked(field).await?;
    let bombs = bombs(&mut field.random.fork())?;
    let outage = field.outage(5, 9);
    let injected = field.begin(format!("{} kinds of bombs for {outage:?}", bombs.len())).await?;
    let nodes = [open, locked].map(|slot| field.arena.slots[slot].process.as_ref().map_or(0, |process| process.pid()));
    let before = nodes.map(|pid| resident(pid).unwrap_or(0));
    nodes.into_iter().for_each(forget_peak);
    let acknowledged = field.workload.acknowledged();
    let addresses = [address(field, open)?, address(field, locked)?];
    let (begun, mut thrown) = (Instant::now(), 0);
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    while begun.elapsed() < outage || thrown == 0 {
        let mut all = JoinSet::new();
        for bomb in &bombs {
            let (to, request) = (addresses[usize::from(bomb.locked)], Arc::clone(&bomb.request));
            let (name, expected) = (bomb.name, bomb.expected);
            all.spawn(async move { (name, expected, answers(&Wire::connect(to).await.exchange(&*request).await)) });
        }
        while let Some(answered) = all.join_next().await {
            thrown += 1;
            // Who waits for an answer without end, ends.
            let Ok((name, expected, answered)) = answered else {
                *others.entry("a bomb was not answered within a minute".into()).or_default() += 1;
                continue;
            };
            if answered != [expected] {
                *others
                    .entry(format!("{name} was answered {answered:?}, where it has to be {expected}"))
                    .or_default() += 1;
            }
        }
    }
    let meanwhile = field.workload.acknowledged() - acknowledged;
    let grown = nodes.iter().zip(before).map(|(pid, before)| peak(*pid).unwrap_or(0).saturating_sub(before) >> 20);
    let grown = grown.max().unwrap_or(0);
    let recovery = field.recovery(injected.at).await;
    let observed = format!("{thrown} bombs, at most {grown} MiB on top, {meanwhile} values acknowledged meanwhile");
    let mut fault = field.end(injected, (meanwhile > 0).then_some(observed), recovery);
    fault.wrong.extend(others.into_iter().map(|(what, times)| format!("{what}, {times} times")));
    if grown > MOST_MIB {
        fault.wrong.push(format!("an ingest node took {grown} MiB for bombs, where {MOST_MIB} MiB have to do"));
    }
    Ok(fault)
}

/// A node that wants a key.
async fn locked(field: &mut Field<'_>) -> anyhow::Result<usize> {
    if let Some(there) = field.arena.slots.iter().position(|slot| slot.name == LOCKED) {
        return Ok(there);
    }
    let keys = format!("rig {} *\n", millpond::http::auth::hash_key(KEY));
    std::fs::write(field.arena.folder().join("keys"), keys)?;
    // Not of the role's name: those who look for ingest nodes look for nodes that take what they send.
    let slot = field.arena.add(field.servers, LOCKED, "ingest", LOCKED_SETTINGS).await?;
    field.note_pids();
    let (web, begun) = (field.arena.slots[slot].web.borrow().clone().context("it runs")?, Instant::now());
    while web.try_get("/readyz", &[]).await.is_ok_and(|answer| answer.status != 200) && begun.elapsed() < SHOWS_WITHIN {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(slot)
}

fn address(field: &Field<'_>, slot: usize) -> anyhow::Result<SocketAddr> {
    let web = field.arena.slots[slot].web.borrow().clone().context("it runs")?;
    Ok(web.base.trim_start_matches("http://").parse()?)
}

fn bombs(random: &mut Random) -> anyhow::Result<Vec<Bomb>> {
    let (gzip, zstd) = (repeated(gzip)?, repeated(zstd)?);
    let record = r#"[{"key":"list-0000","client":99,"n":1,"poison":0}]"#.as_bytes();
    let (whole_gzip, whole_zstd) = (self::gzip(record)?, self::zstd(record)?);
    let key = format!("authorization: Bearer {KEY}\r\n");
    let lenient = "prefer: handling=lenient\r\ncontent-type: application/x-ndjson\r\n";
    // Compressed as well as ordinary records at best are: it is only its size that gives it away.
    let patient = below_the_ratio(random)?;
    let bomb = |name, locked, expected, encoding: &str, headers: &str, body: &[u8]| {
        let mut head =
            format!("POST {PATH} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-encoding: {encoding}\r\n");
        let _ = write!(head, "{headers}content-length: {}\r\n\r\n", body.len());
        Bomb { name, locked, expected, request: Arc::new([head.as_bytes(), body].concat()) }
    };
    Ok(vec![
        bomb("gzip", false, 413, "gzip", "", &gzip),
        bomb("zstd", false, 413, "zstd", "", &zstd),
        bomb("gzip, lenient", false, 413, "gzip", lenient, &gzip),
        bomb("zstd, lenient", false, 413, "zstd", lenient, &zstd),
        bomb("zstd below the ratio", false, 413, "zstd", "", &patient),
        bomb("gzip in gzip", false, 415, "gzip, gzip", "", &self::gzip(&gzip)?),
        bomb("zstd in gzip", false, 415, "zstd, gzip", "", &self::gzip(&zstd)?),
        bomb("brotli", false, 415, "br", "", record),
        bomb("gzip, cut off", false, 400, "gzip", "", &whole_gzip[..whole_gzip.len() - 9]),
        bomb("zstd, cut off", false, 400, "zstd", "", &whole_zstd[..whole_zstd.len() - 3]),
        bomb("gzip that is none", false, 400, "gzip", "", record),
        bomb("zstd that is none", false, 400, "zstd", "", record),
        bomb("gzip without a key", true, 401, "gzip", "", &gzip),
        bomb("zstd without a key", true, 401, "zstd", "", &zstd),
        bomb("gzip with a key", true, 413, "gzip", &key, &gzip),
        bomb("zstd with a key", true, 413, "zstd", &key, &zstd),
    ])
}

/// White space, compressed MiB by MiB: as many members of gzip or frames of zstd, which are one body.
fn repeated(compress: fn(&[u8]) -> anyhow::Result<Vec<u8>>) -> anyhow::Result<Vec<u8>> {
    Ok(compress(&vec![b' '; MIB])?.repeat(UNFOLDED / MIB))
}

/// 80 MiB of white space in less than a hundredth: noise in it takes room.
fn below_the_ratio(random: &mut Random) -> anyhow::Result<Vec<u8>> {
    let mut piece: Vec<u8> = (0..56_000).map(|_| b" \t\r\n"[usize::try_from(random.below(4)).unwrap_or(0)]).collect();
    piece.resize(MIB, b' ');
    let piece = zstd(&piece)?;
    anyhow::ensure!(MIB / piece.len() < 90, "a MiB is {} bytes, and so a bomb like the others", piece.len());
    Ok(piece.repeat(80))
}

fn gzip(of: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(of)?;
    Ok(out.finish()?)
}

fn zstd(of: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(zstd::encode_all(of, 3)?)
}
