//! The servers of all runs of one call: three Kafka nodes behind a proxy each, and a Postgres.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use millpond::dev::{self, Folder, KafkaCluster, PostgresServer, Progress, kafka, postgres};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::proxy::{Protocol, Proxy};

/// Nodes of the cluster, each with a replica of every partition.
pub const NODES: usize = 3;
/// First port tried; other targets of this repository begin elsewhere.
const KAFKA_PORT: u16 = 21_000;
const POSTGRES_PORT: u16 = 22_500;

/// Servers, and the way to them that can be disturbed.
pub struct Servers {
    pub kafka: KafkaCluster,
    /// Before each node, in the order of their ids.
    pub nodes: Vec<Proxy>,
    pub postgres: PostgresServer,
    /// The rig's own way to Postgres, which nothing disturbs; whichever server is the primary is behind it.
    pub direct: Proxy,
    /// The standby's way to the primary.
    pub replication: Proxy,
    postgres_folder: Arc<Folder>,
    standby: Option<(PostgresServer, Arc<Folder>)>,
    /// Standbys made so far: each has a folder of its own.
    standbys: usize,
    folder: PathBuf,
}

impl Servers {
    pub async fn start(folder: &Path, seed: u64) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for node in 0..NODES {
            nodes.push(Proxy::listen(Protocol::Kafka, seed ^ node as u64).await?);
        }
        let advertised: Vec<u16> = nodes.iter().map(Proxy::port).collect();
        let postgres_folder = Arc::new(Folder::open(&folder.join("postgres"))?);
        let (kafka, postgres) = tokio::task::block_in_place(|| start_both(folder, &postgres_folder, &advertised))?;
        for (proxy, port) in nodes.iter().zip(kafka.ports()) {
            proxy.forward_to(port);
        }
        let direct = Proxy::listen(Protocol::Postgres, seed).await?;
        let replication = Proxy::listen(Protocol::Postgres, seed).await?;
        let servers = Self {
            kafka,
            nodes,
            postgres,
            direct,
            replication,
            postgres_folder,
            standby: None,
            standbys: 0,
            folder: folder.to_owned(),
        };
        servers.direct.forward_to(servers.postgres_port()?);
        servers.replication.forward_to(servers.postgres_port()?);
        Ok(servers)
    }

    /// Makes a standby that follows the primary, if there is none.
    pub fn ensure_standby(&mut self) -> anyhow::Result<()> {
        if self.standby.is_none() {
            self.standbys += 1;
            let folder = Arc::new(Folder::open(&self.folder.join(format!("postgres-{}", self.standbys)))?);
            let primary = self.postgres.as_primary(Some(self.replication.port()));
            let options = postgres::Options { port: POSTGRES_PORT + apart(), ..postgres::Options::default() };
            let standby = tokio::task::block_in_place(|| {
                PostgresServer::start_standby(&folder, &primary, &options, &Progress::lines())
            })?;
            self.standby = Some((standby, folder));
        }
        Ok(())
    }

    /// Kills the primary and lets the standby take its place; the rig's own way leads there from now on. What the standby
    /// had not received is lost.
    pub async fn fail_over(&mut self) -> anyhow::Result<()> {
        let (standby, folder) = self.standby.take().context("there is a standby")?;
        tokio::task::block_in_place(|| self.postgres.kill_9())?;
        // What the primary had sent is still on its way, and is not to arrive.
        self.replication.cut("");
        let dead = std::mem::replace(&mut self.postgres, standby);
        let its_folder = std::mem::replace(&mut self.postgres_folder, folder);
        self.discard(dead, &its_folder)?;
        self.direct.cut("");
        self.direct.forward_to(self.postgres_port()?);
        let mut connection = PgConnection::connect(&self.postgres.url()).await?;
        let promoted: bool =
            sqlx::query_scalar("select pg_promote(wait_seconds => 30)").fetch_one(&mut connection).await?;
        anyhow::ensure!(promoted, "the standby was not promoted within 30 s");
        self.replication.heal();
        self.replication.forward_to(self.postgres_port()?);
        Ok(())
    }

    /// Deletes what a server that is gone for good has left, but for its log.
    fn discard(&self, server: PostgresServer, folder: &Folder) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| {
            drop(server);
            let name = folder.path().file_name().context("a folder has a name")?.to_string_lossy().into_owned();
            fs::copy(folder.path().join("postgres/server.log"), self.folder.join(format!("{name}.server.log")))?;
            Ok(PostgresServer::delete_data(folder)?)
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies the logs of all servers so far into a folder.
    pub fn copy_logs(&self, to: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let inside = ["kafka", "postgres"].map(|server| entry.path().join(server).join("server.log"));
            if let Some(log) = inside.iter().find(|log| log.is_file()) {
                fs::copy(log, to.join(format!("{name}.server.log")))?;
            } else if name.ends_with(".log") {
                fs::copy(entry.path(), to.join(name))?;
            }
        }
        Ok(())
    }

    /// Resident memory of each broker, in MiB.
    pub fn broker_memory(&mut self) -> Vec<u64> {
        let pids = self.kafka.nodes().iter().map(|node| node.pid());
        pids.map(|pid| crate::watch::resident(pid).unwrap_or_default() / 1024).collect()
    }

    /// An error when a server has died and nobody has started it again.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for node in self.kafka.nodes() {
            node.check()?;
        }
        Ok(self.postgres.check()?)
    }

    /// Moves the folders of all runs on these servers, with the servers' logs, to where what was kept is; to where that of
    /// the last one is.
    pub fn keep_all(&self) -> anyhow::Result<PathBuf> {
        let mut last = None;
        for run in fs::read_dir(self.folder.join("runs"))?.flatten() {
            let kept = crate::report::folder()?.join(run.file_name());
            fs::rename(run.path(), &kept)?;
            self.copy_logs(&kept)?;
            last = Some(kept);
        }
        last.context("there is no run to keep")
    }

    /// Ends all servers as a crash would, for nothing of theirs is wanted any more, and deletes their data.
    pub fn remove(mut self) {
        tokio::task::block_in_place(|| {
            // What cannot be ended or deleted is, by the next rig that starts.
            for node in self.kafka.nodes() {
                let _ = node.kill_9();
            }
            let _ = self.postgres.kill_9();
            let _ = self.drop_standby();
            let (folder, postgres) = (self.folder.clone(), Arc::clone(&self.postgres_folder));
            drop(self);
            let _ = PostgresServer::delete_data(&postgres);
            let _ = fs::remove_dir_all(folder);
        });
    }

    /// Ends a standby that nobody made the primary: it would take its share of the machine from what comes next.
    fn drop_standby(&mut self) -> anyhow::Result<()> {
        let Some((mut standby, folder)) = self.standby.take() else { return Ok(()) };
        standby.kill_9()?;
        self.discard(standby, &folder)
    }

    /// Bootstrap servers for those who are to be disturbed.
    pub fn brokers(&self) -> String {
        self.nodes.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port())).collect::<Vec<_>>().join(",")
    }

    /// Port of Postgres itself.
    pub fn postgres_port(&self) -> anyhow::Result<u16> {
        let url = self.postgres.url();
        let (address, _) = url.rsplit_once('/').context("a URL with a database")?;
        Ok(address.rsplit_once(':').context("a URL with a port")?.1.parse()?)
    }

    /// URL of a database through the proxy on this port.
    pub fn database_url(&self, database: &str, port: u16) -> anyhow::Result<String> {
        let url = self.postgres.url();
        let (address, _) = url.rsplit_once('/').context("a URL with a database")?;
        let (user, _) = address.rsplit_once(':').context("a URL with a port")?;
        Ok(format!("{user}:{port}/{database}"))
    }

    pub async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.postgres.url()).await?;
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await?;
        Ok(())
    }

    /// Ends every disturbance: all nodes and Postgres run, and nothing is held up on the way.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        for proxy in self.nodes.iter().chain([&self.direct, &self.replication]) {
            proxy.heal();
        }
        tokio::task::block_in_place(|| {
            for node in self.kafka.nodes() {
                node.cont()?;
                if node.check().is_err() {
                    node.restart()?;
                }
            }
            self.kafka.wait_complete()?;
            self.postgres.cont()?;
            if self.postgres.check().is_err() {
                self.postgres.restart()?;
            }
            self.drop_standby()
        })
    }
}

fn start_both(
    folder: &Path,
    postgres_folder: &Arc<Folder>,
    advertised: &[u16],
) -> anyhow::Result<(KafkaCluster, PostgresServer)> {
    let settings = [
        // A node that was killed is missed after so long.
        ("broker.session.timeout.ms", "6000"),
        ("broker.heartbeat.interval.ms", "1000"),
        ("replica.lag.time.max.ms", "10000"),
        ("unclean.leader.election.enable", "false"),
        ("auto.leader.rebalance.enable", "true"),
        ("leader.imbalance.check.interval.seconds", "20"),
        ("group.min.session.timeout.ms", "500"),
        ("num.network.threads", "1"),
        ("num.io.threads", "2"),
        ("num.partitions", "3"),
        // Topics of a run are deleted after it, and are to be gone before the next has many of its own.
        ("log.segment.delete.delay.ms", "5000"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = kafka::Options {
        port: KAFKA_PORT + apart(),
        heap_mib: 192,
        settings,
        ready_within: Duration::from_secs(120),
        ..kafka::Options::default()
    };
    let progress = Progress::lines();
    std::thread::scope(|scope| {
        let postgres = scope.spawn(|| {
            let options = postgres::Options { port: POSTGRES_PORT + apart(), ..postgres::Options::default() };
            PostgresServer::start(postgres_folder, &options, &progress)
        });
        let kafka = KafkaCluster::start(folder, &options, advertised, &progress);
        let postgres: Result<_, dev::Error> = postgres.join().expect("starting returns its errors");
        Ok((kafka?, postgres?))
    })
}

/// Two rigs on one machine look from different ports on.
fn apart() -> u16 {
    13 * (std::process::id() % 97) as u16
}
