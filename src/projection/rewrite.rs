//! A SELECT written again, for Postgres to run. Pure.

use sqlparser::{
    ast::{Expr, GroupByExpr, Ident, Query, SelectItem, SetExpr, Statement},
    dialect::PostgreSqlDialect,
    parser::Parser,
};

/// The SELECT with its columns named and `_seq` of the relation `alias` beside them; none if the text that is to be run
/// would not be read as the statement that was judged.
pub(super) fn rewritten(query: &Query, items: &[(String, Expr)], alias: Option<&str>) -> Option<String> {
    let mut query = query.clone();
    if let SetExpr::Select(select) = query.body.as_mut() {
        let named = |name: &str, expr: Expr| SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
        select.projection = items.iter().map(|(name, expr)| named(name, expr.clone())).collect();
        if let Some(alias) = alias {
            let seq = Expr::CompoundIdentifier(vec![Ident::with_quote('"', alias), Ident::new("_seq")]);
            select.projection.push(named("_seq", seq));
        }
    }
    let sql = query.to_string();
    let read = Parser::parse_sql(&PostgreSqlDialect {}, &sql).ok()?;
    matches!(read.as_slice(), [Statement::Query(read)] if **read == query).then_some(sql)
}

/// The SELECT with one expression of its ungrouped rows in the place of its columns.
pub(super) fn probe_of(query: &Query, expr: &Expr) -> String {
    let mut query = query.clone();
    if let SetExpr::Select(select) = query.body.as_mut() {
        select.projection = vec![SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::new("argument") }];
        select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
    }
    query.to_string()
}
