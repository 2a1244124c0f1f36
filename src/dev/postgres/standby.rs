//! A standby: a copy of a running server that follows it by streaming, and takes its place when it is promoted.

use std::path::Path;
use std::sync::Arc;

use super::{Account, Install, PostgresServer, USER, cleared_name, write_secret};
use crate::dev::progress::Step;
use crate::dev::{Error, Folder, Progress, children, doing};

/// The server to follow.
#[derive(Debug, Clone)]
pub struct Primary {
    /// Port on loopback: the server's own, or that of a proxy before it.
    pub port: u16,
    /// The password of its user, which is the standby's, too.
    pub password: String,
}

impl PostgresServer {
    /// What a standby of this server has to know. `port`: that of a proxy before it, if there is one.
    #[must_use]
    pub fn as_primary(&self, port: Option<u16>) -> Primary {
        Primary { port: port.unwrap_or(self.port), password: self.kind.password.clone() }
    }

    /// Starts a standby on a new copy of `primary` in `folder`, and waits until it answers reads.
    pub fn start_standby(
        folder: &Arc<Folder>,
        primary: &Primary,
        options: &super::Options,
        progress: &Progress,
    ) -> Result<Self, Error> {
        let step = progress.step("postgres standby", "copying the primary");
        let dir = folder.below("postgres")?;
        let account = Account::choose(&dir, options.no_namespace)?;
        let data = account.home.join("data");
        let install = Install::find(options.bin_dir.as_deref(), &data)?;
        write_secret(&dir.join("password"), &primary.password)?;
        copy(&install, &account, &data, primary, &step)?;
        drop(step);
        Self::start(folder, options, progress)
    }
}

/// Copies the primary's data, with the settings in it by which the copy follows; whole or not at all.
fn copy(install: &Install, account: &Account, data: &Path, primary: &Primary, step: &Step) -> Result<(), Error> {
    let new = cleared_name(data)?;
    let mut backup = account.command(&install.bin.join("pg_basebackup"));
    backup
        .args([
            "--host=127.0.0.1",
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-password",
        ])
        .arg(format!("--port={}", primary.port))
        .arg(format!("--username={USER}"))
        .arg("--pgdata")
        .arg(&new)
        .env("PGPASSWORD", &primary.password);
    children::run(backup, "pg_basebackup")?;
    step.now("copied");
    std::fs::rename(&new, data).map_err(|e| doing("rename", &new, e))
}
