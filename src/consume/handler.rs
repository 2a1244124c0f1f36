//! Rust handlers: rules and process managers, as a batch in, rows and events out.
//!
//! A handler has no other I/O: it reads its own tables through [`State`] and leaves what shall happen in
//! [`Effects`]; the engine writes that together with the fence, in one transaction. Reading happens before the
//! fence is touched; a batch whose fence has moved since is thrown away whole.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::guard::Attempt;
use crate::domain::{ident, literal, nearest};
use crate::projection::Compiled;
use crate::store::{self, Session};

/// One record, decoded with the schema version that the consumer pins.
#[derive(Debug, Clone)]
pub struct Record {
    /// Simple name of the record type: `RecordDeparture`.
    pub record_type: String,
    pub key: Option<String>,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the Unix epoch, as the topic's timestamp type has it.
    pub timestamp: i64,
    /// The fields as plain JSON, in the form in which ingest takes them.
    pub json: Vec<u8>,
}

impl Record {
    /// The fields as a type of the handler's own.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        serde_json::from_slice(&self.json)
            .map_err(|e| HandlerError::reject(self, format!("cannot read {}: {e}", self.record_type)))
    }
}

/// Why a handler could not apply a batch.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// This record can never be applied: it becomes a dead letter, the others are applied without it.
    #[error("{reason}")]
    Reject { offset: i64, reason: String },
    /// This record cannot be applied now, and may be a little later: its key waits for as long, the others are applied
    /// without it. After 10 attempts within some ten minutes it is as if it had been rejected.
    #[error("{reason}")]
    Retry { offset: i64, reason: String },
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl HandlerError {
    pub fn reject(record: &Record, reason: impl Into<String>) -> Self {
        Self::Reject { offset: record.offset, reason: reason.into() }
    }

    pub fn retry(record: &Record, reason: impl Into<String>) -> Self {
        Self::Retry { offset: record.offset, reason: reason.into() }
    }
}

/// A consumer in Rust. Registered under its folder's name with [`crate::Application::handler`].
#[async_trait::async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Raised by the author whenever the same records would give other rows or events: a new revision is a new
    /// version of the projection.
    fn revision(&self) -> u32;

    /// Applies records of one partition, in order. It is called again with the same records after any failure, and
    /// with other cuts of the log into batches: what it does must follow from the records and the tables alone.
    async fn apply(&self, records: &[Record], state: &mut State<'_>, effects: &mut Effects)
    -> Result<(), HandlerError>;
}

/// The handlers that an application registers, by consumer.
pub type Handlers = HashMap<String, Arc<dyn Handler>>;

/// Read access to the handler's own tables, as they were after the last batch.
pub struct State<'a> {
    pub(super) session: &'a Session,
    pub(super) schema: &'a str,
    /// Of the crash guard, while it watches.
    pub(super) attempt: Option<Attempt<'a>>,
}

impl State<'_> {
    /// The rows of `table` whose first key column is one of `keys`, by that key's text.
    pub async fn load<T: DeserializeOwned>(
        &mut self,
        table: &str,
        key_column: &str,
        keys: &[String],
    ) -> Result<HashMap<String, T>, HandlerError> {
        let column = ident(key_column);
        let sql = format!(
            "select t.{column}::text as k, to_jsonb(t)::text as row from {}.{} t where t.{column}::text = any($1)",
            ident(self.schema),
            ident(table)
        );
        if let Some(attempt) = self.attempt {
            attempt.pause().await?;
        }
        let rows = store::bounded(self.session.query(&sql, &[&keys])).await?;
        if let Some(attempt) = self.attempt {
            attempt.resume().await?;
        }
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            let text: &str = row.try_get("row").map_err(store::Error::from)?;
            let value = serde_json::from_str(text)
                .map_err(|e| store::Error::Refused(format!("a row of {table} does not fit the handler's type: {e}")))?;
            found.insert(row.try_get("k").map_err(store::Error::from)?, value);
        }
        Ok(found)
    }
}

/// What a handler wants to happen, in the transaction that moves the fence.
#[derive(Debug, Default)]
pub struct Effects {
    pub(super) rows: Vec<RowEffect>,
    pub(super) emitted: Vec<Emitted>,
    pub(super) refusals: Vec<Refusal>,
    error: Option<String>,
}

#[derive(Debug)]
pub(super) struct RowEffect {
    pub table: String,
    pub deleted: bool,
    pub row: String,
}

#[derive(Debug)]
pub(super) struct Emitted {
    pub source_offset: i64,
    pub record_type: String,
    pub key: Option<String>,
    pub json: String,
}

#[derive(Debug)]
pub(super) struct Refusal {
    pub offset: i64,
    pub code: String,
    pub reason: String,
}

impl Effects {
    /// Writes a row: every column of the table, replacing the row with the same key. Later calls win.
    pub fn upsert<T: Serialize>(&mut self, table: &str, row: &T) {
        let row = self.text(row);
        self.rows.push(RowEffect { table: table.to_owned(), deleted: false, row });
    }

    /// Deletes the row with this key; `key` names the key columns only.
    pub fn delete<T: Serialize>(&mut self, table: &str, key: &T) {
        let row = self.text(key);
        self.rows.push(RowEffect { table: table.to_owned(), deleted: true, row });
    }

    /// Emits a downstream event because of `source`. It leaves through the outbox, in order, once the batch has
    /// committed; its id is derived from the source, so that a repetition has the same.
    pub fn emit<T: Serialize>(&mut self, source: &Record, record_type: &str, key: &str, event: &T) {
        let json = self.text(event);
        let (record_type, key) = (record_type.to_owned(), Some(key.to_owned()));
        self.emitted.push(Emitted { source_offset: source.offset, record_type, key, json });
    }

    /// Refuses a command: a decision of the domain. Whoever sent it can read why; the first reason given stands.
    pub fn refuse(&mut self, command: &Record, code: &str, reason: impl Into<String>) {
        if self.refusals.iter().any(|r| r.offset == command.offset) {
            return;
        }
        self.refusals.push(Refusal { offset: command.offset, code: code.to_owned(), reason: reason.into() });
    }

    fn text<T: Serialize>(&mut self, value: &T) -> String {
        serde_json::to_string(value).unwrap_or_else(|e| {
            self.error = Some(format!("a row or event cannot be written as JSON: {e}"));
            Value::Null.to_string()
        })
    }

    /// Finds, before anything is written, what is the handler's fault: a value that could not be serialised, a row for
    /// a table or with a field that is not there. Postgres would not say so: a row's unknown fields mean nothing to it.
    pub(super) fn check(&self, compiled: &Compiled) -> Result<(), store::Error> {
        if let Some(error) = &self.error {
            return Err(store::Error::Refused(error.clone()));
        }
        self.rows.iter().try_for_each(|effect| effect.check(compiled)).map_err(store::Error::Refused)
    }
}

impl RowEffect {
    fn check(&self, compiled: &Compiled) -> Result<(), String> {
        let (did, name) = (if self.deleted { "deleted" } else { "wrote" }, &self.table);
        let Some(table) = compiled.table(name) else {
            let declared = compiled.tables();
            let near = nearest(name, declared.iter().map(|table| table.name.as_str()))
                .map_or(String::new(), |near| format!(" (did you mean {near}?)"));
            return Err(format!("the handler {did} a row of {name}, which consumer.toml does not declare{near}"));
        };
        let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(&self.row)
            .map_err(|_| format!("the handler {did} {} as a row of {name}, which is no JSON object", self.row))?;
        if let Some(unknown) = fields.keys().find(|field| table.columns.iter().all(|c| c.name != **field)) {
            let near = nearest(unknown, table.columns.iter().map(|c| c.name.as_str()));
            let near = near.map_or(String::new(), |near| format!(" (did you mean {near}?)"));
            return Err(format!("the handler {did} a row of {name} with {unknown}, which is no column of it{near}"));
        }
        match table.key.iter().find(|key| !fields.contains_key(key.as_str())) {
            Some(key) => Err(format!("the handler {did} a row of {name} without {key}, which is of its key")),
            None => Ok(()),
        }
    }
}

/// Statements that write the rows staged in `pg_temp._rows` into one table.
pub(super) fn write_rows_sql(schema: &str, table: &str, columns: &[String], key: &[String]) -> String {
    let list = |prefix: &str, names: &[String]| {
        names.iter().map(|n| format!("{prefix}{}", ident(n))).collect::<Vec<_>>().join(", ")
    };
    let target = format!("{}.{}", ident(schema), ident(table));
    let same_key = key.iter().map(|k| format!("t.{0} = s.{0}", ident(k))).collect::<Vec<_>>().join(" and ");
    let others: Vec<String> = columns.iter().filter(|c| !key.contains(c)).map(|c| ident(c)).collect();
    let update = if others.is_empty() {
        "nothing".to_owned()
    } else {
        let set: Vec<String> = others.iter().map(|c| format!("{c} = excluded.{c}")).collect();
        format!("update set {}", set.join(", "))
    };
    format!(
        "with s as materialized (
           select distinct on ({keys}) r.deleted, x.* from pg_temp._rows r
             cross join lateral jsonb_populate_record(null::{target}, r.row) x
            where r.tbl = {name} order by {keys}, r.ord desc),
         gone as (delete from {target} t using s where s.deleted and {same_key})
         insert into {target} ({columns}) select {from_s} from s where not s.deleted order by {s_keys}
         on conflict ({plain_keys}) do {update};\n",
        keys = list("x.", key),
        name = literal(table),
        columns = list("", columns),
        from_s = list("s.", columns),
        s_keys = list("s.", key),
        plain_keys = list("", key),
    )
}
