//! `tables.sql`: which tables and indexes may be declared. Pure.
//!
//! Owns what makes a declaration depend on how the log is cut into batches. A constraint judges rows as they stand after
//! a statement; a batch is one statement, so a value that a later record of the same batch overwrites is never judged,
//! and would be in a batch of its own. Where one batch writes the rows at once, nothing but the primary key is left to
//! Postgres: each record's row passes through the type and the key of the table whatever becomes of it.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::{
    ast::{
        ColumnDef, ColumnOption, CreateIndex, CreateTable, Expr, PrimaryKeyConstraint, Spanned as _, Statement,
        TableConstraint,
    },
    tokenizer::Span,
};

use super::{
    reference::foreign_type,
    statements::SqlStatement,
    uses::{folded, last_part},
};
use crate::spec::{Source, SpecFault};

/// What writes the rows of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// SELECTs that merge: one statement per table and batch.
    Selects,
    /// A handler, whose last row of each key is written.
    Handler,
    /// The author's statements, run in rounds or however the author says.
    Statements,
}

/// The names of the tables that `tables.sql` makes.
///
/// # Errors
/// Everything in it that is not a plain table or index of this version, or would depend on the batches.
pub(super) fn read(statements: &[SqlStatement], source: &Source) -> Result<BTreeSet<String>, Vec<SpecFault>> {
    let writer = match source {
        Source::Merge(_) | Source::Latest => Writer::Selects,
        Source::Rust => Writer::Handler,
        Source::Apply { .. } => Writer::Statements,
    };
    let (mut names, mut faults) = (BTreeMap::new(), Vec::new());
    for statement in statements {
        let mut fault = |at: Span, message: String| faults.push(statement.fault_at(at, message));
        match &statement.ast {
            Statement::CreateTable(create) => {
                let name = last_part(&create.name).unwrap_or_default();
                if create.name.0.len() > 1 {
                    let message = format!(
                        "`{}` names a schema; each version has its own, so write the table's name alone",
                        create.name
                    );
                    fault(create.name.span(), message);
                }
                if let Some(why) = crate::spec::name_fault(&name) {
                    fault(create.name.span(), format!("table name `{name}` {why}; rename the table"));
                }
                table_faults(create, writer, &mut fault);
                if names.insert(name.clone(), ()).is_some() {
                    fault(create.name.span(), format!("table `{name}` is made twice; keep one"));
                }
            }
            Statement::CreateIndex(index) => {
                let table = last_part(&index.table_name).unwrap_or_default();
                if !names.contains_key(&table) {
                    let message = format!("the index is on `{table}`, which is not made above; make the table first");
                    fault(index.table_name.span(), message);
                }
                index_faults(index, writer, &mut fault);
            }
            other => {
                let word = other.to_string().split_whitespace().take(2).collect::<Vec<_>>().join(" ").to_lowercase();
                let message =
                    format!("`{word}` does not belong in `tables.sql`; only `create table` and `create index` do");
                fault(Span::empty(), message);
            }
        }
    }
    if faults.is_empty() { Ok(names.into_keys().collect()) } else { Err(faults) }
}

fn table_faults(create: &CreateTable, writer: Writer, fault: &mut impl FnMut(Span, String)) {
    let derived =
        create.query.is_some() || create.like.is_some() || create.inherits.is_some() || create.partition_of.is_some();
    if derived || create.temporary || create.if_not_exists || create.partition_by.is_some() {
        let message = "write a plain `create table name (column type, …, primary key (…))`";
        fault(create.name.span(), message.to_owned());
    }
    let key = primary_key(create);
    for column in &create.columns {
        column_faults(column, &key, writer, &mut |message| fault(column.name.span, message));
    }
    for constraint in &create.constraints {
        if let Some(message) = constraint_fault(constraint, writer) {
            fault(constraint.span(), message);
        }
    }
}

/// The columns that the primary key makes `not null` anyway.
fn primary_key(create: &CreateTable) -> BTreeSet<String> {
    let mut key = BTreeSet::new();
    for column in &create.columns {
        if column.options.iter().any(|option| matches!(option.option, ColumnOption::PrimaryKey(_))) {
            key.insert(folded(&column.name));
        }
    }
    for constraint in &create.constraints {
        let TableConstraint::PrimaryKey(primary) = constraint else { continue };
        key.extend(primary.columns.iter().filter_map(|part| match &part.column.expr {
            Expr::Identifier(name) => Some(folded(name)),
            _ => None,
        }));
    }
    key
}

fn column_faults(column: &ColumnDef, key: &BTreeSet<String>, writer: Writer, fault: &mut impl FnMut(String)) {
    let (name, pg_type) = (folded(&column.name), column.data_type.to_string().to_lowercase());
    if name.starts_with('_') {
        fault(format!("column `{name}` begins with `_`, which is kept for the engine; rename it"));
    }
    if pg_type.contains("serial") {
        fault(counts_inserts(&format!("{name} {pg_type}")));
    }
    if foreign_type(&column.data_type) {
        fault(format!(
            "`{name}` is of type `{}`, which is not one of Postgres' own: what it takes is not in the folder; write one \
             such as text or numeric(10,2)",
            column.data_type
        ));
    }
    for option in &column.options {
        if let Some(message) = option_fault(&name, &option.option, key, writer) {
            fault(message);
        }
    }
}

fn option_fault(name: &str, option: &ColumnOption, key: &BTreeSet<String>, writer: Writer) -> Option<String> {
    match option {
        ColumnOption::Null => None,
        ColumnOption::PrimaryKey(primary) => primary_key_fault(primary),
        ColumnOption::ForeignKey(_) => Some(foreign_key(&format!("`{name}`"))),
        ColumnOption::Unique(_) => Some(unique(&format!("`{name}` is unique"))),
        ColumnOption::Generated { generation_expr: None, .. } | ColumnOption::Identity(_) => Some(counts_inserts(name)),
        _ if writer == Writer::Statements => None,
        ColumnOption::NotNull if key.contains(name) => None,
        ColumnOption::NotNull => Some(unjudged(&format!("`{name}` is `not null`"), writer)),
        ColumnOption::Check(check) => Some(unjudged(&format!("`{name}` has a check ({})", check.expr), writer)),
        ColumnOption::Default(_) if writer == Writer::Handler => {
            Some(format!("`{name}` has a default, but a handler writes every column; remove it"))
        }
        ColumnOption::Default(default) => Some(format!(
            "`{name}` has a default, which holds only where no record of the batch names the column; remove it, and \
             give the value in the SELECT, as in coalesce({name}, {default})"
        )),
        ColumnOption::Generated { .. } => Some(format!(
            "`{name}` is computed by Postgres, but every column is written from outside; remove it, and compute it {}",
            if writer == Writer::Handler { "in the handler" } else { "in the SELECT" }
        )),
        ColumnOption::Collation(_) => Some(format!(
            "`{name}` has a collation, but values of one batch are compared in the database's own before they meet the \
             table's; remove it, and sort by a collation when reading"
        )),
        other => Some(format!("`{other}` of column `{name}` is not known here; write the column's type alone")),
    }
}

fn constraint_fault(constraint: &TableConstraint, writer: Writer) -> Option<String> {
    match constraint {
        TableConstraint::PrimaryKey(primary) => primary_key_fault(primary),
        TableConstraint::ForeignKey(_) => Some(foreign_key("the table")),
        TableConstraint::Unique(of) => {
            let columns: Vec<String> = of.columns.iter().map(ToString::to_string).collect();
            Some(unique(&format!("({}) is unique", columns.join(", "))))
        }
        _ if writer == Writer::Statements => None,
        TableConstraint::Check(check) => Some(unjudged(&format!("the table has a check ({})", check.expr), writer)),
        other => Some(format!("`{other}` is not known here; declare columns and the primary key alone")),
    }
}

fn index_faults(index: &CreateIndex, writer: Writer, fault: &mut impl FnMut(Span, String)) {
    let at = index.table_name.span();
    if index.concurrently {
        fault(at, "`concurrently` cannot run where tables are made; remove it, the table is empty".to_owned());
    }
    if index.unique {
        fault(at, unique("the index is unique"));
    }
    if writer == Writer::Statements {
        return;
    }
    let instead = if writer == Writer::Handler { "write" } else { "select" };
    for part in index.columns.iter().map(|column| &column.column.expr).filter(|part| !is_column(part)) {
        let what = format!("the index computes {part}, which can fail, and is computed only of what a batch leaves");
        fault(at, format!("{what}; {instead} it as a column of its own and index that"));
    }
    if let Some(predicate) = &index.predicate {
        let what =
            format!("the index asks whether {predicate}, which can fail, and is asked only of what a batch leaves");
        fault(at, format!("{what}; leave the `where` out"));
    }
}

/// Whether a part of an index is a column as it stands, perhaps under a collation of the index's own.
fn is_column(part: &Expr) -> bool {
    match part {
        Expr::Identifier(_) => true,
        Expr::Collate { expr, .. } => is_column(expr),
        _ => false,
    }
}

fn primary_key_fault(primary: &PrimaryKeyConstraint) -> Option<String> {
    primary.characteristics.is_some().then(|| {
        "the primary key says when it is checked, but rows are merged by it at once; write `primary key` alone"
            .to_owned()
    })
}

fn counts_inserts(what: &str) -> String {
    format!("`{what}` counts inserts, which a rebuild repeats in another number; derive the value from the record")
}

fn foreign_key(what: &str) -> String {
    format!("{what} has a foreign key, but rows of different keys come in no order; remove it")
}

fn unique(what: &str) -> String {
    format!(
        "{what}, but rows of different keys come in no order: which of two is refused would change with the batches and \
         from one rebuild to the next; remove it, and keep a table of its own with that as the key"
    )
}

fn unjudged(what: &str, writer: Writer) -> String {
    let instead = match writer {
        Writer::Handler => "let the handler reject such records",
        _ => "put the condition into the SELECT's `where`, or write `apply.sql`",
    };
    format!(
        "{what}, but Postgres judges only the row that a batch leaves: a value that a later record of the batch \
         overwrites would pass, and be refused in a batch of its own; remove it, and {instead}"
    )
}
