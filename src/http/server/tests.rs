//! Connections on a real socket: who is answered, who is closed, and when.

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
    let options =
        Options { head_timeout: Duration::from_millis(40), idle_timeout: Duration::from_secs(2), ..Options::default() };
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

/// What `docs/reading.md` and `docs/errors.md` say of raw characters in a URI: hyper answers before we see the request.
#[tokio::test]
async fn target_with_a_raw_quote_is_refused_without_a_body() {
    let running = plain(Options::default()).await;
    let ask = async |value: &str| {
        let mut stream = running.connect().await;
        let head = format!("GET /?x={value} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        rest(stream).await
    };
    for (raw, encoded) in [("a\"", "a%22"), ("a<", "a%3C"), ("a>", "a%3E"), ("a b", "a%20b")] {
        let answer = ask(raw).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("\r\n\r\n"), "{raw}: {answer}");
        let answer = ask(encoded).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{encoded}: {answer}");
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
