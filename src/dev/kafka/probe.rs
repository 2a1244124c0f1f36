//! Whether a Kafka node answers, and which cluster it belongs to: one Metadata request over a plain socket.
//!
//! Readiness only. Everything else talks to Kafka through the client library.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Metadata v4: has the cluster id, and is old enough for fixed-length encoding.
const REQUEST: &[u8] = &[
    0, 0, 0, 24, // length of what follows
    0, 3, 0, 4, // Metadata, version 4
    0, 0, 0, 1, // correlation id
    0, 9, b'm', b'i', b'l', b'l', b'p', b'o', b'n', b'd', b'?', // client id
    0, 0, 0, 0, // no topics
    0, // and create none
];
/// No answer about no topics is larger.
const LONGEST_ANSWER: usize = 64 * 1024;

/// What a node says of its cluster.
#[derive(Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The id it was formatted with.
    pub id: String,
    /// How many brokers serve.
    pub brokers: usize,
}

/// Asks the node at `address`; both connecting and answering are bounded by `within`.
pub fn ask(address: SocketAddr, within: Duration) -> io::Result<Cluster> {
    let mut stream = TcpStream::connect_timeout(&address, within)?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    stream.write_all(REQUEST)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST_ANSWER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a Kafka node"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    decode(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an answer to a Metadata request"))
}

fn decode(mut bytes: &[u8]) -> Option<Cluster> {
    let rest = &mut bytes;
    take(rest, 4 + 4)?; // correlation id, throttle time
    let brokers = usize::try_from(i32::from_be_bytes(take(rest, 4)?.try_into().ok()?)).ok()?;
    for _ in 0..brokers {
        take(rest, 4)?; // node id
        text(rest)?;
        take(rest, 4)?; // port
        text(rest)?; // rack
    }
    Some(Cluster { id: text(rest)??.to_owned(), brokers })
}

/// A nullable string: `Some(None)` is null.
fn text<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a str>> {
    let length = i16::from_be_bytes(take(rest, 2)?.try_into().ok()?);
    match usize::try_from(length) {
        Ok(length) => Some(Some(std::str::from_utf8(take(rest, length)?).ok()?)),
        Err(_) => Some(None),
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_length_is_that_of_its_body() {
        assert_eq!(u32::from_be_bytes(REQUEST[..4].try_into().unwrap()) as usize, REQUEST.len() - 4);
    }

    #[test]
    fn decode_of_one_broker_tells_cluster_id() {
        let mut answer = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, b'h', 0, 0, 35, 132, 255, 255];
        answer.extend([0, 2, b'i', b'd', 0, 0, 0, 1]);
        assert_eq!(decode(&answer), Some(Cluster { id: "id".into(), brokers: 1 }));
    }

    proptest! {
        #[test]
        fn decode_of_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes);
        }
    }
}
