//! `consumers/<name>/`: `consumer.toml` and the files beside it, as declared.
//!
//! Owns what may be written in the folder and how it fits together. What the SQL says is `projection`'s to judge.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Document, SourceFile, SpecFault, TableReader, folder_files, nearest};

/// Longest name of a consumer or table, in bytes: `p_<name>_v<version>` has to fit Postgres' 63.
pub const MAX_NAME_BYTES: usize = 40;
/// Names that mean something else in schemas, URLs or commands.
const RESERVED_NAMES: &[&str] = &["all", "live", "millpond", "new", "public", "scratch"];
const MERGE_WORDS: &[&str] = &["sum", "min", "max", "and", "or", "first", "last"];

/// A consumer folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerSpec {
    /// Name of the folder: `[a-z][a-z0-9_]*`, at most [`MAX_NAME_BYTES`].
    pub name: String,
    pub folder: PathBuf,
    /// Input topics.
    pub topics: Vec<String>,
    /// Record types to read; none means those that the SQL names.
    pub types: Option<Vec<String>>,
    /// What becomes of records of other types on the input topics.
    pub unknown: UnknownType,
    pub on_error: OnError,
    pub batch: BatchLimits,
    pub tables: BTreeMap<String, TableSpec>,
    pub source: Source,
    /// `tables.sql`, if there is one.
    pub tables_sql: Option<SourceFile>,
    /// `reference/*.csv`.
    pub reference: Vec<SourceFile>,
    /// Versions of the reader schemas that are pinned; the latest at load for all others.
    pub schemas: BTreeMap<String, u32>,
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

/// What `consumer.toml` says by itself.
struct Manifest {
    topics: Vec<String>,
    types: Option<Vec<String>>,
    unknown: UnknownType,
    on_error: OnError,
    batch: BatchLimits,
    tables: BTreeMap<String, TableSpec>,
    schemas: BTreeMap<String, u32>,
    rust: bool,
    order: Option<Order>,
    writes: Option<Writes>,
}

impl ConsumerSpec {
    /// Reads `consumers/<name>/`.
    ///
    /// # Errors
    /// All faults of the folder at once.
    pub fn load(folder: &Path) -> Result<Self, Vec<SpecFault>> {
        let manifest = folder.join("consumer.toml");
        let text = std::fs::read_to_string(&manifest).map_err(|error| {
            let what = format!("cannot be read: {error}; a consumer folder needs a `consumer.toml` with its topics");
            vec![SpecFault::new(&manifest, None, what)]
        })?;
        let sql = folder_files(folder, "sql")?;
        let reference = folder_files(&folder.join("reference"), "csv")?;
        Self::from_files(folder, &text, sql, reference)
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
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
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
        let Manifest { topics, types, unknown, on_error, batch, tables, schemas, .. } = manifest;
        let folder = folder.to_owned();
        Ok(Self {
            name,
            folder,
            topics,
            types,
            unknown,
            on_error,
            batch,
            tables,
            source,
            tables_sql,
            reference,
            schemas,
        })
    }

    /// Path of `consumer.toml`, for messages.
    pub fn manifest_path(&self) -> PathBuf {
        self.folder.join("consumer.toml")
    }
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

fn read_manifest(root: &TableReader<'_>) -> Option<Manifest> {
    root.allow_with(
        &["topics", "types", "unknown", "on_error", "order", "writes", "handler", "batch", "tables", "schemas"],
        &[
            ("dedupe", "is not enforced yet"),
            ("dedupe_window", "is not enforced yet"),
            ("retention", "is not enforced yet"),
            ("emit", "is not enforced yet"),
        ],
    );
    let topics = root.strings("topics").unwrap_or_default();
    if topics.is_empty() && !has_mismatch(root, "topics") {
        root.fault("topics", "`topics` is missing; name the input topics: topics = [\"flights.commands.v1\"]");
    }
    let unique: BTreeSet<_> = topics.iter().collect();
    if unique.len() != topics.len() {
        root.fault("topics", "`topics` names a topic twice; name each once");
    }
    let types = root.strings("types");
    if types.as_ref().is_some_and(Vec::is_empty) {
        root.fault("types", "`types` is empty; leave the key out to read the types that the SQL names");
    }
    Some(Manifest {
        topics,
        types,
        unknown: match root.choice("unknown", &["skip", "dead_letter"]) {
            Some(1) => UnknownType::DeadLetter,
            _ => UnknownType::Skip,
        },
        on_error: read_on_error(root),
        batch: read_batch(root),
        tables: read_tables(root),
        schemas: read_schemas(root),
        rust: root.choice("handler", &["rust"]).is_some(),
        order: root.choice("order", &["key", "none"]).map(|i| if i == 0 { Order::Key } else { Order::None }),
        writes: root
            .choice("writes", &["shared", "keyed"])
            .map(|i| if i == 0 { Writes::Shared } else { Writes::Keyed }),
    })
}

/// Whether a key is there but was refused for its kind, which has been said already.
fn has_mismatch(root: &TableReader<'_>, key: &str) -> bool {
    root.has(key) && !root.is_empty_list(key)
}

fn read_on_error(root: &TableReader<'_>) -> OnError {
    if root.has("on_error") && root.word("on_error") == Some("park_key") {
        root.fault("on_error", "`on_error = \"park_key\"` is not enforced yet; write \"skip\" or \"halt\"");
        return OnError::Halt;
    }
    match root.choice("on_error", &["skip", "halt"]) {
        Some(1) => OnError::Halt,
        _ => OnError::Skip,
    }
}

fn read_batch(root: &TableReader<'_>) -> BatchLimits {
    let Some(batch) = root.table("batch") else { return BatchLimits::default() };
    batch.allow(&["max_records", "max_bytes", "max_age"]);
    BatchLimits {
        max_records: batch.whole("max_records", 1).and_then(|n| usize::try_from(n).ok()),
        max_bytes: batch.bytes("max_bytes"),
        max_age: batch.duration("max_age"),
    }
}

fn read_schemas(root: &TableReader<'_>) -> BTreeMap<String, u32> {
    let Some(schemas) = root.table("schemas") else { return BTreeMap::new() };
    let mut pinned = BTreeMap::new();
    for record_type in schemas.keys() {
        if let Some(version) = schemas.whole(record_type, 1) {
            pinned.insert(record_type.to_owned(), u32::try_from(version).unwrap_or(u32::MAX));
        }
    }
    pinned
}

fn read_tables(root: &TableReader<'_>) -> BTreeMap<String, TableSpec> {
    let Some(tables) = root.table("tables") else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    for name in tables.keys() {
        if let Some(why) = name_fault(name) {
            tables.fault(name, format!("table name `{name}` {why}; rename the table"));
        }
        if let Some(table) = tables.table(name) {
            found.insert(name.to_owned(), read_table(&table));
        }
    }
    found
}

fn read_table(table: &TableReader<'_>) -> TableSpec {
    table.allow(&["key", "merge", "grants", "indexes", "columns"]);
    let key = table.strings("key").unwrap_or_default();
    let unique: BTreeSet<_> = key.iter().collect();
    if unique.len() != key.len() {
        table.fault("key", "`key` names a column twice; name each once");
    }
    for column in &key {
        if column.starts_with('_') {
            let what = format!(
                "key column `{column}` begins with `_`, which is kept for the engine; give it a name with `as`"
            );
            table.fault("key", what);
        }
    }
    let merge = read_merge(table);
    for column in key.iter().filter(|column| merge.contains_key(*column)) {
        table.fault("merge", format!("`{column}` is a key column and cannot merge; remove it from `merge`"));
    }
    let mut columns = Vec::new();
    if let Some(declared) = table.table("columns") {
        for column in declared.keys() {
            if let Some(pg_type) = declared.string(column) {
                columns.push((column.to_owned(), pg_type));
            }
        }
    }
    TableSpec {
        line: table.line(),
        key,
        merge,
        grants: table.strings("grants").unwrap_or_default(),
        indexes: table.string_lists("indexes").unwrap_or_default(),
        columns,
    }
}

fn read_merge(table: &TableReader<'_>) -> BTreeMap<String, (MergeRule, u32)> {
    let Some(merge) = table.table("merge") else { return BTreeMap::new() };
    let mut rules = BTreeMap::new();
    for column in merge.keys() {
        let rule = if merge.is_table(column) { read_ordered(&merge, column) } else { read_plain(&merge, column) };
        if let Some(rule) = rule {
            rules.insert(column.to_owned(), (rule, merge.line_of(column)));
        }
    }
    rules
}

fn read_plain(merge: &TableReader<'_>, column: &str) -> Option<MergeRule> {
    let rules = [
        MergeRule::Sum,
        MergeRule::Min,
        MergeRule::Max,
        MergeRule::And,
        MergeRule::Or,
        MergeRule::First,
        MergeRule::Last,
    ];
    let word = merge.word(column);
    if let Some(word) = word.filter(|word| !MERGE_WORDS.contains(word)) {
        let hint = match word {
            "count" => " (counts merge by \"sum\")".to_owned(),
            "avg" => " (keep a sum and a count, and divide when reading)".to_owned(),
            other => nearest(other, MERGE_WORDS.iter().copied())
                .map(|w| format!(" (did you mean \"{w}\"?)"))
                .unwrap_or_default(),
        };
        merge.fault(
            column,
            format!("`{column}` cannot merge by \"{word}\"{hint}; write one of sum min max and or first last"),
        );
        return None;
    }
    merge.choice(column, MERGE_WORDS).map(|i| rules[i].clone())
}

fn read_ordered(merge: &TableReader<'_>, column: &str) -> Option<MergeRule> {
    let ordered = merge.table(column)?;
    ordered.allow(&["first", "last"]);
    match (ordered.string("first"), ordered.string("last")) {
        (Some(by), None) => Some(MergeRule::FirstBy(by)),
        (None, Some(by)) => Some(MergeRule::LastBy(by)),
        _ => {
            merge.fault(column, format!("`{column}` needs one order column: {column} = {{ last = \"updated_at\" }}"));
            None
        }
    }
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
            "views" => {}
            "emit" => faults.push(SpecFault::new(&file.path, None, "`emit.sql` is not enforced yet; remove the file")),
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
