//! The load generator: HTTP/1.1 on kept-alive connections, one request at a time on each, no pipelining, as little work per
//! request as can be, since it takes its share of the same CPUs.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What to send: whole requests, taken in turn by all connections, each from a place of its own.
pub type Requests = Arc<[Vec<u8>]>;

/// What came of a load.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub requests: u64,
    /// Requests answered per second.
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// When to end.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Elapsed(Duration),
    /// Every request sent once.
    Sent,
}

/// Time before the measurement in which connections are opened and everything gets warm.
const WARM_UP: Duration = Duration::from_millis(500);

/// Puts `address` under load; any answer but `expected` is an error.
pub async fn load(
    address: SocketAddr,
    connections: usize,
    requests: &Requests,
    expected: u16,
    until: Until,
) -> anyhow::Result<Outcome> {
    let (from, to) = match until {
        Until::Elapsed(span) => (Instant::now() + WARM_UP, Some(Instant::now() + WARM_UP + span)),
        Until::Sent => (Instant::now(), None),
    };
    let tasks = (0..connections).map(|number| {
        let mut client = Client { number, connections, requests: Arc::clone(requests), expected, from, to };
        tokio::spawn(async move { client.run(address).await })
    });
    let mut latencies: Vec<u32> = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        latencies.extend(task.await??);
    }
    let span = to.unwrap_or_else(Instant::now) - from;
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    let micros = |share| Duration::from_micros(u64::from(at(share)));
    Ok(Outcome {
        requests: latencies.len() as u64,
        rate: latencies.len() as f64 / span.as_secs_f64(),
        p50: micros(0.5),
        p99: micros(0.99),
    })
}

struct Client {
    number: usize,
    connections: usize,
    requests: Requests,
    expected: u16,
    from: Instant,
    to: Option<Instant>,
}

impl Client {
    /// Microseconds of each request that was answered within the measurement.
    async fn run(&mut self, address: SocketAddr) -> anyhow::Result<Vec<u32>> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut latencies = Vec::with_capacity(1 << 14);
        let mut buffer = vec![0; 1 << 14];
        let mut next = match self.to {
            // In turn, if each is sent once; else from a place of its own.
            None => self.number,
            Some(_) => self.number * self.requests.len() / self.connections,
        };
        loop {
            let request = match self.to {
                None => match self.requests.get(next) {
                    Some(request) => request,
                    None => return Ok(latencies),
                },
                Some(_) => &self.requests[next % self.requests.len()],
            };
            next += if self.to.is_some() { 1 } else { self.connections };
            let begun = Instant::now();
            stream.write_all(request).await?;
            let status = answer(&mut stream, &mut buffer).await?;
            let ended = Instant::now();
            if status != self.expected {
                bail!("expected {}, got {}", self.expected, String::from_utf8_lossy(&buffer[..1024]));
            }
            if self.to.is_some_and(|to| ended > to) {
                return Ok(latencies);
            }
            if ended >= self.from {
                latencies.push(u32::try_from((ended - begun).as_micros()).unwrap_or(u32::MAX));
            }
        }
    }
}

/// Reads one answer to its end.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<u16> {
    let mut filled = 0;
    let mut whole = None;
    loop {
        if filled == buffer.len() {
            buffer.resize(2 * filled, 0);
        }
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            bail!("the connection was closed in the middle of an answer");
        }
        filled += read;
        if whole.is_none() {
            whole = length(&buffer[..filled])?;
        }
        if whole.is_some_and(|whole| filled >= whole) {
            return Ok(std::str::from_utf8(&buffer[9..12])?.parse()?);
        }
    }
}

/// Length of the whole answer, once its head is there. Answers have a length; the name is as hyper writes it.
fn length(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(head) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let name = b"content-length: ";
    let body = match memmem::find(&bytes[..head], name) {
        None => 0,
        Some(at) => {
            let digits = &bytes[at + name.len()..];
            let end = memchr::memchr(b'\r', digits).context("a header without end")?;
            std::str::from_utf8(&digits[..end])?.parse()?
        }
    };
    Ok(Some(head + 4 + body))
}

/// A POST as bytes.
pub fn post(path: &str, content_type: &str, key: Option<usize>, body: &[u8]) -> Vec<u8> {
    let key = key.map_or(String::new(), |key| format!("idempotency-key: 8e03978e-40d5-43e8-bc93-{key:012}\r\n"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: millpond\r\ncontent-type: {content_type}\r\n{key}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A GET as bytes.
pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: millpond\r\naccept: application/json\r\n\r\n").into_bytes()
}

/// The status of one GET.
pub async fn status(address: SocketAddr, path: &str) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&get(path)).await?;
    answer(&mut stream, &mut vec![0; 4096]).await
}

/// An address on which nothing listens.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
