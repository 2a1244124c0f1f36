//! The FROM of a SELECT: one input relation, and reference data beside it. Pure.

use std::collections::BTreeMap;

use sqlparser::ast::{JoinOperator, Select, TableFactor, TableWithJoins};

use super::{
    relation::Relation,
    uses::{folded, last_part},
};
use crate::spec::listing;

/// The relation that gives a SELECT its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Driving {
    /// Index into the relations.
    pub relation: usize,
    /// Name by which the SELECT speaks of it.
    pub alias: String,
    /// Whether anything stands beside it, so that a record may give several rows.
    pub joined: bool,
    /// Other tables: alias to name.
    pub references: BTreeMap<String, String>,
}

/// Finds the relation.
///
/// # Errors
/// Why the FROM cannot be cut into batches at any record.
pub(super) fn driving(select: &Select, relations: &[Relation]) -> Result<Driving, String> {
    let mut walk = Walk { relations, found: Vec::new(), references: BTreeMap::new(), factors: 0 };
    for tables in &select.from {
        walk.tables(tables)?;
    }
    match walk.found.as_slice() {
        [(relation, alias)] => {
            let (relation, alias, joined) = (*relation, alias.clone(), walk.factors > 1);
            Ok(Driving { relation, alias, joined, references: walk.references })
        }
        [] => Err(format!(
            "no input relation stands in FROM itself; read one of {}, not inside a subquery (name expressions with \
             `cross join lateral (select …) x`)",
            listing(relations.iter().map(|relation| relation.name.as_str()))
        )),
        [(a, _), (b, _), ..] => Err(format!(
            "joins the input relations `{}` and `{}`: their records would meet only when one batch holds both; give each a SELECT of its \
             own and let their columns merge by key",
            relations[*a].name, relations[*b].name
        )),
    }
}

struct Walk<'a> {
    relations: &'a [Relation],
    found: Vec<(usize, String)>,
    references: BTreeMap<String, String>,
    factors: usize,
}

impl Walk<'_> {
    fn tables(&mut self, tables: &TableWithJoins) -> Result<(), String> {
        self.factor(&tables.relation)?;
        for join in &tables.joins {
            let before = self.found.len();
            self.factor(&join.relation)?;
            let relation_joined = self.found.len() > before;
            match &join.join_operator {
                JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => {}
                JoinOperator::Left(_) | JoinOperator::LeftOuter(_) if !relation_joined => {}
                _ => {
                    return Err("an outer join that keeps rows without a record gives them for every batch; put the input relation first \
                                and use `join` or `left join`"
                        .into());
                }
            }
        }
        Ok(())
    }

    fn factor(&mut self, factor: &TableFactor) -> Result<(), String> {
        self.factors += 1;
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                let table = last_part(name).unwrap_or_default();
                let shown = alias.as_ref().map_or_else(|| table.clone(), |alias| folded(&alias.name));
                match self.relations.iter().position(|relation| relation.name == table) {
                    Some(_) if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) => {
                        return Err(format!(
                            "`{table}` is given other column names in FROM; name columns with `as` in the SELECT"
                        ));
                    }
                    Some(relation) => self.found.push((relation, shown)),
                    None => {
                        self.references.insert(shown, table);
                    }
                }
                Ok(())
            }
            TableFactor::NestedJoin { table_with_joins, .. } => self.tables(table_with_joins),
            _ => Ok(()),
        }
    }
}
