//! What the servers have in common: a child process that serves a port of this machine, is asked whether it is up, and can
//! be disturbed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::children::{Child, Launch};
use super::{Error, Folder};

/// How often a start is tried again when its end had a cause that passes.
const ATTEMPTS: usize = 8;

/// What one kind of server does in its own way.
pub trait Kind {
    /// Puts in order what a killed predecessor left behind; called before every start.
    fn prepare(&self) -> Result<(), Error>;

    /// Whether it is `child` that serves at `address`, and not a stranger.
    fn is_ready(&self, child: &Child, address: SocketAddr) -> bool;

    /// Whether the end of a starting server has a cause that passes, as when somebody was faster to take its port.
    fn may_pass(&self, log: &Path, port: u16) -> bool;
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server<K> {
    child: Child,
    pub(super) kind: K,
    pub(super) port: u16,
    ready_within: Duration,
}

impl<K: Kind> Server<K> {
    /// Starts what `plan` says, on the port it says, and waits until it serves; asks `plan` anew when the start failed for a
    /// cause that passes.
    pub(super) fn launch(
        folder: &Arc<Folder>,
        ready_within: Duration,
        mut plan: impl FnMut() -> Result<(K, Launch, u16), Error>,
    ) -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            let (kind, launch, port) = plan()?;
            kind.prepare()?;
            let mut server = Self { child: Child::spawn(folder, launch)?, kind, port, ready_within };
            match server.wait_ready() {
                Ok(()) => return Ok(server),
                Err(error) if attempt < ATTEMPTS && server.may_pass(&error) => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts it again on the same port and data, after [`stop`](Self::stop) or [`kill_9`](Self::kill_9) (else stops it
    /// first), and waits until it serves.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.child.stop()?;
        let mut attempt = 1;
        loop {
            self.kind.prepare()?;
            self.child.start_again()?;
            match self.wait_ready() {
                Err(error) if attempt < ATTEMPTS && self.may_pass(&error) => attempt += 1,
                result => return result,
            }
        }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// An error when the server has ended by itself.
    pub fn check(&mut self) -> Result<(), Error> {
        self.child.check()
    }

    /// Stops the server in good order, clients or not.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.child.stop()
    }

    /// Kills it and all below it as a crash of the machine would, the page cache aside.
    pub fn kill_9(&mut self) -> Result<(), Error> {
        self.child.kill_9()
    }

    /// Freezes it and all below it: connections stay open, nothing answers.
    pub fn pause(&self) -> Result<(), Error> {
        self.child.pause()
    }

    /// Ends a [`pause`](Self::pause).
    pub fn cont(&self) -> Result<(), Error> {
        self.child.cont()
    }

    fn wait_ready(&mut self) -> Result<(), Error> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        self.child.wait_ready(self.ready_within, |child| self.kind.is_ready(child, address))
    }

    fn may_pass(&self, error: &Error) -> bool {
        matches!(error, Error::Ended { log, .. } if self.kind.may_pass(log, self.port))
    }
}
