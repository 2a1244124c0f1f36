//! Consumers without SQL: the latest record per key, removed by its tombstone. Written as the SELECTs one would write.

use super::relation::{Relation, TOMBSTONES};
use crate::{
    domain::{ident, literal},
    spec::{ConsumerSpec, SourceFile, SpecFault, TableSpec, listing},
};

/// What comes before the name of a relation when the table has that name.
const RELATION_PREFIX: &str = "_of_";
/// The key column of a table whose record key is not one field.
const KEY_COLUMN: &str = "key";

/// For each table: its name, what is declared of it, and its SELECTs. Relations make way for tables of their names.
pub(super) fn tables(
    spec: &ConsumerSpec,
    relations: &mut [Relation],
) -> Result<Vec<(String, TableSpec, SourceFile)>, Vec<SpecFault>> {
    let mut records: Vec<&mut Relation> = relations.iter_mut().filter(|relation| relation.name != TOMBSTONES).collect();
    let names: Vec<String> = records.iter().map(|relation| relation.name.clone()).collect();
    let names =
        table_names(spec, names).map_err(|message| vec![SpecFault::new(spec.manifest_path(), None, message)])?;
    for (relation, _) in records.iter_mut().zip(&names).filter(|(relation, table)| relation.name == **table) {
        relation.name.insert_str(0, RELATION_PREFIX);
    }
    let (mut tables, mut faults) = (Vec::new(), Vec::new());
    for (relation, name) in records.into_iter().zip(names) {
        let mut table = spec.tables.get(&name).cloned().unwrap_or(TableSpec { line: 1, ..TableSpec::default() });
        match text(relation, &mut table) {
            Ok(text) => tables.push((name, table, SourceFile::new(spec.manifest_path(), text))),
            Err(message) => faults.push(SpecFault::new(spec.manifest_path(), Some(table.line), message)),
        }
    }
    if faults.is_empty() { Ok(tables) } else { Err(faults) }
}

/// One type: the only table declared, or the consumer's own name. Several: a table each, named like the relation.
fn table_names(spec: &ConsumerSpec, names: Vec<String>) -> Result<Vec<String>, String> {
    if names.is_empty() {
        return Err("there is no SQL and no record type to keep; name the types, or add `<table>.sql`".into());
    }
    let declared: Vec<&String> = spec.tables.keys().collect();
    if let ([_], [] | [_]) = (names.as_slice(), declared.as_slice()) {
        return Ok(vec![declared.first().map_or_else(|| spec.name.clone(), |name| (*name).clone())]);
    }
    match declared.into_iter().find(|table| !names.contains(table)) {
        Some(stray) => Err(format!(
            "without SQL each record type has a table of its name: {}; `{stray}` is none of them, so rename it or add `{stray}.sql`",
            listing(names.iter().map(String::as_str))
        )),
        None => Ok(names),
    }
}

fn text(relation: &Relation, table: &mut TableSpec) -> Result<String, String> {
    let single = match relation.key_fields.as_slice() {
        [field] => relation.column(field),
        _ => None,
    };
    let own = single.map_or(KEY_COLUMN, |field| field.name.as_str()).to_owned();
    if single.is_none() && relation.column(KEY_COLUMN).is_some() {
        return Err(format!(
            "`{}` has a field `{KEY_COLUMN}`, the name that the record's key would get; write a SELECT instead",
            relation.name
        ));
    }
    if !table.key.is_empty() && table.key != [own.clone()] {
        return Err(format!(
            "without SQL the key is the record's own, `{own}`, for a tombstone has no other; leave `key` out or write a SELECT"
        ));
    }
    table.key = vec![own.clone()];
    let mut items: Vec<String> = relation.columns.iter().map(|column| format!("r.{}", ident(&column.name))).collect();
    let key_type = single.map_or("text", |field| field.sql_type.as_str());
    if single.is_none() {
        items.insert(0, format!("r._key as {}", ident(&own)));
    }
    let cast = if key_type == "text" { String::new() } else { format!("::{key_type}") };
    Ok(format!(
        "select {} from {} r;\nselect _key{cast} as {}, true as _delete from {TOMBSTONES} /* {} */",
        items.join(", "),
        ident(&relation.name),
        ident(&own),
        literal(&relation.record_type).replace("*/", "")
    ))
}
