//! Rows that go straight into their table: COPY in the place of staging and merging, where nothing is there to merge with.
//!
//! Owns which SELECTs allow it: plain copies of one relation's fields into the columns of a table of their own. Whether the keys are
//! new is found by the table's primary key; who tries has to have another way when it refuses.

use std::collections::BTreeSet;

use super::{
    compiled::{Compiled, Program},
    plan::{PlanColumn, TablePlan},
    relation::Relation,
    select::{Contribution, Deletes},
};
use crate::{
    domain::{ident, ident_list},
    spec::MergeRule,
};

/// How the staged rows of a relation are appended to its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The binary COPY.
    pub statement: String,
    /// For each of its columns the staged field that it is, by number.
    pub fields: Vec<usize>,
}

impl Compiled {
    /// How the rows of a relation can be appended to a version's table, in a batch in which these relations have records; none
    /// where they have to be merged. The row of a key that is new is the same both ways.
    pub fn append(&self, version: i32, relation: &Relation, present: &BTreeSet<&str>) -> Option<Append> {
        let Program::Merge(plans) = &self.program else { return None };
        let reads = |plan: &&TablePlan| plan.contributions.iter().any(|c| c.relation == relation.name);
        let mut readers = plans.iter().filter(reads);
        let (plan, None) = (readers.next()?, readers.next()) else { return None };
        let contribution = only_giver(plan, present).filter(|giver| giver.relation == relation.name)?;
        let metadata = self.staged_metadata(relation).iter().copied();
        let staged: Vec<&str> = metadata.chain(relation.columns.iter().map(|column| column.name.as_str())).collect();
        let field = |column: &PlanColumn| {
            let output = contribution.outputs.iter().find(|output| output.name == column.name)?;
            let copied = output.copies.as_deref().filter(|_| output.verbatim)?;
            staged.iter().position(|name| *name == copied)
        };
        let fields = plan.columns.iter().map(field).collect::<Option<Vec<_>>>()?;
        let table = format!("{}.{}", ident(&self.schema_name(version)), ident(&plan.name));
        let columns = ident_list(plan.columns.iter().map(|column| &column.name));
        Some(Append { statement: format!("copy {table} ({columns}) from stdin (format binary)"), fields })
    }
}

/// The one SELECT of a table that gives rows, where those rows are what it selects, and nothing is removed in this batch.
fn only_giver<'a>(plan: &'a TablePlan, present: &BTreeSet<&str>) -> Option<&'a Contribution> {
    let mut givers = plan.contributions.iter().filter(|c| c.deletes != Deletes::Always);
    let (giver, None) = (givers.next()?, givers.next()) else { return None };
    let removes =
        plan.contributions.iter().any(|c| c.deletes == Deletes::Always && present.contains(c.relation.as_str()));
    let plain = giver.is_plain && giver.deletes == Deletes::Never && !plan.has_set && !removes;
    (plain && plan.columns.iter().all(is_kept_as_given)).then_some(giver)
}

/// Whether the first value of a column becomes the stored one as it is: a sum begins at zero where there is none.
fn is_kept_as_given(column: &PlanColumn) -> bool {
    let normalised = ["numeric", "real", "double precision", "interval"];
    let base = column.pg_type.split('(').next().unwrap_or_default();
    let looks_otherwise = column.compared && normalised.contains(&base);
    !looks_otherwise && column.rule != Some(MergeRule::Sum)
}
