//! Records that were set aside, as an operator looks at them and decides about them.
//!
//! A decision is a wish in the record's row and nothing else: the worker that owns the partition carries it out.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use super::{Error, parked::Wish, run};

/// A record that was set aside.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    pub consumer: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub record_type: Option<String>,
    pub key: Option<String>,
    /// `parked` while it waits with its key, else `dead`.
    pub state: &'static str,
    /// Offset of the first record of its key that waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<i64>,
    /// When its handler is asked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<String>,
    pub class: String,
    pub reason: String,
    /// `apply`, `edit` or `discard`, when somebody has decided and no worker has carried it out yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted_by: Option<String>,
    pub recorded_at: String,
    pub created_at: String,
    #[serde(skip)]
    pub payload: Option<Vec<u8>>,
    /// What takes the payload's place.
    #[serde(skip)]
    pub edited: Option<Vec<u8>>,
    #[serde(skip)]
    pub key_bytes: Option<Vec<u8>>,
    #[serde(skip)]
    revision: i64,
    #[serde(skip)]
    version: i32,
    pub headers: serde_json::Value,
}

/// Which of them are meant; what is none is any.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub consumer: Option<String>,
    pub class: Option<String>,
    pub record_type: Option<String>,
    pub key: Option<Vec<u8>>,
    pub topic: Option<String>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub since: Option<DateTime<Utc>>,
}

/// The first eight parameters are those of a selection.
const SELECTED: &str = "($1::text is null or d.projection = $1) and ($2::text is null or d.reason_class = $2)
    and ($3::text is null or d.record_type = $3) and ($4::bytea is null or d.key = $4)
    and ($5::text is null or d.topic = $5) and ($6::int4 is null or d.partition = $6)
    and ($7::int8 is null or d.\"offset\" = $7) and ($8::timestamptz is null or d.created_at >= $8)";

/// Of the live version.
const FROM: &str = "millpond.dead_letters d
    join millpond.projections p on p.projection = d.projection and p.live_version = d.version
    join millpond.versions v on v.projection = d.projection and v.version = d.version
    left join millpond.parked_keys k on k.projection = d.projection and k.version = d.version and k.topic = d.topic
         and k.partition = d.partition and k.parked_at = d.parked_at";

const COLUMNS: &str =
    "d.projection, d.version, d.topic, d.partition, d.\"offset\", d.record_type, d.key, d.reason_class, d.reason,
    to_char(d.recorded_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as recorded_at,
    to_char(d.created_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as created_at, d.payload, d.edited, d.headers,
    d.parked_at is not null as parked, k.head, d.wanted, d.wanted_by, d.revision,
    case when k.head = d.\"offset\" then to_char(k.retry_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') end as retry_at";

/// Those that want what was decided through another version: that one has acted by it, or is about to, and one record must not
/// be two things in two versions. What has failed here all the same, or cannot be done here, may be decided about again.
const DECIDED: &str = "(d.wanted is not null and (exists (select from millpond.verdicts x
        where (x.projection, x.topic, x.partition, x.\"offset\") = (d.projection, d.topic, d.partition, d.\"offset\")
          and x.what in ('apply', 'edit', 'discard') and not x.void and x.decided_at = d.wanted_at)
    or exists (select from millpond.dead_letters o
         join millpond.versions s on s.projection = o.projection and s.version = o.version and s.state = 'standby'
        where (o.projection, o.topic, o.partition, o.\"offset\") = (d.projection, d.topic, d.partition, d.\"offset\")
          and o.wanted is not null and o.wanted_at = d.wanted_at)))";

/// Those that may be applied now: no record of the same key has been applied since, or it would not matter.
pub(super) const IN_ORDER: &str = "(d.parked_at is not null or d.key is null or v.commutes)";

impl Selection {
    fn bind<'q>(&'q self, sql: String) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(sql))
            .bind(self.consumer.as_deref())
            .bind(self.class.as_deref())
            .bind(self.record_type.as_deref())
            .bind(self.key.as_deref())
            .bind(self.topic.as_deref())
            .bind(self.partition)
            .bind(self.offset)
            .bind(self.since)
    }
}

fn read(row: &PgRow) -> Result<DeadLetter, Error> {
    let key: Option<Vec<u8>> = row.try_get("key")?;
    Ok(DeadLetter {
        consumer: row.try_get("projection")?,
        topic: row.try_get("topic")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        record_type: row.try_get("record_type")?,
        key: key.as_ref().map(|k| String::from_utf8_lossy(k).into_owned()),
        state: if row.try_get("parked")? { "parked" } else { "dead" },
        head: row.try_get("head")?,
        retry_at: row.try_get("retry_at")?,
        class: row.try_get("reason_class")?,
        reason: row.try_get("reason")?,
        wanted: row.try_get("wanted")?,
        wanted_by: row.try_get("wanted_by")?,
        recorded_at: row.try_get("recorded_at")?,
        created_at: row.try_get("created_at")?,
        payload: row.try_get("payload")?,
        edited: row.try_get("edited")?,
        key_bytes: key,
        revision: row.try_get("revision")?,
        version: row.try_get("version")?,
        headers: row.try_get("headers")?,
    })
}

/// The newest of those selected, of live versions.
pub async fn list(connection: &mut PgConnection, selection: &Selection, limit: i64) -> Result<Vec<DeadLetter>, Error> {
    let sql = format!(
        "select {COLUMNS} from {FROM} where {SELECTED}
          order by d.created_at desc, d.projection, d.topic, d.partition, d.\"offset\" desc limit $9"
    );
    let rows = selection.bind(sql).bind(limit).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// How many there are per consumer, class and record type.
pub async fn counts(
    connection: &mut PgConnection,
    selection: &Selection,
) -> Result<Vec<(String, String, Option<String>, i64)>, Error> {
    let sql = format!(
        "select d.projection, d.reason_class, d.record_type, count(*) from {FROM} where {SELECTED}
          group by 1, 2, 3 order by 1, 4 desc, 2, 3"
    );
    let rows = selection.bind(sql).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))).collect()
}

/// One by its coordinates: of the live version, or else of the newest that has it and was live once.
pub async fn find(
    connection: &mut PgConnection,
    consumer: &str,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<Option<DeadLetter>, Error> {
    let sql = format!(
        "select {COLUMNS} from millpond.dead_letters d
           left join millpond.parked_keys k on k.projection = d.projection and k.version = d.version
                and k.topic = d.topic and k.partition = d.partition and k.parked_at = d.parked_at
           join millpond.versions v on v.projection = d.projection and v.version = d.version
          where d.projection = $1 and d.topic = $2 and d.partition = $3 and d.\"offset\" = $4
            and v.state in ('live', 'retired')
          order by v.state = 'live' desc, d.version desc limit 1"
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(consumer)
        .bind(topic)
        .bind(partition)
        .bind(offset)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// What a decision meets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Met {
    /// By class, the most first.
    pub classes: Vec<(String, i64)>,
    /// Records that wait behind these and follow them.
    pub behind: i64,
    /// Records that cannot be applied any more without breaking the order of their key.
    pub late: i64,
    /// Records about which somebody has decided through another version.
    pub decided: i64,
}

/// What a wish would meet. `Edit` is `Apply` for records that have a value, those that only wait among them.
pub async fn meet(connection: &mut PgConnection, selection: &Selection, wish: Wish) -> Result<Met, Error> {
    let sql = format!(
        "select d.reason_class, count(*) from {FROM} where {SELECTED} and {} group by 1 order by 2 desc, 1",
        condition(wish)
    );
    let rows = selection.bind(sql).fetch_all(&mut *connection).await?;
    let classes = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, Error>>()?;
    let sql = format!(
        "select count(*) filter (where d.reason_class = 'waits') as behind,
                count(*) filter (where not {IN_ORDER}) as late, count(*) filter (where {DECIDED}) as decided
           from {FROM} where {SELECTED}"
    );
    let row = selection.bind(sql).fetch_one(connection).await?;
    let late = if wish == Wish::Discard { 0 } else { row.try_get("late")? };
    let behind = if wish == Wish::Apply { row.try_get("behind")? } else { 0 };
    Ok(Met { classes, behind, late, decided: row.try_get("decided")? })
}

/// What of a selection a wish is for: what only waits follows by itself.
fn condition(wish: Wish) -> String {
    let own = match wish {
        Wish::Discard => "true".to_owned(),
        Wish::Apply => format!("d.reason_class <> 'waits' and {IN_ORDER}"),
        Wish::Edit => format!("d.payload is not null and {IN_ORDER}"),
    };
    format!("{own} and not {DECIDED}")
}

/// Writes a wish, other than an edit, into the rows selected; how many.
pub async fn wish(connection: &mut PgConnection, selection: &Selection, wish: Wish, by: &str) -> Result<u64, Error> {
    // Of a hot key there may be many; their worker waits for none of them longer than for any lock.
    run(connection, "set statement_timeout = '120s'").await?;
    let sql = format!(
        "with chosen as (
            select d.projection, d.version, d.topic, d.partition, d.\"offset\" from {FROM} where {SELECTED} and {}
             order by 1, 2, 3, 4, 5 for update of d for share of p)
         update millpond.dead_letters d
            set wanted = $9, wanted_by = $10, wanted_at = now(), revision = d.revision + 1 from chosen c
          where (d.projection, d.version, d.topic, d.partition, d.\"offset\")
              = (c.projection, c.version, c.topic, c.partition, c.\"offset\")",
        condition(wish)
    );
    Ok(selection.bind(sql).bind(wish.as_str()).bind(by).execute(connection).await?.rows_affected())
}

/// Those that an edit is for, at most `limit`, in the order of the log.
pub async fn editable(
    connection: &mut PgConnection,
    selection: &Selection,
    limit: i64,
) -> Result<Vec<DeadLetter>, Error> {
    let sql = format!(
        "select {COLUMNS} from {FROM} where {SELECTED} and {} order by 1, 3, 4, 5 limit $9",
        condition(Wish::Edit)
    );
    let rows = selection.bind(sql).bind(limit).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Puts `value`, framed Avro, in the place of a record's own, and wants it applied. False when the row is no longer as it
/// was read.
pub async fn edit(connection: &mut PgConnection, letter: &DeadLetter, value: &[u8], by: &str) -> Result<bool, Error> {
    let done = sqlx::query(AssertSqlSafe(
        format!(
            "update millpond.dead_letters d
                set wanted = 'edit', wanted_by = $7, wanted_at = now(), edited = $8, revision = revision + 1
              where projection = $1 and version = $2 and topic = $3 and partition = $4 and \"offset\" = $5 and revision = $6
                and exists (select from millpond.projections p
                             where p.projection = d.projection and p.live_version = d.version for share)
                and not {DECIDED}"
        ),
    ))
    .bind(&letter.consumer)
    .bind(letter.version)
    .bind(&letter.topic)
    .bind(letter.partition)
    .bind(letter.offset)
    .bind(letter.revision)
    .bind(by)
    .bind(value)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}
