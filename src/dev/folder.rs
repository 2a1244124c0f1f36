//! The data folder of the servers: one user at a time, the ports they had, and the processes that run on its data.
//!
//! Invariants: whoever holds a [`Folder`] holds its lock; a process is ended as a leftover only when pid *and* start time
//! are those recorded here; the state file is replaced whole, so a crash leaves the old one or the new one.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::process::{self, Identity};
use super::{Error, doing};

/// How long a leftover has to end by itself before it is killed.
const LEFTOVER_ENDS_WITHIN: Duration = Duration::from_secs(20);

/// A locked data folder. Dropping it releases the lock, not the processes.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    state: Mutex<State>,
    _lock: File,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    ports: BTreeMap<String, u16>,
    children: BTreeMap<String, Recorded>,
}

/// A child on record: who it is, and the signal that ends it in good order.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Recorded {
    #[serde(flatten)]
    identity: Identity,
    stop: String,
}

impl Folder {
    /// Creates the folder if need be, takes its lock, and ends what a killed predecessor left running on it.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        create_private(path)?;
        let path = path.canonicalize().map_err(|e| doing("find the folder", path, e))?;
        let lock = lock(&path)?;
        // The folder is for one machine only: keep it out of whatever repository it lies in.
        write_whole(&path.join(".gitignore"), b"*\n")?;
        let state = match fs::read(path.join(STATE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| doing("read", &path.join(STATE), e.into()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(e) => return Err(doing("read", &path.join(STATE), e)),
        };
        let folder = Self { path, state: Mutex::new(state), _lock: lock };
        folder.end_leftovers()?;
        Ok(folder)
    }

    /// The folder, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder below this one, created if need be.
    pub fn below(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        create_private(&path)?;
        Ok(path)
    }

    /// The port that `server` had last.
    #[must_use]
    pub fn port(&self, server: &str) -> Option<u16> {
        self.state().ports.get(server).copied()
    }

    /// Keeps the port of `server` for the next start.
    pub fn remember_port(&self, server: &str, port: u16) -> Result<(), Error> {
        let mut state = self.state();
        state.ports.insert(server.to_owned(), port);
        self.write(&state)
    }

    /// Puts a child on record, so that the next start ends it should this process be killed.
    pub fn record(&self, name: &str, identity: &Identity, stop: Signal) -> Result<(), Error> {
        let mut state = self.state();
        state.children.insert(name.to_owned(), Recorded { identity: identity.clone(), stop: stop.as_str().to_owned() });
        self.write(&state)
    }

    /// Takes a child that has ended off the record, unless another of its name is there by now.
    pub fn forget(&self, name: &str, identity: &Identity) -> Result<(), Error> {
        let mut state = self.state();
        if state.children.get(name).is_none_or(|recorded| recorded.identity != *identity) {
            return Ok(());
        }
        state.children.remove(name);
        self.write(&state)
    }

    fn end_leftovers(&self) -> Result<(), Error> {
        let children = std::mem::take(&mut self.state().children);
        let left: Vec<_> = children.into_iter().filter(|(_, child)| child.identity.runs()).collect();
        for (name, child) in &left {
            let stop = child.stop.parse().unwrap_or(Signal::SIGTERM);
            process::signal(child.identity.pid, stop).map_err(|e| doing("stop the leftover", Path::new(name), e))?;
            // A stopped process takes no notice of anything but this and SIGKILL.
            process::signal(child.identity.pid, Signal::SIGCONT).map_err(|e| doing("wake", Path::new(name), e))?;
        }
        let deadline = Instant::now() + LEFTOVER_ENDS_WITHIN;
        for (name, child) in &left {
            while child.identity.runs() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            if child.identity.runs() {
                process::signal_group(child.identity.pid, Signal::SIGKILL)
                    .map_err(|e| doing("kill the leftover", Path::new(name), e))?;
            }
        }
        self.write(&self.state())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &State) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(state).expect("invariant: maps of text and numbers are JSON");
        write_whole(&self.path.join(STATE), &text)
    }
}

const STATE: &str = "servers.json";
const LOCK: &str = "lock";

/// The lock dies with the process that holds it, however that ends.
fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| doing("open", &path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(|e| doing("read", &path, e))?;
            return Err(Error::Locked { folder: folder.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(e)) => return Err(doing("lock", &path, e)),
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(|e| doing("write", &path, e))?;
    Ok(file)
}

/// Creates a folder that only its owner may look into: passwords and data live there.
pub(super) fn create_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| doing("create the folder", path, e))
}

/// Writes a file so that a reader sees the old text or the new one, never a part.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, bytes).and_then(|()| fs::rename(&new, path)).map_err(|e| doing("write", path, e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> (Child, Identity) {
        let child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        (child, identity)
    }

    /// What a predecessor that was killed leaves behind: its state, without its lock.
    fn abandoned(dir: &Path, identity: &Identity) {
        let folder = Folder::open(dir).unwrap();
        folder.record("kafka", identity, Signal::SIGTERM).unwrap();
        folder.remember_port("kafka", 9099).unwrap();
    }

    #[test]
    fn folder_in_use_is_refused_naming_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let _held = Folder::open(dir.path()).unwrap();
        let error = Folder::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[test]
    fn folder_forgetting_a_child_keeps_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let (old, new) = (Identity { pid: 7, started: "1".into() }, Identity { pid: 8, started: "2".into() });
        folder.record("kafka", &new, Signal::SIGTERM).unwrap();
        folder.forget("kafka", &old).unwrap();
        assert!(folder.state().children.contains_key("kafka"));
        folder.forget("kafka", &new).unwrap();
        assert!(folder.state().children.is_empty());
    }

    #[test]
    fn folder_opened_again_ends_leftover_and_remembers_ports() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, identity) = sleeper();
        abandoned(dir.path(), &identity);
        let folder = Folder::open(dir.path()).unwrap();
        assert!(!identity.runs());
        assert_eq!(folder.port("kafka"), Some(9099));
        child.wait().unwrap();
    }

    #[test]
    fn folder_opened_again_spares_stranger_with_recycled_pid() {
        let dir = tempfile::tempdir().unwrap();
        let (mut stranger, identity) = sleeper();
        abandoned(dir.path(), &Identity { started: "an earlier life".into(), ..identity.clone() });
        drop(Folder::open(dir.path()).unwrap());
        assert!(identity.runs());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
