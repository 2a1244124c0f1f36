//! Processes under measurement: started, waited for, their memory and CPU time read from the system, stopped.

use std::{
    fs::File,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};

use crate::{Bench, http, project::Project};

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// A process is idle once it has had nothing to do for so long.
const SETTLE: Duration = Duration::from_millis(1500);

/// A running process. Dropping it kills it.
pub struct Running {
    child: Child,
    pub address: SocketAddr,
}

impl Running {
    /// Starts `command` and waits until `/readyz` is 200.
    pub async fn spawn(mut command: Command, address: SocketAddr) -> anyhow::Result<Self> {
        let child = command.spawn().context("cannot start the process")?;
        let mut running = Self { child, address };
        let begun = Instant::now();
        loop {
            if let Some(status) = running.child.try_wait()? {
                bail!("{command:?} has ended ({status})");
            }
            if http::status(address, "/readyz").await.is_ok_and(|status| status == 200) {
                return Ok(running);
            }
            if begun.elapsed() > READY_WITHIN {
                bail!("{command:?} is not ready after {} s", READY_WITHIN.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A role of Millpond on `project`, with its log beside the project.
    pub async fn role(bench: &Bench, role: &str, project: &Project, settings: &[&str]) -> anyhow::Result<Self> {
        let address = http::free_address()?;
        let mut command = Self::command(bench, project);
        let log = File::create(project.folder.join(format!("{role}.log")))?;
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.arg(role).arg("--listen").arg(address.to_string()).stderr(log);
        Self::spawn(command, address).await
    }

    /// The release binary on the servers of this run.
    pub fn command(bench: &Bench, project: &Project) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command
            .args(["--project".as_ref(), project.folder.as_os_str()])
            .args(["--set", &format!("kafka.brokers={}", bench.brokers)])
            .args(["--set", &format!("postgres.url={}", bench.postgres)])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Resident memory in MiB once nothing goes on; begins the measurement of the peak.
    pub async fn idle_memory(&self) -> anyhow::Result<f64> {
        tokio::time::sleep(SETTLE).await;
        // The kernel forgets the peak so far.
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").ok();
        self.memory("VmRSS")
    }

    /// Most resident memory in MiB so far.
    pub fn peak_memory(&self) -> anyhow::Result<f64> {
        self.memory("VmHWM")
    }

    fn memory(&self, field: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such line")?;
        let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// CPU seconds used so far.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields count from behind the name, which may hold anything; 14 and 15 are user and system time.
        let (_, rest) = stat.rsplit_once(") ").context("not the format of stat")?;
        let ticks: f64 = rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(ticks / per_second as f64)
    }

    /// SIGTERM, and the end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begun.elapsed() > STOPPED_WITHIN {
                bail!("the process did not end within {} s of SIGTERM", STOPPED_WITHIN.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
