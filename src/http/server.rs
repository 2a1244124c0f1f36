//! The accept loop: HTTP/1.1 and HTTP/2 on plain TCP, bounded in connections, requests and patience.
//!
//! axum's own `serve` knows no timeout, no bound on connections and no deadline for the drain, so it is not used. hyper's
//! header timeout is not either: it makes a timer for each request, does not tell an idle connection from a slow head, and
//! does not hold for HTTP/2. [`Connections`] keeps patience in its stead.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, Version, header},
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
    answer::Answer,
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
            self.connections.let_leave().await;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = draining.changed() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Whoever is refused is closed at once: left in the kernel's queue, it would be in the way of others.
                    let place = match self.connections.admit(peer.ip()) {
                        Ok(place) => place,
                        Err(refused) => {
                            debug!(%peer, ?refused, "connection refused");
                            continue;
                        }
                    };
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
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> + Send + use<> {
        let refused = refuse(&request).or_else(|| (!place.has_room()).then(busy));
        let mut under_way = place.begin(request.version() == Version::HTTP_2);
        let has_body = request.method() != Method::HEAD;
        request.extensions_mut().insert(Arc::clone(at));
        let router = self.router.clone();
        async move {
            let response = match refused {
                Some(problem) => problem,
                None => router.oneshot(request.map(Body::new)).await?,
            };
            under_way.answer();
            Ok(response.map(|body| Answer { body, under_way, has_body }))
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
mod tests;
