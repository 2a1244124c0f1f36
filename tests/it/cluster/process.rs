//! One process of the real binary.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::dev::Folder;
use millpond::dev::children::{Child, Launch};
use millpond::dev::process::Identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SOON, Web};

/// A process that was started and is ready. Dropping it kills it.
pub struct Process {
    child: Child,
    name: String,
    identity: Identity,
    log: PathBuf,
    pub web: Web,
}

impl Process {
    /// Starts the binary and waits until it listens, and with `ready` until it wants to be asked.
    pub fn start(folder: &Arc<Folder>, name: &str, args: Vec<String>, ready: bool) -> Self {
        let words = std::iter::once(env!("CARGO_BIN_EXE_millpond").to_owned()).chain(args);
        let words = words.chain(["--set".into(), "log.format=json".into()]);
        Self::start_program(folder, name, words.map(OsString::from).collect(), ready)
    }

    /// [`Self::start`] of another program, which writes the same lines to its log.
    pub fn start_program(folder: &Arc<Folder>, name: &str, words: Vec<OsString>, ready: bool) -> Self {
        Self::try_start_program(folder, name, words, ready).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`Self::start_program`] of one that may end before it is ready.
    pub fn try_start_program(
        folder: &Arc<Folder>,
        name: &str,
        words: Vec<OsString>,
        ready: bool,
    ) -> Result<Self, String> {
        let mut words = words.into_iter();
        let program = PathBuf::from(words.next().expect("a program"));
        let log = folder.path().join(format!("{name}.log"));
        let launch = Launch {
            name: name.to_owned(),
            wrapper: Vec::new(),
            program,
            args: words.collect(),
            account: None,
            locale: "C.UTF-8",
            cwd: folder.path().to_owned(),
            log: log.clone(),
            stop: Signal::SIGTERM,
            stop_within: SOON,
        };
        let mut child = Child::spawn(folder, launch).unwrap();
        let mut address = None;
        let started = child.wait_ready(SOON, |_| {
            address = ready_at(&log);
            address.as_deref().is_some_and(|address| !ready || is_ready(address))
        });
        started.map_err(|error| format!("{error}\n{}", std::fs::read_to_string(&log).unwrap_or_default()))?;
        let identity = Identity::of(child.pid()).expect("it runs");
        let web = Web::new(&format!("http://{}", address.expect("ready")));
        Ok(Self { child, name: name.to_owned(), identity, log, web })
    }

    /// Kills it as a crash of the machine would.
    pub fn kill_9(mut self) {
        self.child.kill_9().unwrap();
    }

    /// Freezes it: its connections stay open, and it answers nothing.
    pub fn pause(&self) {
        self.child.pause().unwrap();
    }

    pub fn cont(&self) {
        self.child.cont().unwrap();
    }

    /// Sends SIGTERM and comes back at once.
    pub fn terminate(&self) {
        kill(Pid::from_raw(self.child.pid()), Signal::SIGTERM).unwrap();
    }

    /// Waits for its end; how long that took, and whether it ended well.
    pub fn ended(&mut self, within: Duration) -> (Duration, bool) {
        let begun = Instant::now();
        let mut status = None;
        crate::harness::eventually(within, || {
            status = self.child.ended().unwrap();
            status.is_some()
        });
        (begun.elapsed(), status.is_some_and(|status| status.success()))
    }

    /// SIGTERM, and its end in good order.
    pub fn stop(mut self) {
        self.terminate();
        let (_, well) = self.ended(SOON);
        assert!(well, "{}", self.log());
    }

    pub fn has_ended(&mut self) -> bool {
        self.ended_as().is_some()
    }

    /// How it ended, if it has.
    pub fn ended_as(&mut self) -> Option<String> {
        self.child.ended().unwrap().map(|status| status.to_string())
    }

    pub fn runs(&self) -> bool {
        self.identity.runs()
    }

    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not in good order: the servers it would say goodbye to may be stopped. Gone already is fine.
        let _ = self.child.cont();
        let _ = self.child.kill_9();
        if std::thread::panicking() {
            eprintln!("what {} said is in {}", self.name, self.log.display());
        }
    }
}

/// What a load balancer asks before it sends clients.
fn is_ready(address: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The address in the line that says `ready`, or in what `dev` says to people.
fn ready_at(log: &PathBuf) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    let said = text.lines().find_map(|line| line.trim_start().strip_prefix("HTTP "));
    if let Some(address) = said.and_then(|said| said.split_whitespace().next()?.strip_prefix("http://")) {
        return Some(address.to_owned());
    }
    let line = text.lines().find(|line| line.contains(r#""message":"ready""#))?;
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(value["address"].as_str()?.to_owned())
}
