//! A Kafka and a Postgres for each cluster, lent to one test at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use millpond::dev::{KafkaServer, PostgresServer, Progress, Servers};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// Pairs of servers at most, however many tests run at once: one takes half a GiB.
const MOST: usize = 4;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), lent: 0 });
static GIVEN_BACK: Condvar = Condvar::new();

struct Pool {
    idle: Vec<Servers>,
    lent: usize,
}

impl Pool {
    fn lock() -> MutexGuard<'static, Self> {
        POOL.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The servers, for as long as this lives.
pub struct Exclusive(Option<Servers>);

impl Exclusive {
    /// Takes servers that no test has, or starts some; waits for a test to end when there are enough. Mends what was left
    /// broken.
    pub fn take() -> Self {
        let mut pool =
            GIVEN_BACK.wait_while(Pool::lock(), |pool| pool.lent == MOST).unwrap_or_else(PoisonError::into_inner);
        pool.lent += 1;
        let idle = pool.idle.pop();
        drop(pool);
        // From here on what panics gives its place back.
        let mut taken = Self(idle);
        match &mut taken.0 {
            // A test that failed leaves nothing behind but servers in a state that is mended here.
            Some(servers) => mend(servers),
            None => taken.0 = Some(start()),
        }
        taken
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

impl Drop for Exclusive {
    fn drop(&mut self) {
        let mut pool = Pool::lock();
        pool.lent -= 1;
        pool.idle.extend(self.0.take());
        GIVEN_BACK.notify_one();
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
