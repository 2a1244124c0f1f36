//! The one statement per table that combines a batch's rows by key and merges them into the table.
//!
//! Owns the text of that statement and nothing else. Rows of one key are combined inside the batch by the same rules
//! by which the result then meets the stored row, each of which is associative; rows are written in the order of their
//! key, so that two partitions that share rows wait for each other and never deadlock.

use std::fmt::Write as _;

use super::{
    plan::{PlanColumn, RESET_BIT, TablePlan},
    select::{Contribution, Deletes},
};
use crate::{
    domain::{ident, ident_list},
    planted::{self, Bug},
    spec::MergeRule,
};

/// How the rows of one key are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Only removals.
    Remove,
    /// The last row stands for all.
    Overwrite,
    /// By aggregates, in any order.
    Combine,
    /// By aggregates and by the order of records.
    Ordered,
}

struct Writer<'a> {
    plan: &'a TablePlan,
    present: Vec<usize>,
    /// Columns beside the key that the statement writes.
    columns: Vec<&'a PlanColumn>,
    shape: Shape,
    deletes: bool,
    ties: bool,
}

/// The statement for a batch in which only the SELECTs `present` can give rows; none when there are none.
pub(super) fn statement(plan: &TablePlan, present: &[usize]) -> Option<String> {
    if present.is_empty() {
        return None;
    }
    let of = |i: &usize| &plan.contributions[*i];
    let deletes = present.iter().map(of).any(|c| c.deletes != Deletes::Never);
    let ties = present.iter().map(of).any(|c| c.multiplies);
    let givers: Vec<usize> = present.iter().copied().filter(|i| of(i).deletes != Deletes::Always).collect();
    let named = |c: &&PlanColumn| {
        c.rule.is_some() && ((deletes && plan.resets) || givers.iter().any(|i| c.named_by.contains(i)))
    };
    let columns: Vec<&PlanColumn> = plan.columns.iter().filter(named).collect();
    let by_all = |c: &&PlanColumn| givers.iter().all(|i| c.named_by.contains(i));
    let in_order = present.iter().map(of).all(|c| !c.aggregated);
    let shape = if givers.is_empty() {
        Shape::Remove
    } else if in_order
        && !(deletes && plan.resets)
        && columns.iter().all(|c| c.rule == Some(MergeRule::Last) && by_all(c))
    {
        Shape::Overwrite
    } else if deletes || columns.iter().any(|c| matches!(c.rule, Some(MergeRule::First | MergeRule::Last))) {
        Shape::Ordered
    } else {
        Shape::Combine
    };
    Some(Writer { plan, present: present.to_vec(), columns, shape, deletes, ties }.text())
}

impl Writer<'_> {
    fn text(&self) -> String {
        let (table, key) = (ident(&self.plan.name), ident_list(&self.plan.key));
        let matches: Vec<String> = self.plan.key.iter().map(|k| format!("t.{0} = m.{0}", ident(k))).collect();
        let matches = matches.join(" and ");
        // A row without a whole key is written to be refused, also where it removes or is removed.
        let keyless: Vec<String> = self.plan.key.iter().map(|k| format!("{} is null", ident(k))).collect();
        let keyless = keyless.join(" or ");
        if self.shape == Shape::Remove {
            let rows = self.union();
            return format!(
                "with m as materialized (select distinct {key} from ({rows}) u where _del), gone as (delete from {table} t \
                 using m where {matches}) insert into {table} ({key}) select {key} from m where {keyless}"
            );
        }
        let mut targets: Vec<String> = self.plan.key.iter().map(|k| ident(k)).collect();
        targets.extend(self.columns.iter().map(|c| ident(&c.name)));
        if self.plan.has_set {
            targets.push("_set".into());
        }
        let targets = targets.join(", ");
        let conflict = self.conflict(&key);
        let combined = match self.shape {
            Shape::Overwrite => self.overwrite(&targets, &key),
            _ => self.aggregate(&key),
        };
        if !self.deletes {
            return format!("insert into {table} as t ({targets}) {combined} {conflict}");
        }
        format!(
            "with m as materialized ({combined}), gone as (delete from {table} t using m where not m._kept and {matches}) \
             insert into {table} as t ({targets}) select {targets} from m where _kept or {keyless} \
             order by {key} {conflict}"
        )
    }

    /// The rows of all SELECTs under the table's column names and types.
    fn union(&self) -> String {
        let rows: Vec<String> = self.present.iter().map(|i| self.rows(*i, &self.plan.contributions[*i])).collect();
        rows.join(" union all ")
    }

    fn rows(&self, index: usize, contribution: &Contribution) -> String {
        let names = |column: &PlanColumn| contribution.outputs.iter().any(|output| output.name == column.name);
        let always = contribution.deletes == Deletes::Always;
        let mut items: Vec<String> = Vec::new();
        for column in self.plan.columns.iter().filter(|c| c.rule.is_none()).chain(self.columns.iter().copied()) {
            let name = ident(&column.name);
            let value = if column.rule.is_none() || (names(column) && !always) {
                normalised(&format!("_s.{name}::{}", column.pg_type), column)
            } else {
                format!("null::{}", column.pg_type)
            };
            items.push(format!("{value} as {name}"));
        }
        if self.plan.has_set {
            items.push(format!("{}::bigint as _set", if always { 0 } else { self.mask(index) }));
        }
        if self.shape != Shape::Combine {
            let order = format!("_s._seq * {} + {index} as _ord", self.plan.contributions.len());
            items.push(if contribution.aggregated { "null::bigint as _ord".to_owned() } else { order });
        }
        if self.deletes {
            items.push(match contribution.deletes {
                Deletes::Never => "false as _del".to_owned(),
                Deletes::Always => "true as _del".to_owned(),
                Deletes::Sometimes => "coalesce(_s.\"_delete\", false) as _del".to_owned(),
            });
        }
        if self.ties {
            items.push(if contribution.multiplies {
                "_s::text collate \"C\" as _tie".to_owned()
            } else {
                "null::text collate \"C\" as _tie".to_owned()
            });
        }
        format!("select {} from ({}) _s", items.join(", "), contribution.sql)
    }

    /// The bits of the columns that a SELECT names.
    fn mask(&self, contribution: usize) -> i64 {
        let bits = self.plan.columns.iter().filter(|c| c.named_by.contains(&contribution)).filter_map(|c| c.bit);
        bits.fold(0, |mask, bit| mask | (1 << bit))
    }

    /// The last row of each key.
    fn overwrite(&self, targets: &str, key: &str) -> String {
        let kept = if self.deletes { ", not _del as _kept" } else { "" };
        let mut order = format!("{key}, _ord desc");
        if self.deletes {
            order.push_str(", _del desc");
        }
        if self.ties {
            order.push_str(", _tie desc nulls last");
        }
        format!("select distinct on ({key}) {targets}{kept} from ({}) u order by {order}", self.union())
    }

    /// The rows of each key, combined column by column.
    fn aggregate(&self, key: &str) -> String {
        let mut source = self.union();
        let live = if self.deletes { "_live" } else { "" };
        if self.deletes {
            source = format!(
                "select r.*, max(_ord) filter (where _del) over (partition by {key}) as _gone from ({source}) r"
            );
            source = format!("select r.*, _gone is null or _ord > _gone as _live from ({source}) r");
        }
        let winners = self.winners();
        if !winners.is_empty() {
            let mut windows = String::new();
            for winner in &winners {
                let function = if winner.last { "max" } else { "min" };
                let bit = winner.bit.map(|bit| format!("_set & {} <> 0", 1_i64 << bit)).unwrap_or_default();
                let filter = filter(&[&bit, live]);
                let _ = write!(windows, ", {function}(_ord){filter} over (partition by {key}) as {}", winner.name());
            }
            source = format!("select r.*{windows} from ({source}) r");
        }
        let filtered = filter(&[live]);
        let mut items: Vec<String> = self.plan.key.iter().map(|k| ident(k)).collect();
        items.extend(
            self.columns.iter().map(|column| format!("{} as {}", self.combined(column, live), ident(&column.name))),
        );
        if self.plan.has_set {
            let reset = format!(" | case when bool_or(_gone is not null) then {} else 0 end", 1_i64 << RESET_BIT);
            let reset = if self.deletes && self.plan.resets { reset.as_str() } else { "" };
            items.push(format!("coalesce(bit_or(_set){filtered}, 0){reset} as _set"));
        }
        if self.deletes {
            items.push("bool_or(_live) as _kept".to_owned());
        }
        let order = if planted::is(Bug::UnsortedUpserts) { "random()" } else { key };
        format!("select {} from ({source}) r group by {key} order by {order}", items.join(", "))
    }

    /// The distinct questions "which row is the last (or first) to name these columns".
    fn winners(&self) -> Vec<Winner> {
        let mut winners: Vec<Winner> = self.columns.iter().filter_map(|c| Winner::of(c)).collect();
        winners.sort_by_key(|winner| (winner.last, winner.bit));
        winners.dedup();
        winners
    }

    /// One column over the rows of one key.
    fn combined(&self, column: &PlanColumn, live: &str) -> String {
        let (name, pg_type) = (ident(&column.name), column.pg_type.as_str());
        let all = filter(&[live]);
        let ties = if self.ties { " order by _tie desc nulls last" } else { "" };
        match &column.rule {
            None => name,
            // A sum begins at zero, whether or not any row has named it.
            Some(MergeRule::Sum) => format!("coalesce((sum({name}){all})::{pg_type}, '0'::{pg_type})"),
            Some(MergeRule::Min) => format!("min({name}){all}"),
            Some(MergeRule::Max) => format!("max({name}){all}"),
            Some(MergeRule::And) => format!("bool_and({name}){all}"),
            Some(MergeRule::Or) => format!("bool_or({name}){all}"),
            Some(MergeRule::First | MergeRule::Last) => {
                let winner = Winner::of(column).map(|winner| winner.name()).unwrap_or_default();
                picked(&name, pg_type, ties, &format!(" filter (where _ord = {winner})"))
            }
            Some(MergeRule::FirstBy(by) | MergeRule::LastBy(by)) => {
                let direction = if matches!(column.rule, Some(MergeRule::LastBy(_))) { "desc" } else { "asc" };
                let order = format!(
                    " order by {} {direction} nulls last, {name}::text collate \"C\" desc nulls last",
                    ident(by)
                );
                picked(&name, pg_type, &order, &all)
            }
        }
    }

    fn conflict(&self, key: &str) -> String {
        let mut sets: Vec<String> = self.columns.iter().filter_map(|column| self.assignment(column)).collect();
        if self.plan.has_set {
            let union = "t._set | excluded._set";
            sets.push(format!("_set = {}", self.unless_reset("excluded._set", union)));
        }
        if sets.is_empty() {
            return format!("on conflict ({key}) do nothing");
        }
        format!("on conflict ({key}) do update set {}", sets.join(", "))
    }

    /// How the stored value and the batch's become one; none when the stored one stays.
    fn assignment(&self, column: &PlanColumn) -> Option<String> {
        let name = ident(&column.name);
        let (old, new) = (format!("t.{name}"), format!("excluded.{name}"));
        let reset = self.deletes && self.plan.resets;
        let merged = match (column.rule.as_ref()?, column.bit) {
            (MergeRule::Sum, _) => format!("coalesce({old} + {new}, {old}, {new})"),
            (MergeRule::Min, _) => format!("least({old}, {new})"),
            (MergeRule::Max, _) => format!("greatest({old}, {new})"),
            (MergeRule::And, _) => format!("coalesce({old} and {new}, {old}, {new})"),
            (MergeRule::Or, _) => format!("coalesce({old} or {new}, {old}, {new})"),
            (MergeRule::Last, None) => return Some(format!("{name} = {new}")),
            (MergeRule::Last, Some(bit)) => {
                format!("case when excluded._set & {} <> 0 then {new} else {old} end", 1_i64 << bit)
            }
            (MergeRule::First, None) if !reset => return None,
            (MergeRule::First, None) => old,
            (MergeRule::First, Some(bit)) => {
                format!("case when t._set & {} <> 0 then {old} else {new} end", 1_i64 << bit)
            }
            (MergeRule::LastBy(by), _) => by_order(&old, &new, by, ">"),
            (MergeRule::FirstBy(by), _) => by_order(&old, &new, by, "<"),
        };
        Some(format!("{name} = {}", self.unless_reset(&new, &merged)))
    }

    /// `merged`, or `fresh` where the row was removed before it got its values.
    fn unless_reset(&self, fresh: &str, merged: &str) -> String {
        if self.deletes && self.plan.resets {
            format!("case when excluded._set & {} <> 0 then {fresh} else {merged} end", 1_i64 << RESET_BIT)
        } else {
            merged.to_owned()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Winner {
    last: bool,
    bit: Option<u32>,
}

impl Winner {
    fn of(column: &PlanColumn) -> Option<Self> {
        let last = match column.rule {
            Some(MergeRule::Last) => true,
            Some(MergeRule::First) => false,
            _ => return None,
        };
        Some(Self { last, bit: column.bit })
    }

    /// Name of the column with the winner's place in the order.
    fn name(self) -> String {
        let word = if self.last { "_last" } else { "_first" };
        self.bit.map_or_else(|| word.to_owned(), |bit| format!("{word}_{bit}"))
    }
}

/// The value that goes with the greatest (or least) order value; the greater text of values that tie; NULL as the
/// weakest of both, which makes it the same in whatever order rows come.
fn by_order(old: &str, new: &str, by: &str, better: &str) -> String {
    let by = ident(by);
    format!(
        "case when excluded.{by} {better} t.{by} or (t.{by} is null and excluded.{by} is not null) then {new} \
         when t.{by} {better} excluded.{by} or (excluded.{by} is null and t.{by} is not null) then {old} \
         when {old} is null or {new}::text collate \"C\" > {old}::text collate \"C\" then {new} else {old} end"
    )
}

/// One value out of a group: an array for want of an aggregate that takes any type; arrays, which would be put
/// together into one of more dimensions, go through their text.
fn picked(name: &str, pg_type: &str, order: &str, filter: &str) -> String {
    if pg_type.ends_with("[]") {
        format!("((array_agg({name}::text{order}){filter})[1])::{pg_type}")
    } else {
        format!("(array_agg({name}{order}){filter})[1]")
    }
}

/// A value of which equal ones look equal, where values are compared: Postgres holds 1.0 and 1.00, or 24 hours and a
/// day, to be equal, and which of them is kept must not depend on the order in which they come.
fn normalised(value: &str, column: &PlanColumn) -> String {
    if !column.compared {
        return value.to_owned();
    }
    match column.pg_type.as_str() {
        "numeric" => format!("trim_scale({value})"),
        "real" | "double precision" => format!("({value} + '0')"),
        "interval" => format!("justify_interval({value})"),
        _ => value.to_owned(),
    }
}

fn filter(conditions: &[&str]) -> String {
    let conditions: Vec<&str> = conditions.iter().copied().filter(|condition| !condition.is_empty()).collect();
    if conditions.is_empty() { String::new() } else { format!(" filter (where {})", conditions.join(" and ")) }
}
