//! `consumer.toml`, key by key.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    BatchLimits, DEDUPE_WINDOW, MergeRule, OnError, Order, TableReader, TableSpec, UnknownType, Writes, name_fault,
};
use crate::domain::nearest;

const MERGE_WORDS: &[&str] = &["sum", "min", "max", "and", "or", "first", "last"];

/// What `consumer.toml` says by itself.
pub(super) struct Manifest {
    pub topics: Vec<String>,
    pub types: Option<Vec<String>>,
    pub unknown: UnknownType,
    pub on_error: OnError,
    pub dedupe_window: Option<Duration>,
    pub batch: BatchLimits,
    pub tables: BTreeMap<String, TableSpec>,
    pub schemas: BTreeMap<String, u32>,
    pub emits: BTreeMap<String, String>,
    pub rust: bool,
    pub order: Option<Order>,
    pub writes: Option<Writes>,
}

/// Reads the document; faults are reported to it.
pub(super) fn read_manifest(root: &TableReader<'_>) -> Option<Manifest> {
    root.allow_with(
        &[
            "topics",
            "types",
            "unknown",
            "on_error",
            "dedupe_window",
            "order",
            "writes",
            "handler",
            "batch",
            "tables",
            "schemas",
            "emits",
        ],
        &[
            ("dedupe", "is not enforced yet; `dedupe_window` is"),
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
        dedupe_window: read_dedupe_window(root),
        batch: read_batch(root),
        tables: read_tables(root),
        schemas: read_schemas(root),
        emits: read_emits(root),
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
    match root.choice("on_error", &["skip", "park_key", "halt"]) {
        Some(1) => OnError::ParkKey,
        Some(2) => OnError::Halt,
        _ => OnError::Skip,
    }
}

/// None where repeats are not looked for.
fn read_dedupe_window(root: &TableReader<'_>) -> Option<Duration> {
    match root.word("dedupe_window") {
        Some("0") => None,
        _ if !root.has("dedupe_window") => Some(DEDUPE_WINDOW),
        _ => match root.duration("dedupe_window") {
            Some(window) if window < Duration::from_millis(1) => {
                root.fault(
                    "dedupe_window",
                    "`dedupe_window` is below a millisecond; write \"0\" to take repeats as new records",
                );
                None
            }
            window => window,
        },
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

/// `[emits]`: only a handler in Rust emits, so elsewhere the table is a mistake.
fn read_emits(root: &TableReader<'_>) -> BTreeMap<String, String> {
    let Some(emits) = root.table("emits") else { return BTreeMap::new() };
    if !root.has("handler") {
        root.fault("emits", "`[emits]` is for handlers in Rust (handler = \"rust\"); remove it");
    }
    let types = emits.keys().into_iter();
    types.filter_map(|record_type| Some((record_type.to_owned(), emits.string(record_type)?))).collect()
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
