//! A table whose rows merge: its columns, who names them, and whether every merge holds under any cut into batches.
//!
//! Owns the rules of merging. Pure: the types are put in by `merge`, which asks Postgres.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    relation::{Relation, TOMBSTONES},
    select::{Contribution, Deletes, Kind},
};
use crate::{
    domain::nearest,
    spec::{ConsumerSpec, MergeRule, SpecFault, TableSpec},
};

/// Most column groups a table can have: one bit each in `_set`, the last for the reset.
const MAX_GROUPS: u32 = 60;
/// The bit of `_set` that says: the row was removed before it got these values.
pub(super) const RESET_BIT: u32 = 62;

/// A table, its columns and the SELECTs that give its rows.
#[derive(Debug, Clone)]
pub(super) struct TablePlan {
    pub name: String,
    pub key: Vec<String>,
    /// All columns that people see, key columns first.
    pub columns: Vec<PlanColumn>,
    pub contributions: Vec<Contribution>,
    /// Whether the hidden column `_set` is there: it says which columns have been named for a row.
    pub has_set: bool,
    /// Whether a removal followed by new values has to clear what is not named again.
    pub resets: bool,
}

#[derive(Debug, Clone)]
pub(super) struct PlanColumn {
    pub name: String,
    /// Type of the physical column; empty until resolved.
    pub pg_type: String,
    /// None for key columns.
    pub rule: Option<MergeRule>,
    /// The SELECTs that name the column, those that only remove apart.
    pub named_by: BTreeSet<usize>,
    /// Bit of `_set`, where not all SELECTs name the column and that matters.
    pub bit: Option<u32>,
    /// Whether its values are compared, so that equal ones must look equal.
    pub compared: bool,
}

impl TablePlan {
    pub fn column(&self, name: &str) -> Option<&PlanColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// SELECTs that give rows, and not only removals.
    pub fn givers(&self) -> BTreeSet<usize> {
        let gives = |(_, c): &(usize, &Contribution)| c.deletes != Deletes::Always;
        self.contributions.iter().enumerate().filter(gives).map(|(i, _)| i).collect()
    }

    /// Whether its rows come out the same whatever the order of the records.
    pub fn commutes(&self) -> bool {
        let by_order = |column: &PlanColumn| matches!(column.rule, Some(MergeRule::First | MergeRule::Last));
        !self.deletes() && !self.columns.iter().any(by_order)
    }

    pub fn deletes(&self) -> bool {
        self.contributions.iter().any(|c| c.deletes != Deletes::Never)
    }
}

/// Puts a table together.
///
/// # Errors
/// Every merge that could not be made to hold, with the reason.
pub(super) fn plan(
    name: &str,
    table: &TableSpec,
    contributions: Vec<Contribution>,
    spec: &ConsumerSpec,
    relations: &[Relation],
) -> Result<TablePlan, Vec<SpecFault>> {
    let mut planner = Planner { name, table, spec, relations, contributions, faults: Vec::new() };
    let found = planner.plan();
    if planner.faults.is_empty() { Ok(found) } else { Err(planner.faults) }
}

struct Planner<'a> {
    name: &'a str,
    table: &'a TableSpec,
    spec: &'a ConsumerSpec,
    relations: &'a [Relation],
    contributions: Vec<Contribution>,
    faults: Vec<SpecFault>,
}

impl Planner<'_> {
    fn fault(&mut self, line: u32, message: impl Into<String>) {
        self.faults.push(SpecFault::new(self.spec.manifest_path(), Some(line), message));
    }

    fn fault_at(&mut self, contribution: usize, message: impl Into<String>) {
        let fault = self.contributions[contribution].statement.fault(message);
        self.faults.push(fault);
    }

    fn plan(&mut self) -> TablePlan {
        let mut plan = TablePlan {
            name: self.name.to_owned(),
            key: self.table.key.clone(),
            columns: self.columns(),
            contributions: self.contributions.clone(),
            has_set: false,
            resets: false,
        };
        self.check_key();
        self.check_names(&plan);
        if !self.faults.is_empty() {
            // Whatever else could be said would follow from a column that is not there.
            return plan;
        }
        self.imply_order_columns(&mut plan);
        for column in plan.columns.iter().filter(|column| column.rule.is_some()) {
            self.check_rule(column, &plan);
        }
        self.check_deletes(&plan);
        self.give_bits(&mut plan);
        plan
    }

    /// Key columns in the order of the key, then the others in the order of their first naming.
    fn columns(&self) -> Vec<PlanColumn> {
        let mut columns: Vec<PlanColumn> = Vec::new();
        let blank = |name: &String, rule| PlanColumn {
            name: name.clone(),
            pg_type: String::new(),
            compared: matches!(rule, None | Some(MergeRule::Min | MergeRule::Max)),
            rule,
            named_by: BTreeSet::new(),
            bit: None,
        };
        columns.extend(self.table.key.iter().map(|key| blank(key, None)));
        for (i, contribution) in self.contributions.iter().enumerate() {
            for output in &contribution.outputs {
                let always = contribution.deletes == Deletes::Always;
                let at = columns.iter().position(|column| column.name == output.name);
                let at = match at {
                    Some(at) => at,
                    None if always => continue,
                    None => {
                        let rule = self.table.merge.get(&output.name).map_or(MergeRule::Last, |(rule, _)| rule.clone());
                        columns.push(blank(&output.name, Some(rule)));
                        columns.len() - 1
                    }
                };
                if !always {
                    columns[at].named_by.insert(i);
                }
            }
        }
        columns
    }

    fn check_key(&mut self) {
        if self.table.key.is_empty() {
            let what = format!("table `{}` has no key; name its columns: key = [\"carrier\", \"day\"]", self.name);
            self.fault(self.table.line, what);
        }
        let mut faults = Vec::new();
        for (i, contribution) in self.contributions.iter().enumerate() {
            for key in &self.table.key {
                match contribution.outputs.iter().find(|output| output.name == *key) {
                    None => {
                        let names = contribution.outputs.iter().map(|output| output.name.as_str());
                        let others = names.filter(|name| !self.table.key.iter().any(|key| key == name));
                        let hint = nearest(key, others).map(|near| format!("; did you mean `{near}`?"));
                        let hint = hint.unwrap_or_else(|| "; every SELECT names the whole key".to_owned());
                        faults.push((i, format!("key column `{key}` is not selected{hint}")));
                    }
                    Some(output) if output.kind != Kind::Row => {
                        faults.push((i, format!("key column `{key}` is an aggregate; group by it instead")));
                    }
                    Some(_) => {}
                }
            }
        }
        for (i, message) in faults {
            self.fault_at(i, message);
        }
    }

    fn check_names(&mut self, plan: &TablePlan) {
        let names: Vec<&str> = plan.columns.iter().map(|column| column.name.as_str()).collect();
        let hint = |word: &str| {
            nearest(word, names.iter().copied()).map(|w| format!("; did you mean `{w}`?")).unwrap_or_default()
        };
        for (column, (rule, line)) in &self.table.merge {
            if plan.column(column).is_none() {
                let what = format!("`{column}` merges, but no SELECT of `{}` names it{}", self.name, hint(column));
                self.faults.push(SpecFault::new(self.spec.manifest_path(), Some(*line), what));
            }
            if let MergeRule::FirstBy(by) | MergeRule::LastBy(by) = rule
                && plan.column(by).is_none_or(|by| by.rule.is_none())
            {
                let what = format!("`{column}` is ordered by `{by}`, which is not a column beside the key{}", hint(by));
                self.faults.push(SpecFault::new(self.spec.manifest_path(), Some(*line), what));
            }
        }
        for column in self.table.indexes.iter().flatten() {
            if plan.column(column).is_none() {
                let what =
                    format!("an index names `{column}`, which is not a column of `{}`{}", self.name, hint(column));
                self.faults.push(SpecFault::new(self.spec.manifest_path(), Some(self.table.line), what));
            }
        }
    }

    /// The column that orders others keeps its greatest (for `last`) or least value.
    fn imply_order_columns(&mut self, plan: &mut TablePlan) {
        let mut wanted: BTreeMap<String, (MergeRule, u32)> = BTreeMap::new();
        for (column, (rule, line)) in &self.table.merge {
            let (by, implied) = match rule {
                MergeRule::LastBy(by) => (by, MergeRule::Max),
                MergeRule::FirstBy(by) => (by, MergeRule::Min),
                _ => continue,
            };
            let declared = self.table.merge.get(by).map(|(rule, _)| rule.clone());
            let standing = declared.or_else(|| wanted.get(by).map(|(rule, _)| rule.clone()));
            if let Some(standing) = standing.filter(|standing| *standing != implied) {
                let message = format!(
                    "`{column}` is ordered by `{by}`, which then has to merge by {}, but it merges by {}; give `{column}` an order column of its own",
                    implied.written(),
                    standing.written()
                );
                self.faults.push(SpecFault::new(self.spec.manifest_path(), Some(*line), message));
            }
            wanted.insert(by.clone(), (implied, *line));
            let sets = (plan.column(column).map(|c| &c.named_by), plan.column(by).map(|c| &c.named_by));
            if let (Some(named), Some(by_named)) = sets
                && named != by_named
            {
                let message = format!(
                    "`{column}` is ordered by `{by}`, so each SELECT that names one has to name the other; otherwise a later `{by}` would hide `{column}`"
                );
                self.faults.push(SpecFault::new(self.spec.manifest_path(), Some(*line), message));
            }
        }
        for column in &mut plan.columns {
            if let Some((rule, _)) = wanted.get(&column.name)
                && column.rule.is_some()
            {
                column.rule = Some(rule.clone());
                column.compared = true;
            }
        }
    }

    fn check_rule(&mut self, column: &PlanColumn, plan: &TablePlan) {
        let Some(rule) = &column.rule else { return };
        let declared = self.table.merge.get(&column.name).map(|(_, line)| *line);
        for i in &column.named_by {
            let contribution = &self.contributions[*i];
            let Some(output) = contribution.outputs.iter().find(|output| output.name == column.name) else { continue };
            if let Some(message) =
                kind_fault(&column.name, output.kind, rule, contribution.aggregated, declared.is_some())
            {
                self.fault_at(*i, message);
                return;
            }
        }
        if matches!(rule, MergeRule::First | MergeRule::Last)
            && let Some(why) = self.order_fault(&column.named_by, plan)
        {
            let word = rule.written();
            let advice = format!("merge = {{ {0} = {{ {1} = \"updated_at\" }} }}", column.name, word.trim_matches('"'));
            let message =
                format!("`{}` merges by {word}, but {why}; it needs an explicit order column: {advice}", column.name);
            self.fault(declared.unwrap_or(self.table.line), message);
        }
    }

    fn check_deletes(&mut self, plan: &TablePlan) {
        if !plan.deletes() {
            return;
        }
        let all: BTreeSet<usize> = (0..self.contributions.len()).collect();
        if let Some(why) = self.order_fault(&all, plan) {
            let at = self.contributions.iter().position(|c| c.deletes != Deletes::Never).unwrap_or(0);
            let message = format!(
                "`_delete` removes rows in the order of records, but {why}; keep a column that says the row is gone"
            );
            self.fault_at(at, message);
        }
    }

    /// Why rows of one table key from these SELECTs do not come in one order, if so.
    fn order_fault(&self, contributions: &BTreeSet<usize>, plan: &TablePlan) -> Option<String> {
        let of = |i: &usize| &self.contributions[*i];
        if let Some(grouped) = contributions.iter().map(of).find(|c| c.aggregated) {
            let line = grouped.statement.line;
            return Some(format!("the SELECT on line {line} gives up the order of records by grouping them"));
        }
        let topics: BTreeSet<&str> = contributions.iter().flat_map(|i| self.topics(&of(i).relation)).collect();
        if topics.len() > 1 {
            let topics: Vec<&str> = topics.into_iter().collect();
            return Some(format!(
                "its records come from several topics ({}), which have no common order",
                topics.join(", ")
            ));
        }
        let mut common: Option<BTreeSet<Vec<String>>> = None;
        for contribution in contributions.iter().map(of) {
            let found = self.record_keys(contribution);
            if found.is_empty() {
                let fields =
                    match self.relation(&contribution.relation).map(|r| r.key_fields.as_slice()).unwrap_or_default() {
                        [] => "`_key`".to_owned(),
                        fields => format!("{} (or `_key`)", fields.join(", ")),
                    };
                return Some(format!(
                    "the key ({}) does not hold the key of `{}`, {fields}, so that rows of one key come from several partitions",
                    plan.key.join(", "),
                    contribution.relation
                ));
            }
            common = Some(match common {
                None => found,
                Some(common) => common.intersection(&found).cloned().collect(),
            });
        }
        match common {
            Some(common) if common.is_empty() => {
                Some("its SELECTs put the records' key into different columns, so that rows of one key come from several partitions".into())
            }
            _ => None,
        }
    }

    fn relation(&self, name: &str) -> Option<&Relation> {
        self.relations.iter().find(|relation| relation.name == name)
    }

    fn topics(&self, relation: &str) -> Vec<&str> {
        let topics = self.relation(relation).map(|relation| &relation.topics).filter(|topics| !topics.is_empty());
        topics.unwrap_or(&self.spec.topics).iter().map(String::as_str).collect()
    }

    /// The lists of key columns that hold the whole key of the record.
    fn record_keys(&self, contribution: &Contribution) -> BTreeSet<Vec<String>> {
        let copies = |field: &str| {
            let holds = |key: &&String| {
                let output = contribution.outputs.iter().find(|output| output.name == **key);
                output.is_some_and(|output| output.copies.as_deref() == Some(field))
            };
            self.table.key.iter().find(holds).cloned()
        };
        let mut found: BTreeSet<Vec<String>> = copies("_key").map(|column| vec![column]).into_iter().collect();
        if let Some(relation) =
            self.relation(&contribution.relation).filter(|r| !r.key_fields.is_empty() && r.name != TOMBSTONES)
        {
            found.extend(relation.key_fields.iter().map(|field| copies(field)).collect::<Option<Vec<String>>>());
        }
        found
    }

    fn give_bits(&mut self, plan: &mut TablePlan) {
        let givers = plan.givers();
        let mut groups: Vec<BTreeSet<usize>> = Vec::new();
        let mut plain = true;
        for column in plan.columns.iter_mut().filter(|column| column.rule.is_some()) {
            plain &= column.rule == Some(MergeRule::Last) && column.named_by == givers;
            let ordered = matches!(column.rule, Some(MergeRule::First | MergeRule::Last));
            if ordered && column.named_by != givers {
                let at = groups.iter().position(|group| *group == column.named_by).unwrap_or_else(|| {
                    groups.push(column.named_by.clone());
                    groups.len() - 1
                });
                column.bit = u32::try_from(at).ok();
            }
        }
        if groups.len() > MAX_GROUPS as usize {
            self.fault(self.table.line, format!("more than {MAX_GROUPS} groups of columns; split the table"));
        }
        plan.resets = plan.contributions.iter().any(|c| c.deletes != Deletes::Never) && !plain;
        plan.has_set = !groups.is_empty() || plan.resets;
    }
}

/// Why a column that came about in one way cannot merge in another.
fn kind_fault(column: &str, kind: Kind, rule: &MergeRule, aggregated: bool, declared: bool) -> Option<String> {
    let (what, wanted) = match kind {
        Kind::Row if !aggregated => return None,
        Kind::Row => {
            return match rule {
                MergeRule::Min | MergeRule::Max | MergeRule::And | MergeRule::Or => None,
                MergeRule::Sum => Some(format!(
                    "`{column}` is grouped by and merges by \"sum\", which would add it once per batch; write sum(…) or count(*) for it"
                )),
                _ => Some(format!(
                    "`{column}` merges by {}, but `group by` gives up the order of records; write a SELECT without grouping for it, or \
                     merge by min, max, and, or",
                    rule.written()
                )),
            };
        }
        Kind::Count => ("a count", MergeRule::Sum),
        Kind::Sum => ("a sum", MergeRule::Sum),
        Kind::Min => ("a minimum", MergeRule::Min),
        Kind::Max => ("a maximum", MergeRule::Max),
        Kind::And => ("a bool_and", MergeRule::And),
        Kind::Or => ("a bool_or", MergeRule::Or),
    };
    if *rule == wanted {
        return None;
    }
    let said = if declared { format!("but merges by {}", rule.written()) } else { "but has no merge rule".to_owned() };
    Some(format!("`{column}` is {what}, {said}; write merge = {{ {column} = {} }}", wanted.written()))
}
