//! The indexes that a folder asks for: made and removed in place, beside those who write and read.
//!
//! They decide nothing about rows, so a folder that asks for others is no other version. Owns the indexes whose names begin with
//! `_`; those that `tables.sql` declares are the version's.

use sqlx::{PgConnection, Row};

use super::{Error, bounded, connect, run};
use crate::domain::{IndexInfo, ident};

/// What differs between a version's indexes and those that are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    pub missing: Vec<IndexInfo>,
    /// Names of those that nobody wants any more, or that were not finished.
    pub left: Vec<String>,
}

impl Difference {
    pub fn is_none(&self) -> bool {
        self.missing.is_empty() && self.left.is_empty()
    }
}

/// Compares the indexes of a version's schema with those that are wanted.
pub async fn difference(
    connection: &mut PgConnection,
    schema: &str,
    wanted: &[IndexInfo],
) -> Result<Difference, Error> {
    let rows = sqlx::query(
        "select c.relname::text as name, i.indisvalid as valid from pg_catalog.pg_index i
           join pg_catalog.pg_class c on c.oid = i.indexrelid
           join pg_catalog.pg_namespace n on n.oid = c.relnamespace
           join pg_catalog.pg_class t on t.oid = i.indrelid
          where n.nspname = $1 and c.relname like '\\_%' and t.relname not like '\\_%' order by 1",
    )
    .bind(schema)
    .fetch_all(connection)
    .await?;
    let found = rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("valid")?)));
    let found = found.collect::<Result<Vec<(String, bool)>, Error>>()?;
    let is_there = |index: &&IndexInfo| found.iter().any(|(name, valid)| *valid && *name == index.name);
    let is_wanted = |name: &str| wanted.iter().any(|index| index.name == name);
    Ok(Difference {
        missing: wanted.iter().filter(|index| !is_there(index)).cloned().collect(),
        left: found.iter().filter(|(name, valid)| !valid || !is_wanted(name)).map(|(name, _)| name.clone()).collect(),
    })
}

/// Makes what is missing and removes what is left, while others write and read: as long as it takes, by one process at a time.
/// What was done; `None` while another process is at it.
pub async fn bring_in(url: &str, schema: &str, wanted: &[IndexInfo]) -> Result<Option<Difference>, Error> {
    let mut connection = connect(url, "millpond indexes").await?;
    // An index of a large table takes longer than any batch, and waits for every transaction that was open when it began.
    // Whoever asks and is ended must not go on in Postgres and have the turn.
    let settings = "set statement_timeout = 0; set lock_timeout = 0; set client_connection_check_interval = '2s'";
    bounded(run(&mut connection, settings)).await?;
    // Not waited for: who waits in Postgres is one of those that the other one would wait for.
    let has_turn: bool =
        sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('millpond.indexes.' || $1, 0))")
            .bind(schema)
            .fetch_one(&mut connection)
            .await?;
    if !has_turn {
        return Ok(None);
    }
    let difference = difference(&mut connection, schema, wanted).await?;
    for name in &difference.left {
        run(&mut connection, format!("drop index concurrently if exists {}.{}", ident(schema), ident(name))).await?;
    }
    for index in &difference.missing {
        run(&mut connection, index.create_sql(schema, "concurrently ")).await?;
    }
    Ok(Some(difference))
}
