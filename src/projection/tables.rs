//! The physical tables of a version: derived from a plan, declared in `tables.sql`, or named in `consumer.toml`.

use super::{
    plan::{PlanColumn, TablePlan},
    reference::parse_type,
};
use crate::{
    domain::{ColumnInfo, IndexInfo, TableInfo, ident, ident_list},
    spec::{ConsumerSpec, MergeRule, SpecFault, TableSpec},
};

/// A table as it is made and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub info: TableInfo,
    pub grants: Vec<String>,
    /// DDL with `{schema}` in the place of the schema's quoted name; none when `tables.sql` makes the table.
    pub ddl: Vec<String>,
    pub indexes: Vec<IndexInfo>,
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
            nullable: c.rule.is_some() && !is_sum(c),
        })
        .collect();
    let info = TableInfo { name: plan.name.clone(), key: plan.key.clone(), columns };
    let mut ddl = Vec::new();
    let sums: Vec<&str> = plan.columns.iter().filter(|c| is_sum(c)).map(|c| c.name.as_str()).collect();
    if declared {
        ddl.extend(completion(plan, &sums));
    } else {
        ddl.push(create_table(&info, plan.has_set, &sums));
    }
    Table { info, grants: spec.grants.clone(), ddl, indexes: indexes(&plan.name, spec) }
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
    let ddl = vec![create_table(&info, false, &[])];
    Table { info, grants: table.grants.clone(), ddl, indexes: indexes(name, table) }
}

/// What a table of `tables.sql` lacks of one that the engine makes.
fn completion(plan: &TablePlan, sums: &[&str]) -> Option<String> {
    let mut changes: Vec<String> = Vec::new();
    if plan.has_set {
        changes.push("add column _set bigint not null default 0".to_owned());
    }
    for sum in sums {
        let column = ident(sum);
        changes.push(format!("alter column {column} set default '0', alter column {column} set not null"));
    }
    let table = ident(&plan.name);
    (!changes.is_empty()).then(|| format!("alter table {SCHEMA}.{table} {}", changes.join(", ")))
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

pub(super) fn indexes(table: &str, spec: &TableSpec) -> Vec<IndexInfo> {
    spec.indexes.iter().filter(|columns| !columns.is_empty()).map(|columns| IndexInfo::of(table, columns)).collect()
}
