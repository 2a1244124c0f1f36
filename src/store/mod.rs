//! Postgres for the consuming side: platform tables, fences, staged batches. The only importer of `sqlx`
//! (`serve` reads over pipelined `tokio-postgres` connections of its own).
//!
//! Owns every statement on the schema `millpond`. Must not know Kafka's client or HTTP.

pub mod address;
mod binary_copy;
pub mod builds;
pub mod dead_letters;
pub mod diff;
mod error;
pub mod fence;
pub mod headers;
pub mod indexes;
mod near;
pub mod outbox;
pub mod parked;
pub mod relay;
pub mod removal;
pub mod replays;
pub mod scratch;
pub mod seen;
mod session;
pub mod status;
pub mod swap;
pub mod trial;
pub mod verdicts;
pub mod versions;

use std::{str::FromStr, time::Duration};

pub use binary_copy::CopyBuffer;
pub use error::{Class, Error};
pub use session::Session;
pub use sqlx::PgConnection;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor,
    migrate::{Migration, MigrationType, Migrator},
    postgres::PgConnectOptions,
};
use tokio::sync::Semaphore;

/// What every session pins: what results depend on, and how long things may take.
///
/// `idle_in_transaction_session_timeout` (8 s) ends a transaction whose client was stopped or cut off, so that its
/// row locks do not outlive the group's session timeout (10 s); `statement_timeout` (20 s) bounds one statement.
/// A session whose client is gone without a word ends with its locks after some 25 s, not when TCP gives up.
const SETTINGS: [(&str, &str); 13] = [
    ("timezone", "UTC"),
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "8s"),
    ("statement_timeout", "20s"),
    ("lock_timeout", "5s"),
    ("default_transaction_isolation", "read committed"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "20s"),
    ("client_min_messages", "warning"),
];

/// Opens a connection for everything but batches.
pub async fn connect(url: &str, application: &str) -> Result<PgConnection, Error> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|e| Error::Url(e.to_string()))?
        .application_name(application)
        .options(SETTINGS)
        .disable_statement_logging();
    opened(PgConnection::connect_with(&options)).await
}

/// How many connections a process opens at once. Where a machine is so busy that a dozen of them, side by side, are none of
/// them ready in time, they are when they take turns.
static OPENING: Semaphore = Semaphore::const_new(4);

/// Waits for a turn to open a connection, and then 5 s for it: a server that is being stopped can accept and never answer,
/// and no healthy start-up of a backend takes as long.
async fn opened<C, E>(opening: impl Future<Output = Result<C, E>>) -> Result<C, Error>
where
    Error: From<E>,
{
    let _turn = OPENING.acquire().await.expect("invariant: the semaphore is never closed");
    let opened = tokio::time::timeout(Duration::from_secs(5), opening).await;
    Ok(opened.map_err(|_| Error::ConnectTimeout)??)
}

/// Longest wait for an answer: the statement timeout and what the network may add. A server that vanished without a
/// word would otherwise be waited for until TCP gives up.
pub const ANSWER: Duration = Duration::from_secs(25);

/// Bounds work on a connection, which must not be used again when this fails.
pub async fn bounded<T, E: From<Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::time::timeout(ANSWER, work).await.unwrap_or_else(|_| Err(Error::NoAnswer(ANSWER).into()))
}

/// Runs text that this crate composed (never a client's) over the simple protocol, several statements at once.
pub async fn run(connection: &mut PgConnection, sql: impl Into<String>) -> Result<(), Error> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.into()))).await?;
    Ok(())
}

const MIGRATIONS: [(i64, &str, &str); 11] = [
    (1, "platform", include_str!("../../migrations/0001_platform.sql")),
    (2, "crash guard", include_str!("../../migrations/0002_crash_guard.sql")),
    (3, "parked keys", include_str!("../../migrations/0003_parked_keys.sql")),
    (4, "seen", include_str!("../../migrations/0004_seen.sql")),
    (5, "relay", include_str!("../../migrations/0005_relay.sql")),
    (6, "verdicts", include_str!("../../migrations/0006_verdicts.sql")),
    (7, "rebuilds", include_str!("../../migrations/0007_rebuilds.sql")),
    (8, "verdicts of people", include_str!("../../migrations/0008_verdicts_of_people.sql")),
    (9, "replays", include_str!("../../migrations/0009_replays.sql")),
    (10, "when decided", include_str!("../../migrations/0010_when_decided.sql")),
    (11, "loaded", include_str!("../../migrations/0011_loaded.sql")),
];

/// Brings the platform tables up to this binary's version; safe to run from many processes at once. After an error the
/// connection must not be used again.
pub async fn migrate(connection: &mut PgConnection) -> Result<(), Error> {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, sql)| {
            let sql = sqlx::SqlSafeStr::into_sql_str(*sql);
            Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
        })
        .collect();
    // Postgres lets two that make the same schema at once collide, whatever they say of its existence.
    run(connection, format!("select pg_advisory_lock({MIGRATORS}); create schema if not exists millpond")).await?;
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.dangerous_set_table_name("millpond.migrations");
    migrator.run_direct(None, connection, false).await.map_err(Error::Migrate)?;
    run(connection, format!("select pg_advisory_unlock({MIGRATORS})")).await
}

/// Those who migrate take turns.
const MIGRATORS: &str = "hashtextextended('millpond.migrate', 0)";

/// Whether the platform's tables are in this database, of whichever version. Any account may ask.
pub async fn has_tables(connection: &mut PgConnection) -> Result<bool, Error> {
    Ok(sqlx::query_scalar(
        "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                         where n.nspname = 'millpond' and c.relname = 'projections')",
    )
    .fetch_one(connection)
    .await?)
}
