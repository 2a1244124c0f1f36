//! Child processes that do not outlive this one, however it ends.
//!
//! Each child leads a process group of its own, so a Ctrl-C meant for us does not reach it. Three things end it: we do
//! ([`Child::stop`], or its drop); our death does (a parent-death signal where `setpriv` has one, else a guard process that
//! reads a pipe of ours); and if both fail, the next [`Folder::open`] on the same folder does, by the record made here.
//!
//! The parent-death signal follows the *thread* that spawned the child, not the process: so all children are spawned by
//! one thread that lives as long as the process.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::folder::Folder;
use super::process::{self, Identity};
use super::{Error, doing};

/// How a program is to be run as a child.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Name in messages and in the record; one child of a folder per name.
    pub name: String,
    /// What runs the program and then becomes it, `unshare … --` for one. Often empty.
    pub wrapper: Vec<OsString>,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// User and group to become, when this process may.
    pub account: Option<(u32, u32)>,
    /// `LC_ALL`: what a server says and how it sorts must not depend on who started it.
    pub locale: &'static str,
    /// Where it runs.
    pub cwd: PathBuf,
    /// Where its output goes, appended.
    pub log: PathBuf,
    /// The signal that ends it in good order.
    pub stop: Signal,
    /// How long it has to end in good order before it is killed.
    pub stop_within: Duration,
}

/// How our death ends the children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// The kernel sends the stop signal (`setpriv --pdeathsig`).
    Kernel,
    /// A guard process sees the end of a pipe that only we hold open.
    Guard,
}

/// A running child. Dropping it stops it.
#[derive(Debug)]
pub struct Child {
    folder: Arc<Folder>,
    launch: Launch,
    process: std::process::Child,
    guard: Option<std::process::Child>,
    identity: Identity,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts `launch` and puts it on `folder`'s record.
    pub fn spawn(folder: &Arc<Folder>, launch: Launch) -> Result<Self, Error> {
        static TIE: LazyLock<Tie> = LazyLock::new(tie);
        Self::spawn_tied(folder, launch, *TIE)
    }

    fn spawn_tied(folder: &Arc<Folder>, launch: Launch, tie: Tie) -> Result<Self, Error> {
        let failed = |e| doing("start", &launch.program, e);
        let log = append(&launch.log)?;
        let process = spawn_on_lasting_thread(command(&launch, tie, log).map_err(failed)?).map_err(failed)?;
        let pid = pid_of(&process);
        // An unreaped child keeps its pid, but has no identity: it ended at once, which `ended` will tell.
        let identity = Identity::of(pid).unwrap_or_else(|| Identity { pid, started: String::new() });
        let mut child = Self { folder: folder.clone(), launch, process, guard: None, identity, ended: None };
        folder.record(&child.launch.name, &child.identity, child.launch.stop)?;
        if tie == Tie::Guard {
            child.guard = Some(guard(pid, child.launch.stop).map_err(|e| doing("start", Path::new("sh"), e))?);
        }
        Ok(child)
    }

    /// Starts the same again, after it was stopped or has ended.
    pub fn start_again(&mut self) -> Result<(), Error> {
        *self = Self::spawn(&self.folder, self.launch.clone())?;
        Ok(())
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// An error when the child has ended without being told to.
    pub fn check(&mut self) -> Result<(), Error> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(Error::Died { server: self.launch.name.clone(), status, log: self.launch.log.clone() }),
        }
    }

    /// How the child ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().map_err(|e| doing("wait for", &self.launch.program, e))?;
            if self.ended.is_some() {
                self.dismiss_guard();
            }
        }
        Ok(self.ended)
    }

    /// Asks the child to end, waits, and kills its group if it does not.
    pub fn stop(&mut self) -> Result<(), Error> {
        if self.ended()?.is_none() {
            let failed = |e| doing("signal", &self.launch.program, e);
            process::signal(self.pid(), self.launch.stop).map_err(failed)?;
            process::signal(self.pid(), Signal::SIGCONT).map_err(failed)?;
            if !self.ends_within(self.launch.stop_within)? {
                self.kill_9()?;
            }
        }
        self.folder.forget(&self.launch.name, &self.identity)
    }

    /// Kills the child and all below it, as a crash would: nothing is flushed, nothing says goodbye.
    pub fn kill_9(&mut self) -> Result<(), Error> {
        if self.ended()?.is_none() {
            let failed = |e| doing("kill", &self.launch.program, e);
            // The parent goes first, or it would see its children die and mend what should stay broken.
            let below = process::descendants(self.pid()).map_err(failed)?;
            process::signal_group(self.pid(), Signal::SIGKILL).map_err(failed)?;
            for pid in below {
                process::signal(pid, Signal::SIGKILL).map_err(failed)?;
            }
            self.ended = Some(self.process.wait().map_err(failed)?);
            self.dismiss_guard();
        }
        self.folder.forget(&self.launch.name, &self.identity)
    }

    /// Freezes the child and all below it: connections stay open, nothing answers.
    pub fn pause(&self) -> Result<(), Error> {
        let failed = |e| doing("pause", &self.launch.program, e);
        process::signal(self.pid(), Signal::SIGSTOP).map_err(failed)?;
        for pid in process::descendants(self.pid()).map_err(failed)? {
            process::signal(pid, Signal::SIGSTOP).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends a [`pause`](Self::pause).
    pub fn cont(&self) -> Result<(), Error> {
        let failed = |e| doing("continue", &self.launch.program, e);
        for pid in process::descendants(self.pid()).map_err(failed)? {
            process::signal(pid, Signal::SIGCONT).map_err(failed)?;
        }
        process::signal(self.pid(), Signal::SIGCONT).map_err(failed)
    }

    /// Waits until `ready` says so; an error when the child ends first or `within` is over.
    pub fn wait_ready(&mut self, within: Duration, mut ready: impl FnMut(&Self) -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.ended()? {
                self.folder.forget(&self.launch.name, &self.identity)?;
                return Err(Error::Ended { server: self.launch.name.clone(), status, log: self.launch.log.clone() });
            }
            if ready(self) {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.stop()?;
                return Err(Error::NotReady { server: self.launch.name.clone(), within, log: self.launch.log.clone() });
            }
            thread::sleep(Duration::from_millis(30));
        }
    }

    fn ends_within(&mut self, within: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if self.ended()?.is_some() {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(self.ended()?.is_some())
    }

    /// The guard must not outlive its ward: the pid may be a stranger's by then.
    fn dismiss_guard(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, name = self.launch.name, "child could not be stopped");
        }
    }
}

/// Whether `setpriv` is there and knows the parent-death signal (BusyBox' does not).
fn tie() -> Tie {
    let probe = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if probe.is_ok_and(|status| status.success()) { Tie::Kernel } else { Tie::Guard }
}

fn command(launch: &Launch, tie: Tie, log: File) -> io::Result<Command> {
    let mut words: Vec<OsString> = launch.wrapper.clone();
    if tie == Tie::Kernel {
        // Innermost: a change of user, as the wrappers make, would clear the signal again.
        let signal = launch.stop.as_str().trim_start_matches("SIG");
        words.extend(["setpriv", "--pdeathsig", signal, "--"].map(OsString::from));
    }
    words.push(launch.program.clone().into());
    words.extend(launch.args.iter().cloned());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .current_dir(&launch.cwd)
        .env("LC_ALL", launch.locale)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    if let Some((user, group)) = launch.account {
        command.uid(user).gid(group);
    }
    Ok(command)
}

/// A shell that waits for the end of its input, which only this process can bring about, and then ends `pid`'s group.
fn guard(pid: i32, stop: Signal) -> io::Result<std::process::Child> {
    const SCRIPT: &str = r#"
        trap "" HUP INT TERM
        read -r _
        kill -s "$2" "$1"
        n=0
        while kill -0 "$1" 2>/dev/null && [ $n -lt 200 ]; do sleep 0.1; n=$((n + 1)); done
        kill -s KILL -- "-$1" 2>/dev/null
    "#;
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, "millpond-guard", &pid.to_string(), stop.as_str().trim_start_matches("SIG")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command.spawn()
}

type Request = (Command, Sender<io::Result<std::process::Child>>);

/// Spawns on the one thread that lives as long as the process; see the module's own words on why.
fn spawn_on_lasting_thread(command: Command) -> io::Result<std::process::Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = channel::<Request>();
        thread::Builder::new()
            .name("children".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    // A caller that is gone has dropped its end, and the child with it would be nobody's.
                    if let Err(unclaimed) = answer.send(command.spawn())
                        && let Ok(mut child) = unclaimed.0
                    {
                        let _ = child.kill();
                    }
                }
            })
            .expect("invariant: a process that starts servers can start a thread");
        Mutex::new(requests)
    });
    let (answer, spawned) = channel();
    let gone = |_| io::Error::other("the thread that spawns children is gone");
    spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).map_err(|e| gone(e.to_string()))?;
    spawned.recv().map_err(|e| gone(e.to_string()))?
}

/// Opens a log to append to; what an earlier run wrote is set aside once it is long.
fn append(path: &Path) -> Result<File, Error> {
    const LONG: u64 = 8 << 20;
    if path.metadata().is_ok_and(|log| log.len() > LONG) {
        std::fs::rename(path, path.with_extension("old.log")).map_err(|e| doing("set aside", path, e))?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| doing("open", path, e))
}

fn pid_of(process: &std::process::Child) -> i32 {
    i32::try_from(process.id()).expect("invariant: pids fit 31 bits")
}

/// Runs a program to its end, with the output taken; an error when it fails.
pub(super) fn run(mut command: Command, name: &str) -> Result<String, Error> {
    let program = PathBuf::from(command.get_program());
    let out = command.stdin(Stdio::null()).output().map_err(|e| doing("start", &program, e))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if out.status.success() {
        Ok(text(&out.stdout))
    } else {
        let said = [text(&out.stdout), text(&out.stderr)].join("\n");
        Err(Error::Failed { program: name.to_owned(), status: out.status, said: tail(&said, 12) })
    }
}

/// The last lines of a text.
pub(super) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// `words`, as the operating system takes them.
pub(super) fn os<const N: usize>(words: [&dyn AsRef<OsStr>; N]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(dir: &Path, script: &str) -> Launch {
        Launch {
            name: "sleeper".into(),
            wrapper: Vec::new(),
            program: "sh".into(),
            args: os([&"-c", &script]),
            account: None,
            locale: "C",
            cwd: dir.to_owned(),
            log: dir.join("log"),
            stop: Signal::SIGTERM,
            stop_within: Duration::from_millis(300),
        }
    }

    fn folder() -> (tempfile::TempDir, Arc<Folder>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(Folder::open(dir.path()).unwrap());
        (dir, folder)
    }

    #[test]
    fn child_stopped_is_gone_and_off_the_record() {
        let (dir, folder) = folder();
        let mut child = Child::spawn(&folder, launch(dir.path(), "exec sleep 600")).unwrap();
        let identity = child.identity.clone();
        assert!(identity.runs());
        child.stop().unwrap();
        assert!(!identity.runs());
        let record = std::fs::read_to_string(dir.path().join("servers.json")).unwrap();
        assert!(!record.contains("sleeper"), "{record}");
    }

    #[test]
    fn child_deaf_to_the_stop_signal_is_killed_with_its_group() {
        let (dir, folder) = folder();
        let script = "trap '' TERM; sleep 600 & echo $!; wait; wait";
        let mut child = Child::spawn(&folder, launch(dir.path(), script)).unwrap();
        let mut below = None;
        child
            .wait_ready(Duration::from_secs(10), |_| {
                below = std::fs::read_to_string(dir.path().join("log")).unwrap().trim().parse().ok();
                below.is_some()
            })
            .unwrap();
        let below = Identity::of(below.unwrap()).unwrap();
        child.stop().unwrap();
        assert!(child.ended().unwrap().is_some());
        // Sent the same signal at the same moment; but nobody here is its parent, and waits for it.
        let until = Instant::now() + Duration::from_secs(10);
        while below.runs() && Instant::now() < until {
            thread::yield_now();
        }
        assert!(!below.runs());
    }

    #[test]
    fn child_that_ends_before_it_is_ready_is_an_error_naming_the_log() {
        let (dir, folder) = folder();
        let mut child = Child::spawn(&folder, launch(dir.path(), "echo no such luck; exit 3")).unwrap();
        let error = child.wait_ready(Duration::from_secs(10), |_| false).unwrap_err().to_string();
        assert!(error.contains("no such luck") && error.contains("3"), "{error}");
    }

    #[test]
    fn guarded_child_ends_when_the_pipe_to_the_guard_does() {
        let (dir, folder) = folder();
        let mut child = Child::spawn_tied(&folder, launch(dir.path(), "exec sleep 600"), Tie::Guard).unwrap();
        // What the kernel does when this process dies.
        drop(child.guard.as_mut().unwrap().stdin.take());
        let mut guard = child.guard.take().unwrap();
        assert!(child.ends_within(Duration::from_secs(10)).unwrap());
        guard.wait().unwrap();
    }

    #[test]
    fn paused_child_takes_no_notice_until_continued() {
        let (dir, folder) = folder();
        let mut child = Child::spawn(&folder, launch(dir.path(), "exec sleep 600")).unwrap();
        child.pause().unwrap();
        process::signal(child.pid(), Signal::SIGTERM).unwrap();
        assert!(child.ended().unwrap().is_none());
        child.cont().unwrap();
        assert!(child.ends_within(Duration::from_secs(10)).unwrap());
    }
}
