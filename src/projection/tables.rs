//! The physical tables of a version: derived from a plan, declared in `tables.sql`, or named in `consumer.toml`.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::ast::{ColumnOption, Statement, TableConstraint};

use super::{
    names::ident_list,
    plan::{PlanColumn, TablePlan},
    reference::parse_type,
    statements::SqlStatement,
    uses::{folded, last_part},
};
use crate::{
    domain::{ColumnInfo, TableInfo, ident},
    spec::{ConsumerSpec, MergeRule, SpecFault, TableSpec},
};

/// A table as it is made and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub info: TableInfo,
    pub grants: Vec<String>,
    /// DDL with `{schema}` in the place of the schema's quoted name; none when `tables.sql` makes the table.
    pub ddl: Vec<String>,
}

/// The place of the schema's name in DDL.
pub(super) const SCHEMA: &str = "{schema}";

/// A table that the engine makes from its plan.
pub(super) fn derived(plan: &TablePlan, spec: &TableSpec, declared: bool) -> Table {
    let columns: Vec<ColumnInfo> = plan
        .columns
        .iter()
        .map(|c| ColumnInfo {
            name: c.name.clone(),
            pg_type: c.pg_type.clone(),
            nullable: c.rule.is_some() && (declared || !is_sum(c)),
        })
        .collect();
    let info = TableInfo { name: plan.name.clone(), key: plan.key.clone(), columns };
    let mut ddl = Vec::new();
    if !declared {
        let sums: Vec<&str> = plan.columns.iter().filter(|c| is_sum(c)).map(|c| c.name.as_str()).collect();
        ddl.push(create_table(&info, plan.has_set, &sums));
    } else if plan.has_set {
        ddl.push(format!("alter table {SCHEMA}.{} add column _set bigint not null default 0", ident(&plan.name)));
    }
    ddl.extend(indexes(&plan.name, spec));
    Table { info, grants: spec.grants.clone(), ddl }
}

/// A table whose columns stand in `consumer.toml`.
pub(super) fn listed(name: &str, table: &TableSpec, spec: &ConsumerSpec, faults: &mut Vec<SpecFault>) -> Table {
    let mut fault = |message: String| faults.push(SpecFault::new(spec.manifest_path(), Some(table.line), message));
    if table.key.is_empty() {
        fault(format!("table `{name}` has no key; name its columns: key = [\"flight_id\"]"));
    }
    let mut columns = Vec::new();
    for (column, pg_type) in &table.columns {
        if column.starts_with('_') {
            fault(format!("column `{column}` begins with `_`, which is kept for the engine; rename it"));
        }
        let nullable = !table.key.contains(column);
        match parse_type(pg_type) {
            Some(pg_type) => {
                columns.push(ColumnInfo { name: column.clone(), pg_type: pg_type.to_lowercase(), nullable })
            }
            None => fault(format!(
                "`{pg_type}` of column `{column}` is not a type; write one such as text or numeric(10,2)"
            )),
        }
    }
    for column in
        table.key.iter().chain(table.indexes.iter().flatten()).filter(|c| !table.columns.iter().any(|(n, _)| n == *c))
    {
        fault(format!("`{column}` is not among the columns of `{name}`; add it to [tables.{name}.columns]"));
    }
    let info = TableInfo { name: name.to_owned(), key: table.key.clone(), columns };
    let mut ddl = vec![create_table(&info, false, &[])];
    ddl.extend(indexes(name, table));
    Table { info, grants: table.grants.clone(), ddl }
}

fn is_sum(column: &PlanColumn) -> bool {
    column.rule == Some(MergeRule::Sum)
}

/// `sums` begin at zero, also in a row whose SELECTs have not named them yet.
fn create_table(info: &TableInfo, has_set: bool, sums: &[&str]) -> String {
    let mut lines: Vec<String> = info
        .columns
        .iter()
        .map(|c| {
            let default = if sums.contains(&c.name.as_str()) { " default '0'" } else { "" };
            format!("{} {}{}{default}", ident(&c.name), c.pg_type, if c.nullable { "" } else { " not null" })
        })
        .collect();
    if has_set {
        lines.push("_set bigint not null default 0".to_owned());
    }
    lines.push(format!("primary key ({})", ident_list(&info.key)));
    format!("create table {SCHEMA}.{} ({})", ident(&info.name), lines.join(", "))
}

pub(super) fn indexes(table: &str, spec: &TableSpec) -> Vec<String> {
    let sql = |columns: &Vec<String>| format!("create index on {SCHEMA}.{} ({})", ident(table), ident_list(columns));
    spec.indexes.iter().filter(|columns| !columns.is_empty()).map(sql).collect()
}

/// The names of the tables that `tables.sql` makes.
///
/// # Errors
/// Everything in it that is not a plain table or index of this version.
pub(super) fn declared(statements: &[SqlStatement]) -> Result<BTreeSet<String>, Vec<SpecFault>> {
    let (mut names, mut faults) = (BTreeMap::new(), Vec::new());
    for statement in statements {
        let mut fault = |message: String| faults.push(statement.fault(message));
        match &statement.ast {
            Statement::CreateTable(create) => {
                let name = last_part(&create.name).unwrap_or_default();
                if create.name.0.len() > 1 {
                    fault(format!(
                        "`{}` names a schema; each version has its own, so write the table's name alone",
                        create.name
                    ));
                }
                if let Some(why) = crate::spec::name_fault(&name) {
                    fault(format!("table name `{name}` {why}; rename the table"));
                }
                table_faults(create, &mut fault);
                if names.insert(name.clone(), ()).is_some() {
                    fault(format!("table `{name}` is made twice; keep one"));
                }
            }
            Statement::CreateIndex(index) => {
                let table = last_part(&index.table_name).unwrap_or_default();
                if index.concurrently {
                    fault("`concurrently` cannot run where tables are made; remove it, the table is empty".into());
                }
                if !names.contains_key(&table) {
                    fault(format!("the index is on `{table}`, which is not made above; make the table first"));
                }
            }
            other => {
                let word = other.to_string().split_whitespace().take(2).collect::<Vec<_>>().join(" ").to_lowercase();
                fault(format!("`{word}` does not belong in `tables.sql`; only `create table` and `create index` do"));
            }
        }
    }
    if faults.is_empty() { Ok(names.into_keys().collect()) } else { Err(faults) }
}

fn table_faults(create: &sqlparser::ast::CreateTable, fault: &mut impl FnMut(String)) {
    let derived =
        create.query.is_some() || create.like.is_some() || create.inherits.is_some() || create.partition_of.is_some();
    if derived || create.temporary || create.if_not_exists || create.partition_by.is_some() {
        fault("write a plain `create table name (column type, …, primary key (…))`".into());
    }
    for column in &create.columns {
        let (name, pg_type) = (folded(&column.name), column.data_type.to_string().to_lowercase());
        if name.starts_with('_') {
            fault(format!("column `{name}` begins with `_`, which is kept for the engine; rename it"));
        }
        if pg_type.contains("serial") {
            fault(format!(
                "`{name} {pg_type}` counts inserts, which a rebuild repeats in another number; derive the value from the record"
            ));
        }
        for option in &column.options {
            match &option.option {
                ColumnOption::ForeignKey(_) => fault(foreign_key(&name)),
                ColumnOption::Generated { generation_expr: None, .. } | ColumnOption::Identity(_) => {
                    fault(format!(
                        "`{name}` counts inserts, which a rebuild repeats in another number; derive the value from the record"
                    ));
                }
                _ => {}
            }
        }
    }
    if create.constraints.iter().any(|constraint| matches!(constraint, TableConstraint::ForeignKey(_))) {
        fault(foreign_key("the table"));
    }
}

fn foreign_key(what: &str) -> String {
    format!("{what} has a foreign key, but rows of different keys come in no order; remove it")
}
