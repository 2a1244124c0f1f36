//! `apply.sql`: the author's own statements, checked and put into rounds.

use std::collections::BTreeSet;

use super::{judge::Names, relation::Relation, statements::SqlStatement, uses::Uses};
use crate::spec::{SpecFault, listing};

/// One statement of `apply.sql` and the relations that it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApplyStatement {
    pub sql: String,
    /// Names; the statement runs when one of them has records in the batch.
    pub reads: BTreeSet<String>,
}

/// Checks one statement.
pub(super) fn read(
    statement: &SqlStatement,
    uses: &Uses,
    names: &Names,
    faults: &mut Vec<SpecFault>,
) -> ApplyStatement {
    let mut fault = |message: String| faults.push(statement.fault(message));
    for word in &uses.others {
        fault(format!(
            "`{word}` does not belong in `apply.sql`: insert, update, delete and merge do; the engine owns the transaction"
        ));
    }
    if uses.others.is_empty() && uses.targets.is_empty() {
        fault("the statement changes nothing; write insert, update, delete or merge".into());
    }
    for target in uses.targets.iter().filter(|target| !names.tables.contains(*target)) {
        let tables = listing(names.tables.iter().map(String::as_str));
        fault(format!("`{target}` is written, but is not a table of this consumer; it has {tables}"));
    }
    let reads: BTreeSet<String> =
        uses.tables.iter().filter(|table| names.relations.contains(*table)).cloned().collect();
    if reads.is_empty() && uses.others.is_empty() {
        let relations = listing(names.relations.iter().map(String::as_str));
        fault(format!(
            "reads no input relation, so its effect would depend on the number of batches; read {relations}"
        ));
    }
    if uses.columns.contains("_round") {
        fault("`_round` is the engine's own; a round holds each key once".into());
    }
    ApplyStatement { sql: statement.text.clone(), reads }
}

/// The statements of a batch of `rounds` rounds, of which the relations `present` have records.
pub(super) fn text(statements: &[ApplyStatement], rounds: Option<u32>, present: &BTreeSet<&str>) -> Vec<String> {
    let live: Vec<&ApplyStatement> = statements
        .iter()
        .filter(|statement| statement.reads.iter().any(|name| present.contains(name.as_str())))
        .collect();
    let mut sql = Vec::new();
    for round in 0..rounds.unwrap_or(1) {
        if rounds.is_some() && !live.is_empty() {
            sql.push(format!("set local millpond.round = '{round}'"));
        }
        sql.extend(live.iter().map(|statement| statement.sql.clone()));
    }
    sql
}

/// The relations that any of the statements read.
pub(super) fn read_by(statements: &[ApplyStatement], relations: &[Relation]) -> Vec<Relation> {
    let read = |relation: &&Relation| statements.iter().any(|statement| statement.reads.contains(&relation.name));
    relations.iter().filter(read).cloned().collect()
}
