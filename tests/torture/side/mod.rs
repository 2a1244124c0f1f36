//! A small Millpond beside the one under load, for faults that the judge of the run cannot know of: a topic that is made
//! anew, a log that loses what was acknowledged, records that nobody can read.
//!
//! It has a project, a topic and a database of its own, on the same servers, and one client that goes on writing notes
//! through its ingest. What it has to hold in the end is told by [`judge`]: row by row a fold of the log as it is then.

pub mod judge;
pub mod trial;
pub mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millpond::dev::Folder;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use self::writer::Writer;
use crate::arena::copy_project;
use crate::checker;
use crate::process::Process;
use crate::servers::Servers;

/// How the project calls its topics.
const TOPIC_PREFIX: &str = "side.";
/// How often something is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// The small Millpond.
pub struct Side {
    pub topic: String,
    pub brokers: String,
    pub writer: Writer,
    database: String,
    database_name: String,
    folder: Arc<Folder>,
    pub project: PathBuf,
    processes: BTreeMap<String, Process>,
    logs: Vec<PathBuf>,
}

/// A fence of its one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub next_offset: i64,
    /// Code and reason of a halt.
    pub halt: Option<(String, String)>,
}

impl Side {
    /// Makes everything, starts an `ingest` and a `consume`, and has the client begin.
    pub async fn open(servers: &Servers, below: &Path) -> anyhow::Result<Self> {
        let unique = crate::harness::unique("side");
        let folder = Arc::new(Folder::open(&below.join(&unique))?);
        let project = folder.path().join("project");
        copy_project(&crate::source().join("side/project"), &project, TOPIC_PREFIX, &format!("{unique}."))?;
        servers.create_database(&unique).await?;
        let mut side = Self {
            topic: format!("{unique}.notes.v1"),
            brokers: servers.brokers(),
            writer: Writer::start(),
            database: servers.database_url(&unique, servers.direct.port())?,
            database_name: unique,
            folder,
            project,
            processes: BTreeMap::new(),
            logs: Vec::new(),
        };
        side.succeeds(&["schema", "push"])?;
        side.start("ingest", "ingest")?;
        side.start("consume", "consume")?;
        Ok(side)
    }

    /// Starts a process of that name and role, known to brokers as `millpond-side-NAME`; the client writes to `ingest`, and
    /// to `newer` what has the newest schema.
    pub fn start(&mut self, name: &str, role: &str) -> anyhow::Result<()> {
        let mut words = vec![role.to_owned(), "--listen".into(), "127.0.0.1:0".into()];
        words.extend(self.settings());
        words.extend(["--set".into(), format!("kafka.client_id={}", client_of(name))]);
        let life = format!("{name}.{}", self.logs.len());
        let process = tokio::task::block_in_place(|| Process::start(&self.folder, &life, words, false));
        self.logs.push(self.folder.path().join(format!("{life}.log")));
        self.writer.reach(name, Some(process.web.clone()));
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// Kills a process.
    pub fn kill_9(&mut self, name: &str) {
        self.writer.reach(name, None);
        if let Some(process) = self.processes.remove(name) {
            tokio::task::block_in_place(|| process.kill_9());
        }
    }

    /// Freezes a process, or lets it go on.
    pub fn freeze(&self, name: &str, frozen: bool) {
        if let Some(process) = self.processes.get(name) {
            if frozen { process.pause() } else { process.cont() }
        }
    }

    /// Writes a file of the project.
    pub fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let path = self.project.join(path);
        Ok(std::fs::write(path, text.replace("TOPIC", &self.topic))?)
    }

    fn settings(&self) -> Vec<String> {
        let settings = [
            format!("project.dir={}", self.project.display()),
            format!("kafka.brokers={}", self.brokers),
            format!("postgres.url={}", self.database),
        ];
        settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect()
    }

    /// Runs a command of the command line to its end.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(words).args(self.settings()).args(["--set", "log.level=warn"]);
        command.current_dir(&self.project).stdin(Stdio::null());
        Ok(tokio::task::block_in_place(|| command.output())?)
    }

    /// [`Self::run`] that has to succeed; what it printed.
    pub fn succeeds(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.run(words)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "millpond {words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    }

    /// Does what the reason of a halt says in the end, as an operator would who knows nothing else; what was typed.
    pub fn obey(&self, reason: &str) -> anyhow::Result<String> {
        let command = reason.rsplit('`').nth(1).and_then(|command| command.strip_prefix("millpond "));
        let command = command.with_context(|| format!("the reason of a halt names no command: {reason}"))?;
        self.succeeds(&command.split(' ').collect::<Vec<_>>())?;
        Ok(command.to_owned())
    }

    /// A connection to its database.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        PgConnection::connect(&self.database).await.context("cannot connect to Postgres")
    }

    /// One number out of the database.
    pub async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let mut connection = self.connect().await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await?)
    }

    /// The fences of the live version, by partition.
    pub async fn fences(&self) -> anyhow::Result<BTreeMap<i32, Fence>> {
        let sql = "select f.partition, f.next_offset, f.state, coalesce(f.halt_code, ''), coalesce(f.halt_reason, '')
                     from millpond.fences f
                     join millpond.projections p on p.projection = f.projection and p.live_version = f.version";
        let rows = sqlx::query(sql).fetch_all(&mut self.connect().await?).await?;
        let fence = |row: &sqlx::postgres::PgRow| {
            let halt = (row.get::<&str, _>(2) == "halted").then(|| (row.get(3), row.get(4)));
            (row.get(0), Fence { next_offset: row.get(1), halt })
        };
        Ok(rows.iter().map(fence).collect())
    }

    /// Waits until these partitions have halted; those that have, with code and reason.
    pub async fn halted(&self, partitions: &[i32], within: Duration) -> BTreeMap<i32, (String, String)> {
        let begun = Instant::now();
        loop {
            let fences = self.fences().await.unwrap_or_default();
            let halts: BTreeMap<_, _> = fences.into_iter().filter_map(|(at, fence)| Some((at, fence.halt?))).collect();
            if partitions.iter().all(|at| halts.contains_key(at)) || begun.elapsed() > within {
                return halts;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends of the partitions as Kafka tells them.
    pub async fn ends(&self) -> anyhow::Result<BTreeMap<i32, i64>> {
        let (brokers, topic) = (self.brokers.clone(), self.topic.clone());
        tokio::task::spawn_blocking(move || checker::log::ends(&brokers, &topic)).await?
    }

    /// Waits until everything up to `wanted` is applied; whether that came.
    pub async fn reaches(&self, wanted: &BTreeMap<i32, i64>, within: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < within {
            let fences = self.fences().await.unwrap_or_default();
            let there = |(at, end): (&i32, &i64)| {
                *end == 0 || fences.get(at).is_some_and(|f| f.halt.is_none() && f.next_offset >= *end)
            };
            if wanted.iter().all(there) {
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// What its processes said that they never should.
    pub fn panics(&self) -> Vec<String> {
        let texts = self.logs.iter().map(|log| std::fs::read_to_string(log).unwrap_or_default());
        texts
            .flat_map(|text| text.lines().filter(|l| l.contains("panicked at")).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// Ends all processes and removes database and topic; the folder stays with that of the run.
    pub async fn close(mut self, servers: &Servers) -> anyhow::Result<()> {
        self.writer.stop().await;
        for (_, process) in std::mem::take(&mut self.processes) {
            tokio::task::block_in_place(|| drop(process));
        }
        let mut connection = PgConnection::connect(&servers.postgres.url()).await?;
        let drop = format!("drop database {} with (force)", self.database_name);
        connection.execute(AssertSqlSafe(drop)).await?;
        let options = millpond::kafka::Options { brokers: self.brokers.clone(), ..Default::default() };
        // A topic that is gone already is as good.
        let _ = millpond::kafka::Admin::connect(&options)?.delete(&self.topic).await;
        Ok(())
    }
}

/// What a process of that name is called by brokers and by the proxy before them.
pub fn client_of(name: &str) -> String {
    format!("millpond-side-{name}")
}
