//! Which columns of its relations a statement may read. Pure.
//!
//! Errs on one side only: a column counts as read as soon as a word of the statement is its name, wherever that stands.
//! What is not read is not staged, so it decides nothing: neither a value, nor whether a record can be applied, nor the
//! version of the projection.

use std::{collections::BTreeSet, ops::ControlFlow};

use sqlparser::ast::{Select, SelectItem, TableAlias, TableFactor, Visit as _, Visitor};

use super::{
    relation::{Relation, RelationColumn},
    statements::SqlStatement,
    uses::{Uses, folded, last_part},
};

/// A relation with those of its columns that one of the statements may read.
pub(super) fn read_of<'s>(relation: &Relation, statements: impl IntoIterator<Item = &'s SqlStatement>) -> Relation {
    let mut words: BTreeSet<&str> = BTreeSet::new();
    for statement in statements {
        if reads_whole_rows(statement) {
            return relation.clone();
        }
        words.extend(statement.words.iter().map(String::as_str));
    }
    relation.with_columns(|column: &RelationColumn| words.contains(column.name.as_str()))
}

/// Whether a statement may read columns that it does not name: by `*`, as a row, by a natural join, under other names.
fn reads_whole_rows(statement: &SqlStatement) -> bool {
    let mut from = From::default();
    let _ = statement.ast.visit(&mut from);
    let uses = Uses::of_statement(&statement.ast);
    from.wildcard
        || from.renamed
        || statement.words.contains("natural")
        || uses.bare.iter().any(|name| from.names.contains(name))
}

/// What stands in the FROMs of a statement.
#[derive(Default)]
struct From {
    /// Names by which rows can be spoken of.
    names: BTreeSet<String>,
    wildcard: bool,
    /// Whether columns are given other names.
    renamed: bool,
}

impl From {
    fn alias(&mut self, alias: Option<&TableAlias>) {
        self.names.extend(alias.map(|alias| folded(&alias.name)));
    }
}

impl Visitor for From {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.wildcard |= select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_)));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, alias, .. } => {
                self.names.extend(last_part(name));
                self.alias(alias.as_ref());
                self.renamed |= alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
            }
            TableFactor::NestedJoin { alias, .. } => {
                self.alias(alias.as_ref());
                self.renamed |= alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
            }
            TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. }
            | TableFactor::JsonTable { alias, .. }
            | TableFactor::XmlTable { alias, .. } => self.alias(alias.as_ref()),
            // Not of Postgres, or not known here.
            _ => self.wildcard = true,
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{projection::statements::split, spec::SourceFile};

    fn read(sql: &str) -> Vec<String> {
        let column = |name: &str| RelationColumn {
            name: name.to_owned(),
            sql_type: "text".to_owned(),
            nullable: true,
            definition: String::new(),
        };
        let relation = Relation {
            name: "r".to_owned(),
            record_type: "R".to_owned(),
            columns: ["a", "b", "C"].map(column).to_vec(),
            key_fields: Vec::new(),
            topics: Vec::new(),
        };
        let statements = split(&SourceFile::new("t.sql", sql)).unwrap();
        read_of(&relation, &statements).columns.into_iter().map(|column| column.name).collect()
    }

    #[test]
    fn columns_that_are_named_anywhere_are_read() {
        for sql in [
            "select a, count(*) as n from r group by 1",
            "select x.a * 2 as n from r x where x._offset > 1",
            "select n from r join s using (a)",
            "insert into t select 1 from r order by A",
            "update t set n = (select max(r.a) from r)",
            "merge into t using r on t.id = r.a when not matched then insert values (1)",
            "with x as (select a from r) select n from x",
            "select s.n from s, lateral (select a as n from r) x",
            "delete from t using r where t.id = r.a",
            "select (select n from s where s.id = a) as n from r",
        ] {
            assert_eq!(read(sql), ["a"], "{sql}");
        }
        assert_eq!(read("select \"C\" as n from r; select b from r"), ["b", "C"]);
        assert_eq!(read("select c from r"), Vec::<String>::new(), "another name than C");
    }

    #[test]
    fn all_columns_are_read_where_rows_are_taken_whole() {
        for sql in [
            "select * from r",
            "select x.* from r x",
            "select to_jsonb(r) as n from r",
            "select to_jsonb(x.*) as n from r x",
            "select x::text as n from r x",
            "select n from r x where x is null",
            "select count(r) as n from r",
            "select n from (select * from r) x",
            "select to_jsonb(x) as n from (select r from r) x",
            "select n from r natural join s",
            "select x.z from r as x(z)",
            "select to_jsonb(j) as n from (r join s using (id)) as j",
            "with x as (select * from r) select n from x",
            "insert into t select r.* from r",
            "insert into t with x as (update t set n = 1 from r where r._key = id returning r) select 1 from x",
        ] {
            assert_eq!(read(sql), ["a", "b", "C"], "{sql}");
        }
    }
}
