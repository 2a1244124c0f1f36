//! The accept loop: HTTP/1.1 and HTTP/2 on plain TCP, bounded in connections, requests and patience.
//!
//! axum's own `serve` knows no timeout, no bound on connections and no deadline for the drain, so it is not used. hyper's
//! header timeout is not either: it makes a timer for each request, does not tell an idle connection from a slow head, and
//! does not hold for HTTP/2. [`Connections`] keeps patience in its stead.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Version, header},
    response::{IntoResponse as _, Response},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use nix::errno::Errno;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::{
    activity::{Order, Watched},
    client::Client,
    connections::{Connections, Limits, Place},
    problem::{BUSY, MALFORMED},
};
use crate::telemetry::metrics::http::{ACCEPT_ERRORS, REQUESTS_REFUSED};

/// How long the accept loop rests after an error that is not the client's, such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Seconds after which a request that met too many others should come again.
const BUSY_RETRY_SECONDS: u32 = 1;
/// Local errors that HTTP/2 clients may provoke on one connection before it is closed: h2's own default, which is there
/// against clients that make the server reset their streams (MadeYouReset).
const PROVOKED_RESETS: usize = 1024;

/// How a listener treats its connections.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest wait for the first request of a connection, and for the rest of a head that has begun.
    pub head_timeout: Duration,
    /// How long a connection may stay without a request.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Most connections open at once, over all listeners; then the idle ones make room.
    pub max_connections: usize,
    /// Most connections open at once of one address, or /64 network of IPv6.
    pub max_connections_per_client: usize,
    /// Most requests under way at once; from half of it on a connection gets one at a time.
    pub max_requests: usize,
    /// Most streams open at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// Requests that a client may give up on one connection, if it gives up most of them.
    pub max_resets: u32,
    /// Longest head of a request, in bytes.
    pub max_head_bytes: usize,
    /// How often an HTTP/2 connection is pinged; one that does not answer within `head_timeout` is closed.
    pub http2_ping_interval: Duration,
    /// How long requests may go on after the shutdown began; what is left then is cut off.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(20),
            max_connections: 4096,
            max_connections_per_client: 1024,
            max_requests: 8192,
            max_streams: 100,
            max_resets: 100,
            max_head_bytes: 32 * 1024,
            http2_ping_interval: Duration::from_secs(20),
            drain: Duration::from_secs(20),
        }
    }
}

/// Where a request came in. Every request has it among its extensions, as an `Arc`.
#[derive(Debug)]
pub struct Connection {
    /// Address of the client, or of the proxy before it.
    pub peer: SocketAddr,
    /// Address that the listener is bound to.
    pub listener: SocketAddr,
    /// Whoever connects from that address.
    pub client: Arc<Client>,
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
    let (draining, open) = watch::channel(false);
    let connections = Arc::new(Connections::new(limits(&options)));
    let server = Arc::new(Server { protocol: protocol(&options), connections: Arc::clone(&connections), router });
    for listener in listeners {
        let address = listener.local_addr()?;
        tokio::spawn(Arc::clone(&server).accept(listener, address, open.clone()));
    }
    drop(open);
    let watching = tokio::spawn(Arc::clone(&connections).watch());

    shutdown.await;
    draining.send_replace(true);
    connections.tell_all(Order::Finish);
    if tokio::time::timeout(options.drain, draining.closed()).await.is_err() {
        warn!(deadline_s = options.drain.as_secs(), "requests still open at the end of the drain are cut off");
        connections.tell_all(Order::Cut);
        draining.closed().await;
    }
    watching.abort();
    info!("http listeners are closed");
    Ok(())
}

struct Server {
    protocol: auto::Builder<TokioExecutor>,
    connections: Arc<Connections>,
    router: Router,
}

fn limits(options: &Options) -> Limits {
    Limits {
        connections: options.max_connections,
        per_client: options.max_connections_per_client,
        requests: options.max_requests,
        resets: options.max_resets,
        head: options.head_timeout,
        idle: options.idle_timeout,
        write: options.write_timeout,
    }
}

fn protocol(options: &Options) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(
        // hyper refuses less than 8 KiB; the buffer holds a whole head, so it bounds the head too.
        options.max_head_bytes.max(8192),
    );
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(u32::try_from(options.max_head_bytes).unwrap_or(u32::MAX))
        // Of streams that were reset before we came to them; those after that are counted in `connections`.
        .max_pending_accept_reset_streams(usize::try_from(options.max_resets).unwrap_or(usize::MAX))
        .max_local_error_reset_streams(PROVOKED_RESETS)
        .keep_alive_interval(options.http2_ping_interval)
        .keep_alive_timeout(options.head_timeout);
    builder
}

impl Server {
    async fn accept(self: Arc<Self>, listener: TcpListener, address: SocketAddr, mut draining: watch::Receiver<bool>) {
        let open = draining.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = draining.changed() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Whoever is refused is closed at once: left in the kernel's queue, it would be in the way of others.
                    let Ok(place) = self.connections.admit(peer.ip()) else { continue };
                    let at = Connection { peer, listener: address, client: Arc::clone(&place.client) };
                    tokio::spawn(Arc::clone(&self).connection(stream, at, place, open.clone()));
                }
                Err(error) => self.rest(&error, address).await,
            }
        }
    }

    /// What is to be done about a connection that could not be accepted.
    async fn rest(&self, error: &io::Error, listener: SocketAddr) {
        ACCEPT_ERRORS.inc();
        // A client that left between its SYN and our accept is no fault of this process.
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        let no_files =
            error.raw_os_error().map(Errno::from_raw).is_some_and(|e| [Errno::EMFILE, Errno::ENFILE].contains(&e));
        let made_room = no_files && self.connections.make_room();
        warn!(%error, %listener, made_room, "a connection could not be accepted");
        tokio::time::sleep(ACCEPT_REST).await;
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, at: Connection, place: Place, open: watch::Receiver<bool>) {
        let _open = open;
        // Answers are small and written whole; waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);
        let (at, place) = (Arc::new(at), Arc::new(place));
        let stream = Watched { stream, activity: Arc::clone(&place.activity) };
        let service = service_fn(|request| self.answer(request, &at, &place));
        let mut serving = pin!(self.protocol.serve_connection(TokioIo::new(stream), service));
        loop {
            tokio::select! {
                biased;
                ended = serving.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%error, peer = %at.peer, "connection ended with an error");
                    }
                    return;
                }
                order = place.activity.told() => match order {
                    Order::Serve => {}
                    Order::Finish => serving.as_mut().graceful_shutdown(),
                    Order::Cut => {
                        debug!(peer = %at.peer, "connection cut off");
                        return;
                    }
                },
            }
        }
    }

    /// Hands a request to the router, if it can be told what it asks and there is room for it.
    fn answer(
        &self,
        mut request: Request<Incoming>,
        at: &Arc<Connection>,
        place: &Arc<Place>,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
        let refused = refuse(&request).or_else(|| (!place.has_room()).then(busy));
        let under_way = place.begin(request.version() == Version::HTTP_2);
        request.extensions_mut().insert(Arc::clone(at));
        let router = self.router.clone();
        async move {
            let answer = match refused {
                Some(problem) => Ok(problem),
                None => router.oneshot(request.map(Body::new)).await,
            };
            under_way.answered();
            answer
        }
    }
}

/// The answer to a request that two readers could take for two different ones; see RFC 9112, section 3.2.
fn refuse(request: &Request<Incoming>) -> Option<Response> {
    if request.version() != Version::HTTP_11 {
        return None;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let what = match (hosts.next(), hosts.next()) {
        (Some(_), None) => return None,
        (None, _) => "has no Host header",
        (Some(_), Some(_)) => "has several Host headers",
    };
    REQUESTS_REFUSED.with_label_values(&["malformed"]).inc();
    let problem = MALFORMED.problem(format!("the request {what}: HTTP/1.1 wants one"));
    // Where one request ends and the next begins cannot be trusted either.
    Some(problem.header(header::CONNECTION, HeaderValue::from_static("close")).into_response())
}

fn busy() -> Response {
    let problem = BUSY.problem("as many requests are under way as this process takes at once");
    problem.with("outcome", "not_written").retry_after(BUSY_RETRY_SECONDS).into_response()
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

    /// More than the buffers of both ends take.
    const LARGE: usize = 64 << 20;
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

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
        let root = async |axum::Extension(at): axum::Extension<Arc<Connection>>| at.peer.port().to_string();
        let large = async || "x".repeat(LARGE);
        let router = Router::new().route("/", get(root)).route("/wait", get(wait)).route("/large", get(large));
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

    impl Running {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// A connection on which a request was answered.
        async fn used(&self) -> TcpStream {
            let mut stream = self.connect().await;
            stream.write_all(GET).await.unwrap();
            assert!(answered(&mut stream).await);
            stream
        }
    }

    /// Whether an answer comes; its body is short.
    async fn answered(stream: &mut TcpStream) -> bool {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        buffer[..read].starts_with(b"HTTP/1.1 200")
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
        let running = plain(Options { head_timeout: Duration::from_millis(50), ..Options::default() }).await;
        // Nothing, the beginning of HTTP/2's preface and of HTTP/1 alike, half a head, and HTTP/2 without a request.
        for sent in ["", "P", "GET / HTTP/1.1\r\nhost:", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut stream = running.connect().await;
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn idle_connection_outlives_the_head_timeout_and_ends_at_its_own() {
        let options = Options {
            head_timeout: Duration::from_millis(40),
            idle_timeout: Duration::from_secs(2),
            ..Options::default()
        };
        let running = plain(options).await;
        let (mut used, mut half) = (running.used().await, running.used().await);
        let began = std::time::Instant::now();
        half.write_all(b"GET /").await.unwrap();
        assert_eq!(half.read(&mut [0; 8]).await.unwrap_or(0), 0);
        assert!(began.elapsed() < Duration::from_secs(1), "a head that has begun has the patience of the first");
        used.write_all(GET).await.unwrap();
        assert!(answered(&mut used).await, "an idle connection has more");
        assert_eq!(rest(used).await, "");
    }

    #[tokio::test]
    async fn client_that_takes_nothing_of_its_answer_is_cut_off() {
        let running = plain(Options { write_timeout: Duration::from_millis(50), ..Options::default() }).await;
        let mut stream = running.connect().await;
        stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        running.stop.send(()).unwrap();
        // The drain of 20 s does not wait for it: the connection is gone before, though nothing was read.
        tokio::time::timeout(Duration::from_secs(10), running.ended).await.unwrap().unwrap().unwrap();
        assert!(rest(stream).await.len() < LARGE);
    }

    #[tokio::test]
    async fn idle_connection_makes_room_and_a_busy_one_does_not() {
        let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let options = Options { max_connections: 1, ..Options::default() };
        let running = start(options, Arc::clone(&entered), Arc::clone(&release)).await;
        let idle = running.used().await;
        let mut busy = running.connect().await;
        busy.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        entered.notified().await;
        assert_eq!(rest(idle).await, "");
        assert_eq!(rest(running.connect().await).await, "", "nobody is idle: the newcomer is closed");
        release.notify_one();
        assert!(answered(&mut busy).await);
    }

    #[tokio::test]
    async fn request_with_none_or_two_hosts_is_refused_and_ends_the_connection() {
        let running = plain(Options::default()).await;
        for hosts in ["", "host: a\r\nhost: b\r\n"] {
            let mut stream = running.connect().await;
            stream.write_all(format!("GET / HTTP/1.1\r\n{hosts}\r\n").as_bytes()).await.unwrap();
            stream.write_all(GET).await.ok();
            let answer = rest(stream).await;
            assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("MP0008"), "{answer}");
            assert!(!answer.contains("200 OK"), "{answer}");
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
