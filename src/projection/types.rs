//! The types of a table's columns, as Postgres derives them from the SELECTs or as `tables.sql` declares them.

use super::{
    plan::{PlanColumn, TablePlan},
    scratch::{Described, Refusal, Scratch},
    select::{DELETE_COLUMN, Kind},
    statements::SqlStatement,
};
use crate::{
    domain::ident,
    spec::{MergeRule, SpecFault},
};

/// What a column of one SELECT is.
struct Given {
    contribution: usize,
    kind: Kind,
    pg_type: String,
}

/// A column's type, and whether its values are known to be whole numbers.
#[derive(Clone, PartialEq, Eq)]
struct Resolved {
    pg_type: String,
    whole: bool,
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
    if let Some(declared) = declared {
        for extra in declared.iter().filter(|d| plan.column(&d.name).is_none()) {
            let message = format!(
                "`tables.sql` declares the column `{}`, which no SELECT names; remove it there or select it",
                extra.name
            );
            faults.push(plan.contributions[0].statement.fault(message));
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
            Ok(columns)
        }
        Err(refusal) => {
            faults.push(statement.fault(refusal.message));
            Ok(Vec::new())
        }
    }
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
fn sum_type(plan: &TablePlan, column: &PlanColumn, given: &[Given]) -> Result<Resolved, SpecFault> {
    let mut resolved: Option<Resolved> = None;
    for one in given {
        let fault = |message: String| plan.contributions[one.contribution].statement.fault(message);
        let base = one.pg_type.split('(').next().unwrap_or_default();
        let (pg_type, whole) = match (base, one.kind) {
            ("smallint" | "integer", _) | ("bigint", Kind::Count | Kind::Sum) => ("bigint", true),
            ("bigint", _) => ("numeric", true),
            ("numeric", _) => ("numeric", false),
            ("interval", _) => ("interval", false),
            ("money", _) => ("money", false),
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
        let now = Resolved { pg_type: pg_type.to_owned(), whole };
        resolved = Some(match resolved {
            None => now,
            Some(before) if before.pg_type == now.pg_type => Resolved { whole: before.whole && now.whole, ..now },
            Some(before) if before.whole && now.pg_type == "numeric" => now,
            Some(before) if before.pg_type == "numeric" && now.whole => before,
            Some(before) => {
                return Err(fault(format!(
                    "`{}` sums {} here and {} elsewhere",
                    column.name, now.pg_type, before.pg_type
                )));
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
) -> Result<Result<Resolved, SpecFault>, sqlx::Error> {
    let Some(first) = given.first() else {
        return Ok(Err(plan.contributions[0].statement.fault(format!("`{}` is never given", column.name))));
    };
    if given.iter().all(|one| one.pg_type == first.pg_type) {
        return Ok(Ok(Resolved { pg_type: first.pg_type.clone(), whole: false }));
    }
    let name = ident(&column.name);
    let rows =
        given.iter().map(|one| format!("select _s.{name} from ({}) _s", plan.contributions[one.contribution].sql));
    let union = rows.collect::<Vec<_>>().join(" union all ");
    Ok(match scratch.types_of(&union).await? {
        Ok(types) => {
            Ok(Resolved { pg_type: types.first().map(|d| d.pg_type.clone()).unwrap_or_default(), whole: false })
        }
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
    derived: Resolved,
    given: &[Given],
    declared: Option<&[Described]>,
) -> Result<String, SpecFault> {
    let statement = &plan.contributions[given.first().map_or(0, |one| one.contribution)].statement;
    let name = &column.name;
    let pg_type = match declared {
        None => derived.pg_type,
        Some(declared) => {
            let Some(found) = declared.iter().find(|d| d.name == *name) else {
                return Err(statement.fault(format!(
                    "`tables.sql` does not declare the column `{name}`; add it: {name} {}",
                    derived.pg_type
                )));
            };
            let widens = matches!((derived.pg_type.as_str(), found.pg_type.as_str()), ("bigint", "numeric"));
            let narrows = derived.whole && matches!(found.pg_type.as_str(), "integer" | "bigint" | "numeric");
            let per_row = column.rule != Some(MergeRule::Sum) && given.iter().all(|one| one.kind == Kind::Row);
            if found.pg_type != derived.pg_type && !widens && !narrows && !per_row {
                return Err(statement.fault(format!(
                    "`{name}` is {} here, but `tables.sql` declares {}, which would convert it once per batch; cast it here or declare {}",
                    derived.pg_type, found.pg_type, derived.pg_type
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
