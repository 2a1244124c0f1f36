//! Postgres as the judge of SQL: a transaction that is rolled back, in which relations and tables exist without rows.

use std::collections::{BTreeSet, HashMap};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction, postgres::PgDatabaseError};

use crate::domain::ident;

/// What Postgres says against a statement.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub message: String,
    /// Character of the statement, from 1.
    pub position: Option<usize>,
}

/// What is known of all functions of one name.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FunctionTraits {
    pub volatile: bool,
    pub stable: bool,
    pub aggregate: bool,
    pub set_returning: bool,
}

pub(super) type Functions = HashMap<String, FunctionTraits>;

/// A column as Postgres describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub name: String,
    pub pg_type: String,
    pub not_null: bool,
    /// Whether the type is one of Postgres' own; no domains are among those.
    pub own_type: bool,
    /// The collation, where it is not the one that the type has by itself.
    pub collation: Option<String>,
}

/// Text is read by casts (a COERCEVIAIO node) and for the columns that `as x(a date)` gives the records of a function.
const CLOCK_READING_TYPES: &str = "
    with recursive tree as (select prosqlbody::text as nodes from pg_proc where oid = $1::regprocedure),
    read(type) as (
        select found[1]::oid from tree, regexp_matches(nodes, ':resulttype (\\d+) :resultcollid \\d+ :coerceformat', 'g') found
        union
        select type::oid from tree, regexp_matches(nodes, ':funccoltypes \\(o ([\\d ]+)\\)', 'g') found,
                              regexp_split_to_table(found[1], ' ') type
    ),
    parts(type, part) as (
        select type, type from read
        union
        select parts.type, more.part from parts join pg_type t on t.oid = parts.part, lateral (
            select t.typelem union all select t.typbasetype
            union all select rngsubtype from pg_range where t.oid in (rngtypid, rngmultitypid)
            union all select atttypid from pg_attribute
                       where attrelid = t.typrelid and t.typrelid <> 0 and attnum > 0 and not attisdropped
        ) more(part) where more.part <> 0
    )
    select distinct format_type(parts.type, null) from parts join pg_type t on t.oid = parts.part
     where t.typcategory = 'D' order by 1";

pub(super) struct Scratch<'c> {
    tx: Transaction<'c, Postgres>,
    pub schema: String,
}

impl<'c> Scratch<'c> {
    /// Opens the transaction with the settings that batches run under.
    pub async fn begin(conn: &'c mut PgConnection) -> Result<Self, sqlx::Error> {
        let mut tx = conn.begin().await?;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *tx).await?;
        let schema = format!("millpond_scratch_{pid}");
        let mut scratch = Self { tx, schema };
        scratch.execute(&format!("create schema {}", ident(&scratch.schema))).await?;
        for (name, value) in super::session::SETTINGS {
            scratch.execute(&format!("set local {name} = {value}")).await?;
        }
        scratch.leave_creation().await?;
        scratch.execute("set local millpond.round = '0'").await?;
        Ok(scratch)
    }

    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.tx.rollback().await
    }

    /// Makes new tables land in the scratch schema.
    pub async fn enter_creation(&mut self) -> Result<(), sqlx::Error> {
        self.execute(&super::session::creation_path(&self.schema)).await
    }

    /// Resolves names as batches do.
    pub async fn leave_creation(&mut self) -> Result<(), sqlx::Error> {
        self.execute(&super::session::search_path(&self.schema, true)).await
    }

    async fn execute(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *self.tx).await.map(|_| ())
    }

    /// Runs statements behind a savepoint and keeps their effect; a refusal undoes all of them.
    pub async fn run(&mut self, sql: &str) -> Result<Result<(), Refusal>, sqlx::Error> {
        self.execute("savepoint probe").await?;
        match self.execute(sql).await {
            Ok(()) => {
                self.execute("release savepoint probe").await?;
                Ok(Ok(()))
            }
            Err(error) => {
                let refusal = refusal(error)?;
                self.execute("rollback to savepoint probe; release savepoint probe").await?;
                Ok(Err(refusal))
            }
        }
    }

    /// Lets Postgres parse and plan a statement, without running it.
    pub async fn check(&mut self, statement: &str) -> Result<Result<(), Refusal>, sqlx::Error> {
        const PREFIX: &str = "explain ";
        let checked = self.run(&format!("{PREFIX}{statement}")).await?;
        Ok(checked.map_err(|refusal| {
            let position = refusal.position.map(|at| at.saturating_sub(PREFIX.len()));
            Refusal { position, ..refusal }
        }))
    }

    /// The types for whose values a sound statement has Postgres read text as it runs, where that text may read the
    /// clock: dates and times, and what is made of them. Literals are not among them: they are read with the statement.
    ///
    /// Postgres tells the types only in the tree that it keeps of the body of a function.
    pub async fn clock_reading_types(&mut self, statement: &str) -> Result<Vec<String>, sqlx::Error> {
        let probe = format!("{}._probe", ident(&self.schema));
        let body = format!("create function {probe}() returns void begin atomic\n{statement}\n; end");
        if self.run(&body).await?.is_err() {
            // What cannot be a body, such as `table x`, is refused for itself.
            return Ok(Vec::new());
        }
        let found = sqlx::query_scalar(CLOCK_READING_TYPES).bind(format!("{probe}()")).fetch_all(&mut *self.tx).await?;
        self.execute(&format!("drop function {probe}()")).await?;
        Ok(found)
    }

    /// Names and types of what a SELECT gives, without running it.
    pub async fn types_of(&mut self, select: &str) -> Result<Result<Vec<Described>, Refusal>, sqlx::Error> {
        const PROBE: &str = "_probe";
        let sql = format!("create temp table {PROBE} as {select} with no data");
        if let Err(refusal) = self.run(&sql).await? {
            return Ok(Err(Refusal { position: None, ..refusal }));
        }
        let columns = self.describe(PROBE).await?;
        self.execute("drop table pg_temp._probe").await?;
        Ok(Ok(columns))
    }

    /// Columns of a table, in order.
    pub async fn describe(&mut self, table: &str) -> Result<Vec<Described>, sqlx::Error> {
        let rows = sqlx::query(
            "select attname::text, format_type(atttypid, atttypmod), attnotnull,
                    typnamespace = 'pg_catalog'::regnamespace, c.collname::text
             from pg_attribute join pg_type t on t.oid = atttypid
                  left join pg_collation c on c.oid = attcollation and attcollation <> typcollation
             where attrelid = $1::regclass and attnum > 0 and not attisdropped order by attnum",
        )
        .bind(ident(table))
        .fetch_all(&mut *self.tx)
        .await?;
        let described = |row: &sqlx::postgres::PgRow| Described {
            name: row.get(0),
            pg_type: row.get(1),
            not_null: row.get(2),
            own_type: row.get(3),
            collation: row.get(4),
        };
        Ok(rows.iter().map(described).collect())
    }

    /// Columns of a table's primary key, in order; empty without one.
    pub async fn primary_key(&mut self, table: &str) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar(
            "select a.attname::text from pg_index i, unnest(i.indkey) with ordinality k(attnum, place), pg_attribute a
             where i.indrelid = $1::regclass and i.indisprimary and a.attrelid = i.indrelid and a.attnum = k.attnum
             order by k.place",
        )
        .bind(ident(table))
        .fetch_all(&mut *self.tx)
        .await
    }

    /// What Postgres knows of its own functions of these names.
    pub async fn functions(&mut self, names: &BTreeSet<String>) -> Result<Functions, sqlx::Error> {
        let names: Vec<String> = names.iter().cloned().collect();
        let rows = sqlx::query(
            "select proname::text, bool_or(provolatile = 'v'), bool_or(provolatile = 's'), bool_or(prokind = 'a'),
                    bool_or(proretset)
             from pg_proc where pronamespace = 'pg_catalog'::regnamespace and proname = any($1) group by 1",
        )
        .bind(names)
        .fetch_all(&mut *self.tx)
        .await?;
        let traits = |row: &sqlx::postgres::PgRow| FunctionTraits {
            volatile: row.get(1),
            stable: row.get(2),
            aggregate: row.get(3),
            set_returning: row.get(4),
        };
        Ok(rows.iter().map(|row| (row.get(0), traits(row))).collect())
    }

    /// Those of `roles` that the server does not have.
    pub async fn missing_roles(&mut self, roles: &BTreeSet<String>) -> Result<Vec<String>, sqlx::Error> {
        let roles: Vec<String> = roles.iter().cloned().collect();
        sqlx::query_scalar(
            "select r from unnest($1::text[]) r where r not in (select rolname::text from pg_roles) order by r",
        )
        .bind(roles)
        .fetch_all(&mut *self.tx)
        .await
    }
}

/// An error of the server is a refusal; any other means that the server cannot be asked.
fn refusal(error: sqlx::Error) -> Result<Refusal, sqlx::Error> {
    let Some(refused) = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>()) else {
        return Err(error);
    };
    let mut message = refused.message().to_owned();
    for more in [refused.detail(), refused.hint()].into_iter().flatten() {
        message.push_str("; ");
        message.push_str(more.trim_end_matches('.'));
    }
    let position = match refused.position() {
        Some(sqlx::postgres::PgErrorPosition::Original(at)) => Some(at),
        _ => None,
    };
    Ok(Refusal { message, position })
}
