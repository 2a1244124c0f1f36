//! Millpond as it is run: processes of the real binary on one project, and servers that a test may stop.
//!
//! A [`Cluster`] is one application: a copy of a project with topics of its own, a database of its own, and however many
//! processes a test starts. A cluster has a Kafka and a Postgres, apart from those that the other tests share, for itself: it
//! may stop, kill and freeze them, and the next one finds them mended.

mod application;
mod commands;
mod oracle;
mod posting;
mod process;
mod project;
mod servers;
mod web;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millpond::dev::Folder;
use millpond::kafka::{self, Admin};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

pub use application::run_with_handler;
pub use commands::{Command as FlightCommand, all_days, days, read as read_commands};
pub use oracle::Slice;
pub use posting::{Load, Pace, post, shares};
pub use process::Process;
pub use project::Project;
pub use servers::Exclusive;
pub use web::Web;

pub use crate::harness::Answer;

/// Far more than anything here takes, on a machine that does much else.
pub const SOON: Duration = Duration::from_secs(60);

/// Whether the runs that take minutes are asked for (`MILLPOND_LONG=1`).
pub fn long() -> bool {
    std::env::var_os("MILLPOND_LONG").is_some_and(|value| value == "1")
}

/// One application on the servers.
pub struct Cluster {
    pub project: Project,
    /// URL of its database.
    pub database: String,
    pub servers: Exclusive,
    folder: Arc<Folder>,
    started: Cell<usize>,
}

impl Cluster {
    /// The flights application, with topics and schemas there.
    pub async fn flights(name: &str) -> Self {
        Self::of(name, Project::flights).await
    }

    /// A project made by the test, with topics and schemas there.
    pub async fn of(name: &str, make: impl FnOnce(PathBuf, &str) -> Project) -> Self {
        let servers = Exclusive::take();
        let folder = Arc::new(Folder::open(&crate::harness::own_folder(name)).unwrap());
        let unique = crate::harness::unique(name);
        let project = make(folder.path().join("project"), &unique);
        let database = servers.create_database(&unique).await;
        let cluster = Self { project, database, servers, folder, started: Cell::new(0) };
        cluster.push();
        cluster
    }

    /// `millpond schema push`: topics and schemas.
    pub fn push(&self) {
        self.succeeds(&["schema", "push"]);
    }

    /// Flags that every command of this application takes.
    fn flags(&self) -> Vec<String> {
        let set = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
        [
            set("project.dir", &self.project.dir.display().to_string()),
            set("kafka.brokers", &self.servers.brokers()),
            set("postgres.url", &self.database),
        ]
        .concat()
    }

    /// Starts `millpond dev` on the servers that are there.
    pub fn start_dev(&self) -> Process {
        let (kafka, postgres) = (self.servers.brokers(), self.database.clone());
        let own = ["--no-demo", "--kafka", kafka.as_str(), "--postgres", postgres.as_str()];
        self.start_with("dev", &own, &[], true)
    }

    /// Starts `millpond ROLE` in the project's folder, told nothing of the servers.
    pub fn start_beside(&self, role: &str) -> Process {
        let project = self.project.dir.display().to_string();
        let config = self.project.dir.join("millpond.toml").display().to_string();
        let args = [role, "--listen", "127.0.0.1:0", "--project", &project, "--config", &config];
        let args = args.into_iter().map(str::to_owned).collect();
        Process::start(&self.folder, &self.name(role), args, true)
    }

    /// What a command prints that is run in the project's folder, told nothing of the servers.
    #[track_caller]
    pub fn run_beside(&self, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        let output = command.args(args).current_dir(&self.project.dir).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts `millpond ROLE` and waits until it is ready.
    pub fn start(&self, role: &str, settings: &[&str]) -> Process {
        self.start_with(role, &[], settings, true)
    }

    /// Starts `millpond ROLE`, which may not be ready for some time.
    pub fn start_early(&self, role: &str, settings: &[&str]) -> Process {
        self.start_with(role, &[], settings, false)
    }

    fn start_with(&self, role: &str, own: &[&str], settings: &[&str], ready: bool) -> Process {
        Process::start(&self.folder, &self.name(role), self.args(role, own, settings), ready)
    }

    /// The command line of a role.
    fn args(&self, role: &str, own: &[&str], settings: &[&str]) -> Vec<String> {
        let mut args = vec![role.to_owned(), "--listen".to_owned(), "127.0.0.1:0".to_owned()];
        args.extend(own.iter().map(|arg| (*arg).to_owned()));
        args.extend(self.flags());
        args.extend(settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]));
        args
    }

    /// What the next process that is started is called.
    fn name(&self, role: &str) -> String {
        format!("{role}-{}", self.started.replace(self.started.get() + 1))
    }

    /// Runs a command of the command line to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        // What the test sets itself comes last and wins.
        let (words, settings) = args.split_at(args.iter().position(|arg| *arg == "--set").unwrap_or(args.len()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(words).args(self.flags()).args(["--set", "log.level=warn"]).args(settings);
        command.current_dir(&self.project.dir).stdin(Stdio::null()).output().unwrap()
    }

    /// Begins a command, whose output nobody reads.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).spawn().unwrap()
    }

    /// [`Self::spawn`], for [`Child::wait_with_output`].
    pub fn spawn_heard(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(args).args(self.flags()).current_dir(&self.project.dir).stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// [`Self::run`] that has to succeed; what it printed.
    #[track_caller]
    pub fn succeeds(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "millpond {}: {}\n{said}\n{errors}", args.join(" "), output.status);
        said
    }

    pub async fn postgres(&self) -> PgConnection {
        PgConnection::connect(&self.database).await.unwrap()
    }

    /// One number out of the database; `None` while it cannot be had.
    pub async fn number(&self, sql: &str) -> Option<i64> {
        let mut connection = PgConnection::connect(&self.database).await.ok()?;
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.ok()
    }

    pub async fn execute(&self, sql: &str) {
        self.postgres().await.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
    }

    /// How many records all consumers together have applied; none while the database is away.
    pub async fn applied(&self) -> Option<i64> {
        self.number("select coalesce(sum(next_offset), 0)::int8 from millpond.fences where state <> 'retired'").await
    }

    /// How far the partitions of a topic are written.
    pub async fn ends(&self, topic: &str) -> Vec<i64> {
        let admin = Admin::connect(&self.kafka()).unwrap();
        admin.watermarks(topic).await.unwrap().into_iter().map(|(_, high)| high).collect()
    }

    pub fn kafka(&self) -> kafka::Options {
        kafka::Options { brokers: self.servers.brokers(), ..kafka::Options::default() }
    }

    /// Waits until every consumer has applied all that is in the topic now, and all that they emitted has left.
    pub async fn settled(&self, topic: &str, consumers: usize) {
        let ends: i64 = self.ends(topic).await.iter().sum();
        let wanted = ends * i64::try_from(consumers).unwrap();
        crate::harness::eventually_async(SOON, async || self.applied().await == Some(wanted)).await;
        let empty = async || self.number("select count(*) from millpond.outbox").await == Some(0);
        crate::harness::eventually_async(SOON, empty).await;
    }

    /// The records of a topic as `millpond topic cat` prints them.
    pub fn cat(&self, topic: &str) -> Vec<Value> {
        let printed = self.succeeds(&["topic", "cat", topic, "--format", "jsonl", "--limit", "10000000"]);
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
