//! Bodies: read with patience that ends, decompressed with limits, counted in the budget.
//!
//! The order is fixed: who sends is known before the first byte is read, the size as sent is checked before it is
//! decompressed, and what comes out is bounded while it comes out, not afterwards.

use std::{
    io::{self, Write},
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes, HttpBody as _};
use http_body_util::BodyExt as _;
use zstd::stream::raw::{DParameter, Decoder as RawZstd, InBuffer, Operation as _, OutBuffer};

use super::{
    admission::Held,
    negotiate::Encoding,
    problems::{BODY_TOO_LARGE, BROKEN_BODY, SLOW_BODY},
};
use crate::{http::Problem, telemetry::metrics::ingest::BODY_BYTES};

/// Compressed bytes that are decompressed in one step: with the ratio's limit it bounds what one step can bring forth.
const STEP_BYTES: usize = 8 * 1024;
/// Decompressed bytes that no ratio is asked of, since small bodies of one value compress well and harm nobody.
const RATIO_GRACE_BYTES: usize = 1 << 20;
/// JSON after which other requests get their turn on the thread: bombs and large bodies arrive faster than they are read.
const YIELD_BYTES: usize = 256 << 10;
/// Largest window of zstd, as a power of two: 8 MiB, what the format asks every decoder to support.
const ZSTD_WINDOW_LOG: u32 = 23;

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most bytes as sent.
    pub(super) wire: usize,
    /// Most bytes as decompressed.
    pub(super) json: usize,
    /// Most decompressed bytes for each compressed one.
    pub(super) ratio: usize,
    /// How long the client may keep us waiting, beyond what the least rate allows for the bytes it has sent.
    pub(super) patience: Duration,
    /// Least rate in bytes a second, over the time in which we waited for the client.
    pub(super) least_rate: usize,
}

/// A body being read. Yields JSON; holds what it has read, in the budget, until told that it is done with.
pub(super) struct Reader {
    body: Body,
    decoder: Decoder,
    limits: Limits,
    held: Held,
    wire_bytes: usize,
    json_bytes: usize,
    waited: Duration,
    /// The wire has ended and the decoder has given all it had.
    ended: bool,
}

enum Decoder {
    Identity,
    Gzip(Box<flate2::write::MultiGzDecoder<Sink>>),
    Zstd(Box<Zstd>),
}

struct Zstd {
    raw: RawZstd<'static>,
    sink: Sink,
    /// A frame is begun and not ended.
    inside: bool,
}

/// Takes decompressed bytes, up to an allowance that is set anew for each step.
#[derive(Default)]
struct Sink {
    out: Vec<u8>,
    allowance: usize,
}

/// The error with which a sink stops a decoder; told from damage by its kind.
fn full() -> io::Error {
    io::Error::from(io::ErrorKind::FileTooLarge)
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.allowance = self.allowance.checked_sub(bytes.len()).ok_or_else(full)?;
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Reader {
    /// Refuses at once a body whose stated length is beyond the limit.
    pub(super) fn new(body: Body, encoding: Encoding, limits: Limits, held: Held) -> Result<Self, Problem> {
        if body.size_hint().lower() > limits.wire as u64 {
            return Err(too_large_on_the_wire(limits.wire));
        }
        let decoder = match encoding {
            Encoding::Identity => Decoder::Identity,
            Encoding::Gzip => Decoder::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Sink::default()))),
            Encoding::Zstd => Decoder::Zstd(Box::new(Zstd::new().map_err(|error| damaged("zstd", &error))?)),
        };
        Ok(Self { body, decoder, limits, held, wire_bytes: 0, json_bytes: 0, waited: Duration::ZERO, ended: false })
    }

    /// Reads to the end. A body that came in one piece, as most do, is not copied.
    pub(super) async fn whole(&mut self) -> Result<Bytes, Problem> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        let Some(second) = self.next().await? else { return Ok(first) };
        let expected = usize::try_from(self.body.size_hint().lower()).unwrap_or(0);
        let mut all = Vec::with_capacity(first.len() + second.len() + expected.min(self.limits.json));
        all.extend_from_slice(&first);
        all.extend_from_slice(&second);
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }

    /// The next piece of JSON; none at the end. Pieces are not empty.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        while !self.ended {
            let Some(wire) = self.frame().await? else {
                self.ended = true;
                self.decoder
                    .finish(self.limits.allowance(self.wire_bytes, self.json_bytes))
                    .map_err(|error| self.decode_problem(self.wire_bytes, &error))?;
                let rest = self.decoder.take();
                return self.account(rest.into());
            };
            let json = self.decode(wire)?;
            if !json.is_empty() {
                let before = self.json_bytes;
                let json = self.account(json)?;
                if self.json_bytes / YIELD_BYTES > before / YIELD_BYTES {
                    tokio::task::yield_now().await;
                }
                return Ok(json);
            }
        }
        Ok(None)
    }

    /// The bytes held for the request.
    pub(super) fn held(&mut self) -> &mut Held {
        &mut self.held
    }

    /// The same, to be kept until the request is answered.
    pub(super) fn into_held(self) -> Held {
        self.held
    }

    fn account(&mut self, json: Bytes) -> Result<Option<Bytes>, Problem> {
        if json.is_empty() {
            return Ok(None);
        }
        self.json_bytes += json.len();
        self.held.grow(json.len())?;
        if self.json_bytes > self.limits.json {
            return Err(too_large_as_json(self.limits.json));
        }
        Ok(Some(json))
    }

    fn decode(&mut self, wire: Bytes) -> Result<Bytes, Problem> {
        if matches!(self.decoder, Decoder::Identity) {
            return Ok(wire);
        }
        let begun = self.wire_bytes - wire.len();
        for (index, step) in wire.chunks(STEP_BYTES).enumerate() {
            let so_far = begun + index * STEP_BYTES + step.len();
            let json_bytes = self.json_bytes + self.decoder.pending();
            let allowance = self.limits.allowance(so_far, json_bytes);
            self.decoder.step(step, allowance).map_err(|error| self.decode_problem(so_far, &error))?;
        }
        Ok(self.decoder.take().into())
    }

    /// Of an error after so many bytes from the wire.
    fn decode_problem(&self, wire: usize, error: &io::Error) -> Problem {
        let name = match self.decoder {
            Decoder::Identity => "identity",
            Decoder::Gzip(_) => "gzip",
            Decoder::Zstd(_) => "zstd",
        };
        match error.kind() {
            io::ErrorKind::FileTooLarge => {
                let limit = match self.limits.reach(wire) {
                    bytes if bytes < self.limits.json => format!("{} times its size as sent", self.limits.ratio),
                    bytes => format!("{bytes} bytes"),
                };
                BODY_TOO_LARGE.problem(format!("the {name} body grows beyond {limit}"))
            }
            _ => damaged(name, error),
        }
    }

    /// The next bytes from the client.
    async fn frame(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let Some(frame) = self.poll_frame().await? else { return Ok(None) };
            let Ok(bytes) = frame.into_data() else { continue };
            if bytes.is_empty() {
                continue;
            }
            self.wire_bytes += bytes.len();
            BODY_BYTES.with_label_values(&["wire"]).inc_by(bytes.len() as u64);
            if self.wire_bytes > self.limits.wire {
                return Err(too_large_on_the_wire(self.limits.wire));
            }
            return Ok(Some(bytes));
        }
    }

    async fn poll_frame(&mut self) -> Result<Option<hyper::body::Frame<Bytes>>, Problem> {
        // Most bodies are there when the handler begins: no clock and no timer for those.
        let ready = std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut self.body).poll_frame(context))).await;
        let frame = match ready {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let earned = Duration::from_secs_f64(self.wire_bytes as f64 / self.limits.least_rate.max(1) as f64);
                let patience = (self.limits.patience + earned).saturating_sub(self.waited);
                let begun = Instant::now();
                let frame = tokio::time::timeout(patience, self.body.frame()).await;
                self.waited += begun.elapsed();
                frame.map_err(|_| self.too_slow())?
            }
        };
        let broken = |error: axum::Error| BROKEN_BODY.problem(format!("the body ended before its end: {error}"));
        frame.transpose().map_err(broken)
    }

    fn too_slow(&self) -> Problem {
        let waited = self.waited.as_secs();
        SLOW_BODY
            .problem(format!("{} bytes came while the body was awaited for {waited} s", self.wire_bytes))
            .with("outcome", "not_written")
    }
}

impl Limits {
    /// How much more may be decompressed after so many bytes from the wire.
    fn allowance(&self, wire: usize, json: usize) -> usize {
        self.reach(wire).saturating_sub(json)
    }

    /// How much may be decompressed in all of so many bytes from the wire.
    fn reach(&self, wire: usize) -> usize {
        wire.saturating_mul(self.ratio).max(RATIO_GRACE_BYTES).min(self.json)
    }
}

impl Decoder {
    fn step(&mut self, wire: &[u8], allowance: usize) -> io::Result<()> {
        match self {
            Self::Identity => Ok(()),
            Self::Gzip(decoder) => {
                decoder.get_mut().allowance = allowance;
                decoder.write_all(wire)
            }
            Self::Zstd(decoder) => {
                decoder.sink.allowance = allowance;
                decoder.step(wire)
            }
        }
    }

    /// Says whether the compressed stream came to its end.
    fn finish(&mut self, allowance: usize) -> io::Result<()> {
        match self {
            Self::Identity => Ok(()),
            Self::Gzip(decoder) => {
                decoder.get_mut().allowance = allowance;
                decoder.try_finish()
            }
            Self::Zstd(decoder) if decoder.inside => Err(io::ErrorKind::UnexpectedEof.into()),
            Self::Zstd(_) => Ok(()),
        }
    }

    fn sink(&mut self) -> Option<&mut Sink> {
        match self {
            Self::Identity => None,
            Self::Gzip(decoder) => Some(decoder.get_mut()),
            Self::Zstd(decoder) => Some(&mut decoder.sink),
        }
    }

    fn pending(&mut self) -> usize {
        self.sink().map_or(0, |sink| sink.out.len())
    }

    fn take(&mut self) -> Vec<u8> {
        self.sink().map(|sink| std::mem::take(&mut sink.out)).unwrap_or_default()
    }
}

impl Zstd {
    fn new() -> io::Result<Self> {
        let mut raw = RawZstd::new()?;
        raw.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
        Ok(Self { raw, sink: Sink::default(), inside: false })
    }

    fn step(&mut self, wire: &[u8]) -> io::Result<()> {
        let mut buffer = [0; STEP_BYTES];
        let mut input = InBuffer::around(wire);
        loop {
            let mut output = OutBuffer::around(&mut buffer[..]);
            let hint = self.raw.run(&mut input, &mut output)?;
            let (written, full) = (output.pos(), output.pos() == output.capacity());
            self.sink.write_all(&buffer[..written])?;
            self.inside = hint != 0;
            // A full buffer means that more may wait inside; the input alone does not tell.
            if input.pos() == wire.len() && !full {
                return Ok(());
            }
            if hint == 0 && input.pos() < wire.len() {
                self.raw.reinit()?;
            }
        }
    }
}

fn too_large_on_the_wire(limit: usize) -> Problem {
    BODY_TOO_LARGE.problem(format!("the body is larger than {limit} bytes as sent")).with("outcome", "not_written")
}

fn too_large_as_json(limit: usize) -> Problem {
    BODY_TOO_LARGE
        .problem(format!(
            "the body is larger than {limit} bytes of JSON: send it in parts, or Prefer: handling=lenient"
        ))
        .with("outcome", "not_written")
}

fn damaged(encoding: &str, error: &io::Error) -> Problem {
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    };
    BROKEN_BODY.problem(format!("the body is not sound {encoding}: {what}")).with("outcome", "not_written")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{http::Client, ingest::admission::Budget};

    const LIMITS: Limits =
        Limits { wire: 1 << 20, json: 4 << 20, ratio: 50, patience: Duration::from_secs(10), least_rate: 1024 };

    fn reader(body: Body, encoding: Encoding, limits: Limits) -> Result<Reader, Problem> {
        Reader::new(body, encoding, limits, Budget::new(usize::MAX).hold(&Client::new("a")))
    }

    /// A body that arrives in pieces of `size`.
    fn in_pieces(bytes: &[u8], size: usize) -> Body {
        let pieces: Vec<Result<Bytes, io::Error>> =
            bytes.chunks(size.max(1)).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Body::from_stream(futures_util::stream::iter(pieces))
    }

    fn compress(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => bytes.to_vec(),
            Encoding::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Encoding::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    async fn read(body: Body, encoding: Encoding, limits: Limits) -> Result<Bytes, Problem> {
        reader(body, encoding, limits)?.whole().await
    }

    fn now<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[tokio::test]
    async fn body_beyond_a_limit_is_413_whether_it_says_its_length_or_not() {
        let limits = Limits { wire: 100, ..LIMITS };
        let bytes = vec![b' '; 101];
        assert_eq!(read(Body::from(bytes.clone()), Encoding::Identity, limits).await.unwrap_err().status, 413);
        assert_eq!(read(in_pieces(&bytes, 10), Encoding::Identity, limits).await.unwrap_err().status, 413);
        assert_eq!(read(in_pieces(&bytes[1..], 10), Encoding::Identity, limits).await.unwrap().len(), 100);
    }

    #[tokio::test]
    async fn bombs_are_stopped_while_they_unfold() {
        let unfolded = vec![b' '; 64 << 20];
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let bomb = compress(encoding, &unfolded);
            let mut reader = reader(Body::from(bomb), encoding, Limits { json: usize::MAX, ..LIMITS }).unwrap();
            let problem = reader.whole().await.unwrap_err();
            assert_eq!((problem.status, problem.code), (413, BODY_TOO_LARGE.code), "{encoding:?}");
            assert!(problem.detail.ends_with("grows beyond 50 times its size as sent"), "{}", problem.detail);
            assert!(reader.decoder.pending() <= RATIO_GRACE_BYTES.max(STEP_BYTES * LIMITS.ratio), "{encoding:?}");
        }
    }

    #[tokio::test]
    async fn truncated_and_damaged_bodies_are_400() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let whole = compress(encoding, br#"{"a": "some text that is compressed"}"#);
            let cut = whole[..whole.len() - 3].to_vec();
            let plain = b"{\"a\": 1}".to_vec();
            for bytes in [cut, plain] {
                let problem = read(Body::from(bytes), encoding, LIMITS).await.unwrap_err();
                assert_eq!((problem.status, problem.code), (400, BROKEN_BODY.code), "{encoding:?}");
            }
        }
    }

    #[tokio::test]
    async fn several_frames_are_one_body() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let both = [compress(encoding, b"[1,"), compress(encoding, b"2]")].concat();
            for size in [1, 7, 1000] {
                assert_eq!(read(in_pieces(&both, size), encoding, LIMITS).await.unwrap(), "[1,2]", "{encoding:?}");
            }
        }
    }

    #[tokio::test]
    async fn silent_client_is_408() {
        let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, io::Error>>());
        let limits = Limits { patience: Duration::ZERO, ..LIMITS };
        assert_eq!(read(never, Encoding::Identity, limits).await.unwrap_err().status, 408);
    }

    #[tokio::test]
    async fn budget_covers_what_was_read_until_the_reader_goes() {
        let (budget, a, b) = (Budget::new(16), Client::new("a"), Client::new("b"));
        let mut reader = Reader::new(Body::from("12345678"), Encoding::Identity, LIMITS, budget.hold(&a)).unwrap();
        reader.whole().await.unwrap();
        assert_eq!(budget.hold(&b).grow(9).unwrap_err().status, 503);
        drop(reader);
        budget.hold(&b).grow(16).unwrap();
    }

    proptest! {
        #[test]
        fn what_was_compressed_is_read_in_whatever_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..20_000),
            size in 1_usize..5_000,
            encoding in prop_oneof![Just(Encoding::Identity), Just(Encoding::Gzip), Just(Encoding::Zstd)],
        ) {
            let sent = compress(encoding, &bytes);
            prop_assert_eq!(&now(read(in_pieces(&sent, size), encoding, LIMITS)).unwrap()[..], &bytes[..]);
        }

        #[test]
        fn no_bytes_make_the_decoders_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..2_000),
            cut in 0_usize..100,
            encoding in prop_oneof![Just(Encoding::Gzip), Just(Encoding::Zstd)],
        ) {
            let _ = now(read(Body::from(bytes.clone()), encoding, LIMITS));
            // A sound beginning leads deeper into the decoders.
            let mut sound = compress(encoding, &bytes);
            sound.truncate(sound.len().saturating_sub(cut));
            sound.extend_from_slice(&bytes);
            let _ = now(read(Body::from(sound), encoding, LIMITS));
        }
    }
}
