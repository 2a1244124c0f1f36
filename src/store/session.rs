//! A session that applies batches: over `tokio-postgres`, whose COPY is not held up.
//!
//! `sqlx` leaves Nagle's algorithm on: the end of each COPY waited 40 ms for the acknowledgement of its data (measured
//! with strace over loopback). Here `TCP_NODELAY` is set, and keepalives end a connection whose server is gone.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, CopyInSink, Row, Statement, types::ToSql};

use super::{Error, SETTINGS, address::address, opened};

/// One connection with its prepared statements. Dropping it closes the connection, which rolls back what is open.
pub struct Session {
    client: Client,
    driver: JoinHandle<()>,
    /// Prepared ones, by their text: what is prepared is of the code, so there are few.
    statements: HashMap<String, Statement>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Connects and runs `setup`.
    pub async fn connect(url: &str, application: &str, setup: &str) -> Result<Self, Error> {
        let mut address = address(url)?;
        let settings: Vec<String> =
            SETTINGS.iter().map(|(name, value)| format!("-c {name}={}", escaped(value))).collect();
        let given = address.config.get_options().unwrap_or_default().to_owned();
        address
            .config
            .application_name(application)
            .options(format!("{given} {}", settings.join(" ")).trim())
            .connect_timeout(Duration::from_secs(5))
            // A server that vanished without a word is noticed within about 25 s, also in the middle of an answer.
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(20));
        let (client, connection) = opened(address.config.connect(address.tls)).await?;
        // Its error is that of the statement under way, which its caller gets.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let session = Self { client, driver, statements: HashMap::new() };
        session.run(setup).await?;
        Ok(session)
    }

    /// Runs several statements in one message.
    pub async fn run(&self, sql: &str) -> Result<(), Error> {
        Ok(self.client.batch_execute(sql).await?)
    }

    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        Ok(self.client.query(sql, parameters).await?)
    }

    /// As [`Self::query`], with a statement that is prepared once per session.
    pub async fn query_prepared(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let prepared = self.prepared(sql).await?;
        Ok(self.client.query(&prepared, parameters).await?)
    }

    async fn prepared(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(prepared) = self.statements.get(sql) {
            return Ok(prepared.clone());
        }
        let prepared = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), prepared.clone());
        Ok(prepared)
    }

    /// Copies a whole body in. The statement is prepared once per session.
    pub async fn copy_in(&mut self, statement: &str, body: Vec<u8>) -> Result<(), Error> {
        let prepared = self.prepared(statement).await?;
        let sink: CopyInSink<Bytes> = self.client.copy_in(&prepared).await?;
        let mut sink = std::pin::pin!(sink);
        sink.as_mut().send(Bytes::from(body)).await?;
        sink.as_mut().finish().await?;
        Ok(())
    }
}

/// As the server splits start-up options: at blanks, unless escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(' ', "\\ ")
}
