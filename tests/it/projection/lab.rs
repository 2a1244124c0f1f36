//! A consumer folder from strings, compiled, made, and fed batches through its staging tables.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use millpond::{
    projection::{Compiled, Error, METADATA_COLUMNS, Relation, RelationColumn, compile},
    spec::{ConsumerSpec, SourceFile, SpecFault},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

/// One record as SQL sees it.
#[derive(Debug, Clone)]
pub struct Record {
    pub relation: &'static str,
    pub key: String,
    pub partition: i32,
    pub offset: i64,
    /// Values of the fields as literals of SQL.
    pub fields: Vec<String>,
}

pub async fn connect() -> PgConnection {
    PgConnection::connect(crate::harness::postgres_url().as_ref()).await.expect("connect")
}

/// A name that no other test uses at the same time.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn relation(name: &str, record_type: &str, key: &[&str], columns: &[(&str, &str)]) -> Relation {
    Relation {
        name: name.into(),
        record_type: record_type.into(),
        columns: columns
            .iter()
            .map(|(name, sql_type)| RelationColumn {
                name: (*name).into(),
                sql_type: (*sql_type).into(),
                nullable: true,
                definition: "1".into(),
            })
            .collect(),
        key_fields: key.iter().map(|field| (*field).into()).collect(),
        topics: Vec::new(),
    }
}

/// `files` are paths within the folder and their text, `consumer.toml` among them.
pub fn spec(name: &str, files: &[(&str, &str)]) -> Result<ConsumerSpec, Vec<SpecFault>> {
    let folder = Path::new("consumers").join(name);
    let ending = |wanted: &str| {
        let of = files.iter().filter(|(path, _)| path.ends_with(wanted));
        of.map(|(path, text)| SourceFile::new(folder.join(path), *text)).collect::<Vec<_>>()
    };
    let manifest = files.iter().find(|(path, _)| *path == "consumer.toml").map_or("", |(_, text)| text);
    ConsumerSpec::from_files(&folder, manifest, ending(".sql"), ending(".csv"))
}

/// The faults of a folder, shown as they are printed.
pub async fn faults(files: &[(&str, &str)], relations: &[Relation]) -> Vec<String> {
    let faults = match spec("probe", files) {
        Err(faults) => faults,
        Ok(spec) => match compile(&spec, relations, &mut connect().await).await {
            Ok(_) => Vec::new(),
            Err(Error::Faults(faults)) => faults,
            Err(error) => panic!("{error:?}"),
        },
    };
    faults.iter().map(ToString::to_string).collect()
}

/// A compiled consumer and a session for one of its versions.
pub struct Lab {
    pub conn: PgConnection,
    pub compiled: Compiled,
    pub version: i32,
    /// With all their columns, whether or not they are read.
    relations: Vec<Relation>,
}

impl Lab {
    pub async fn new(files: &[(&str, &str)], relations: &[Relation]) -> Self {
        let mut conn = connect().await;
        let spec = spec(&unique("lab"), files).expect("a sound folder");
        let compiled = compile(&spec, relations, &mut conn).await.unwrap_or_else(|error| panic!("{error}"));
        let mut lab = Self { conn, compiled, version: 0, relations: relations.to_vec() };
        lab.next_version().await;
        lab
    }

    pub async fn run(&mut self, sql: &str) {
        if let Err(error) = self.try_run(sql).await {
            panic!("{error}\n{sql}");
        }
    }

    pub async fn try_run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.conn).await.map(|_| ())
    }

    /// Leaves the version and begins an empty one.
    pub async fn next_version(&mut self) {
        if self.version > 0 {
            self.drop_version().await;
        }
        self.version += 1;
        // Nothing here is about what a crash keeps.
        let mut sql = vec!["set synchronous_commit = off".to_owned(), "begin".to_owned()];
        sql.extend(self.compiled.create_sql(self.version));
        sql.push("commit".into());
        sql.extend(self.compiled.session_sql(self.version));
        self.run(&sql.join(";\n")).await;
    }

    pub async fn drop_version(&mut self) {
        let sql = format!(
            "set client_min_messages = 'warning'; drop schema {} cascade",
            self.compiled.schema_name(self.version)
        );
        self.run(&sql).await;
    }

    /// Applies one batch in one transaction.
    pub async fn apply(&mut self, batch: &[Record]) {
        if let Err(error) = self.try_apply(batch).await {
            panic!("{error}\n{batch:?}");
        }
    }

    pub async fn try_apply(&mut self, batch: &[Record]) -> Result<(), sqlx::Error> {
        let sql = self.batch_sql(batch);
        let done = self.try_run(&sql).await;
        if done.is_err() {
            self.run("rollback").await;
        }
        done
    }

    fn batch_sql(&self, batch: &[Record]) -> String {
        let mut sql = "begin;\n".to_owned();
        let mut rounds = 1;
        let mut present = BTreeSet::new();
        for (seq, record) in batch.iter().enumerate() {
            let round = batch[..seq].iter().filter(|other| other.key == record.key).count() as u32;
            rounds = rounds.max(round + 1);
            let Some(copy) = self.compiled.copy_sql(record.relation) else { continue };
            present.insert(record.relation);
            let into = copy.trim_start_matches("copy ").trim_end_matches(" from stdin (format binary)");
            let mut values = vec![
                format!("'{}'", record.key),
                record.partition.to_string(),
                record.offset.to_string(),
                format!("timestamptz '2013-01-01 00:00:00Z' + {} * interval '1 s'", record.offset),
                format!("'{}-{}'", record.partition, record.offset),
                seq.to_string(),
                round.to_string(),
            ];
            assert_eq!(values.len(), METADATA_COLUMNS.len());
            let relation = self.compiled.relations().iter().find(|r| r.name == record.relation).expect("it is staged");
            let staged = self.compiled.staged_metadata(relation);
            let mut names = METADATA_COLUMNS.iter().map(|(name, _)| name);
            values.retain(|_| names.next().is_some_and(|name| staged.contains(name)));
            let all = self.relations.iter().filter(|r| r.record_type == relation.record_type).flat_map(|r| &r.columns);
            let read = all.zip(&record.fields).filter(|(column, _)| relation.column(&column.name).is_some());
            values.extend(read.map(|(_, value)| value.clone()));
            sql.push_str(&format!("insert into {into} values ({});\n", values.join(", ")));
        }
        sql + &self.compiled.apply_sql(self.version, rounds, &present) + "commit"
    }

    /// The rows of a table as text, in the order of its key; only what people see.
    pub async fn rows(&mut self, table: &str) -> Vec<Vec<Option<String>>> {
        let info = self.compiled.tables().into_iter().find(|info| info.name == table).expect("a table of the consumer");
        let columns: Vec<String> = info.columns.iter().map(|column| format!("\"{}\"::text", column.name)).collect();
        let key: Vec<String> = info.key.iter().map(|column| format!("\"{column}\"")).collect();
        let sql = format!(
            "select array[{}] from {}.\"{table}\" order by {}",
            columns.join(", "),
            self.compiled.schema_name(self.version),
            key.join(", ")
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut self.conn).await.expect("rows");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The rows of a table, each as one line.
    pub async fn lines(&mut self, table: &str) -> Vec<String> {
        let shown = |value: Option<String>| value.unwrap_or_else(|| "null".into());
        let line = |row: Vec<Option<String>>| row.into_iter().map(shown).collect::<Vec<_>>().join(" ");
        self.rows(table).await.into_iter().map(line).collect()
    }
}
