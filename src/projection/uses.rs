//! What a statement uses: tables, functions, and whatever would make it depend on more than its rows. Pure.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::ControlFlow,
};

use sqlparser::ast::{
    DataType, Expr, FromTable, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments,
    Ident, ObjectName, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Statement, TableFactor,
    TableObject, TableWithJoins, ValueWithSpan, Visit as _, Visitor,
};

use super::reference::foreign_type;

/// Columns that Postgres gives every table; they tell where a row lies, which no record decides.
const SYSTEM_COLUMNS: &[&str] = &["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];
/// Keywords that read the clock or the session without looking like a call.
pub(super) const AMBIENT_KEYWORDS: &[&str] = &[
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
    "current_schema",
    "system_user",
];
/// Words that date and time types read from the clock.
const CLOCK_WORDS: &[&str] = &["now", "today", "tomorrow", "yesterday"];

/// Words that may stand beside them in a date: zones, halves of the day, days of the week.
const BESIDE_CLOCK_WORDS: &[&str] = &[
    "ad",
    "allballs",
    "am",
    "at",
    "bc",
    "bst",
    "cdt",
    "cest",
    "cet",
    "cst",
    "edt",
    "eest",
    "eet",
    "est",
    "fri",
    "friday",
    "gmt",
    "hst",
    "ist",
    "jst",
    "mdt",
    "mon",
    "monday",
    "msk",
    "mst",
    "on",
    "pdt",
    "pm",
    "pst",
    "sat",
    "saturday",
    "sun",
    "sunday",
    "t",
    "thu",
    "thursday",
    "tue",
    "tuesday",
    "ut",
    "utc",
    "wed",
    "wednesday",
    "z",
    "zulu",
];

/// One call of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// In lowercase unless quoted.
    pub name: String,
    pub schema: Option<String>,
    pub arguments: usize,
    pub windowed: bool,
}

/// Everything of one statement that has to be judged.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pub calls: Vec<Call>,
    /// Names in the place of tables, as often as they occur, without those of CTEs.
    pub tables: Vec<String>,
    /// Tables named with a schema, as written.
    pub qualified: Vec<String>,
    pub ctes: BTreeSet<String>,
    /// Keywords of [`AMBIENT_KEYWORDS`] that occur.
    pub ambient: Vec<String>,
    /// Literals such as `'today'`.
    pub clock_literals: Vec<String>,
    pub system_columns: Vec<String>,
    /// Last parts of all column references, lowercase unless quoted.
    pub columns: BTreeSet<String>,
    /// Names in the place of a single-part column, and of `x` in `x.*` within expressions and subqueries.
    pub bare: BTreeSet<String>,
    /// Types such as `regclass`, whose values are read from the catalogue.
    pub catalog_types: Vec<String>,
    /// Types of another schema than Postgres' own.
    pub foreign_types: Vec<String>,
    pub sampled: bool,
    pub locking: bool,
    /// Tables that statements change, as last part of their names.
    pub targets: Vec<String>,
    /// Statements other than SELECT, INSERT, UPDATE, DELETE and MERGE, by their first word.
    pub others: Vec<String>,
    /// Statements inside the statement, such as an INSERT in a CTE.
    pub statements: usize,
    /// Whether `table x` stands in the place of a SELECT.
    pub table_commands: bool,
    /// One for each query that is open, the innermost last.
    scopes: Vec<Scope>,
    skipped_relations: usize,
    plain_text_literals: usize,
}

/// The CTEs of one query's WITH.
#[derive(Debug, Default)]
struct Scope {
    visible: Vec<String>,
    /// Those whose own queries are still to be left, in order: the queries of a WITH come before all others within.
    coming: VecDeque<String>,
}

impl Uses {
    pub fn of_statement(statement: &Statement) -> Self {
        let mut uses = Self::default();
        let _ = statement.visit(&mut uses);
        uses
    }

    pub fn of_expr(expr: &Expr) -> Self {
        let mut uses = Self::default();
        let _ = expr.visit(&mut uses);
        uses
    }

    fn is_cte(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.visible.iter().any(|cte| cte == name))
    }

    fn call(&mut self, name: &ObjectName, arguments: usize, windowed: bool) {
        let mut parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
        let Some(name) = parts.pop() else { return };
        let schema = parts.pop();
        if schema.is_none() && AMBIENT_KEYWORDS.contains(&name.as_str()) {
            self.ambient.push(name);
            return;
        }
        self.calls.push(Call { name, schema, arguments, windowed });
    }

    fn column(&mut self, ident: &Ident) {
        let name = folded(ident);
        if SYSTEM_COLUMNS.contains(&name.as_str()) {
            self.system_columns.push(name.clone());
        }
        self.columns.insert(name);
    }

    fn cast(&mut self, expr: &Expr, data_type: &DataType) {
        let name = data_type.to_string().to_lowercase();
        let literal = match expr {
            Expr::Value(value) => value.clone().into_string(),
            _ => None,
        };
        let no_date = matches!(name.as_str(), "text" | "varchar" | "character varying" | "json" | "jsonb");
        if no_date && literal.is_some_and(|text| reads_clock(&text)) {
            self.plain_text_literals += 1;
        }
        if foreign_type(data_type) {
            self.foreign_types.push(data_type.to_string());
        } else if name.starts_with("reg") {
            self.catalog_types.push(name);
        }
    }

    fn function(&mut self, function: &Function) {
        let arguments = match &function.args {
            FunctionArguments::List(list) => list.args.len(),
            FunctionArguments::None => 0,
            FunctionArguments::Subquery(_) => 1,
        };
        self.call(&function.name, arguments, function.over.is_some());
        let FunctionArguments::List(list) = &function.args else { return };
        for argument in &list.args {
            let (FunctionArg::Named { arg, .. } | FunctionArg::ExprNamed { arg, .. } | FunctionArg::Unnamed(arg)) =
                argument;
            if let FunctionArgExpr::QualifiedWildcard(name) = arg {
                self.bare.extend(last_part(name));
            }
        }
    }
}

impl Visitor for Uses {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        self.statements += 1;
        let target = |tables: &[TableWithJoins]| tables.first().and_then(|table| factor_name(&table.relation));
        match statement {
            Statement::Query(_) => {}
            Statement::Insert(insert) => match &insert.table {
                TableObject::TableName(name) => self.targets.extend(last_part(name)),
                other => self.others.push(other.to_string()),
            },
            Statement::Update(update) => self.targets.extend(factor_name(&update.table.relation)),
            Statement::Delete(delete) => {
                let (FromTable::WithFromKeyword(tables) | FromTable::WithoutKeyword(tables)) = &delete.from;
                self.targets.extend(target(tables));
            }
            Statement::Merge(merge) => self.targets.extend(factor_name(&merge.table)),
            other => self.others.extend(other.to_string().split_whitespace().next().map(str::to_lowercase)),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.locking |= !query.locks.is_empty();
        self.table_commands |= has_table_command(&query.body);
        let mut scope = Scope::default();
        if let Some(with) = &query.with {
            let names = with.cte_tables.iter().map(|cte| folded(&cte.alias.name));
            // Of WITH RECURSIVE all see each other; else each sees those before it.
            if with.recursive {
                scope.visible = names.collect()
            } else {
                scope.coming = names.collect()
            }
            self.ctes.extend(scope.visible.iter().chain(&scope.coming).cloned());
        }
        self.scopes.push(scope);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.scopes.pop();
        if let Some(around) = self.scopes.last_mut() {
            around.visible.extend(around.coming.pop_front());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        for item in &select.projection {
            if let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) = item {
                self.bare.extend(last_part(name));
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: Some(args), .. } => {
                self.skipped_relations += 1;
                self.call(name, args.args.len(), false);
            }
            TableFactor::Table { sample, .. } => self.sampled |= sample.is_some(),
            TableFactor::Function { name, args, .. } => self.call(name, args.len(), false),
            TableFactor::Derived { sample, .. } => self.sampled |= sample.is_some(),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if self.skipped_relations > 0 {
            self.skipped_relations -= 1;
        } else if relation.0.len() > 1 {
            self.qualified.push(relation.to_string());
        } else {
            self.tables.extend(last_part(relation).filter(|name| !self.is_cte(name)));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(ident) => {
                let name = folded(ident);
                if ident.quote_style.is_none() && AMBIENT_KEYWORDS.contains(&name.as_str()) {
                    self.ambient.push(name.clone());
                }
                self.column(ident);
                self.bare.insert(name);
            }
            Expr::CompoundIdentifier(parts) => {
                if let Some(last) = parts.last() {
                    self.column(last);
                }
            }
            Expr::QualifiedWildcard(name, _) => self.bare.extend(last_part(name)),
            Expr::Cast { expr, data_type, .. } => self.cast(expr, data_type),
            Expr::Function(function) => self.function(function),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        let Some(text) = value.clone().into_string().filter(|text| reads_clock(text)) else {
            return ControlFlow::Continue(());
        };
        match self.plain_text_literals {
            0 => self.clock_literals.push(text),
            _ => self.plain_text_literals -= 1,
        }
        ControlFlow::Continue(())
    }
}

/// Whether a date type, or an array or range of one, would read the clock for this text: `now`, ` Today 12:00`,
/// `[today,)`.
fn reads_clock(text: &str) -> bool {
    let lower = text.trim().to_lowercase();
    if lower.starts_with(['{', '[', '(']) {
        return lower.split(['{', '}', '[', ']', '(', ')', ',', '"']).any(is_clock_date);
    }
    is_clock_date(&lower)
}

/// A clock word, among nothing that no date has beside it.
fn is_clock_date(text: &str) -> bool {
    let zones = |word: &&str| !word.contains('/');
    let letters = text.split_whitespace().filter(zones).flat_map(|word| word.split(|c: char| !c.is_alphabetic()));
    let (clock, others): (Vec<&str>, Vec<&str>) =
        letters.filter(|word| !word.is_empty()).partition(|word| CLOCK_WORDS.contains(word));
    !clock.is_empty() && others.iter().all(|word| BESIDE_CLOCK_WORDS.contains(word))
}

fn has_table_command(body: &SetExpr) -> bool {
    match body {
        SetExpr::Table(_) => true,
        SetExpr::SetOperation { left, right, .. } => has_table_command(left) || has_table_command(right),
        _ => false,
    }
}

fn factor_name(factor: &TableFactor) -> Option<String> {
    match factor {
        TableFactor::Table { name, .. } => last_part(name),
        _ => None,
    }
}

/// An identifier as Postgres folds it.
pub(super) fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// The last part of a name, folded.
pub(super) fn last_part(name: &ObjectName) -> Option<String> {
    name.0.last().and_then(|part| part.as_ident()).map(folded)
}

/// Whether an aggregate has anything inside its parentheses beside plain arguments.
pub(super) fn has_clauses(function: &Function) -> bool {
    let FunctionArguments::List(list) = &function.args else { return false };
    let distinct =
        list.duplicate_treatment.is_some_and(|treatment| treatment == sqlparser::ast::DuplicateTreatment::Distinct);
    distinct || list.clauses.iter().any(|clause| !matches!(clause, FunctionArgumentClause::OrderBy(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{projection::statements::split, spec::SourceFile};

    fn uses(sql: &str) -> Uses {
        Uses::of_statement(&split(&SourceFile::new("t.sql", sql)).unwrap()[0].ast)
    }

    #[test]
    fn tables_are_told_from_functions_and_ctes() {
        let found =
            uses("with c as (select 1 from ref) select x from r, c, unnest(r.tags) u, generate_series(1, 2) g, s.t");
        assert_eq!(found.tables, ["ref", "r"]);
        assert_eq!(found.qualified, ["s.t"]);
        assert!(found.calls.iter().any(|call| call.name == "generate_series"));
    }

    #[test]
    fn ctes_are_seen_in_their_own_query_and_by_later_ones_only() {
        let cases: &[(&str, &[&str])] = &[
            ("with c as (select 1) select * from c, (select * from c) x", &[]),
            ("with a as (select 1), b as (select * from a) select * from b", &[]),
            ("with a as (select * from b), b as (select 1) select * from a", &["b"]),
            ("with c as (select * from c) select * from c", &["c"]),
            ("with recursive c as (select 1 union all select * from c) select * from c", &[]),
            ("select (select 1 from c) from r, lateral (with c as (select 1) select * from c) x", &["c", "r"]),
            ("select * from (with c as (select 1) select * from c) x, c", &["c"]),
            ("with a as (with c as (select 1) select * from c), b as (select * from c) select * from b", &["c"]),
            ("with c as (select 1) insert into f select * from c", &["f"]),
        ];
        for (sql, tables) in cases {
            assert_eq!(uses(sql).tables, *tables, "{sql}");
        }
        assert!(uses("select 1 union table pg_class").table_commands);
    }

    #[test]
    fn clock_and_session_are_found_in_all_their_spellings() {
        for sql in ["current_date", "CURRENT_TIMESTAMP", "localtime", "current_role", "user", "current_schema"] {
            assert_eq!(uses(&format!("select {sql} as x from r")).ambient.len(), 1, "{sql}");
        }
        for sql in [
            "'now'::timestamptz",
            "date ' Today'",
            "a > 'yesterday 12:00'",
            "cast('now' as timestamp)",
            "E'now'",
            "$$toMORROW$$",
            "'12:00 today est'",
            "'monday today America/New_York'",
            "'[today,)'::daterange",
            "'{2013-01-01, NOW}'::date[]",
            "row('x'::text, 'now'::date)",
        ] {
            assert_eq!(uses(&format!("select {sql} as x from r")).clock_literals.len(), 1, "{sql}");
        }
        for sql in [
            "'now'::text",
            "'{\"at\": \"now\"}'::jsonb",
            "'not now'",
            "'today we fly'",
            "'epoch'",
            "\"user\"",
            "r.ambient",
        ] {
            let found = uses(&format!("select {sql} as x from r"));
            assert_eq!(found.clock_literals.len() + found.ambient.len(), 0, "{sql}");
        }
    }

    #[test]
    fn whole_rows_and_system_columns_are_found() {
        let found = uses("select to_jsonb(r) as a, row(r.*) as b, ctid as c from record r");
        assert!(found.bare.contains("r"));
        assert_eq!(found.system_columns, ["ctid"]);
    }
}
