//! What a trial of a consumer does to the platform's tables of a scratch database, and what it reads back.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, postgres::PgDatabaseError};
use uuid::Uuid;

use super::{Error, fence::on_fence, run, seen};
use crate::domain::{ColumnInfo, TableInfo, TopicPartition, ident, literal};

/// A row of values as text, in the order of the columns asked for.
pub type TextRow = Vec<Option<String>>;

/// Where a record stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub at: TopicPartition,
    pub offset: i64,
}

/// A refusal or a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub place: Place,
    /// Code of the refusal, or class of the dead letter.
    pub code: String,
    pub reason: String,
}

/// A row of the outbox that a handler asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEvent {
    pub source: Place,
    /// Among those of its source, from 0.
    pub index: i32,
    pub event_id: Uuid,
    pub target_topic: String,
    pub record_type: String,
    pub key: Option<Vec<u8>>,
    /// Framed Avro.
    pub payload: Option<Vec<u8>>,
}

/// Makes a version's schema and tables, without showing them to anybody.
pub async fn create_version(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    schema: &str,
    create: &[String],
) -> Result<(), Error> {
    let mut tx = connection.begin().await?;
    let sql = format!(
        "insert into millpond.projections (projection) values ({name}) on conflict do nothing;
         insert into millpond.versions (projection, version, hash, schema_name, state, topics, tables)
         values ({name}, {version}, '', {}, 'building', '{{}}', '[]')",
        literal(schema),
        name = literal(projection),
    );
    run(&mut tx, sql).await?;
    for statement in create {
        run(&mut tx, statement.as_str()).await?;
    }
    run(&mut tx, seen::create_sql(schema)).await?;
    tx.commit().await?;
    Ok(())
}

/// Empties a version's tables and puts its fences back to the start of the log.
pub async fn rewind(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    schema: &str,
    tables: &[TableInfo],
) -> Result<(), Error> {
    let of = format!("where projection = {} and version = {version}", literal(projection));
    let mut sql: String =
        tables.iter().map(|table| format!("delete from {}.{};\n", ident(schema), ident(&table.name))).collect();
    sql.push_str(&seen::clear_sql(schema));
    for table in ["outbox", "refusals", "dead_letters", "parked_keys"] {
        sql.push_str(&format!("delete from millpond.{table} {of};\n"));
    }
    sql.push_str(&format!(
        "update millpond.fences set next_offset = 0, out_seq = 0, last_offset = null, last_timestamp = null,
            last_checksum = null, log_time = null {of}"
    ));
    run(connection, sql).await
}

/// Puts one fence to an offset.
pub async fn stand_at(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
    at: &TopicPartition,
    next_offset: i64,
) -> Result<(), Error> {
    on_fence(
        "update millpond.fences set next_offset = $5
          where projection = $1 and version = $2 and topic = $3 and partition = $4",
        projection,
        version,
        at,
    )
    .bind(next_offset)
    .execute(connection)
    .await?;
    Ok(())
}

/// All rows of a table, without order.
pub async fn rows(connection: &mut PgConnection, schema: &str, table: &TableInfo) -> Result<Vec<TextRow>, Error> {
    let columns: Vec<&ColumnInfo> = table.columns.iter().collect();
    let from = format!("{}.{}", ident(schema), ident(&table.name));
    select(connection, &columns, &from).await
}

async fn select(connection: &mut PgConnection, columns: &[&ColumnInfo], from: &str) -> Result<Vec<TextRow>, Error> {
    let columns: Vec<String> = columns.iter().map(|column| text_of(column)).collect();
    let sql = format!("select array[{}]::text[] from {from}", columns.join(", "));
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await?)
}

/// A value as text; equal values have equal texts.
fn text_of(column: &ColumnInfo) -> String {
    let name = ident(&column.name);
    match column.pg_type.as_str() {
        "numeric" | "decimal" => format!("trim_scale({name})::text"),
        time if time.starts_with("timestamp") && !time.ends_with(']') => {
            format!("replace(to_json({name}) #>> '{{}}', '+00:00', 'Z')")
        }
        _ => format!("{name}::text"),
    }
}

/// Why a CSV file does not fit its table.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    #[error("{message}")]
    Refused {
        /// Line of the file, from 1.
        line: Option<u32>,
        message: String,
    },
    #[error(transparent)]
    Store(#[from] Error),
}

/// The rows of a CSV file with a header, as the table would hold them: cast to its types by Postgres. Empty is null,
/// `""` the empty text.
pub async fn csv_rows(
    connection: &mut PgConnection,
    schema: &str,
    table: &TableInfo,
    columns: &[&ColumnInfo],
    csv: &str,
) -> Result<Vec<TextRow>, CsvError> {
    let names = columns.iter().map(|column| ident(&column.name)).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "drop table if exists pg_temp._expected;
         create temp table _expected as select {names} from {}.{} with no data",
        ident(schema),
        ident(&table.name)
    );
    run(connection, sql).await?;
    let copied = async {
        let statement = format!("copy pg_temp._expected ({names}) from stdin (format csv, header)");
        let mut copy = connection.copy_in_raw(&statement).await?;
        copy.send(csv.as_bytes()).await?;
        copy.finish().await.map(drop)
    };
    copied.await.map_err(refused)?;
    Ok(select(connection, columns, "pg_temp._expected").await?)
}

/// `COPY _expected, line 3, column day: "x"` becomes the line and the rest.
fn refused(error: sqlx::Error) -> CsvError {
    let Some(found) = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>()) else {
        return CsvError::Store(error.into());
    };
    let place = found.r#where().and_then(|place| place.strip_prefix("COPY _expected, line ")).unwrap_or_default();
    let (line, rest) = place.split_once(", ").unwrap_or((place, ""));
    let number: String = line.chars().take_while(char::is_ascii_digit).collect();
    let rest = if rest.is_empty() { String::new() } else { format!(" ({rest})") };
    CsvError::Refused { line: number.parse().ok(), message: format!("{}{rest}", found.message()) }
}

/// The refusals of a version.
pub async fn refusals(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<Judged>, Error> {
    judged(connection, "code, reason from millpond.refusals", projection, version).await
}

/// The dead letters of a version.
pub async fn dead_letters(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<Judged>, Error> {
    judged(connection, "reason_class as code, reason from millpond.dead_letters", projection, version).await
}

async fn judged(
    connection: &mut PgConnection,
    what: &str,
    projection: &str,
    version: i32,
) -> Result<Vec<Judged>, Error> {
    let sql = format!(
        "select topic, partition, \"offset\", {what} where projection = $1 and version = $2
          order by topic, partition, \"offset\""
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(projection).bind(version).fetch_all(connection).await?;
    let of = |row: &sqlx::postgres::PgRow| {
        Ok(Judged { place: place(row, "offset")?, code: row.try_get("code")?, reason: row.try_get("reason")? })
    };
    rows.iter().map(of).collect()
}

/// What a version has emitted, in the order in which it would leave from each partition.
pub async fn outbox(connection: &mut PgConnection, projection: &str, version: i32) -> Result<Vec<OutboxEvent>, Error> {
    let rows = sqlx::query(
        "select topic, partition, source_offset, index, event_id, target_topic, record_type, key, payload
           from millpond.outbox where projection = $1 and version = $2 and index >= 0
          order by topic, partition, out_seq",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(connection)
    .await?;
    let of = |row: &sqlx::postgres::PgRow| {
        Ok(OutboxEvent {
            source: place(row, "source_offset")?,
            index: row.try_get("index")?,
            event_id: row.try_get("event_id")?,
            target_topic: row.try_get("target_topic")?,
            record_type: row.try_get("record_type")?,
            key: row.try_get("key")?,
            payload: row.try_get("payload")?,
        })
    };
    rows.iter().map(of).collect()
}

fn place(row: &sqlx::postgres::PgRow, offset: &str) -> Result<Place, Error> {
    let at = TopicPartition::new(row.try_get::<String, _>("topic")?, row.try_get("partition")?);
    Ok(Place { at, offset: row.try_get(offset)? })
}
