//! Whether a Postgres server takes connections: what it wrote in `postmaster.pid`, and its answer to a startup message.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// What `postmaster.pid` says of a running server.
#[derive(Debug, PartialEq, Eq)]
pub struct PidFile {
    /// The server's process.
    pub pid: i32,
    /// The port it was told to use.
    pub port: Option<u16>,
    /// Whether it is through with starting and recovery.
    pub ready: bool,
}

impl PidFile {
    /// Reads the file in `data`; `None` when there is none, or none that makes sense.
    #[must_use]
    pub fn read(data: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        Some(Self {
            pid: lines.first()?.parse().ok()?,
            port: lines.get(3).and_then(|line| line.parse().ok()),
            ready: lines.get(7) == Some(&"ready"),
        })
    }
}

/// Whether the server at `address` answers a startup message with a request to authenticate, and not with an error.
pub fn takes_connections(address: SocketAddr, user: &str, within: Duration) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, within)?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    stream.write_all(&startup(user))?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok(kind[0] == b'R')
}

/// Protocol 3.0, user and database of one name.
fn startup(user: &str) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for text in ["user", user, "database", user] {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).expect("invariant: a user's name is short");
    [&length.to_be_bytes()[..], &body].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pid_file_of_a_server_that_is_up_reads_as_ready() {
        let text = "4711\n/data\n1790000000\n5451\n/tmp\n127.0.0.1\n  123 0\nready   \n";
        assert_eq!(PidFile::parse(text), Some(PidFile { pid: 4711, port: Some(5451), ready: true }));
        let starting = text.replace("ready   ", "starting");
        assert_eq!(PidFile::parse(&starting), Some(PidFile { pid: 4711, port: Some(5451), ready: false }));
    }

    proptest! {
        #[test]
        fn pid_file_of_any_text_never_panics(text in "[0-9a-z\\n -]*") {
            PidFile::parse(&text);
        }
    }
}
