//! The Kafka and the Postgres of all clusters, lent to one test at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use millpond::dev::{KafkaServer, PostgresServer, Progress, Servers};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

static SERVERS: Mutex<Option<Servers>> = Mutex::new(None);

/// The servers, for as long as this lives.
pub struct Exclusive(MutexGuard<'static, Option<Servers>>);

impl Exclusive {
    /// Waits for the test that has them; starts them if nobody had them yet, and mends what was left broken.
    pub fn take() -> Self {
        // A test that failed leaves nothing behind but servers in a state that is mended here.
        let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *servers {
            Some(servers) => mend(servers),
            None => *servers = Some(start()),
        }
        Self(servers)
    }

    fn servers(&self) -> &Servers {
        self.0.as_ref().expect("taken")
    }

    pub fn brokers(&self) -> String {
        self.servers().brokers()
    }

    pub fn kafka(&mut self) -> &mut KafkaServer {
        self.0.as_mut().and_then(Servers::kafka).expect("started here")
    }

    pub fn postgres(&mut self) -> &mut PostgresServer {
        self.0.as_mut().and_then(Servers::postgres).expect("started here")
    }

    /// A new database; its URL.
    pub async fn create_database(&self, name: &str) -> String {
        let server = self.servers().postgres_url();
        let mut connection = PgConnection::connect(&server).await.unwrap();
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let (address, _) = server.rsplit_once('/').expect("a URL with a database");
        format!("{address}/{name}")
    }
}

fn start() -> Servers {
    let mut options = crate::harness::own_options(&crate::harness::own_folder("cluster"));
    // A member that was killed is missed after the session timeout that its process was started with, not only after 6 s.
    options.kafka_options.settings.push(("group.min.session.timeout.ms".into(), "500".into()));
    Servers::start(&options, &Progress::lines()).expect("the servers of the clusters start")
}

fn mend(servers: &mut Servers) {
    let kafka = servers.kafka().expect("started here");
    kafka.cont().unwrap();
    if kafka.check().is_err() {
        kafka.restart().unwrap();
    }
    let postgres = servers.postgres().expect("started here");
    postgres.cont().unwrap();
    if postgres.check().is_err() {
        postgres.restart().unwrap();
    }
}
