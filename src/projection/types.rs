//! The types of a table's columns, as Postgres derives them from the SELECTs or as `tables.sql` declares them.

use super::{
    plan::{PlanColumn, TablePlan},
    scratch::{Described, Refusal, Scratch},
    select::{DELETE_COLUMN, Kind},
    statements::SqlStatement,
};
use crate::{
    domain::{ident, ident_list},
    spec::{MergeRule, SpecFault},
};

/// What a column of one SELECT is.
struct Given {
    contribution: usize,
    kind: Kind,
    pg_type: String,
}

/// Puts the types into the plan; `declared` are the columns of `tables.sql`, where the table is there.
pub(super) async fn resolve(
    plan: &mut TablePlan,
    declared: Option<&[Described]>,
    scratch: &mut Scratch<'_>,
    faults: &mut Vec<SpecFault>,
) -> Result<(), sqlx::Error> {
    let before = faults.len();
    let mut given: Vec<Vec<Described>> = Vec::new();
    for at in 0..plan.contributions.len() {
        given.push(describe(plan, at, scratch, faults).await?);
    }
    if faults.len() > before {
        return Ok(());
    }
    for at in 0..plan.columns.len() {
        let column = plan.columns[at].clone();
        let found = given_types(plan, &column, &given);
        let resolved = match column.rule {
            Some(MergeRule::Sum) => sum_type(plan, &column, &found),
            _ => one_type(plan, &column, &found, scratch).await?,
        };
        match resolved.and_then(|resolved| settle(plan, &column, resolved, &found, declared)) {
            Ok(pg_type) => plan.columns[at].pg_type = pg_type,
            Err(fault) => faults.push(fault),
        }
    }
    note_verbatim(plan, &given);
    if let Some(declared) = declared {
        for extra in declared.iter().filter(|d| plan.column(&d.name).is_none()) {
            let message = format!(
                "`tables.sql` declares the column `{}`, which no SELECT names; remove it there or select it",
                extra.name
            );
            faults.push(plan.contributions[0].statement.fault(message));
        }
        if faults.len() == before {
            check_assignment(plan, scratch, faults).await?;
        }
    }
    Ok(())
}

/// Notes which columns are copies of fields down to their type.
fn note_verbatim(plan: &mut TablePlan, given: &[Vec<Described>]) {
    let columns = plan.columns.clone();
    for (contribution, given) in plan.contributions.iter_mut().zip(given) {
        for output in &mut contribution.outputs {
            let described = given.iter().find(|described| described.name == output.name);
            let column = columns.iter().find(|column| column.name == output.name);
            output.verbatim &=
                described.zip(column).is_some_and(|(described, column)| described.pg_type == column.pg_type);
        }
    }
}

/// Whether the declared columns take what each SELECT gives, without a cast. The statements of a batch do cast, and a
/// cast takes more: text that is read as a date, for one, which may say `today`.
async fn check_assignment(
    plan: &TablePlan,
    scratch: &mut Scratch<'_>,
    faults: &mut Vec<SpecFault>,
) -> Result<(), sqlx::Error> {
    for contribution in &plan.contributions {
        let outputs = contribution.outputs.iter().map(|output| &output.name);
        let columns = ident_list(outputs.filter(|name| plan.column(name).is_some()));
        let sql =
            format!("insert into {} ({columns}) select {columns} from ({}) _s", ident(&plan.name), contribution.sql);
        if let Err(refusal) = scratch.check(&sql).await? {
            faults.push(contribution.statement.fault(format!("`tables.sql` does not fit: {}", refusal.message)));
        }
    }
    Ok(())
}

/// The columns of one SELECT. The text as written is tried first: only its errors have a place in the file.
async fn describe(
    plan: &TablePlan,
    at: usize,
    scratch: &mut Scratch<'_>,
    faults: &mut Vec<SpecFault>,
) -> Result<Vec<Described>, sqlx::Error> {
    let contribution = &plan.contributions[at];
    let statement = &contribution.statement;
    if let Err(refusal) = scratch.check(&statement.text).await? {
        faults.push(refused(statement, &refusal));
        return Ok(Vec::new());
    }
    for output in &contribution.outputs {
        let Some(probe) = &output.cast_probe else { continue };
        let types = scratch.types_of(probe).await?.unwrap_or_default();
        if !types.iter().all(|d| matches!(d.pg_type.as_str(), "smallint" | "integer" | "bigint")) {
            let message = format!(
                "`{}` rounds a sum, which would round once per batch; cast each value instead: sum(x::bigint)",
                output.name
            );
            faults.push(statement.fault(message));
        }
    }
    match scratch.types_of(&contribution.sql).await? {
        Ok(columns) => {
            if columns.iter().any(|d| d.name == DELETE_COLUMN && d.pg_type != "boolean") {
                faults.push(statement.fault("`_delete` has to be a boolean"));
            }
            faults.extend(columns.iter().filter_map(unmergeable).map(|message| statement.fault(message)));
            Ok(columns)
        }
        Err(refusal) => {
            faults.push(statement.fault(refusal.message));
            Ok(Vec::new())
        }
    }
}

/// Why a column's values could not be compared alike in a batch and in the table.
fn unmergeable(column: &Described) -> Option<String> {
    let name = &column.name;
    if !column.own_type {
        return Some(format!(
            "`{name}` is of type {}, which is not one of Postgres' own; cast it to one, such as text",
            column.pg_type
        ));
    }
    let collation = column.collation.as_ref()?;
    Some(format!(
        "`{name}` has the collation {collation}, but values are merged in the database's own; leave `collate` out, and \
         sort by it when reading"
    ))
}

/// A refusal at its place in the file.
pub(super) fn refused(statement: &SqlStatement, refusal: &Refusal) -> SpecFault {
    let line = refusal.position.map_or(statement.line, |at| statement.line_at(at));
    SpecFault::new(&statement.path, Some(line), refusal.message.clone())
}

fn given_types(plan: &TablePlan, column: &PlanColumn, given: &[Vec<Described>]) -> Vec<Given> {
    let mut found = Vec::new();
    for (at, contribution) in plan.contributions.iter().enumerate() {
        let output = contribution.outputs.iter().find(|output| output.name == column.name);
        let described = given[at].iter().find(|described| described.name == column.name);
        if let (Some(output), Some(described)) = (output, described)
            && (column.rule.is_none() || column.named_by.contains(&at))
        {
            found.push(Given { contribution: at, kind: output.kind, pg_type: described.pg_type.clone() });
        }
    }
    found
}

/// The type that holds the sum of all values that a column is given.
fn sum_type(plan: &TablePlan, column: &PlanColumn, given: &[Given]) -> Result<String, SpecFault> {
    let mut resolved: Option<String> = None;
    for one in given {
        let fault = |message: String| plan.contributions[one.contribution].statement.fault(message);
        let base = one.pg_type.split('(').next().unwrap_or_default();
        let pg_type = match (base, one.kind) {
            // More records than a log can hold would be needed to exceed it.
            ("smallint" | "integer", _) | ("bigint", Kind::Count | Kind::Sum) => "bigint",
            ("bigint" | "numeric", _) => "numeric",
            ("interval", _) => "interval",
            ("money", _) => "money",
            ("real" | "double precision", _) => {
                return Err(fault(format!(
                    "`{}` sums {base}, whose sum depends on the order of addition; cast each value: sum(x::numeric)",
                    column.name
                )));
            }
            (other, _) => {
                return Err(fault(format!("`{}` merges by \"sum\", but is {other}, which has no sum", column.name)));
            }
        };
        resolved = Some(match resolved {
            None => pg_type.to_owned(),
            Some(before) if before == pg_type => before,
            Some(before) if widens(pg_type, &before) => before,
            Some(before) if widens(&before, pg_type) => pg_type.to_owned(),
            Some(before) => {
                return Err(fault(format!("`{}` sums {pg_type} here and {before} elsewhere", column.name)));
            }
        });
    }
    resolved.ok_or_else(|| plan.contributions[0].statement.fault(format!("`{}` is never given", column.name)))
}

/// The type that holds all values that a column is given.
async fn one_type(
    plan: &TablePlan,
    column: &PlanColumn,
    given: &[Given],
    scratch: &mut Scratch<'_>,
) -> Result<Result<String, SpecFault>, sqlx::Error> {
    let Some(first) = given.first() else {
        return Ok(Err(plan.contributions[0].statement.fault(format!("`{}` is never given", column.name))));
    };
    if given.iter().all(|one| one.pg_type == first.pg_type) {
        return Ok(Ok(first.pg_type.clone()));
    }
    let name = ident(&column.name);
    let rows =
        given.iter().map(|one| format!("select _s.{name} from ({}) _s", plan.contributions[one.contribution].sql));
    let union = rows.collect::<Vec<_>>().join(" union all ");
    Ok(match scratch.types_of(&union).await? {
        Ok(types) => Ok(types.first().map(|d| d.pg_type.clone()).unwrap_or_default()),
        Err(_) => {
            let other = given.iter().find(|one| one.pg_type != first.pg_type).unwrap_or(first);
            let (here, there) =
                (&plan.contributions[other.contribution].statement, &plan.contributions[first.contribution].statement);
            Err(here.fault(format!(
                "`{}` is {} here and {} on line {}; cast one of them",
                column.name, other.pg_type, first.pg_type, there.line
            )))
        }
    })
}

/// The physical type: the derived one, or the declared one where it changes no value that is merged.
fn settle(
    plan: &TablePlan,
    column: &PlanColumn,
    derived: String,
    given: &[Given],
    declared: Option<&[Described]>,
) -> Result<String, SpecFault> {
    let statement = &plan.contributions[given.first().map_or(0, |one| one.contribution)].statement;
    let name = &column.name;
    let pg_type = match declared {
        None => derived,
        Some(declared) => {
            let Some(found) = declared.iter().find(|d| d.name == *name) else {
                return Err(statement
                    .fault(format!("`tables.sql` does not declare the column `{name}`; add it: {name} {}", derived)));
            };
            if let Some(why) = misfit(column, &derived, &found.pg_type, given) {
                return Err(statement.fault(format!(
                    "`{name}` is {} here, but `tables.sql` declares {}, {why}; declare {0}, or cast it here",
                    derived, found.pg_type
                )));
            }
            found.pg_type.clone()
        }
    };
    match column.rule {
        None if matches!(pg_type.as_str(), "jsonb" | "json" | "xml") => Err(statement.fault(format!(
            "key column `{name}` is {pg_type}, of which equal values can look different; cast it to text"
        ))),
        Some(MergeRule::And | MergeRule::Or) if pg_type != "boolean" => {
            Err(statement.fault(format!("`{name}` merges by \"and\" or \"or\", but is {pg_type}; select a condition")))
        }
        _ => Ok(pg_type),
    }
}

/// Why values of the derived type cannot be kept as the declared one, if so.
fn misfit(column: &PlanColumn, derived: &str, declared: &str, given: &[Given]) -> Option<&'static str> {
    if derived == declared || widens(derived, declared) {
        return None;
    }
    if column.rule.is_none() {
        return Some("in which two keys could become one");
    }
    if column.rule == Some(MergeRule::Sum) {
        return Some("which a sum of one batch could exceed and that of another not");
    }
    if given.iter().any(|one| one.kind != Kind::Row) {
        return Some("which would convert it once per batch");
    }
    cuts_off(declared).then_some("which would cut off what is longer, without a word")
}

/// Whether a type holds every value of another, different ones as different ones.
fn widens(from: &str, to: &str) -> bool {
    match to {
        "integer" => from == "smallint",
        "bigint" => matches!(from, "smallint" | "integer"),
        "numeric" => matches!(from, "smallint" | "integer" | "bigint") || from.starts_with("numeric("),
        "double precision" => from == "real",
        "text" => from.starts_with("character varying"),
        _ => false,
    }
}

/// Whether a cast to the type shortens what an assignment would refuse.
fn cuts_off(pg_type: &str) -> bool {
    pg_type.contains('(') && (pg_type.starts_with("character") || pg_type.starts_with("bit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_hold_every_value_are_told_from_those_that_do_not() {
        for (from, to) in [("integer", "bigint"), ("numeric(5,2)", "numeric"), ("character varying(3)", "text")] {
            assert!(widens(from, to) && !widens(to, from), "{from} {to}");
        }
        assert!(!widens("bigint", "double precision") && !widens("timestamp with time zone", "date"));
        assert!(cuts_off("character(3)") && cuts_off("bit varying(4)"));
        assert!(!cuts_off("character varying") && !cuts_off("numeric(5,2)"));
    }
}
