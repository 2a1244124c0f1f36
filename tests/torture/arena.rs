//! One run's Millpond: a project, a database, and processes of the real binary, each with its own way to Postgres.

use std::ffi::OsString;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millpond::dev::Folder;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::watch;

use crate::process::Process;
use crate::proxy::{Protocol, Proxy};
use crate::servers::Servers;
use crate::web::Web;
use crate::workload::operator::Desk;

/// What the rig has in the database: every step of every fence, written in the transaction that makes it.
const FENCE_LOG: &str = include_str!("fence_log.sql");
/// How the project calls its topics; a run has topics of its own.
const TOPIC_PREFIX: &str = "torture.";
/// How many partitions the project gives to the appends; a scenario may want more.
pub const PARTITIONS: usize = 6;

/// A role that runs as one process, or is to.
pub struct Slot {
    /// `consume-1`.
    pub name: String,
    pub role: &'static str,
    settings: &'static [&'static str],
    pub process: Option<Process>,
    /// Its own way to Postgres.
    pub postgres: Proxy,
    /// Where it is to be reached; none while it is not there.
    pub web: watch::Sender<Option<Web>>,
    /// Logs of its lives so far.
    pub logs: Vec<PathBuf>,
}

/// The names of one run's topics.
#[derive(Debug, Clone)]
pub struct Topics {
    pub appends: String,
    pub transfers: String,
    pub credits: String,
    pub lanes: String,
}

/// One run's Millpond.
pub struct Arena {
    pub slots: Vec<Slot>,
    pub topics: Topics,
    /// Partitions of the appends.
    pub partitions: usize,
    pub brokers: String,
    /// URL of the database, past every proxy.
    pub database: String,
    database_name: String,
    folder: Arc<Folder>,
    project: PathBuf,
    /// This program under the name that makes it the application; see `main`.
    application: PathBuf,
    /// A planted bug.
    bug: Option<String>,
    lives: usize,
    /// Processes that ended though nobody ended them.
    pub died: Vec<String>,
    /// A role whose processes are ended by what they read.
    pub mortal: Option<&'static str>,
}

/// Members are missed soon, or a run would wait for little else; and before Postgres ends what they left open (8 s), or no
/// message of theirs could arrive late.
const CONSUME: &[&str] =
    &["kafka.client.session.timeout.ms=2500", "kafka.client.heartbeat.interval.ms=500", "consume.max_records=2000"];

/// Who runs: two of whatever can be two.
const SLOTS: [(&str, &str, &[&str]); 6] = [
    ("ingest-1", "ingest", &[]),
    ("ingest-2", "ingest", &[]),
    ("consume-1", "consume", CONSUME),
    ("consume-2", "consume", CONSUME),
    ("serve-1", "serve", &[]),
    ("publish-1", "publish", &["kafka.client_id=millpond-relay"]),
];

impl Arena {
    /// Makes project, topics, schemas and database, and starts every process.
    pub async fn open(
        servers: &Servers,
        name: &str,
        seed: u64,
        partitions: usize,
        bug: Option<&str>,
    ) -> anyhow::Result<Self> {
        let unique = crate::harness::unique(name);
        let path = servers.folder().join("runs").join(&unique);
        let folder = Arc::new(Folder::open(&path)?);
        let project = path.join("project");
        let topic = |what: &str| format!("{unique}.{what}.v1");
        copy_project(&crate::source().join("project"), &project, TOPIC_PREFIX, &format!("{unique}."))?;
        set_partitions(&project, partitions)?;
        let application = path.join("millpond");
        std::os::unix::fs::symlink(std::env::current_exe()?, &application)?;
        servers.create_database(&unique).await?;
        let port = servers.postgres_port()?;
        let mut slots = Vec::new();
        for (number, (name, role, settings)) in (0..).zip(SLOTS) {
            let postgres = Proxy::listen(Protocol::Postgres, seed ^ (number << 32)).await?;
            postgres.forward_to(port);
            let web = watch::Sender::new(None);
            slots.push(Slot { name: name.into(), role, settings, process: None, postgres, web, logs: Vec::new() });
        }
        let mut arena = Self {
            slots,
            topics: Topics {
                appends: topic("appends"),
                transfers: topic("transfers"),
                credits: topic("credits"),
                lanes: topic("lanes"),
            },
            partitions,
            brokers: servers.brokers(),
            database: servers.database_url(&unique, servers.direct.port())?,
            database_name: unique,
            folder,
            project,
            application,
            bug: bug.map(str::to_owned),
            lives: 0,
            died: Vec::new(),
            mortal: None,
        };
        arena.prepare(bug).await?;
        let all: Vec<usize> = (0..arena.slots.len()).collect();
        arena.start_all(servers, &all)?;
        Ok(arena)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the operator needs.
    pub fn desk(&self) -> Desk {
        let (project, brokers, database) = (self.project.clone(), self.brokers.clone(), self.database.clone());
        Desk { project, brokers, database }
    }

    /// The application, which knows the handler, with a planted bug if there is one. It ends with us, however we end, where
    /// the machine has a `setpriv` that can do it.
    pub fn application(&self) -> anyhow::Result<std::process::Command> {
        static TIE: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];
        static CAN_TIE: LazyLock<bool> = LazyLock::new(|| {
            let probe = std::process::Command::new(TIE[0]).args(&TIE[1..]).arg("true").stderr(Stdio::null()).status();
            probe.is_ok_and(|status| status.success())
        });
        let mut words: Vec<OsString> = if *CAN_TIE { TIE.map(OsString::from).into() } else { Vec::new() };
        words.extend(crate::planted::wrapper(self.bug.as_deref())?.into_iter().map(OsString::from));
        words.push(self.application.clone().into());
        let mut command = std::process::Command::new(&words[0]);
        command.args(&words[1..]);
        Ok(command)
    }

    /// Topics, schemas, the platform's tables, and the rig's own log of fences.
    async fn prepare(&self, bug: Option<&str>) -> anyhow::Result<()> {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_millpond"))
            .args(["schema", "push", "--set", "log.level=warn"])
            .args(["--set", &format!("project.dir={}", self.project.display())])
            .args(["--set", &format!("kafka.brokers={}", self.brokers)])
            .current_dir(&self.project)
            .output()?;
        ensure!(output.status.success(), "schema push failed: {}", String::from_utf8_lossy(&output.stderr));
        let mut connection = self.connect().await?;
        millpond::store::migrate(&mut connection).await?;
        connection.execute(sqlx::raw_sql(FENCE_LOG)).await?;
        if let Some(bug) = bug {
            crate::planted::plant(&mut connection, bug).await?;
        }
        Ok(())
    }

    /// A connection past every proxy.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        PgConnection::connect(&self.database).await.context("cannot connect to Postgres")
    }

    /// Starts the process of a slot and waits until it listens; a fault may keep it from being ready.
    pub fn start(&mut self, servers: &Servers, slot: usize) -> anyhow::Result<()> {
        self.start_all(servers, &[slot])
    }

    /// [`Self::start`] of several at once.
    fn start_all(&mut self, servers: &Servers, slots: &[usize]) -> anyhow::Result<()> {
        let mut starting = Vec::new();
        for slot in slots {
            self.note_death(*slot);
            self.lives += 1;
            let name = format!("{}.{}", self.slots[*slot].name, self.lives);
            starting.push((*slot, name, self.command(servers, *slot)?));
        }
        let folder = &self.folder;
        let started: Vec<(usize, String, Result<Process, String>)> = tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let start = |(slot, name, words): (usize, String, Vec<OsString>)| {
                    scope.spawn(move || (slot, name.clone(), Process::try_start_program(folder, &name, words, false)))
                };
                let starting: Vec<_> = starting.into_iter().map(start).collect();
                let all = starting.into_iter().map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)));
                all.collect()
            })
        });
        for (slot, name, process) in started {
            let slot = &mut self.slots[slot];
            slot.logs.push(self.folder.path().join(format!("{name}.log")));
            let process = process.map_err(anyhow::Error::msg)?;
            slot.web.send_replace(Some(process.web.clone()));
            slot.process = Some(process);
        }
        Ok(())
    }

    /// What to run for a slot: program and arguments.
    fn command(&self, servers: &Servers, slot: usize) -> anyhow::Result<Vec<OsString>> {
        let url = servers.database_url(&self.database_name, self.slots[slot].postgres.port())?;
        let (role, settings) = (self.slots[slot].role, self.slots[slot].settings);
        // Only the consuming side needs to know the handler.
        let program = if role == "consume" { &*self.application } else { Path::new(env!("CARGO_BIN_EXE_millpond")) };
        let mut words: Vec<OsString> =
            crate::planted::wrapper(self.bug.as_deref())?.into_iter().map(OsString::from).collect();
        words.push(program.as_os_str().to_owned());
        words.extend([role, "--listen", "127.0.0.1:0"].map(OsString::from));
        let own = [
            format!("project.dir={}", self.project.display()),
            format!("kafka.brokers={}", self.brokers),
            format!("postgres.url={url}"),
            "log.format=json".to_owned(),
        ];
        for setting in own.into_iter().chain(settings.iter().map(|setting| (*setting).to_owned())) {
            words.extend(["--set".into(), setting.into()]);
        }
        Ok(words)
    }

    /// Starts another process of a role, in a slot of its own: `workload` knows nothing of it.
    pub async fn add(
        &mut self,
        servers: &Servers,
        name: &str,
        role: &'static str,
        settings: &'static [&'static str],
    ) -> anyhow::Result<usize> {
        let postgres = Proxy::listen(Protocol::Postgres, 0).await?;
        postgres.forward_to(servers.postgres_port()?);
        let (name, web) = (name.to_owned(), watch::Sender::new(None));
        self.slots.push(Slot { name, role, settings, process: None, postgres, web, logs: Vec::new() });
        let slot = self.slots.len() - 1;
        self.start(servers, slot)?;
        Ok(slot)
    }

    /// Starts the process of a slot anew if it has ended by itself; whether it had.
    pub fn revive(&mut self, servers: &Servers, slot: usize) -> anyhow::Result<bool> {
        let ended = self.slots[slot].process.as_mut().is_none_or(Process::has_ended);
        if ended {
            self.kill_9(slot);
            self.start(servers, slot)?;
        }
        Ok(ended)
    }

    /// Writes down a process that is gone though nobody ended it.
    fn note_death(&mut self, slot: usize) {
        let Slot { name, role, process, .. } = &mut self.slots[slot];
        let ended = process.as_mut().and_then(Process::ended_as);
        if let Some(how) = ended.filter(|_| self.mortal != Some(*role)) {
            self.died.push(format!("{name} ended by itself: {how}"));
        }
    }

    /// Kills the process of a slot, and makes sure that its connections are as dead as it is.
    pub fn kill_9(&mut self, slot: usize) {
        self.note_death(slot);
        let slot = &mut self.slots[slot];
        slot.web.send_replace(None);
        if let Some(process) = slot.process.take() {
            tokio::task::block_in_place(|| process.kill_9());
        }
        slot.postgres.cut("");
        slot.postgres.heal();
    }

    /// Ends the process of a slot in good order.
    pub fn stop(&mut self, slot: usize) {
        self.note_death(slot);
        if let Some(process) = self.slots[slot].process.take().filter(Process::runs) {
            tokio::task::block_in_place(|| process.stop());
        }
    }

    /// Leads every process to the server that is the primary now.
    pub fn follow_primary(&self, servers: &Servers) -> anyhow::Result<()> {
        let port = servers.postgres_port()?;
        for slot in &self.slots {
            slot.postgres.forward_to(port);
            slot.postgres.cut("");
        }
        Ok(())
    }

    /// The slots of a role.
    pub fn of_role(&self, role: &str) -> Vec<usize> {
        (0..self.slots.len()).filter(|slot| self.slots[*slot].role == role).collect()
    }

    /// Ends every disturbance of processes: those that are missing are started.
    pub fn heal(&mut self, servers: &Servers) -> anyhow::Result<()> {
        let mut missing = Vec::new();
        for (number, slot) in self.slots.iter().enumerate() {
            slot.postgres.heal();
            match &slot.process {
                Some(process) if process.runs() => process.cont(),
                _ => missing.push(number),
            }
        }
        self.start_all(servers, &missing)
    }

    /// Ends all processes in good order.
    pub fn close(&mut self) {
        for slot in &mut self.slots {
            if let Some(process) = &slot.process {
                process.terminate();
            }
        }
        for process in self.slots.iter_mut().filter_map(|slot| slot.process.take()) {
            tokio::task::block_in_place(|| process.stop());
        }
    }

    /// Removes topics, database and folder, that of a run that was kept aside.
    pub async fn remove(self, servers: &Servers) -> anyhow::Result<()> {
        remove_topics(&self.brokers).await?;
        let mut connection = PgConnection::connect(&servers.postgres.url()).await?;
        let drop = format!("drop database {} with (force)", self.database_name);
        connection.execute(AssertSqlSafe(drop)).await?;
        if self.folder.path().exists() {
            fs::remove_dir_all(self.folder.path())?;
        }
        Ok(())
    }
}

/// Deletes all topics but Kafka's own and the registry's, which is the same for every run: brokers are not to grow heavier
/// from run to run, and dead letters, markers and verdicts of one are nothing to the next.
async fn remove_topics(brokers: &str) -> anyhow::Result<()> {
    let within = Duration::from_secs(20);
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).set("client.id", "rig").create()?;
    let metadata = tokio::task::block_in_place(|| admin.inner().fetch_metadata(None, within))?;
    let names = metadata.topics().iter().map(|topic| topic.name()).filter(|name| !name.starts_with('_'));
    let names: Vec<&str> = names.collect();
    let options = AdminOptions::new().operation_timeout(Some(within));
    for result in admin.delete_topics(&names, &options).await? {
        result.map_err(|(topic, code)| anyhow::anyhow!("topic {topic} was not deleted: {code}"))?;
    }
    Ok(())
}

/// Gives the appends as many partitions as a scenario wants.
fn set_partitions(project: &Path, partitions: usize) -> anyhow::Result<()> {
    let contract = project.join("producers/clients/producer.toml");
    let usual = format!("partitions = {PARTITIONS}");
    let text = fs::read_to_string(&contract)?;
    ensure!(text.matches(&usual).count() == 1, "one topic of the project has {PARTITIONS} partitions, the appends'");
    fs::write(contract, text.replace(&usual, &format!("partitions = {partitions}")))?;
    Ok(())
}

/// Copies a project; topics whose names begin with `prefix` begin with `own` then.
pub fn copy_project(from: &Path, to: &Path, prefix: &str, own: &str) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_project(&entry.path(), &to, prefix, own)?;
        } else if to.extension().is_none_or(|extension| extension != "avsc") {
            fs::write(to, fs::read_to_string(entry.path())?.replace(prefix, own))?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
