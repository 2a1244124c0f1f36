//! P7: Postgres' disk is full. A small disk in memory takes the place of a large one, and becomes as large as what is on it.
//!
//! To mount something one has to be root, or to be it in a namespace of one's own: the rig runs itself again in one, so that
//! nobody else ever sees its mounts, and they vanish with it. Where that is not allowed the scenario is left out.

use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::unistd::geteuid;

use super::measure::Mark;
use super::{Fault, Field, SHOWS_WITHIN};

/// Set in the environment of a rig that has mounts of its own.
const OWN_MOUNTS: &str = "MILLPOND_TORTURE_OWN_MOUNTS";
/// What the small disk may take of the machine's memory while it is not full. It takes only what is on it.
const ROOM_MIB: u64 = 4096;

/// Runs this program again with mounts of its own. Comes back when it has them already, or cannot have them.
pub fn take_own_mounts() {
    if std::env::var_os(OWN_MOUNTS).is_some() || !works(&["mount", "-t", "tmpfs", "none", "/tmp"]) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut again = Command::new("unshare");
    again.args(namespace()).arg(program).args(std::env::args_os().skip(1)).env(OWN_MOUNTS, "1");
    let error = again.exec();
    eprintln!("  no mounts of our own: {error}");
}

fn namespace() -> &'static [&'static str] {
    if geteuid().is_root() { &["--mount", "--"] } else { &["--user", "--map-root-user", "--mount", "--"] }
}

/// Whether a command succeeds in a namespace of its own.
fn works(command: &[&str]) -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args(namespace()).args(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    unshare.status().is_ok_and(|status| status.success())
}

/// Why there can be no small disk.
pub fn hindrance() -> Option<String> {
    let none = "this system lets nobody mount a small disk in a namespace of their own (`unshare --mount`)";
    std::env::var_os(OWN_MOUNTS).is_none().then(|| none.to_owned())
}

/// Postgres' disk is full: that of two tables, or that of its log.
pub async fn full(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    if field.way(&[true, false]) { tables_disk(field).await } else { log_disk(field).await }
}

/// What is written to the tables finds no room; Postgres itself is well.
async fn tables_disk(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let disk = Disk::mount(field)?;
    let folder = disk.folder("tables", &data_folder(field).await?)?;
    execute(field, &format!("create tablespace small location '{}'", folder.display())).await?;
    move_tables(field, "small").await?;

    let outage = field.outage(5, 10);
    let injected = field.begin(format!("the disk of two tables is full for {outage:?}")).await?;
    let (mark, acknowledged) = (Mark::now(field.arena), field.workload.acknowledged());
    disk.fill()?;
    tokio::time::sleep(outage).await;
    let meanwhile = field.workload.acknowledged() - acknowledged;
    // What Postgres says then (`disk_full`).
    let refused = mark.since(field.arena).iter().filter(|line| line.contains("53100")).count();
    disk.free()?;
    let recovery = field.recovery(injected.at).await;

    move_tables(field, "pg_default").await?;
    execute(field, "drop tablespace small").await?;
    let observed = format!("{refused} batches found no room, {meanwhile} values acknowledged meanwhile");
    Ok(field.end(injected, (refused > 0 && meanwhile > 0).then_some(observed), recovery))
}

/// Postgres cannot write its log, which is the one thing that it does not survive: it panics, and cannot come back either
/// until there is room. Whoever makes room starts it again.
async fn log_disk(field: &mut Field<'_>) -> anyhow::Result<Fault> {
    let disk = Disk::mount(field)?;
    let data = data_folder(field).await?;
    let (log, away) = (data.join("pg_wal"), data.join("pg_wal.away"));
    let small = disk.path.join("pg_wal");
    tokio::task::block_in_place(|| {
        field.servers.postgres.stop()?;
        run("cp", &["-a", &text(&log), &text(&small)])?;
        std::fs::rename(&log, &away)?;
        symlink(&small, &log)?;
        anyhow::Ok(field.servers.postgres.restart()?)
    })?;
    field.recovery(field.history.now()).await.context("Postgres works with its log on another disk")?;

    let outage = field.outage(4, 8);
    let injected = field.begin(format!("the disk of Postgres' log is full for {outage:?}")).await?;
    let before = panics(field);
    disk.fill()?;
    let panicked = panics_since(field, before).await;
    let acknowledged = field.workload.acknowledged();
    tokio::time::sleep(outage).await;
    let meanwhile = field.workload.acknowledged() - acknowledged;
    disk.free()?;
    let stayed_away = field.servers.postgres.check().is_err();
    if stayed_away {
        tokio::task::block_in_place(|| field.servers.postgres.restart())?;
    }
    let recovery = field.recovery(injected.at).await;

    tokio::task::block_in_place(|| {
        field.servers.postgres.stop()?;
        std::fs::remove_file(&log)?;
        run("cp", &["-a", &text(&small), &text(&log)])?;
        std::fs::remove_dir_all(&away)?;
        anyhow::Ok(field.servers.postgres.restart()?)
    })?;
    let stayed_away = if stayed_away { ", which ended the server" } else { "" };
    let observed = format!("{panicked} panics of Postgres{stayed_away}, {meanwhile} values acknowledged meanwhile");
    Ok(field.end(injected, (panicked > 0 && meanwhile > 0).then_some(observed), recovery))
}

/// A disk in memory, with room while nobody fills it.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(field: &Field<'_>) -> anyhow::Result<Self> {
        let path = field.servers.folder().join(format!("disk-{}", field.history.now()));
        std::fs::create_dir_all(&path)?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={ROOM_MIB}m"), "none", &text(&path)])?;
        Ok(Self { path })
    }

    /// A folder that belongs to whom `like` belongs to.
    fn folder(&self, name: &str, like: &Path) -> anyhow::Result<PathBuf> {
        let (path, owner) = (self.path.join(name), like.metadata()?);
        std::fs::create_dir(&path)?;
        chown(&path, Some(owner.uid()), Some(owner.gid()))?;
        Ok(path)
    }

    /// Leaves no room on it. Somebody may write while it is looked at how much is used.
    fn fill(&self) -> anyhow::Result<()> {
        for _ in 0..20 {
            let said = Command::new("df").args(["--output=used", "-k"]).arg(&self.path).output()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let used: u64 = said.lines().nth(1).context("df has a second line")?.trim().parse()?;
            if self.resize(&format!("{}k", used.max(4))).is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("{} cannot be made as small as what is on it", self.path.display())
    }

    fn free(&self) -> anyhow::Result<()> {
        self.resize(&format!("{ROOM_MIB}m"))
    }

    fn resize(&self, size: &str) -> anyhow::Result<()> {
        run("mount", &["-o", &format!("remount,size={size}"), &text(&self.path)])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever has something open on it keeps it, and it is gone when they are.
        let _ = run("umount", &["-l", &text(&self.path)]);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn execute(field: &Field<'_>, sql: &str) -> anyhow::Result<()> {
    let mut connection = field.arena.connect().await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .with_context(|| sql.to_owned())?;
    Ok(())
}

/// Moves the tables of the appends to a tablespace. A batch may be in the way, of two that each wait for the other.
async fn move_tables(field: &Field<'_>, to: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    for table in ["p_appends_v1.appends", "p_chains_v1.chains"] {
        while let Err(error) = execute(field, &format!("alter table {table} set tablespace {to}")).await {
            ensure!(begun.elapsed() < SHOWS_WITHIN, "{error:#}");
        }
    }
    Ok(())
}

async fn data_folder(field: &Field<'_>) -> anyhow::Result<PathBuf> {
    let mut connection = field.arena.connect().await?;
    let folder: String = sqlx::query_scalar("show data_directory").fetch_one(&mut connection).await?;
    Ok(folder.into())
}

/// How often Postgres has given up since it found no room.
fn panics(field: &Field<'_>) -> usize {
    let folders = std::fs::read_dir(field.servers.folder()).into_iter().flatten().flatten();
    let logs = folders.map(|folder| folder.path().join("postgres").join("server.log"));
    let lines = |log| std::fs::read_to_string(log).unwrap_or_default();
    logs.map(|log| {
        let gave_up = |line: &&str| line.contains("PANIC") && line.contains("No space left on device");
        lines(log).lines().filter(gave_up).count()
    })
    .sum()
}

/// Waits until Postgres has given up; how often it has.
async fn panics_since(field: &Field<'_>, before: usize) -> usize {
    let begun = Instant::now();
    while panics(field) == before && begun.elapsed() < SHOWS_WITHIN {
        // The files of the log are made in advance: the next one is asked for before the first is full.
        if let Ok(mut connection) = field.arena.connect().await {
            let _ = sqlx::query("select pg_switch_wal()").execute(&mut connection).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panics(field) - before
}
