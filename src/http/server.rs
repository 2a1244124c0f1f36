//! The accept loop: HTTP/1.1 and HTTP/2 on plain TCP, bounded in connections and in patience.
//!
//! axum's own `serve` knows no header timeout, no bound on connections and no deadline for the drain, so it is not used.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use crate::telemetry::metrics::http::{ACCEPT_ERRORS, CONNECTIONS};

/// How long the accept loop rests after an error that is not the client's, such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How a listener treats its connections.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest wait for a request's head, from the opening of the connection or from the end of the request before;
    /// an idle HTTP/1.1 connection is closed after it too.
    pub header_timeout: Duration,
    /// Most connections open at once, over all listeners; further clients wait in the kernel's backlog.
    pub max_connections: usize,
    /// Most streams open at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// Longest list of header fields, in bytes.
    pub max_header_bytes: usize,
    /// How often an idle HTTP/2 connection is pinged; one that does not answer is closed.
    pub http2_ping_interval: Duration,
    /// How long requests may go on after the shutdown began; what is left then is cut off.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            max_streams: 200,
            max_header_bytes: 32 * 1024,
            http2_ping_interval: Duration::from_secs(20),
            drain: Duration::from_secs(20),
        }
    }
}

/// Where a request came in; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Address of the client, or of the proxy before it.
    pub peer: SocketAddr,
    /// Address that the listener is bound to.
    pub listener: SocketAddr,
}

/// How far the shutdown has come; every accept loop and connection watches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Aborting,
}

/// Serves `router` on all `listeners` until `shutdown` is done, then drains.
///
/// Returns once every connection has ended; those left at the drain's deadline are cut off. The error is that of a
/// listener whose own address cannot be read.
pub async fn serve(
    listeners: Vec<TcpListener>,
    router: Router,
    shutdown: impl Future<Output = ()>,
    options: Options,
) -> io::Result<()> {
    // The sender learns that the last connection has ended by the last receiver's drop: no list of tasks is kept.
    let (phase, watching) = watch::channel(Phase::Serving);
    let server = Arc::new(Server {
        protocol: protocol(&options),
        permits: Arc::new(Semaphore::new(options.max_connections)),
        router,
        header_timeout: options.header_timeout,
    });
    for listener in listeners {
        let address = listener.local_addr()?;
        tokio::spawn(Arc::clone(&server).accept(listener, address, watching.clone()));
    }
    drop(watching);

    shutdown.await;
    phase.send_replace(Phase::Draining);
    if tokio::time::timeout(options.drain, phase.closed()).await.is_err() {
        warn!(deadline_s = options.drain.as_secs(), "requests still open at the end of the drain are cut off");
        phase.send_replace(Phase::Aborting);
        phase.closed().await;
    }
    info!("http listeners are closed");
    Ok(())
}

struct Server {
    protocol: auto::Builder<TokioExecutor>,
    permits: Arc<Semaphore>,
    router: Router,
    header_timeout: Duration,
}

fn protocol(options: &Options) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(
        // hyper refuses less than 8 KiB; the buffer holds a whole head, so it bounds the head too.
        options.max_header_bytes.max(8192),
    );
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(u32::try_from(options.max_header_bytes).unwrap_or(u32::MAX))
        // Bounds on resets by the client, made by it (rapid reset) or provoked from us (MadeYouReset).
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024)
        .keep_alive_interval(options.http2_ping_interval)
        .keep_alive_timeout(options.header_timeout);
    builder
}

impl Server {
    async fn accept(self: Arc<Self>, listener: TcpListener, address: SocketAddr, mut phase: watch::Receiver<Phase>) {
        let connection = phase.clone();
        loop {
            let accepted = tokio::select! {
                // A permit comes before the connection: at the bound, clients wait in the kernel's backlog.
                accepted = self.accept_one(&listener) => accepted,
                _ = phase.changed() => return,
            };
            match accepted {
                Ok((stream, peer, permit)) => {
                    let at = Connection { peer, listener: address };
                    tokio::spawn(Arc::clone(&self).connection(stream, at, permit, connection.clone()));
                }
                Err(error) => {
                    ACCEPT_ERRORS.inc();
                    // A client that left between its SYN and our accept is no fault of this process.
                    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                        warn!(%error, listener = %address, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_REST).await;
                    }
                }
            }
        }
    }

    async fn accept_one(&self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("invariant: the semaphore of connections is never closed");
        let (stream, peer) = listener.accept().await?;
        Ok((stream, peer, permit))
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        at: Connection,
        permit: OwnedSemaphorePermit,
        mut phase: watch::Receiver<Phase>,
    ) {
        let _permit = permit;
        let _open = OpenConnection::new();
        // Answers are small and written whole; waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);

        let asked = AtomicBool::new(false);
        let service = service_fn(|mut request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(at);
            self.router.clone().oneshot(request.map(Body::new))
        });
        let mut serving = pin!(self.protocol.serve_connection(TokioIo::new(stream), service));
        // hyper's header timeout begins only when the first bytes have told HTTP/1 from HTTP/2; until then, and for the
        // first head of HTTP/2, this one holds.
        let mut first_head = pin!(tokio::time::sleep(self.header_timeout));
        let mut waiting = true;
        loop {
            tokio::select! {
                ended = serving.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%error, peer = %at.peer, "connection ended with an error");
                    }
                    return;
                }
                _ = first_head.as_mut(), if waiting => {
                    if !asked.load(Ordering::Relaxed) {
                        debug!(peer = %at.peer, "connection closed: no request came in time");
                        return;
                    }
                    waiting = false;
                }
                changed = phase.changed() => match *phase.borrow_and_update() {
                    _ if changed.is_err() => return,
                    Phase::Serving => {}
                    Phase::Draining => serving.as_mut().graceful_shutdown(),
                    Phase::Aborting => return,
                },
            }
        }
    }
}

/// Counts a connection while it is open.
struct OpenConnection;

impl OpenConnection {
    fn new() -> Self {
        CONNECTIONS.inc();
        Self
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        CONNECTIONS.dec();
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::{Notify, oneshot},
        task::JoinHandle,
    };

    use super::*;

    struct Running {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<io::Result<()>>,
    }

    /// `/` answers with the client's port; `/wait` tells `entered` and then waits for `release`.
    async fn start(options: Options, entered: Arc<Notify>, release: Arc<Notify>) -> Running {
        let wait = async move || {
            entered.notify_one();
            release.notified().await;
            "waited"
        };
        let root = async |axum::Extension(at): axum::Extension<Connection>| at.peer.port().to_string();
        let router = Router::new().route("/", get(root)).route("/wait", get(wait));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let ended = tokio::spawn(serve(vec![listener], router, shutdown, options));
        Running { address, stop, ended }
    }

    async fn plain(options: Options) -> Running {
        start(options, Arc::default(), Arc::default()).await
    }

    /// Everything the server sends until it closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that is cut off may end with a reset, which is an end too.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn request_knows_its_connection() {
        let running = plain(Options::default()).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let port = stream.local_addr().unwrap().port().to_string();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let answer = rest(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&port), "{answer}");
    }

    #[tokio::test]
    async fn connections_without_a_whole_head_are_closed() {
        let running = plain(Options { header_timeout: Duration::from_millis(50), ..Options::default() }).await;
        // Nothing, the beginning of HTTP/2's preface and of HTTP/1 alike, and half a head.
        for sent in ["", "P", "GET / HTTP/1.1\r\nhost:"] {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            assert!(!rest(stream).await.contains(" 200 "), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn request_under_way_is_finished_in_the_drain() {
        let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let running = start(Options::default(), Arc::clone(&entered), Arc::clone(&release)).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        entered.notified().await;
        running.stop.send(()).unwrap();
        let answer = tokio::spawn(rest(stream));
        release.notify_one();
        assert!(answer.await.unwrap().ends_with("waited"));
        running.ended.await.unwrap().unwrap();
        assert!(TcpStream::connect(running.address).await.is_err());
    }

    #[tokio::test]
    async fn request_beyond_the_drain_is_cut_off() {
        let entered = Arc::new(Notify::new());
        let options = Options { drain: Duration::from_millis(20), ..Options::default() };
        let running = start(options, Arc::clone(&entered), Arc::default()).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        entered.notified().await;
        running.stop.send(()).unwrap();
        running.ended.await.unwrap().unwrap();
        assert_eq!(rest(stream).await, "");
    }
}
