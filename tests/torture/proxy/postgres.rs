//! Postgres' messages: where one ends, and what statement it is about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::trap::Message;
use super::{Direction, lock};

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// No start-up message is longer.
const LONGEST_STARTUP: usize = 10_000;

/// What both directions of one connection know of it.
#[derive(Debug, Default)]
pub struct Dialogue {
    /// Text of the statement that was sent last.
    last: Mutex<String>,
    /// Prepared statements by name.
    prepared: Mutex<HashMap<String, Arc<str>>>,
}

/// Reads the start-up message, with refusals of encryption before it; the message, and the application's name in it.
pub async fn startup(client: &mut TcpStream) -> std::io::Result<(Vec<u8>, String)> {
    loop {
        let mut message = vec![0; 4];
        client.read_exact(&mut message).await?;
        let length = u32::from_be_bytes(message[..4].try_into().expect("four bytes")) as usize;
        if !(8..LONGEST_STARTUP).contains(&length) {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        message.resize(length, 0);
        client.read_exact(&mut message[4..]).await?;
        match u32::from_be_bytes(message[4..8].try_into().expect("four bytes")) {
            SSL_REQUEST | GSS_REQUEST => client.write_all(b"N").await?,
            _ => {
                let name = parameter(&message[8..], "application_name");
                return Ok((message, name));
            }
        }
    }
}

/// A parameter of a start-up message: names and values in turn, each ended by a zero.
fn parameter(bytes: &[u8], name: &str) -> String {
    let mut words = bytes.split(|byte| *byte == 0);
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        if key == name.as_bytes() {
            return String::from_utf8_lossy(value).into_owned();
        }
    }
    String::new()
}

/// How long the first message in `bytes` is; none while it is not all there.
pub fn message_length(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 4] = bytes.get(1..5)?.try_into().ok()?;
    let length = 1 + u32::from_be_bytes(length) as usize;
    (bytes.len() >= length).then_some(length)
}

impl Dialogue {
    /// Says what a whole message is to `then`.
    pub fn read<T>(&self, direction: Direction, message: &[u8], then: impl FnOnce(&Message<'_>) -> T) -> T {
        let body = message.get(5..).unwrap_or_default();
        match (direction, message[0]) {
            (Direction::ToServer, b'Q') => self.statement(Arc::from(text(body).0), then),
            (Direction::ToServer, b'P') => {
                let (name, rest) = text(body);
                let statement: Arc<str> = Arc::from(text(rest).0);
                lock(&self.prepared).insert(name.to_owned(), statement);
                then(&Message::Other)
            }
            (Direction::ToServer, b'B') => {
                let (name, _) = text(text(body).1);
                let statement = lock(&self.prepared).get(name).cloned();
                self.statement(statement.unwrap_or_default(), then)
            }
            (Direction::ToServer, b'd') => then(&Message::CopyData),
            (Direction::ToClient, b'C') => {
                let statement = lock(&self.last).clone();
                then(&Message::Complete { tag: text(body).0, statement: &statement })
            }
            _ => then(&Message::Other),
        }
    }

    fn statement<T>(&self, statement: Arc<str>, then: impl FnOnce(&Message<'_>) -> T) -> T {
        lock(&self.last).replace_range(.., &statement);
        then(&Message::Statement(&statement))
    }
}

/// The text up to the next zero, and what follows it.
fn text(bytes: &[u8]) -> (&str, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (std::str::from_utf8(&bytes[..end]).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default())
}
