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
    pub async fn rest(self) -> String {
        String::from_utf8_lossy(&self.rest_bytes().await).into_owned()
    }

    /// The same, as bytes.
    pub async fn rest_bytes(mut self) -> Vec<u8> {
        let read = self.stream.read_to_end(&mut self.buffer);
        // A connection that is cut off ends with a reset, which is an end, too.
        let _ = tokio::time::timeout(LIMIT, read).await.expect("the other end closes in time");
        self.buffer
    }

    /// Sends the same again and again, reading nothing, until the other end closes or takes nothing any more for so long.
    /// Gives how many times it was sent.
    pub async fn flood(&mut self, bytes: &[u8], most: usize, patience: Duration) -> usize {
        for sent in 0..most {
            match tokio::time::timeout(patience, self.stream.write_all(bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return sent,
            }
        }
        most
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
        Some(Answer { status, body: String::from_utf8_lossy(&whole[end..]).into_owned() })
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

/// HTTP/2 by the frame.
pub mod h2 {
    pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    /// Error code of a GOAWAY to a client that asks too much.
    pub const ENHANCE_YOUR_CALM: u32 = 11;

    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// The preface and settings: identifier and value.
    pub fn opening(settings: &[(u16, u32)]) -> Vec<u8> {
        let pairs = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        [PREFACE, &frame(SETTINGS, 0, 0, &pairs.collect::<Vec<u8>>())].concat()
    }

    /// A head by HPACK: method and scheme from the static table, the rest spelt out.
    pub fn head(is_post: bool, path: &str) -> Vec<u8> {
        let mut block = vec![if is_post { 0x83 } else { 0x82 }, 0x86];
        for (name, value) in [(0x01, "a"), (0x04, path)] {
            // Literal without indexing, with a name from the static table.
            block.push(name);
            block.push(u8::try_from(value.len()).expect("a short path"));
            block.extend_from_slice(value.as_bytes());
        }
        block
    }

    pub fn request(stream: u32, is_post: bool, path: &str, is_whole: bool) -> Vec<u8> {
        let flags = END_HEADERS | if is_whole { END_STREAM } else { 0 };
        frame(HEADERS, flags, stream, &head(is_post, path))
    }

    /// Kind, flags, stream and payload of each whole frame.
    pub fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while bytes.len() >= 9 {
            let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            let Some(payload) = bytes.get(9..9 + length) else { break };
            let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
            found.push((bytes[3], bytes[4], stream, payload.to_vec()));
            bytes = &bytes[9 + length..];
        }
        found
    }

    /// The error code of the GOAWAY, if one came.
    pub fn goaway(bytes: &[u8]) -> Option<u32> {
        let (.., payload) = frames(bytes).into_iter().find(|(kind, ..)| *kind == GOAWAY)?;
        Some(u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?))
    }
}
