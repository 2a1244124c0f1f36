//! Which process is which: a pid alone does not say, for pids come round again.
//!
//! Owns the identity of a running process (pid, start, boot) and the signals sent on the strength of it. Must not decide
//! which process to signal: that is [`super::folder`]'s and [`super::children`]'s business.

use std::io;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process, told apart from every other that had or will have its pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id; also the id of the process group that it leads.
    pub pid: i32,
    /// When it started, in whatever unit the system tells it: compared, never read.
    pub started: String,
}

impl Identity {
    /// The identity of the process that has `pid` now; `None` when there is none, or only its unreaped remains.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let started = if cfg!(target_os = "linux") { started_by_proc(pid)? } else { started_by_ps(pid)? };
        Some(Self { pid, started })
    }

    /// Whether this very process still runs. A stranger that was given its pid does not count.
    #[must_use]
    pub fn runs(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }
}

/// Linux: ticks since boot, and the boot they count from.
fn started_by_proc(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = start_ticks(&stat)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(format!("{} {ticks}", boot.trim()))
}

/// Field 22 of `/proc/<pid>/stat`; `None` for a zombie. The name in field 2 may itself hold blanks and brackets.
fn start_ticks(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Elsewhere: `ps` tells it to the second.
fn started_by_ps(pid: i32) -> Option<String> {
    let out = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let line = String::from_utf8_lossy(&out.stdout);
    let (state, started) = line.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| started.trim().to_owned())
}

/// All processes below `pid`, nearest first. A snapshot: stop `pid` first if none may be added meanwhile.
pub fn descendants(pid: i32) -> io::Result<Vec<i32>> {
    let out = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output()?;
    let table = String::from_utf8_lossy(&out.stdout);
    let pairs: Vec<(i32, i32)> = table
        .lines()
        .filter_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            Some((columns.next()?.parse().ok()?, columns.next()?.parse().ok()?))
        })
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(pairs.iter().filter(|(_, ppid)| *ppid == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// Signals one process; a process that is gone is no error.
pub fn signal(pid: i32, signal: Signal) -> io::Result<()> {
    gone_is_fine(kill(Pid::from_raw(pid), signal))
}

/// Signals the group that `pid` leads; a group that is gone is no error.
pub fn signal_group(pid: i32, signal: Signal) -> io::Result<()> {
    gone_is_fine(killpg(Pid::from_raw(pid), signal))
}

fn gone_is_fine(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identity_of_this_process_runs_and_other_start_does_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let me = Identity::of(pid).unwrap();
        assert!(me.runs());
        assert!(!Identity { started: "another".into(), ..me }.runs());
    }

    #[test]
    fn identity_by_ps_is_stable_and_absent_for_no_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(started_by_ps(pid), started_by_ps(pid));
        assert!(started_by_ps(pid).is_some());
        assert_eq!(started_by_ps(i32::MAX), None);
    }

    #[test]
    fn start_ticks_of_name_with_brackets_skips_the_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(&format!("7 (a) b (c)) {tail}")), Some(4711));
        assert_eq!(start_ticks(&format!("7 (x) {}", tail.replacen('S', "Z", 1))), None);
    }

    #[test]
    fn descendants_of_a_shell_hold_its_child() {
        use std::io::{BufRead as _, BufReader};
        use std::os::unix::process::CommandExt as _;
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 600 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(descendants(pid).unwrap(), [line.trim().parse::<i32>().unwrap()]);
        signal_group(pid, Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
    }

    proptest! {
        #[test]
        fn start_ticks_of_any_text_never_panics(text in "\\PC*") {
            start_ticks(&text);
        }
    }
}
