//! `consumers/<name>/`: `consumer.toml` and the files beside it, as declared.
//!
//! Owns what may be written in the folder and how it fits together. What the SQL says is `projection`'s to judge.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Document, SourceFile, SpecFault, folder_files,
    manifest::{Manifest, read_manifest},
};
use crate::domain::nearest;

/// Longest name of a consumer or table, in bytes: `p_<name>_v<version>` has to fit Postgres' 63.
pub const MAX_NAME_BYTES: usize = 40;
/// Names that mean something else in schemas, URLs or commands.
const RESERVED_NAMES: &[&str] = &["all", "live", "millpond", "new", "public", "scratch"];

/// For how long the ids of clients are remembered where `consumer.toml` does not say: longer than any client retries, and
/// than an outage of a weekend.
pub const DEDUPE_WINDOW: Duration = Duration::from_secs(7 * 86_400);

/// A consumer folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerSpec {
    /// Name of the folder: `[a-z][a-z0-9_]*`, at most `MAX_NAME_BYTES`.
    pub name: String,
    pub folder: PathBuf,
    /// Input topics.
    pub topics: Vec<String>,
    /// Record types to read; none means those that the SQL names.
    pub types: Option<Vec<String>>,
    /// What becomes of records of other types on the input topics.
    pub unknown: UnknownType,
    pub on_error: OnError,
    /// How long after a record with an id of its client's another with that id is a repeat, in the time of the log; none
    /// where repeats are new records.
    pub dedupe_window: Option<Duration>,
    pub batch: BatchLimits,
    pub tables: BTreeMap<String, TableSpec>,
    pub source: Source,
    /// `tables.sql`, if there is one.
    pub tables_sql: Option<SourceFile>,
    /// `reference/*.csv`.
    pub reference: Vec<SourceFile>,
    /// Versions of the reader schemas that are pinned; the latest at load for all others.
    pub schemas: BTreeMap<String, u32>,
    /// Record types that a Rust handler emits, and the topic of each.
    pub emits: BTreeMap<String, String>,
}

/// How the tables are written.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// `<table>.sql`: SELECTs whose columns merge.
    Merge(Vec<SourceFile>),
    /// `apply.sql`: statements of the author.
    Apply { sql: SourceFile, order: Order, writes: Writes },
    /// No SQL: the latest record per key; a tombstone deletes.
    Latest,
    /// A handler in Rust, registered under the consumer's name.
    Rust,
}

/// In which order `apply.sql` sees the records of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In rounds: a key occurs once in each.
    Key,
    /// All at once.
    None,
}

/// Whether `apply.sql` may touch rows of any key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Any row: one apply at a time per version.
    Shared,
    /// Only rows of the record's own key: partitions apply side by side.
    Keyed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownType {
    Skip,
    DeadLetter,
}

/// What becomes of a record that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It becomes a dead letter, and the partition goes on.
    Skip,
    /// It waits, and so do the later records of its key; other keys go on.
    ParkKey,
    /// The partition halts.
    Halt,
}

/// Limits of one batch; the engine's defaults where none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchLimits {
    pub max_records: Option<usize>,
    pub max_bytes: Option<usize>,
    pub max_age: Option<Duration>,
}

/// `[tables.<name>]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableSpec {
    /// Line of the table in `consumer.toml`.
    pub line: u32,
    /// Columns of the primary key; empty when it is left to `tables.sql` or to the record's key.
    pub key: Vec<String>,
    /// How columns merge, with the line of each.
    pub merge: BTreeMap<String, (MergeRule, u32)>,
    /// Roles that may read the live view.
    pub grants: Vec<String>,
    pub indexes: Vec<Vec<String>>,
    /// Columns and their Postgres types, in the order written (Rust handlers).
    pub columns: Vec<(String, String)>,
}

/// How two values of one column become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeRule {
    Sum,
    Min,
    Max,
    And,
    Or,
    /// The value of the first record that names the column.
    First,
    /// The value of the last record that names the column.
    Last,
    /// The value that goes with the least value of another column.
    FirstBy(String),
    /// The value that goes with the greatest value of another column.
    LastBy(String),
}

impl MergeRule {
    /// As it is written in `consumer.toml`.
    pub fn written(&self) -> String {
        match self {
            Self::Sum => "\"sum\"".into(),
            Self::Min => "\"min\"".into(),
            Self::Max => "\"max\"".into(),
            Self::And => "\"and\"".into(),
            Self::Or => "\"or\"".into(),
            Self::First => "\"first\"".into(),
            Self::Last => "\"last\"".into(),
            Self::FirstBy(by) => format!("{{ first = \"{by}\" }}"),
            Self::LastBy(by) => format!("{{ last = \"{by}\" }}"),
        }
    }
}

impl ConsumerSpec {
    /// Reads `consumers/<name>/`.
    ///
    /// # Errors
    /// All faults of the folder at once.
    pub fn load(folder: &Path) -> Result<Self, Vec<SpecFault>> {
        Self::load_as(&name_of(folder), folder)
    }

    /// Reads the folder of a consumer that is called otherwise than it.
    ///
    /// # Errors
    /// All faults of the folder at once.
    pub fn load_as(name: &str, folder: &Path) -> Result<Self, Vec<SpecFault>> {
        let manifest = folder.join("consumer.toml");
        let text = std::fs::read_to_string(&manifest).map_err(|error| {
            let what = format!("cannot be read: {error}; a consumer folder needs a `consumer.toml` with its topics");
            vec![SpecFault::new(&manifest, None, what)]
        })?;
        let sql = folder_files(folder, "sql")?;
        let reference = folder_files(&folder.join("reference"), "csv")?;
        Self::named(name, folder, &text, sql, reference)
    }

    /// Puts a consumer together from the text of its files.
    ///
    /// # Errors
    /// All faults of the folder at once.
    pub fn from_files(
        folder: &Path,
        manifest: &str,
        sql: Vec<SourceFile>,
        reference: Vec<SourceFile>,
    ) -> Result<Self, Vec<SpecFault>> {
        Self::named(&name_of(folder), folder, manifest, sql, reference)
    }

    fn named(
        name: &str,
        folder: &Path,
        manifest: &str,
        sql: Vec<SourceFile>,
        reference: Vec<SourceFile>,
    ) -> Result<Self, Vec<SpecFault>> {
        let name = name.to_owned();
        let mut faults = Vec::new();
        if let Some(why) = name_fault(&name) {
            faults.push(SpecFault::new(folder, None, format!("consumer name `{name}` {why}; rename the folder")));
        }
        let path = folder.join("consumer.toml");
        let manifest = match Document::new(&path, manifest).read(read_manifest) {
            Ok(manifest) => manifest,
            Err(found) => {
                faults.extend(found);
                return Err(faults);
            }
        };
        let (source, tables_sql) = sort_sql(folder, &manifest, sql, &mut faults);
        check_reference(&reference, &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        let Manifest { topics, types, unknown, on_error, dedupe_window, batch, tables, schemas, emits, .. } = manifest;
        let folder = folder.to_owned();
        Ok(Self {
            name,
            folder,
            topics,
            types,
            unknown,
            on_error,
            dedupe_window,
            batch,
            tables,
            source,
            tables_sql,
            reference,
            schemas,
            emits,
        })
    }

    /// Path of `consumer.toml`, for messages.
    pub fn manifest_path(&self) -> PathBuf {
        self.folder.join("consumer.toml")
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Why a name of a consumer or table is refused.
pub fn name_fault(name: &str) -> Option<String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(legal) {
        return Some("must be lowercase letters, digits and `_`, and begin with a letter".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Some(format!("is longer than {MAX_NAME_BYTES} characters"));
    }
    if name.starts_with("pg_") || RESERVED_NAMES.contains(&name) {
        return Some("is a reserved word".into());
    }
    None
}

/// Finds out from the files how the tables are written.
fn sort_sql(
    folder: &Path,
    manifest: &Manifest,
    sql: Vec<SourceFile>,
    faults: &mut Vec<SpecFault>,
) -> (Source, Option<SourceFile>) {
    let (mut apply, mut tables_sql, mut selects) = (None, None, Vec::new());
    for file in sql {
        match file.stem.as_str() {
            "apply" => apply = Some(file),
            "tables" => tables_sql = Some(file),
            stem @ ("views" | "emit") => {
                let message = format!("`{stem}.sql` is not enforced yet; remove the file");
                faults.push(SpecFault::new(&file.path, None, message));
            }
            _ => selects.push(file),
        }
    }
    let path = folder.join("consumer.toml");
    let mut fault = |message: String| faults.push(SpecFault::new(&path, None, message));
    if apply.is_none() && (manifest.order.is_some() || manifest.writes.is_some()) {
        fault("`order` and `writes` belong to `apply.sql`, which is not there; remove them".into());
    }
    if (apply.is_some() || manifest.rust) && !selects.is_empty() {
        let names: Vec<String> = selects.iter().map(|f| format!("{}.sql", f.stem)).collect();
        let main = if manifest.rust { "handler = \"rust\"" } else { "`apply.sql`" };
        fault(format!("{main} and {} are two ways to write the tables; keep one", names.join(", ")));
    }
    if apply.is_some() && manifest.rust {
        fault("handler = \"rust\" and `apply.sql` are two ways to write the tables; keep one".into());
    }
    if !manifest.rust {
        for (name, table) in manifest.tables.iter().filter(|(_, table)| !table.columns.is_empty()) {
            faults.push(SpecFault::new(
                &path,
                Some(table.line),
                format!(
                    "`tables.{name}.columns` is for Rust handlers; remove it, or declare the table in `tables.sql`"
                ),
            ));
        }
    }
    let source = match apply {
        _ if manifest.rust => Source::Rust,
        Some(sql) => Source::Apply {
            sql,
            order: manifest.order.unwrap_or(Order::Key),
            writes: manifest.writes.unwrap_or(Writes::Shared),
        },
        None if selects.is_empty() => Source::Latest,
        None => {
            match_tables(&path, manifest, &selects, faults);
            Source::Merge(selects)
        }
    };
    (source, tables_sql)
}

/// `<table>.sql` and `[tables.<table>]` come in pairs.
fn match_tables(path: &Path, manifest: &Manifest, selects: &[SourceFile], faults: &mut Vec<SpecFault>) {
    for file in selects.iter().filter(|file| !manifest.tables.contains_key(&file.stem)) {
        let hint = nearest(&file.stem, manifest.tables.keys().map(String::as_str))
            .map(|near| format!("; did you mean `{near}.sql`?"))
            .unwrap_or_else(|| "; add it with its key: key = [\"carrier\", \"day\"]".to_owned());
        faults.push(SpecFault::new(&file.path, None, format!("consumer.toml has no [tables.{}]{hint}", file.stem)));
    }
    for (name, table) in &manifest.tables {
        if !selects.iter().any(|file| file.stem == *name) {
            let message =
                format!("table `{name}` has no `{name}.sql`; add the file with its SELECTs, or remove the table");
            faults.push(SpecFault::new(path, Some(table.line), message));
        }
    }
}

fn check_reference(files: &[SourceFile], faults: &mut Vec<SpecFault>) {
    for file in files {
        if let Some(why) = name_fault(&file.stem) {
            faults.push(SpecFault::new(
                &file.path,
                None,
                format!("reference table `{}` {why}; rename the file", file.stem),
            ));
        }
    }
}
