//! The hash of a version: everything that decides what its rows are.

use sha2::{Digest as _, Sha256};

use super::{
    compiled::{Compiled, Program},
    input::Input,
};
use crate::spec::DEDUPE_WINDOW;

/// Goes into every hash: raise it when the same folder would give other rows.
const REVISION: &str = "1";

/// SHA-256 in hex. Comments and layout of SQL do not count; neither do fields that no statement reads, nor what only says
/// how to run or who may read.
pub(super) fn fingerprint(input: &Input<'_>, compiled: &Compiled) -> String {
    let mut hash = Sha256::new();
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    part(REVISION);
    input.spec.topics.iter().for_each(|topic| part(topic));
    for relation in &compiled.relations {
        part(&relation.name);
        for column in &relation.columns {
            part(&format!("{} {}", column.name, column.sql_type));
            part(&column.definition);
        }
    }
    for reference in &compiled.references {
        part(&reference.name);
        reference.columns.iter().for_each(|(name, pg_type)| part(&format!("{name} {pg_type}")));
        reference.rows.iter().flatten().for_each(|value| part(&value.as_ref().map_or("n".into(), |v| format!("v{v}"))));
    }
    input.tables_sql.iter().for_each(|statement| part(&statement.canonical));
    for table in &compiled.tables {
        table.ddl.iter().for_each(|ddl| part(ddl));
    }
    match &compiled.program {
        Program::Merge(plans) => {
            part("merge");
            for plan in plans {
                let rules =
                    plan.columns.iter().map(|c| c.rule.as_ref().map_or("key".to_owned(), |rule| rule.written()));
                plan.columns.iter().zip(rules).for_each(|(c, rule)| part(&format!("{} {} {rule}", c.name, c.pg_type)));
                plan.contributions.iter().for_each(|c| part(&c.statement.canonical));
            }
        }
        Program::Apply { rounds, .. } => {
            part(if *rounds { "apply in rounds" } else { "apply" });
            input.apply.iter().for_each(|statement| part(&statement.canonical));
        }
        Program::Handler => part("handler"),
    }
    // The default has no part in it: what was built before there were windows is what it gives.
    if input.spec.dedupe_window != Some(DEDUPE_WINDOW) {
        part(&format!("dedupe window {:?}", input.spec.dedupe_window));
    }
    hex::encode(hash.finalize())
}
