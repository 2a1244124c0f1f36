//! A database to throw away: where consumers are tried, beside the real one and out of its reach.
//!
//! Its name, `millpond_trial_<oid>_<random>`, carries the oid of the database it stands beside. Whoever uses one holds
//! a session in it, so one without sessions was left by a process that was killed, and the next creator drops it.

use sqlx::{Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use super::{Error, address::with_database, connect, migrate, run};
use crate::domain::{ident, literal};

/// A database with the platform's tables in it, and nothing else.
pub struct ScratchDatabase {
    url: String,
    name: String,
    /// A session in the database that it stands beside.
    beside: PgConnection,
    /// A session in the database itself: marks it as used.
    connection: PgConnection,
}

/// Creators beside one database take turns: none may drop what another has created and not yet entered.
const CREATORS: &str = "hashtextextended('millpond.trial', 0)";

impl ScratchDatabase {
    /// Creates one with the text order of the database at `url`, whose user needs the right to create databases.
    pub async fn create(url: &str) -> Result<Self, Error> {
        let mut beside = connect(url, "millpond trial").await?;
        // Creating a database copies one; others may wait for it here.
        run(
            &mut beside,
            format!("set lock_timeout = '60s'; set statement_timeout = '60s'; select pg_advisory_lock({CREATORS})"),
        )
        .await?;
        let row = sqlx::query(
            "select oid::text as oid, pg_encoding_to_char(encoding) as encoding, datcollate::text as collation,
                    datctype::text as ctype, datlocprovider::text as provider
               from pg_database where datname = current_database()",
        )
        .fetch_one(&mut beside)
        .await?;
        let prefix = format!("millpond_trial_{}_", row.try_get::<String, _>("oid")?);
        drop_leftovers(&mut beside, &prefix).await?;
        let name = format!("{prefix}{}", &Uuid::new_v4().simple().to_string()[..12]);
        let mut sql = format!("create database {}", ident(&name));
        // Another provider's locale comes with the template.
        if row.try_get::<String, _>("provider")? == "c" {
            sql.push_str(&format!(
                " template template0 encoding {} lc_collate {} lc_ctype {}",
                literal(&row.try_get::<String, _>("encoding")?),
                literal(&row.try_get::<String, _>("collation")?),
                literal(&row.try_get::<String, _>("ctype")?),
            ));
        }
        run(&mut beside, sql).await?;
        let url = with_database(url, &name);
        let entered = connect(&url, "millpond trial").await;
        run(&mut beside, format!("select pg_advisory_unlock({CREATORS})")).await?;
        let mut connection = entered?;
        migrate(&mut connection).await?;
        // What is written here need not outlive a crash of the machine.
        run(&mut connection, "set synchronous_commit = off").await?;
        Ok(Self { url, name, beside, connection })
    }

    /// With user and password.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Drops the database, whoever is still connected to it.
    pub async fn drop(mut self) -> Result<(), Error> {
        // Its end is seen by the other session's force, if not by now.
        let _ = self.connection.close().await;
        run(&mut self.beside, format!("drop database {} with (force)", ident(&self.name))).await
    }
}

/// Drops the databases of killed processes; those of others' users stay.
async fn drop_leftovers(beside: &mut PgConnection, prefix: &str) -> Result<(), Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "select datname::text from pg_database d
          where starts_with(datname, $1) and pg_has_role(datdba, 'member')
            and not exists (select 1 from pg_stat_activity a where a.datid = d.oid)",
    )
    .bind(prefix)
    .fetch_all(&mut *beside)
    .await?;
    for name in names {
        run(beside, format!("drop database if exists {}", ident(&name))).await?;
    }
    Ok(())
}
