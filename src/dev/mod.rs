//! Real servers for development and tests: one Kafka node and one Postgres, as child processes of this one.
//!
//! `millpond dev` and the tests start the same servers through [`Servers::start`]; servers that are given instead are used
//! as they are. Owns the data folder, the processes in it, and the settings they run with (`deploy/dev-servers/`). Must not
//! know of topics, schemas or tables: it hands out addresses and ends there. Everything here blocks the calling thread.

pub mod children;
pub mod folder;
pub mod kafka;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod progress;
mod server;
mod settings;
pub mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

pub use folder::Folder;
pub use kafka::{KafkaCluster, KafkaServer};
pub use postgres::PostgresServer;
pub use progress::Progress;

/// Why a server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process works on the folder.
    #[error("the folder {folder:?} is in use by process {holder}: stop that one first, or name another folder")]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// Pid, as the holder wrote it.
        holder: String,
    },
    /// A program that has to be installed is not there.
    #[error("{what} not found: {hint}")]
    Missing {
        /// Program and version.
        what: String,
        /// How to get it.
        hint: String,
    },
    /// The file system or the operating system refused.
    #[error("cannot {doing}")]
    Io {
        /// What, and on which path.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A helper program failed.
    #[error("{program} failed ({status}):\n{said}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        said: String,
    },
    /// A server ended while it was starting.
    #[error("{server} ended while starting ({status}); the end of {log:?}:\n{}", log_tail(log))]
    Ended {
        /// The server.
        server: String,
        /// How it ended.
        status: ExitStatus,
        /// Where it said why.
        log: PathBuf,
    },
    /// A server that ran has ended without being told to.
    #[error("{server} has ended by itself ({status}); the end of {log:?}:\n{}", log_tail(log))]
    Died {
        /// The server.
        server: String,
        /// How it ended.
        status: ExitStatus,
        /// Where it said why.
        log: PathBuf,
    },
    /// A server runs and does not answer.
    #[error("{server} did not answer within {} s; the end of {log:?}:\n{}", within.as_secs(), log_tail(log))]
    NotReady {
        /// The server.
        server: String,
        /// How long it was given.
        within: Duration,
        /// Where it may have said why.
        log: PathBuf,
    },
    /// A file is not what the committed list says.
    #[error(
        "{file} has SHA-256 {found}, and the committed list says {expected}: it is not used; delete {path:?} and retry"
    )]
    Checksum {
        /// The file's name.
        file: String,
        /// Where it lies.
        path: PathBuf,
        /// What was computed.
        found: String,
        /// What was expected, or `nothing` for a file that is not on the list.
        expected: String,
    },
    /// Data that the installed server cannot read.
    #[error(
        "the data in {path:?} is Postgres {found}'s, and {installed} is installed: install {found}, or start afresh with --reset"
    )]
    DataVersion {
        /// Where the data is.
        path: PathBuf,
        /// Major version that wrote it.
        found: String,
        /// Major versions there are.
        installed: String,
    },
    /// All ports in the range are taken.
    #[error("no free port for {server} between {from} and {to}: stop what listens there")]
    NoFreePort {
        /// The server.
        server: String,
        /// First port tried.
        from: u16,
        /// Last port tried.
        to: u16,
    },
}

/// How to name an [`io::Error`]'s circumstances.
fn doing(what: &str, path: &Path, source: io::Error) -> Error {
    Error::Io { doing: format!("{what} {}", path.display()), source }
}

/// Deletes a folder with all in it; one that is not there is no error.
fn delete(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(doing("delete", path, e)),
        _ => Ok(()),
    }
}

/// The paths that match `pattern`, in which `*` stands for any text within a name; numbers in names sort as numbers, the
/// highest first.
fn sorted_glob(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for name in pattern.split('/').filter(|name| !name.is_empty()) {
        found = match name.split_once('*') {
            None => found.into_iter().map(|dir| dir.join(name)).filter(|path| path.exists()).collect(),
            Some((start, end)) => {
                let entries = found.iter().filter_map(|dir| dir.read_dir().ok()).flatten().flatten();
                let names = entries.map(|entry| entry.path()).filter(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
                });
                names.collect()
            }
        };
    }
    let numbers = |path: &PathBuf| -> Vec<u64> {
        let text = path.to_string_lossy();
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    found.sort_by(|a, b| numbers(b).cmp(&numbers(a)).then_with(|| a.cmp(b)));
    found
}

fn log_tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    children::tail(&text, 12)
}

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder for data, logs and state; created. One process at a time.
    pub data_dir: PathBuf,
    /// Bootstrap servers to use instead of starting Kafka.
    pub kafka: Option<String>,
    /// URL to use instead of starting Postgres.
    pub postgres: Option<String>,
    /// Delete the data of the servers that are started here first. Servers that are given are never touched.
    pub reset: bool,
    /// How Kafka is run.
    pub kafka_options: kafka::Options,
    /// How Postgres is run.
    pub postgres_options: postgres::Options,
}

impl Options {
    /// Both servers, data below `data_dir`, nothing deleted.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            kafka: None,
            postgres: None,
            reset: false,
            kafka_options: kafka::Options::default(),
            postgres_options: postgres::Options::default(),
        }
    }
}

/// The servers of one data folder. Dropping stops those that were started here.
#[derive(Debug)]
pub struct Servers {
    kafka: Choice<KafkaServer>,
    postgres: Choice<PostgresServer>,
    /// Held for its lock, also when both servers were given.
    _folder: Arc<Folder>,
}

#[derive(Debug)]
enum Choice<S> {
    Given(String),
    Started(S),
}

impl<S> Choice<S> {
    fn make(given: Option<&String>, start: impl FnOnce() -> Result<S, Error>) -> Result<Self, Error> {
        match given {
            Some(given) => Ok(Self::Given(given.clone())),
            None => start().map(Self::Started),
        }
    }

    fn started(&mut self) -> Option<&mut S> {
        match self {
            Self::Given(_) => None,
            Self::Started(server) => Some(server),
        }
    }
}

impl Servers {
    /// Locks the folder, ends what a killed predecessor left running there, and starts what was not given, both at once.
    /// Blocks until all answer.
    ///
    /// # Errors
    /// Names the server and shows the end of its log; nothing is left running then.
    pub fn start(options: &Options, progress: &Progress) -> Result<Self, Error> {
        let folder = Arc::new(Folder::open(&options.data_dir)?);
        if options.reset {
            if options.kafka.is_none() {
                KafkaServer::delete_data(&folder)?;
            }
            if options.postgres.is_none() {
                PostgresServer::delete_data(&folder)?;
            }
        }
        let (kafka, postgres) = std::thread::scope(|scope| {
            let kafka = scope.spawn(|| {
                Choice::make(options.kafka.as_ref(), || KafkaServer::start(&folder, &options.kafka_options, progress))
            });
            let postgres = Choice::make(options.postgres.as_ref(), || {
                PostgresServer::start(&folder, &options.postgres_options, progress)
            });
            (kafka.join().expect("invariant: starting Kafka returns its errors"), postgres)
        });
        Ok(Self { kafka: kafka?, postgres: postgres?, _folder: folder })
    }

    /// Kafka's bootstrap servers, `host:port[,…]`.
    #[must_use]
    pub fn brokers(&self) -> String {
        match &self.kafka {
            Choice::Given(given) => given.clone(),
            Choice::Started(server) => server.bootstrap(),
        }
    }

    /// The URL of the database, with the password in it: print it to the person at the terminal only.
    #[must_use]
    pub fn postgres_url(&self) -> String {
        match &self.postgres {
            Choice::Given(given) => given.clone(),
            Choice::Started(server) => server.url(),
        }
    }

    /// The Kafka started here, to disturb it.
    pub fn kafka(&mut self) -> Option<&mut KafkaServer> {
        self.kafka.started()
    }

    /// The Postgres started here, to disturb it.
    pub fn postgres(&mut self) -> Option<&mut PostgresServer> {
        self.postgres.started()
    }

    /// An error when a server that was started here has ended by itself. Cheap: ask as often as once a second.
    pub fn check(&mut self) -> Result<(), Error> {
        self.kafka().map_or(Ok(()), KafkaServer::check)?;
        self.postgres().map_or(Ok(()), PostgresServer::check)
    }

    /// Stops what was started here, in good order, both at once; the data stays.
    pub fn stop(mut self) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let Self { kafka, postgres, .. } = &mut self;
            let kafka = scope.spawn(move || kafka.started().map_or(Ok(()), KafkaServer::stop));
            let postgres = postgres.started().map_or(Ok(()), PostgresServer::stop);
            kafka.join().expect("invariant: stopping Kafka returns its errors").and(postgres)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_glob_with_versions_puts_the_highest_first() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["9", "15", "17"] {
            std::fs::create_dir_all(dir.path().join(format!("v{version}/bin"))).unwrap();
        }
        let found = sorted_glob(&format!("{}/v*/bin", dir.path().display()));
        assert!(found[0].ends_with("v17/bin") && found[2].ends_with("v9/bin"), "{found:?}");
        assert!(sorted_glob("/no/such/*/folder").is_empty());
    }
}
