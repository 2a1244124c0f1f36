//! The system's limit on open files, which every connection counts against.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Files that a process has open beside its clients' connections: sockets to brokers and database, the poller's, logs.
const OTHERS: usize = 256;

/// Raises the limit as far as it may be raised without privileges, and says so if it is too low for `connections`.
///
/// Shells start with a soft limit of 1,024 for the sake of programs that use `select`; nothing here does.
pub fn raise_limit(connections: usize) {
    let limit = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard).or(Ok(soft)));
    let wanted = connections + OTHERS;
    match limit {
        Ok(limit) if limit < wanted as u64 => warn!(
            limit,
            wanted,
            "the limit on open files is too low for http.max_connections: raise it (`ulimit -Hn`, `LimitNOFILE=`), or lower http.max_connections"
        ),
        Ok(limit) => debug!(limit, "open files"),
        Err(error) => warn!(%error, "the limit on open files cannot be read"),
    }
}
