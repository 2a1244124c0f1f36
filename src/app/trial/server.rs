//! Which Postgres a trial uses: the configured one, in a database of its own, or one that is started for it.

use std::{net::ToSocketAddrs as _, path::Path, sync::Arc};

use anyhow::Context as _;

use crate::{
    config::Config,
    dev::{Folder, PostgresServer, Progress, postgres},
    store::scratch::ScratchDatabase,
};

/// Where a started server keeps its data, below the project's folder: the second start takes a second.
const FOLDER: &str = ".millpond/test";
/// Away from the port of a Postgres that starts later and expects the usual one.
const PORT: u16 = 25432;

/// A scratch database, and the server if it is ours.
pub struct Postgres {
    pub scratch: ScratchDatabase,
    server: Option<PostgresServer>,
    /// Which one it is, for the person who waits.
    pub described: String,
}

impl Postgres {
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let refused = match ScratchDatabase::create(&config.postgres.url).await {
            Ok(scratch) => {
                let described = "in a database of its own beside that of postgres.url, dropped at the end".to_owned();
                return Ok(Self { scratch, server: None, described });
            }
            Err(error) => error,
        };
        let server = start(&config.project.dir).await.with_context(|| {
            format!("the Postgres of postgres.url cannot be used ({refused}), and none can be started")
        })?;
        let scratch = ScratchDatabase::create(&server.url()).await?;
        let described =
            format!("on a Postgres of its own in {FOLDER}, for that of postgres.url cannot be used: {refused}");
        Ok(Self { scratch, server: Some(server), described })
    }

    /// Drops the database and stops the server.
    pub async fn close(self) -> anyhow::Result<()> {
        let dropped = self.scratch.drop().await;
        if let Some(mut server) = self.server {
            tokio::task::spawn_blocking(move || server.stop()).await??;
        }
        Ok(dropped?)
    }
}

async fn start(project: &Path) -> anyhow::Result<PostgresServer> {
    let folder = project.join(FOLDER);
    let start = move || {
        let folder = Arc::new(Folder::open(&folder)?);
        let options = postgres::Options { port: PORT, ..postgres::Options::default() };
        PostgresServer::start(&folder, &options, &Progress::for_terminal())
    };
    Ok(tokio::task::spawn_blocking(start).await??)
}

/// Whether anything listens at one of the brokers: librdkafka would only try on, for long.
pub async fn kafka_answers(brokers: &str) -> bool {
    for broker in brokers.split(',').map(str::trim) {
        let broker = broker.to_owned();
        let found =
            tokio::task::spawn_blocking(move || broker.to_socket_addrs().map(Iterator::collect::<Vec<_>>)).await;
        for address in found.into_iter().flatten().flatten() {
            let connecting = tokio::net::TcpStream::connect(address);
            let within = std::time::Duration::from_secs(2);
            if matches!(tokio::time::timeout(within, connecting).await, Ok(Ok(_))) {
                return true;
            }
        }
    }
    false
}
