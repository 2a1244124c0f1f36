//! The servers of all runs of one call: three Kafka nodes behind a proxy each, and a Postgres.

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
    folder: PathBuf,
}

impl Servers {
    pub async fn start(folder: &Path, seed: u64) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for node in 0..NODES {
            nodes.push(Proxy::listen(Protocol::Kafka, seed ^ node as u64).await?);
        }
        let advertised: Vec<u16> = nodes.iter().map(Proxy::port).collect();
        let (kafka, postgres) = tokio::task::block_in_place(|| start_both(folder, &advertised))?;
        for (proxy, port) in nodes.iter().zip(kafka.ports()) {
            proxy.forward_to(port);
        }
        Ok(Self { kafka, nodes, postgres, folder: folder.to_owned() })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
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

    /// URL of a database, past every proxy or through the one on this port.
    pub fn database_url(&self, database: &str, port: Option<u16>) -> anyhow::Result<String> {
        let url = self.postgres.url();
        let (address, _) = url.rsplit_once('/').context("a URL with a database")?;
        let (user, own) = address.rsplit_once(':').context("a URL with a port")?;
        let port = port.map_or_else(|| own.to_owned(), |port| port.to_string());
        Ok(format!("{user}:{port}/{database}"))
    }

    pub async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.postgres.url()).await?;
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await?;
        Ok(())
    }

    /// Ends every disturbance: all nodes and Postgres run, and nothing is held up on the way.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        for proxy in &self.nodes {
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
            anyhow::Ok(())
        })
    }
}

fn start_both(folder: &Path, advertised: &[u16]) -> anyhow::Result<(KafkaCluster, PostgresServer)> {
    // Two rigs on one machine look from different ports on.
    let apart = 13 * (std::process::id() % 97) as u16;
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
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = kafka::Options {
        port: KAFKA_PORT + apart,
        heap_mib: 192,
        settings,
        ready_within: Duration::from_secs(120),
        ..kafka::Options::default()
    };
    let progress = Progress::lines();
    std::thread::scope(|scope| {
        let postgres = scope.spawn(|| {
            let folder = Arc::new(Folder::open(&folder.join("postgres"))?);
            let options = postgres::Options { port: POSTGRES_PORT + apart, ..postgres::Options::default() };
            PostgresServer::start(&folder, &options, &progress)
        });
        let kafka = KafkaCluster::start(folder, &options, advertised, &progress);
        let postgres: Result<_, dev::Error> = postgres.join().expect("starting returns its errors");
        Ok((kafka?, postgres?))
    })
}
