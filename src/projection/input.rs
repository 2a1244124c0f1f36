//! A consumer folder taken apart: everything that is known of it without asking Postgres.

use std::collections::BTreeSet;

use super::{
    declared,
    judge::Names,
    latest,
    names::live_view,
    reference::ReferenceTable,
    relation::Relation,
    statements::{SqlStatement, split},
};
use crate::{
    domain::{MAX_IDENTIFIER_BYTES, nearest},
    spec::{ConsumerSpec, Source, SourceFile, SpecFault, TableSpec, listing},
};

/// Everything that is known without Postgres.
pub(super) struct Input<'a> {
    pub spec: &'a ConsumerSpec,
    pub relations: Vec<Relation>,
    pub references: Vec<ReferenceTable>,
    pub tables_sql: Vec<SqlStatement>,
    /// Merging tables: name, declaration, statements.
    pub merges: Vec<(String, TableSpec, Vec<SqlStatement>)>,
    pub apply: Vec<SqlStatement>,
    pub names: Names,
}

impl<'a> Input<'a> {
    pub fn read(spec: &'a ConsumerSpec, relations: &[Relation]) -> Result<Self, Vec<SpecFault>> {
        let mut faults = Vec::new();
        let mut keep = |found: Vec<SpecFault>| faults.extend(found);
        let mut relations = chosen(spec, relations).unwrap_or_else(|found| {
            keep(found);
            Vec::new()
        });
        relations.sort_by(|a, b| a.name.cmp(&b.name));
        let references: Vec<ReferenceTable> =
            spec.reference.iter().filter_map(|file| ReferenceTable::parse(file).map_err(&mut keep).ok()).collect();
        let mut parse = |file: &SourceFile| split(file).map_err(&mut keep).unwrap_or_default();
        let tables_sql = spec.tables_sql.as_ref().map(&mut parse).unwrap_or_default();
        let mut merges = Vec::new();
        let mut apply = Vec::new();
        match &spec.source {
            Source::Merge(files) => {
                for file in files {
                    let Some(table) = spec.tables.get(&file.stem) else { continue };
                    merges.push((file.stem.clone(), table.clone(), parse(file)));
                }
            }
            Source::Latest => match latest::tables(spec, &mut relations) {
                Ok(tables) => {
                    merges = tables.into_iter().map(|(name, table, file)| (name, table, parse(&file))).collect()
                }
                Err(found) => faults.extend(found),
            },
            Source::Apply { sql, .. } => apply = parse(sql),
            Source::Rust => {}
        }
        let declared = declared::read(&tables_sql, &spec.source).unwrap_or_else(|found| {
            faults.extend(found);
            BTreeSet::new()
        });
        let names = Names {
            relations: relations.iter().map(|relation| relation.name.clone()).collect(),
            references: references.iter().map(|reference| reference.name.clone()).collect(),
            tables: declared
                .into_iter()
                .chain(merges.iter().map(|(name, ..)| name.clone()))
                .chain(spec.tables.keys().cloned())
                .collect(),
        };
        let input = Self { spec, relations, references, tables_sql, merges, apply, names };
        input.check_names(&mut faults);
        if faults.is_empty() { Ok(input) } else { Err(faults) }
    }

    fn check_names(&self, faults: &mut Vec<SpecFault>) {
        let mut fault = |message: String| faults.push(SpecFault::new(self.spec.manifest_path(), None, message));
        let Names { relations, references, tables } = &self.names;
        for name in relations.intersection(tables) {
            fault(format!("`{name}` is both a table and an input relation; rename the table"));
        }
        for name in references.iter().filter(|name| relations.contains(*name) || tables.contains(*name)) {
            fault(format!("`reference/{name}.csv` has the name of a table or input relation; rename the file"));
        }
        for relation in &self.relations {
            if relation.name.starts_with("pg_") || relation.name.len() + "_staged_".len() > MAX_IDENTIFIER_BYTES {
                fault(format!(
                    "record type `{}` cannot be a relation: `{}` is reserved or too long",
                    relation.record_type, relation.name
                ));
            }
            for column in
                relation.columns.iter().filter(|c| c.name.starts_with('_') || c.name.len() > MAX_IDENTIFIER_BYTES)
            {
                let what = "begins with `_`, which is kept for the engine, or is too long for Postgres";
                fault(format!(
                    "field `{}` of record type `{}` {what}; read another type or rename the field",
                    column.name, relation.record_type
                ));
            }
        }
        for table in tables {
            if live_view(&self.spec.name, table, tables.len()).len() > MAX_IDENTIFIER_BYTES {
                fault(format!(
                    "the view `{}_{table}` would be longer than {MAX_IDENTIFIER_BYTES} characters; shorten one name",
                    self.spec.name
                ));
            }
        }
    }
}

/// The relations of the types that the consumer reads, and the tombstones.
fn chosen(spec: &ConsumerSpec, relations: &[Relation]) -> Result<Vec<Relation>, Vec<SpecFault>> {
    let mut chosen: Vec<Relation> = vec![Relation::tombstones()];
    let Some(types) = &spec.types else {
        // No SQL tells which are meant: those that are known to be sent to the topics, if any are.
        let sent = |relation: &&Relation| relation.topics.iter().any(|topic| spec.topics.contains(topic));
        let known = spec.source == Source::Latest && relations.iter().any(|relation| sent(&relation));
        chosen.extend(relations.iter().filter(|relation| !known || sent(relation)).cloned());
        return Ok(chosen);
    };
    let mut faults = Vec::new();
    for name in types {
        match relations.iter().find(|relation| relation.record_type == *name) {
            Some(relation) => chosen.push(relation.clone()),
            None => {
                let known = || relations.iter().map(|relation| relation.record_type.as_str());
                let hint = nearest(name, known()).map_or_else(
                    || format!("there are {}", listing(known())),
                    |near| format!("did you mean \"{near}\"?"),
                );
                faults.push(SpecFault::new(
                    spec.manifest_path(),
                    None,
                    format!("`types` names \"{name}\", which no schema describes; {hint}"),
                ));
            }
        }
    }
    if faults.is_empty() { Ok(chosen) } else { Err(faults) }
}
