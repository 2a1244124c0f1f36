//! I4: what HTTP/2 lets a client ask of a server for little of its own. Each flood ends with the connection that it comes on,
//! at a bounded price, and good clients go on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::abuse::PATH;
use super::measure::{forget_peak, peak, resident};
use super::{Fault, Field};
use crate::watch::processor_time;
use crate::wire::Wire;
use crate::wire::h2::{
    CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING, RST_STREAM, SETTINGS, frame, frames, goaway,
    head, opening, request,
};

const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();
/// How long a client that reads nothing tries to write.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longer than any bound of the server's by default: those of an answer that nobody takes (20 s) and of a ping.
const ENDS_WITHIN: Duration = Duration::from_secs(45);
/// What a flood and the good clients meanwhile may cost in seconds of processor time, on an unoptimised build.
const PRICE: f64 = 15.0;
/// What all floods at once may take of memory.
const MOST_MIB: u64 = 96;

#[derive(Debug, Clone, Copy)]
enum Flood {
    /// 5,000 requests and their resets in one go.
    ResetsAtOnce,
    /// Requests that are given up when they are under way, so that nothing of HTTP/2 itself is exceeded.
    ResetsOneByOne,
    /// A head that never ends.
    Continuations,
    /// Three thousand fields.
    LargeHead,
    /// Each wants an acknowledgement, and the client reads none.
    Settings,
    Pings,
    /// Frames without data.
    EmptyData,
    /// Far more streams at once than are allowed.
    Streams,
    /// Answers that the client leaves no room for; pings show that it is alive.
    NoWindow,
}

const FLOODS: [Flood; 9] = [
    Flood::ResetsAtOnce,
    Flood::ResetsOneByOne,
    Flood::Continuations,
    Flood::LargeHead,
    Flood::Settings,
    Flood::Pings,
    Flood::EmptyData,
    Flood::Streams,
    Flood::NoWindow,
];

/// All floods against one node, one after another, so that each has a price.
pub async fn floods(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let slot = field.any("ingest")?;
    let web = field.arena.slots[slot].web.borrow().clone().context("it runs")?;
    let address: SocketAddr = web.base.trim_start_matches("http://").parse()?;
    let pid = field.arena.slots[slot].process.as_ref().context("it runs")?.pid();
    let injected =
        field.begin(format!("{} floods of HTTP/2 against {}", FLOODS.len(), field.arena.slots[slot].name)).await?;
    let before = resident(pid).unwrap_or(0);
    forget_peak(pid);
    let (acknowledged, mut broken, mut dearest) = (field.workload.acknowledged(), Vec::new(), (0.0, Flood::Pings));
    for flood in FLOODS {
        let (paid, begun, so_far) = (spent(pid), Instant::now(), field.workload.acknowledged());
        // One that waits for ever, or finds what it must not, ends its task only.
        let task = tokio::spawn(tokio::time::timeout(ENDS_WITHIN, flood.run(address)));
        match task.await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(what))) => broken.push(format!("{flood:?}: {what}")),
            Ok(Err(_)) | Err(_) => broken.push(format!("{flood:?} did not end within {ENDS_WITHIN:?}")),
        }
        let price = spent(pid) - paid;
        if price > dearest.0 {
            dearest = (price, flood);
        }
        if price > PRICE {
            broken.push(format!("{flood:?} cost {price:.1} s of processor time"));
        }
        if begun.elapsed() > PATIENCE && field.workload.acknowledged() == so_far {
            broken.push(format!("nothing was acknowledged during {flood:?}"));
        }
    }
    let meanwhile = field.workload.acknowledged() - acknowledged;
    let grown = peak(pid).unwrap_or(0).saturating_sub(before) >> 20;
    if grown > MOST_MIB {
        broken.push(format!("floods took {grown} MiB, where {MOST_MIB} MiB have to do"));
    }
    let recovery = field.recovery(injected.at).await;
    let observed = format!(
        "{} floods, at most {:.1} s of processor time ({:?}), {grown} MiB on top, {meanwhile} values acknowledged meanwhile",
        FLOODS.len(),
        dearest.0,
        dearest.1
    );
    let mut fault = field.end(injected, (meanwhile > 0).then_some(observed), recovery);
    fault.wrong = broken;
    Ok(fault)
}

fn spent(pid: i32) -> f64 {
    processor_time(pid).unwrap_or(0.0)
}

/// Numbers of streams as a client counts them.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

impl Flood {
    /// Runs until the other end has had enough; what it found that must not be.
    async fn run(self, to: SocketAddr) -> Result<(), String> {
        let mut wire = Wire::connect(to).await;
        match self {
            Self::ResetsAtOnce => {
                let pair =
                    |stream| [request(stream, true, PATH, false), frame(RST_STREAM, 0, stream, &CANCEL)].concat();
                wire.send([opening(&[]), streams(5000).flat_map(pair).collect()].concat()).await;
                let said = goaway(&wire.rest_bytes().await);
                met(said.is_none_or(|code| code == ENHANCE_YOUR_CALM), || format!("the last word was {said:?}"))
            }
            Self::ResetsOneByOne => {
                wire.send(opening(&[])).await;
                for stream in streams(5000) {
                    wire.send(request(stream, true, PATH, false)).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    if !wire.send(frame(RST_STREAM, 0, stream, &CANCEL)).await {
                        return Ok(());
                    }
                }
                Err("5,000 resets were taken".into())
            }
            Self::Continuations => {
                wire.send([opening(&[]), frame(HEADERS, 0, 1, &head(false, "/livez"))].concat()).await;
                // A field of 16 KiB in each.
                let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x7e][..], &[b'x'; 16_000][..]].concat();
                let sent = wire.flood(&frame(CONTINUATION, 0, 1, &field), 100_000, PATIENCE).await;
                wire.rest_bytes().await;
                met(sent < 1000, || format!("{sent} continuations were taken"))
            }
            Self::LargeHead => {
                let fields = [0x00, 0x01, b'x', 0x01, b'y'].repeat(3000);
                let block = [head(false, "/livez"), fields].concat();
                wire.send([opening(&[]), frame(HEADERS, END_STREAM | 4, 1, &block)].concat()).await;
                let came = wire.rest_bytes().await;
                met(frames(&came).iter().all(|(kind, ..)| *kind != DATA), || "it was answered".into())
            }
            Self::Settings => endless(wire, opening(&[]), &frame(SETTINGS, 0, 0, &[]), 100_000).await,
            Self::Pings => endless(wire, opening(&[]), &frame(PING, 0, 0, &[7; 8]), 100_000).await,
            Self::EmptyData => {
                let begin = [opening(&[]), request(1, true, PATH, false)].concat();
                endless(wire, begin, &frame(DATA, 0, 1, &[]), 10_000).await
            }
            Self::Streams => {
                wire.send(opening(&[])).await;
                wire.send(streams(1000).flat_map(|stream| request(stream, true, PATH, false)).collect::<Vec<_>>())
                    .await;
                let came = wire.rest_bytes().await;
                let refused = frames(&came).iter().filter(|(kind, ..)| *kind == RST_STREAM).count();
                met(refused >= 800, || format!("{refused} of 1000 streams were refused"))
            }
            Self::NoWindow => {
                wire.send(opening(&[(SETTINGS_INITIAL_WINDOW_SIZE, 0)])).await;
                wire.send(streams(100).flat_map(|stream| request(stream, false, "/metrics", true)).collect::<Vec<_>>())
                    .await;
                // Until the server has had enough, or `ENDS_WITHIN` is over.
                while wire.stream.try_write(&frame(PING, 0, 0, &[1; 8])).is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok(())
            }
        }
    }
}

/// The same frame a thousand times, again and again: at some time nothing of it may be taken any more.
async fn endless(mut wire: Wire, begin: Vec<u8>, frame: &[u8], most: usize) -> Result<(), String> {
    wire.send(begin).await;
    let sent = wire.flood(&frame.repeat(1000), most, PATIENCE).await;
    met(sent < most, || "it was taken without end".into())
}

fn met(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
