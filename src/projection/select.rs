//! One SELECT of a `<table>.sql`: what it reads, which columns it names, and how each came about.
//!
//! Owns the shape of a SELECT that can be cut into batches at any record. Pure but for the traits of functions, which
//! are given.

use std::ops::ControlFlow;

use sqlparser::ast::{
    CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, Query,
    Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Statement, Value, Visit as _, Visitor,
    WildcardAdditionalOptions,
};

use super::{
    from::{self, Driving},
    reference::ReferenceTable,
    relation::Relation,
    rewrite::{probe_of, rewritten},
    scratch::Functions,
    statements::SqlStatement,
    uses::{Uses, folded, has_clauses, last_part},
};
use crate::spec::SpecFault;

/// Boolean output column that removes the row of its key.
pub(super) const DELETE_COLUMN: &str = "_delete";

/// What of a record beside its fields may stand in a column as it is.
const KEPT_METADATA: [&str; 5] = ["_key", "_partition", "_offset", "_timestamp", "_event_id"];

/// A SELECT that contributes rows to a table.
#[derive(Debug, Clone)]
pub(super) struct Contribution {
    pub statement: SqlStatement,
    /// Name of the relation that it reads.
    pub relation: String,
    /// Output columns but `_delete`, in order.
    pub outputs: Vec<Output>,
    pub aggregated: bool,
    /// Whether one record may give several rows.
    pub multiplies: bool,
    /// Whether every record gives one row, with nothing computed over others.
    pub is_plain: bool,
    pub deletes: Deletes,
    /// The SELECT with every column named and, unless aggregated, `_seq` beside them.
    pub sql: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletes {
    Never,
    /// `true as _delete`: the SELECT gives no rows, only removals.
    Always,
    Sometimes,
}

#[derive(Debug, Clone)]
pub(super) struct Output {
    pub name: String,
    pub kind: Kind,
    /// The record's field (or one of [`KEPT_METADATA`]) that the column is a plain copy of.
    pub copies: Option<String>,
    /// Whether it is the bare field, not cast; once types are known, whether the table's column has its very type, too.
    pub verbatim: bool,
    /// A SELECT that gives the argument of a `sum` that is cast, to see whether it is whole.
    pub cast_probe: Option<String>,
}

/// How a column of a SELECT came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// From one row.
    Row,
    Count,
    Sum,
    Min,
    Max,
    And,
    Or,
}

/// What a SELECT is read against.
pub(super) struct Scope<'a> {
    pub relations: &'a [Relation],
    pub references: &'a [ReferenceTable],
    pub functions: &'a Functions,
    pub tables: &'a [String],
}

/// Reads one statement.
///
/// # Errors
/// Every reason why its columns could not be merged over batches.
pub(super) fn read(statement: &SqlStatement, scope: &Scope<'_>) -> Result<Contribution, Vec<SpecFault>> {
    let mut reader = Reader { statement, scope, faults: Vec::new() };
    let found = reader.contribution();
    match found {
        Some(found) if reader.faults.is_empty() => Ok(found),
        _ => Err(reader.faults),
    }
}

struct Reader<'a> {
    statement: &'a SqlStatement,
    scope: &'a Scope<'a>,
    faults: Vec<SpecFault>,
}

impl Reader<'_> {
    fn fault(&mut self, message: impl Into<String>) {
        self.faults.push(self.statement.fault(message));
    }

    fn refuse<T>(&mut self, message: impl Into<String>) -> Option<T> {
        self.fault(message);
        None
    }

    fn contribution(&mut self) -> Option<Contribution> {
        let Statement::Query(query) = &self.statement.ast else {
            return self.refuse("only SELECTs belong in this file, each contributing rows to the table; for other statements write `apply.sql`");
        };
        let SetExpr::Select(select) = query.body.as_ref() else {
            return self.refuse(
                "a set operation or VALUES; write each SELECT as a statement of its own: their rows merge by key",
            );
        };
        self.check_query(query);
        self.check_select(select);
        let driving = from::driving(select, self.scope.relations).map_err(|why| self.fault(why)).ok()?;
        self.check_uses(&driving);
        let items = self.expand(select, &driving);
        let aggregated = self.is_aggregated(select, &items);
        let (mut outputs, mut deletes) = (Vec::new(), Deletes::Never);
        for (name, expr) in &items {
            if name == DELETE_COLUMN {
                deletes = if is_true(expr) { Deletes::Always } else { Deletes::Sometimes };
                continue;
            }
            let kind = if aggregated { self.kind(name, expr)? } else { Kind::Row };
            let copies = self.copied_field(expr, &driving);
            let cast_probe = cast_sum(expr).map(|argument| probe_of(query, argument));
            outputs.push(Output { name: name.clone(), kind, copies, verbatim: is_bare(expr), cast_probe });
        }
        let returns_sets = items.iter().any(|(_, expr)| {
            Uses::of_expr(expr)
                .calls
                .iter()
                .any(|call| self.scope.functions.get(&call.name).is_some_and(|f| f.set_returning))
        });
        let sql = rewritten(query, &items, (!aggregated).then_some(driving.alias.as_str()));
        let Some(sql) = sql else {
            return self.refuse(
                "the statement could not be written again without change; use plainer syntax, such as cast(x as y)",
            );
        };
        let relation = self.scope.relations[driving.relation].name.clone();
        let multiplies = driving.joined || returns_sets;
        let is_plain = !multiplies && !aggregated && select.selection.is_none();
        Some(Contribution {
            statement: self.statement.clone(),
            relation,
            outputs,
            aggregated,
            multiplies,
            is_plain,
            deletes,
            sql,
        })
    }

    fn check_query(&mut self, query: &Query) {
        if query.order_by.is_some() {
            self.fault("`order by` has no meaning here: rows are combined by key; remove it");
        }
        if query.limit_clause.is_some() || query.fetch.is_some() {
            self.fault("`limit` and `offset` would count rows of one batch, whose cut is not fixed; remove them");
        }
    }

    fn check_select(&mut self, select: &Select) {
        if select.distinct.is_some() {
            self.fault("`distinct` sees one batch only, whose cut is not fixed; rows of one key merge by the table's rules, so remove it");
        }
        if select.having.is_some() {
            self.fault("`having` would judge the groups of one batch, whose cut is not fixed; filter when reading");
        }
        if !select.named_window.is_empty() || select.qualify.is_some() {
            self.fault("windows see one batch only, whose cut is not fixed; compute them when reading");
        }
        if select.into.is_some() {
            self.fault("`select into` makes a table of its own; the engine writes the rows, so remove `into`");
        }
        let plain = match &select.group_by {
            GroupByExpr::All(_) => false,
            GroupByExpr::Expressions(exprs, modifiers) => {
                modifiers.is_empty()
                    && !exprs.iter().any(|e| matches!(e, Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_)))
            }
        };
        if !plain {
            self.fault("`group by` with grouping sets, cube, rollup or all gives rows without a key; write one SELECT per grouping");
        }
    }

    fn check_uses(&mut self, driving: &Driving) {
        let uses = Uses::of_statement(&self.statement.ast);
        let name = &self.scope.relations[driving.relation].name;
        let is_relation = |table: &String| self.scope.relations.iter().any(|relation| relation.name == *table);
        if uses.tables.iter().filter(|table| is_relation(table)).count() > 1 {
            self.fault(format!(
                "reads an input relation beside `{name}`, in a subquery: it would see the records of one batch only, whose cut is not fixed; \
                 give each relation a SELECT of its own"
            ));
        }
        for table in uses.tables.iter().filter(|table| self.scope.tables.contains(table)).cloned().collect::<Vec<_>>() {
            self.fault(format!("reads the table `{table}`, whose rows depend on the cut into batches; let columns merge, or write `apply.sql`"));
        }
        if uses.calls.iter().any(|call| call.windowed) {
            self.fault("window functions see one batch only, whose cut is not fixed; compute them when reading");
        }
        for column in ["_seq", "_round"].into_iter().filter(|column| uses.columns.contains(*column)) {
            self.fault(format!(
                "`{column}` counts records of one batch, whose cut is not fixed; use `_offset`, or merge by \"last\""
            ));
        }
        let relation = &self.scope.relations[driving.relation];
        if uses.bare.contains(&driving.alias) && relation.column(&driving.alias).is_none() {
            let alias = &driving.alias;
            self.fault(format!(
                "`{alias}` as a whole row holds `_seq`, which counts records of one batch; name the columns"
            ));
        }
        if uses.statements > 1 {
            self.fault("a statement inside the SELECT changes tables; the engine writes the rows, so remove it");
        }
    }

    /// The output columns, with `*` written out.
    fn expand(&mut self, select: &Select, driving: &Driving) -> Vec<(String, Expr)> {
        let mut items: Vec<(String, Expr)> = Vec::new();
        for item in &select.projection {
            match item {
                SelectItem::ExprWithAlias { expr, alias } => items.push((folded(alias), expr.clone())),
                SelectItem::UnnamedExpr(expr) => match own_name(expr) {
                    Some(name) => items.push((name, expr.clone())),
                    None => self.fault(format!("`{expr}` has no name; add one with `as`")),
                },
                SelectItem::Wildcard(options) if !driving.joined => {
                    self.expand_wildcard(None, options, driving, &mut items)
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                    self.expand_wildcard(last_part(name), options, driving, &mut items);
                }
                _ => self.fault(format!("`{item}` over joined tables could name a column twice; name the columns")),
            }
        }
        for (at, (name, _)) in items.iter().enumerate() {
            if name.starts_with('_') && name != DELETE_COLUMN {
                let message = format!(
                    "column `{name}` begins with `_`, which is kept for the engine; give it another name with `as`"
                );
                self.faults.push(self.statement.fault(message));
            }
            if items[..at].iter().any(|(other, _)| other == name) {
                self.faults.push(self.statement.fault(format!("column `{name}` is named twice; keep one")));
            }
        }
        items
    }

    fn expand_wildcard(
        &mut self,
        alias: Option<String>,
        options: &WildcardAdditionalOptions,
        driving: &Driving,
        items: &mut Vec<(String, Expr)>,
    ) {
        if !options.to_string().is_empty() {
            return self.fault(format!("`*{options}` is not SQL of Postgres; name the columns"));
        }
        let relation = &self.scope.relations[driving.relation];
        let alias = alias.unwrap_or_else(|| driving.alias.clone());
        let columns: Vec<String> = if alias == driving.alias {
            relation.columns.iter().map(|column| column.name.clone()).collect()
        } else if let Some(reference) = driving.references.get(&alias).and_then(|name| self.reference(name)) {
            reference.columns.iter().map(|(name, _)| name.clone()).collect()
        } else {
            return self
                .fault(format!("`{alias}.*` is neither the input relation nor a reference table; name the columns"));
        };
        for name in columns {
            let expr = Expr::CompoundIdentifier(vec![Ident::with_quote('"', &alias), Ident::with_quote('"', &name)]);
            items.push((name, expr));
        }
    }

    fn reference(&self, name: &str) -> Option<&ReferenceTable> {
        self.scope.references.iter().find(|reference| reference.name == name)
    }

    fn is_aggregated(&mut self, select: &Select, items: &[(String, Expr)]) -> bool {
        let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
        let mut aggregated = grouped;
        for (name, expr) in items {
            let found = aggregates_in(expr, self.scope.functions);
            aggregated |= found.outside;
            if found.inside && (grouped || found.outside) {
                self.fault(format!(
                    "`{name}` aggregates in a subquery of a grouped SELECT; join the reference table instead"
                ));
            }
        }
        aggregated
    }

    /// How a column of an aggregated SELECT came about.
    fn kind(&mut self, name: &str, expr: &Expr) -> Option<Kind> {
        if !aggregates_in(expr, self.scope.functions).outside {
            return Some(Kind::Row);
        }
        let Some(function) = aggregate_of(expr) else {
            return self.refuse(format!(
                "`{name}` computes with an aggregate, which cannot be carried over batches; contribute the aggregate itself, and compute when reading"
            ));
        };
        let aggregate = last_part(&function.name).unwrap_or_default();
        if has_clauses(function) || !function.within_group.is_empty() {
            return self.refuse(format!(
                "`{name}`: `{aggregate}` with `distinct` cannot be merged over batches; keep one row per value in a table of its own, and count when reading"
            ));
        }
        match aggregate.as_str() {
            "count" => Some(Kind::Count),
            "sum" => Some(Kind::Sum),
            "min" => Some(Kind::Min),
            "max" => Some(Kind::Max),
            "bool_and" | "every" => Some(Kind::And),
            "bool_or" => Some(Kind::Or),
            "avg" => self.refuse(format!(
                "`{name}`: averages cannot be merged; keep a sum and a count, and divide when reading"
            )),
            other => self.refuse(format!(
                "`{name}`: `{other}` cannot be merged over batches; sum, count, min, max, bool_and and bool_or can"
            )),
        }
    }

    /// The field of which an expression is a plain copy.
    fn copied_field(&self, expr: &Expr, driving: &Driving) -> Option<String> {
        let relation = &self.scope.relations[driving.relation];
        let field = match expr {
            Expr::Nested(inner) => return self.copied_field(inner, driving),
            Expr::Identifier(ident) => folded(ident),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, column] if folded(table) == driving.alias => folded(column),
                _ => return None,
            },
            Expr::Cast { expr, .. } => return self.copied_field(expr, driving).filter(|field| field == "_key"),
            _ => return None,
        };
        (KEPT_METADATA.contains(&field.as_str()) || relation.column(&field).is_some()).then_some(field)
    }
}

/// Whether an expression is a name and nothing else.
fn is_bare(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_bare(inner),
        expr => matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)),
    }
}

/// The name that Postgres would give a column that has no alias, where it is a plain one.
fn own_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(folded(ident)),
        Expr::CompoundIdentifier(parts) => parts.last().map(folded),
        Expr::Nested(inner) => own_name(inner),
        Expr::Cast { expr, kind: CastKind::DoubleColon | CastKind::Cast, .. } => own_name(expr),
        _ => None,
    }
}

fn is_true(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(value) if value.value == Value::Boolean(true))
}

/// The aggregate that an expression is: bare, as `coalesce(sum(x), 0)`, or a sum or count cast to a whole or decimal type.
fn aggregate_of(expr: &Expr) -> Option<&Function> {
    match expr {
        Expr::Nested(inner) => aggregate_of(inner),
        Expr::Function(function) if last_part(&function.name).as_deref() == Some("coalesce") => {
            match arguments(function)[..] {
                [sum, Expr::Value(zero)] if zero.value.to_string() == "0" => aggregate_of(sum)
                    .filter(|f| last_part(&f.name).is_some_and(|name| name == "sum" || name == "count")),
                _ => None,
            }
        }
        Expr::Function(function) => Some(function),
        Expr::Cast { expr, data_type, .. } if is_whole_or_decimal(data_type) => match expr.as_ref() {
            Expr::Function(f) if last_part(&f.name).is_some_and(|name| name == "sum" || name == "count") => Some(f),
            _ => None,
        },
        _ => None,
    }
}

/// The argument of a sum that is cast.
fn cast_sum(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Nested(inner) => cast_sum(inner),
        Expr::Function(function) => arguments(function).into_iter().find_map(cast_sum),
        Expr::Cast { expr, data_type, .. } if is_whole_or_decimal(data_type) && !is_decimal(data_type) => {
            match expr.as_ref() {
                Expr::Function(f) if last_part(&f.name).as_deref() == Some("sum") => arguments(f).first().copied(),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Without a scale, so that nothing is rounded.
fn is_decimal(data_type: &DataType) -> bool {
    matches!(data_type.to_string().to_lowercase().as_str(), "numeric" | "decimal")
}

fn is_whole_or_decimal(data_type: &DataType) -> bool {
    matches!(data_type.to_string().to_lowercase().as_str(), "int" | "integer" | "int4" | "bigint" | "int8")
        || is_decimal(data_type)
}

fn arguments(function: &Function) -> Vec<&Expr> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    let plain = |argument| match argument {
        &FunctionArg::Unnamed(FunctionArgExpr::Expr(ref expr)) => Some(expr),
        _ => None,
    };
    list.args.iter().filter_map(plain).collect()
}

#[derive(Default)]
struct Aggregates<'a> {
    functions: Option<&'a Functions>,
    depth: usize,
    outside: bool,
    inside: bool,
}

/// Whether an expression aggregates, itself or within its subqueries.
fn aggregates_in<'a>(expr: &Expr, functions: &'a Functions) -> Aggregates<'a> {
    let mut found = Aggregates { functions: Some(functions), ..Aggregates::default() };
    let _ = expr.visit(&mut found);
    found
}

impl Visitor for Aggregates<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            let name = last_part(&function.name).unwrap_or_default();
            let aggregate = self.functions.and_then(|known| known.get(&name)).is_some_and(|f| f.aggregate);
            if aggregate && function.over.is_none() {
                if self.depth == 0 { self.outside = true } else { self.inside = true }
            }
        }
        ControlFlow::Continue(())
    }
}
