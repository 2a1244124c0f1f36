//! Which port a server gets: the one it had, else the usual one, else the next that is free.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::Error;

/// How many ports are tried from the first one on.
const TRIED: u16 = 200;

/// The first free port on loopback: `remembered`, then `usual` and those after it, never one of `taken`.
pub fn choose(server: &str, remembered: Option<u16>, usual: u16, taken: &[u16]) -> Result<u16, Error> {
    remembered
        .into_iter()
        .chain(usual..=usual.saturating_add(TRIED - 1))
        .find(|port| !taken.contains(port) && is_free(*port))
        .ok_or_else(|| Error::NoFreePort {
            server: server.to_owned(),
            from: usual,
            to: usual.saturating_add(TRIED - 1),
        })
}

/// Whether nobody listens there. Some systems let a bind to one address pass beside a bind to all: so both are asked.
pub fn is_free(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).is_ok() && TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port somebody listens on, with the listener that holds it.
    fn held() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[test]
    fn choose_with_usual_port_taken_falls_back_to_a_later_one() {
        let (_listener, usual) = held();
        let port = choose("kafka", None, usual, &[]).unwrap();
        assert!(port > usual, "{port} after {usual}");
    }

    #[test]
    fn choose_with_remembered_port_free_keeps_it() {
        let (listener, remembered) = held();
        let (_other, usual) = held();
        drop(listener);
        assert_eq!(choose("kafka", Some(remembered), usual, &[]).unwrap(), remembered);
        assert_ne!(choose("kafka", Some(remembered), usual, &[remembered]).unwrap(), remembered);
    }
}
