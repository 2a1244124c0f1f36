//! What one connection is doing, as a few plain numbers.
//!
//! The connection and its requests write them, [`Connections`](super::connections::Connections) reads them from time to time
//! and decides. Times are ticks of its clock: nobody on the path of a request asks for the time or sets a timer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};

/// Writes of so few bytes say nothing of an answer getting on: HTTP/2 answers pings and settings with them.
const CONTROL_BYTES: usize = 64;

/// What a connection is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub(super) enum Order {
    Serve = 0,
    /// Take no more requests, and end when those under way are answered.
    Finish = 1,
    /// End now.
    Cut = 2,
}

/// What one connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    clock: Arc<AtomicU32>,
    /// Requests whose answer's head is not ready.
    requests: AtomicU32,
    /// Answers that are not taken to their end.
    answers: AtomicU32,
    /// Requests so far; written by the connection's task alone.
    asked: AtomicU32,
    /// Requests that the client gave up before it had the whole answer.
    cancelled: AtomicU32,
    http2: AtomicBool,
    /// Tick of the last answer, or of its last bytes; at first, of the opening.
    idle_since: AtomicU32,
    /// Tick at which bytes came while no request was under way; 0 for none.
    head_since: AtomicU32,
    /// Tick since which the client takes nothing of what is to be sent; 0 while it does.
    blocked_since: AtomicU32,
    /// Tick of the order to finish; 0 for none.
    finish_since: AtomicU32,
    order: AtomicU8,
    told: Notify,
}

impl Activity {
    /// Of a connection that opens now.
    pub(super) fn new(clock: Arc<AtomicU32>) -> Self {
        let now = clock.load(Relaxed);
        Self {
            clock,
            requests: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            idle_since: AtomicU32::new(now),
            head_since: AtomicU32::new(0),
            blocked_since: AtomicU32::new(0),
            finish_since: AtomicU32::new(0),
            order: AtomicU8::new(Order::Serve as u8),
            told: Notify::new(),
        }
    }

    fn now(&self) -> u32 {
        self.clock.load(Relaxed)
    }

    /// Bytes came. Those of a request under way are its body, for which its handler has patience of its own.
    fn heard(&self) {
        if self.head_since.load(Relaxed) == 0 && self.requests.load(Relaxed) == 0 {
            self.head_since.store(self.now(), Relaxed);
        }
    }

    fn wrote(&self, bytes: usize) {
        if self.blocked_since.load(Relaxed) != 0 {
            self.blocked_since.store(0, Relaxed);
        }
        if bytes > CONTROL_BYTES {
            self.idle_since.store(self.now(), Relaxed);
        }
    }

    fn blocked(&self) {
        if self.blocked_since.load(Relaxed) == 0 {
            self.blocked_since.store(self.now(), Relaxed);
        }
    }

    /// A request's head is here.
    pub(super) fn begin(&self, http2: bool) {
        if self.asked.load(Relaxed) == 0 {
            self.http2.store(http2, Relaxed);
        }
        self.asked.store(self.asked.load(Relaxed).wrapping_add(1), Relaxed);
        self.head_since.store(0, Relaxed);
        self.requests.fetch_add(1, Relaxed);
    }

    /// An answer's head is ready.
    pub(super) fn answer(&self) {
        self.answers.fetch_add(1, Relaxed);
        self.requests.fetch_sub(1, Relaxed);
        self.idle_since.store(self.now(), Relaxed);
    }

    /// A request has ended, with or without an answer.
    pub(super) fn end(&self, was_answered: bool) {
        let counter = if was_answered { &self.answers } else { &self.requests };
        counter.fetch_sub(1, Relaxed);
        self.idle_since.store(self.now(), Relaxed);
    }

    /// The client gave a request up. Gives how many it has given up so far.
    pub(super) fn cancel(&self) -> u32 {
        self.cancelled.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    pub(super) fn asked(&self) -> u32 {
        self.asked.load(Relaxed)
    }

    /// Whether the connection began as HTTP/2; known from its first request on.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// Ticks since nothing was asked and nothing answered.
    pub(super) fn idle_for(&self, now: u32) -> Option<u32> {
        let idle = self.requests() == 0 && self.answers.load(Relaxed) == 0 && self.blocked_since.load(Relaxed) == 0;
        idle.then(|| now.wrapping_sub(self.idle_since.load(Relaxed)))
    }

    /// Ticks since a head began that is not whole yet.
    pub(super) fn head_for(&self, now: u32) -> Option<u32> {
        since(&self.head_since, now).filter(|_| self.requests() == 0)
    }

    /// Ticks since the client took anything of what waits for it: of bytes that its end of the connection has no room for,
    /// or of answers that it lets HTTP/2 not send.
    pub(super) fn blocked_for(&self, now: u32) -> Option<u32> {
        let unsent = self.requests() == 0 && self.answers.load(Relaxed) > 0;
        let unsent = unsent.then(|| now.wrapping_sub(self.idle_since.load(Relaxed)));
        since(&self.blocked_since, now).max(unsent)
    }

    /// Ticks since the order to finish.
    pub(super) fn finishing_for(&self, now: u32) -> Option<u32> {
        since(&self.finish_since, now)
    }

    /// Gives an order; false if one like it, or a stricter one, was given before.
    pub(super) fn tell(&self, order: Order) -> bool {
        let is_new = self.order.fetch_max(order as u8, Relaxed) < order as u8;
        if is_new {
            if order == Order::Finish {
                self.finish_since.store(self.now(), Relaxed);
            }
            self.told.notify_one();
        }
        is_new
    }

    /// The next order. One connection listens.
    pub(super) async fn told(&self) -> Order {
        self.told.notified().await;
        match self.order.load(Relaxed) {
            0 => Order::Serve,
            1 => Order::Finish,
            _ => Order::Cut,
        }
    }
}

fn since(tick: &AtomicU32, now: u32) -> Option<u32> {
    match tick.load(Relaxed) {
        0 => None,
        tick => Some(now.wrapping_sub(tick)),
    }
}

/// A stream that notes its own activity.
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) activity: Arc<Activity>,
}

impl Watched {
    fn note(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Ok(bytes)) => self.activity.wrote(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.blocked(),
        }
        polled
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.heard();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.note(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
