//! What HTTP/2 lets a client ask of a server for little of its own (I4): each flood ends with the connection that it comes
//! on, at a bounded price.

use std::time::Duration;

use super::scale;
use super::target::{Good, PATH, Target};
use super::wire::{
    Wire,
    h2::{
        CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING, RST_STREAM, SETTINGS, frame, frames, goaway,
        opening, request,
    },
};

const PAUSE: Duration = Duration::from_millis(40);
const SLACK: usize = 48 << 20;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();
/// CPU time that one flood may cost a debug build.
const PRICE: Duration = Duration::from_secs(20);

/// Numbers of streams as a client counts them.
fn streams(count: usize) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n as u32 + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_end_with_their_connection_and_good_clients_are_answered() {
    let settings = ["http.head_timeout=3s", "http.idle_timeout=3s", "http.write_timeout=2s", "ingest.body_patience=3s"];
    let target = Target::start("http2", &settings).await;
    let calm = Good::start(&target.web, 4, PAUSE).finish_after(Duration::from_secs(2)).await;
    let (files, memory) = (target.files(), target.memory());
    target.forget_peak();
    let good = Good::start(&target.web, 4, PAUSE);
    for (name, flood) in [
        ("rapid reset at once", Flood::ResetsAtOnce),
        ("rapid reset one by one", Flood::ResetsOneByOne),
        ("continuation", Flood::Continuation),
        ("large head", Flood::LargeHead),
        ("settings", Flood::Settings),
        ("ping", Flood::Ping),
        ("empty data", Flood::EmptyData),
        ("no window", Flood::NoWindow),
        ("streams", Flood::Streams),
    ] {
        let before = target.cpu();
        flood.run(&target).await;
        let price = target.cpu() - before;
        eprintln!("{name}: {price:.2?} of CPU time");
        assert!(price < PRICE * scale() as u32, "{name}: {price:?}");
    }
    good.finish().await.all_accepted().hardly_slower_than(&calm);
    let peak = target.peak_memory();
    eprintln!("at most {} MiB, {} before", peak >> 20, memory >> 20);
    assert!(peak <= memory + SLACK, "{} MiB, {} before", peak >> 20, memory >> 20);
    target.recovered(files, memory, SLACK).await;
}

#[derive(Debug, Clone, Copy)]
enum Flood {
    ResetsAtOnce,
    ResetsOneByOne,
    Continuation,
    LargeHead,
    Settings,
    Ping,
    EmptyData,
    NoWindow,
    Streams,
}

impl Flood {
    /// Runs until the other end has had enough.
    async fn run(self, target: &Target) {
        let mut wire = Wire::connect(target.address).await;
        match self {
            Self::ResetsAtOnce => {
                let pair =
                    |stream| [request(stream, true, PATH, false), frame(RST_STREAM, 0, stream, &CANCEL)].concat();
                wire.send([opening(&[]), streams(5000 * scale()).flat_map(pair).collect()].concat()).await;
                assert_eq!(goaway(&wire.rest_bytes().await), Some(ENHANCE_YOUR_CALM));
            }
            Self::ResetsOneByOne => {
                wire.send(opening(&[])).await;
                let closed = target.closed("resets").await;
                for stream in streams(5000) {
                    // The reset comes when the request is under way, so that nothing of HTTP/2 itself is exceeded.
                    wire.send(request(stream, true, PATH, false)).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    if !wire.send(frame(RST_STREAM, 0, stream, &CANCEL)).await {
                        break;
                    }
                }
                wire.rest_bytes().await;
                assert_eq!(target.closed("resets").await, closed + 1.0);
            }
            Self::Continuation => {
                wire.send([opening(&[]), frame(HEADERS, 0, 1, &super::wire::h2::head(false, "/livez"))].concat()).await;
                // A field of 16 KiB in each, and never the end.
                let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x7e][..], &[b'x'; 16_000][..]].concat();
                let sent = wire.flood(&frame(CONTINUATION, 0, 1, &field), 100_000, Duration::from_secs(4)).await;
                assert!(sent < 1000, "{sent} frames were taken");
                wire.rest_bytes().await;
            }
            Self::LargeHead => {
                let fields = [0x00, 0x01, b'x', 0x01, b'y'].repeat(3000);
                let block = [super::wire::h2::head(false, "/livez"), fields].concat();
                wire.send([opening(&[]), frame(HEADERS, END_STREAM | 4, 1, &block)].concat()).await;
                let answer = wire.rest_bytes().await;
                // 431, as a literal or from the table of the connection; or the stream is refused without one.
                assert!(!frames(&answer).iter().any(|(kind, ..)| *kind == DATA), "{answer:?}");
            }
            Self::Settings => {
                wire.send(opening(&[])).await;
                // Each wants an acknowledgement, and the client reads none.
                let frames = frame(SETTINGS, 0, 0, &[]).repeat(1000);
                let sent = wire.flood(&frames, 100_000, Duration::from_secs(4)).await;
                assert!(sent < 100_000, "taken without end");
            }
            Self::Ping => {
                wire.send(opening(&[])).await;
                let frames = frame(PING, 0, 0, &[7; 8]).repeat(1000);
                let sent = wire.flood(&frames, 100_000, Duration::from_secs(4)).await;
                assert!(sent < 100_000, "taken without end");
            }
            Self::EmptyData => {
                wire.send([opening(&[]), request(1, true, PATH, false)].concat()).await;
                let frames = frame(DATA, 0, 1, &[]).repeat(1000);
                let sent = wire.flood(&frames, 10_000, Duration::from_secs(4)).await;
                assert!(sent < 10_000, "taken without end");
            }
            Self::NoWindow => {
                wire.send(opening(&[(SETTINGS_INITIAL_WINDOW_SIZE, 0)])).await;
                // Answers that the client leaves no room for; pings show that it is alive.
                let requests: Vec<u8> =
                    streams(100).flat_map(|stream| request(stream, false, "/metrics", true)).collect();
                wire.send(requests).await;
                let mut ticks = tokio::time::interval(Duration::from_millis(200));
                let closed = async {
                    while wire.stream.try_write(&frame(PING, 0, 0, &[1; 8])).is_ok() {
                        ticks.tick().await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(30), closed).await.expect("closed though it pings");
            }
            Self::Streams => {
                wire.send(opening(&[])).await;
                let requests: Vec<u8> = streams(1000).flat_map(|stream| request(stream, true, PATH, false)).collect();
                wire.send(requests).await;
                let came = wire.rest_bytes().await;
                let refused = frames(&came).iter().filter(|(kind, ..)| *kind == RST_STREAM).count();
                assert!(refused >= 800, "{refused} of 1000 streams were refused");
            }
        }
    }
}
