//! What came out: the tables as Postgres has them, all from one snapshot.

use std::collections::BTreeSet;

use sqlx::postgres::PgRow;
use sqlx::{Executor as _, PgConnection, Row as _};

use super::log::{Decided, Place, Verdicts, decode_framed};
use super::model::{AccountRow, AppendRow, ChainRow, CreditRow, Tables};

/// A step of a fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub projection: String,
    pub topic: String,
    pub partition: i32,
    pub epoch: i64,
    pub owner: Option<uuid::Uuid>,
    pub from: i64,
    pub to: i64,
    /// Owner and epoch that whoever asked for it believed in; none for what is no batch.
    pub by: Option<(uuid::Uuid, i64)>,
    pub version: i32,
    /// Whether that is the version that people read in the end.
    pub live: bool,
}

/// All that the checks look at in Postgres.
#[derive(Debug, Default)]
pub struct Actual {
    pub tables: Tables,
    /// In the order in which they were taken.
    pub steps: Vec<Step>,
    pub verdicts: Verdicts,
    /// Projections of which versions have been live in turn.
    pub swapped: BTreeSet<String>,
    /// Keys left parked, with what they are.
    pub parked: Vec<String>,
    /// Rows left in the outbox.
    pub outbox: i64,
    /// Sessions that are open in a transaction, with what they are.
    pub stuck: Vec<String>,
    /// Deadlocks that no scenario has brought about.
    pub deadlocks: i64,
}

impl Actual {
    pub async fn read(connection: &mut PgConnection) -> anyhow::Result<Self> {
        connection.execute("begin isolation level repeatable read read only").await?;
        let mut actual = Self { tables: tables(connection).await?, ..Self::default() };
        let steps = "select projection, topic, partition, epoch, owner, from_offset, to_offset, by_owner, by_epoch, version,
                            version = (select live_version from millpond.projections p where p.projection = l.projection)
                       from rig.fence_log l order by id";
        actual.steps = sqlx::query(steps).fetch_all(&mut *connection).await?.iter().map(step).collect();
        actual.outbox = sqlx::query_scalar("select count(*) from rig.outbox").fetch_one(&mut *connection).await?;
        actual.verdicts = verdicts(connection).await?;
        let swapped = sqlx::query_scalar("select distinct projection from millpond.swaps").fetch_all(&mut *connection);
        actual.swapped = swapped.await?.into_iter().collect();
        let parked =
            "select format('%s of %s %s@%s: %s records', encode(key, 'escape'), projection, partition, head, records)
                        from rig.parked_keys order by 1";
        actual.parked = sqlx::query_scalar(parked).fetch_all(&mut *connection).await?;
        let stuck =
            "select format('%s: %s for %s s', application_name, state, extract(epoch from now() - xact_start)::int)
                       from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid() and state like 'idle in %'
                        and xact_start < now() - interval '10 s'";
        actual.stuck = sqlx::query_scalar(stuck).fetch_all(&mut *connection).await?;
        let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
        actual.deadlocks = sqlx::query_scalar(deadlocks).fetch_one(&mut *connection).await?;
        connection.execute("commit").await?;
        Ok(actual)
    }
}

async fn tables(connection: &mut PgConnection) -> anyhow::Result<Tables> {
    let mut tables = Tables::default();
    let appends = "select client, n, key, times::int8, weight::int8, first_offset, last_offset from live.appends";
    for row in connection.fetch_all(appends).await? {
        let (first_offset, last_offset) = (row.try_get(5)?, row.try_get(6)?);
        let value = AppendRow {
            key: row.try_get(2)?,
            times: row.try_get(3)?,
            weight: row.try_get(4)?,
            first_offset,
            last_offset,
        };
        tables.appends.insert((row.try_get(0)?, row.try_get(1)?), value);
    }
    for row in connection.fetch_all("select key, length, chain, last from live.chains").await? {
        let value = ChainRow { length: row.try_get(1)?, chain: row.try_get(2)?, last: row.try_get(3)? };
        tables.chains.insert(row.try_get(0)?, value);
    }
    for row in connection.fetch_all("select lane, length, chain, last, last_offset from live.lanes").await? {
        let value = ChainRow { length: row.try_get(1)?, chain: row.try_get(2)?, last: row.try_get(3)? };
        tables.lanes.insert(row.try_get(0)?, (value, row.try_get(4)?));
    }
    for row in connection.fetch_all("select account, deposited, debited from live.accounts").await? {
        let value = AccountRow { deposited: row.try_get(1)?, debited: row.try_get(2)? };
        tables.accounts.insert(row.try_get(0)?, value);
    }
    for row in connection.fetch_all("select account, transfer_id, amount, times::int8 from live.credits").await? {
        let value = CreditRow { amount: row.try_get(2)?, times: row.try_get(3)? };
        tables.credits.insert((row.try_get(0)?, row.try_get(1)?), value);
    }
    for row in connection.fetch_all("select amount, times::int8 from live.amounts").await? {
        tables.amounts.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let place = |row: &PgRow| -> anyhow::Result<(i32, i64)> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    let dead = r#"select projection, partition, "offset", reason_class from rig.dead_letters"#;
    let letter = |row: &PgRow| -> anyhow::Result<(Place, String)> { Ok((record(row)?, row.try_get(3)?)) };
    tables.dead_letters = connection.fetch_all(dead).await?.iter().map(letter).collect::<Result<_, _>>()?;
    let refused = r#"select partition, "offset" from rig.refusals where projection = 'accounts'"#;
    tables.refusals = connection.fetch_all(refused).await?.iter().map(place).collect::<Result<_, _>>()?;
    Ok(tables)
}

fn record(row: &PgRow) -> anyhow::Result<Place> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

async fn verdicts(connection: &mut PgConnection) -> anyhow::Result<Verdicts> {
    let sql = r#"select projection, partition, "offset", what, coalesce(class, ''), decided_by, payload
                   from millpond.verdicts"#;
    let verdict = |row: &PgRow| -> anyhow::Result<(Place, Decided)> {
        let value = row.try_get::<Option<Vec<u8>>, _>(6)?.map(|bytes| decode_framed(&bytes)).transpose()?;
        let decided = Decided { what: row.try_get(3)?, class: row.try_get(4)?, by: row.try_get(5)?, value };
        Ok((record(row)?, decided))
    };
    connection.fetch_all(sql).await?.iter().map(verdict).collect()
}

fn step(row: &PgRow) -> Step {
    Step {
        projection: row.get(0),
        topic: row.get(1),
        partition: row.get(2),
        epoch: row.get(3),
        owner: row.get(4),
        from: row.get(5),
        to: row.get(6),
        by: row.get::<Option<uuid::Uuid>, _>(7).zip(row.get(8)),
        version: row.get(9),
        live: row.get(10),
    }
}
