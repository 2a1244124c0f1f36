//! HTTP by the byte, as no client library would send it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Longer than any bound that the tests set.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection of which every byte is the test's.
pub struct Wire {
    pub stream: TcpStream,
    /// What came and was not taken yet.
    buffer: Vec<u8>,
}

/// The address of an attacker, by number: one of loopback's where the system has more than one of those.
pub fn attacker(number: usize) -> IpAddr {
    let last =
        if cfg!(target_os = "linux") { [1, 1 + (number / 250) as u8, 1 + (number % 250) as u8] } else { [0, 0, 1] };
    IpAddr::V4(Ipv4Addr::new(127, last[0], last[1], last[2]))
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Wire {
    pub async fn connect(to: SocketAddr) -> Self {
        Self::connect_from(IpAddr::V4(Ipv4Addr::LOCALHOST), to).await.unwrap()
    }

    pub async fn connect_from(from: IpAddr, to: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends; false once the other end takes nothing any more.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Sends everything, and reads everything until the connection ends.
    pub async fn exchange(mut self, bytes: impl AsRef<[u8]>) -> String {
        // What is refused early is not taken to its end.
        self.send(bytes).await;
        self.rest().await
    }

    /// Everything until the connection ends.
    pub async fn rest(mut self) -> String {
        let read = self.stream.read_to_end(&mut self.buffer);
        // A connection that is cut off ends with a reset, which is an end, too.
        let _ = tokio::time::timeout(LIMIT, read).await.expect("the other end closes in time");
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// The next answer; none if the connection ends before it is whole.
    pub async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.take_answer() {
                return Some(answer);
            }
            let read = tokio::time::timeout(LIMIT, self.stream.read_buf(&mut self.buffer));
            if read.await.expect("an answer in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    fn take_answer(&mut self) -> Option<Answer> {
        let end = memchr::memmem::find(&self.buffer, b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        if self.buffer.len() < end + length {
            return None;
        }
        let rest = self.buffer.split_off(end + length);
        let whole = std::mem::replace(&mut self.buffer, rest);
        let status = head.split(' ').nth(1).unwrap_or_default().parse().unwrap();
        Some(Answer { status, head, body: String::from_utf8_lossy(&whole[end..]).into_owned() })
    }
}

/// How many answers there are in what came.
pub fn answers(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ").filter_map(|(at, _)| text[at + 9..].get(..3)?.parse().ok()).collect()
}

/// A POST of one record, whole.
pub fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}
