//! A database per test, copied from one that has the platform's tables.

use std::sync::LazyLock;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use super::{postgres_url, unique};

/// A database that one test has to itself.
#[derive(Debug, Clone)]
pub struct Database {
    /// URL with user and password.
    pub url: String,
}

/// A new database with the platform's tables in it.
pub fn database() -> Database {
    static TEMPLATE: LazyLock<String> = LazyLock::new(|| {
        let name = unique("template");
        let url = create(&name, None);
        outside_runtime(async move || {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            millpond::store::migrate(&mut connection).await.unwrap();
            // A database that somebody is connected to cannot be copied.
            connection.close().await.unwrap();
        });
        name
    });
    Database { url: create(&unique("test"), Some(&TEMPLATE)) }
}

/// A new database with nothing in it.
pub fn empty_database() -> Database {
    Database { url: create(&unique("test"), None) }
}

fn create(name: &str, template: Option<&str>) -> String {
    let server = postgres_url();
    let statement = match template {
        Some(template) => format!("create database {name} template {template}"),
        None => format!("create database {name}"),
    };
    let url = with_database(&server, name);
    outside_runtime(async move || {
        let mut connection = PgConnection::connect(&server).await.unwrap();
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
        connection.close().await.unwrap();
    });
    url
}

/// The URL of another database on the same server.
fn with_database(url: &str, name: &str) -> String {
    let (address, parameters) = url.split_once('?').map_or((url, ""), |(address, rest)| (address, rest));
    let (server, _) = address.rsplit_once('/').expect("a URL with a database");
    if parameters.is_empty() { format!("{server}/{name}") } else { format!("{server}/{name}?{parameters}") }
}

/// Runs `work` to its end on a thread of its own: tests call from inside a runtime and from outside alike.
fn outside_runtime(work: impl AsyncFnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
    });
    thread.join().expect("a database for the test");
}
