//! The ids that clients gave their records, as far as a version remembers them: the table `_seen` in its schema.
//!
//! It stands beside the version's tables, not in `millpond`, so that it ends with them at once, however many rows it has.
//! Rows are written by the batch that their records are in, under its fence: one writer a partition.

use std::{collections::HashMap, time::Duration};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{CopyBuffer, Error, Session, fence::Claim, run};
use crate::domain::{Fingerprint, TopicPartition, ident, literal};

/// Where a batch puts the ids that it adds. Made in the first transaction of a session that needs it: Postgres empties
/// every temporary table at each commit, used or not.
const STAGE: &str =
    "create temp table if not exists _ids (event_id text, fingerprint uuid, \"offset\" int8, log_time int8)
    on commit delete rows";

/// What is remembered of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub fingerprint: Fingerprint,
    /// Of the record that had it.
    pub offset: i64,
    /// How late it was in the log at that record, in milliseconds since 1970.
    pub log_time: i64,
}

/// Its name.
pub(super) const TABLE: &str = "_seen";

fn table(schema: &str) -> String {
    format!("{}.{TABLE}", ident(schema))
}

/// Makes the table of a version, unless it is there: versions are older than it.
pub fn create_sql(schema: &str) -> String {
    let table = table(schema);
    format!(
        "do $millpond$ begin
           if to_regclass({}) is not null then return; end if;
           create table {table} (
               fence       bigint not null,       -- number of the partition's row in millpond.fences
               \"offset\"    bigint not null,
               log_time    bigint not null,
               event_id    text collate \"C\" not null,
               fingerprint uuid not null,         -- for its 128 bits
               primary key (fence, event_id));
           create index on {table} (fence, log_time);
         end $millpond$",
        literal(&table)
    )
}

/// The query of [`known`]: `$1` is the number of the fence, `$2` the ids.
pub fn known_sql(schema: &str) -> String {
    // One look into the index for each id, whatever Postgres believes of a table that it has not analysed yet.
    format!(
        "select s.* from unnest($2::text[]) i(event_id) cross join lateral
           (select event_id, fingerprint, \"offset\", log_time from {} where fence = $1 and event_id = i.event_id limit 1) s",
        table(schema)
    )
}

/// What is remembered of those of `ids` that are.
pub async fn known(
    session: &mut Session,
    schema: &str,
    claim: &Claim,
    ids: &[&str],
) -> Result<HashMap<String, Entry>, Error> {
    let rows = session.query_prepared(&known_sql(schema), &[&claim.number, &ids]).await?;
    let mut known = HashMap::with_capacity(rows.len());
    for row in rows {
        let fingerprint = Fingerprint::from(row.try_get::<_, Uuid>("fingerprint")?.as_u128());
        let entry = Entry { fingerprint, offset: row.try_get("offset")?, log_time: row.try_get("log_time")? };
        known.insert(row.try_get("event_id")?, entry);
    }
    Ok(known)
}

/// Stages ids for [`insert_sql`], each once.
pub async fn stage<'a>(
    session: &mut Session,
    entries: impl ExactSizeIterator<Item = (&'a str, Entry)>,
) -> Result<(), Error> {
    let mut rows = CopyBuffer::default();
    for (id, entry) in entries {
        rows.begin_row(4);
        rows.bytes(id.as_bytes());
        rows.bytes(entry.fingerprint.as_bytes());
        rows.int8(entry.offset);
        rows.int8(entry.log_time);
    }
    session.run(STAGE).await?;
    session.copy_in("copy pg_temp._ids from stdin (format binary)", rows.finish()).await
}

/// Writes what is staged, for the batch's one flush. An id that was forgotten gets its new record.
pub fn insert_sql(schema: &str, claim: &Claim) -> String {
    format!(
        "insert into {} (fence, \"offset\", log_time, event_id, fingerprint)
         select {}, i.\"offset\", i.log_time, i.event_id, i.fingerprint from pg_temp._ids i
         on conflict (fence, event_id) do update set \"offset\" = excluded.\"offset\", log_time = excluded.log_time,
           fingerprint = excluded.fingerprint;\n",
        table(schema),
        claim.number
    )
}

/// How the statement of [`purge`] is planned. Before a table is analysed Postgres takes all that is too old for a few rows,
/// and would gather and sort all of it for each statement that removes some.
pub const BY_INDEX: &str =
    "set local enable_bitmapscan = off; set local enable_seqscan = off; set local enable_sort = off";

/// The statement of [`purge`]: version (`$1`, `$2`), partition (`$3`, `$4`), window in milliseconds, limit.
pub fn purge_sql(schema: &str) -> String {
    let table = table(schema);
    // Looked at again in the end: meanwhile an id may have got a new record.
    format!(
        "with f as (select number, log_time - $5::int8 as until from millpond.fences
                     where projection = $1 and version = $2 and topic = $3 and partition = $4)
         delete from {table} s using f
          where s.fence = f.number and s.log_time < f.until and s.ctid = any(array(
                select o.ctid from f cross join lateral
                  (select ctid from {table} where fence = f.number and log_time < f.until order by log_time limit $6) o))"
    )
}

/// Removes at most `limit` ids that are older than the window on one partition; how many there were. Log time only
/// grows, so that none of them can decide anything any more. After an error the connection must not be used again.
pub async fn purge(
    connection: &mut PgConnection,
    (projection, version, schema): (&str, i32, &str),
    at: &TopicPartition,
    window: Duration,
    limit: i64,
) -> Result<u64, Error> {
    run(connection, format!("begin; {BY_INDEX}")).await?;
    let done = sqlx::query(sqlx::AssertSqlSafe(purge_sql(schema)))
        .bind(projection)
        .bind(version)
        .bind(&*at.topic)
        .bind(at.partition)
        .bind(i64::try_from(window.as_millis()).unwrap_or(i64::MAX))
        .bind(limit)
        .execute(&mut *connection)
        .await?;
    run(connection, "commit").await?;
    Ok(done.rows_affected())
}

/// Forgets every id of a version that is filled anew.
pub fn clear_sql(schema: &str) -> String {
    format!("delete from {};\n", table(schema))
}
