//! From a query's tree and a table to one SQL statement.
//!
//! Every name in the SQL comes from the catalog, every value is a bound text that Postgres itself reads as the column's
//! type (`$3::text::bigint`). The statement's text depends on the query's shape only, so it is prepared once.

mod order;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{
    catalog::Table,
    connections::Sql,
    cursor::Cursor,
    format::{Format, Print, Shown},
    freshness,
    gather::Gather,
    grammar::{Filter, Query, Test, abbreviated},
    problem::{BAD_OPERATOR, UNKNOWN_COLUMN},
    types::{is_instant, value_type},
};
use crate::domain::{ColumnInfo, ident, literal, nearest};
use crate::http::Problem;
pub use order::{Term, terms};

/// Where a value of the query stands, and what to say when Postgres cannot read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub parameter: String,
    pub column: String,
    /// What the value is read as.
    pub pg_type: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    List(Vec<String>),
}

impl Value {
    /// Of a statement that takes no list.
    pub fn text(&self) -> &str {
        match self {
            Value::Text(text) => text,
            Value::List(_) => unreachable!("invariant: what takes lists is not gathered"),
        }
    }
}

/// One statement that answers position, age and rows from one snapshot, for all queries of a shape.
#[derive(Debug)]
pub struct Template {
    pub sql: Sql,
    pub slots: Vec<Slot>,
    /// The whole key is given: at most one row, found by the primary key's index.
    pub point: bool,
    /// The same for several reads at once: of a point read that takes no list and waits for no position.
    pub gather: Option<Gather>,
    pub shown: Vec<Shown>,
}

/// A template and the values for its slots.
#[derive(Debug)]
pub struct Statement {
    pub template: Arc<Template>,
    pub values: Vec<Value>,
}

/// What surrounds the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame {
    pub format: Format,
    /// Rows of a page, already within the cap.
    pub limit: u32,
    /// Whether the outcomes at a wanted position are asked for too.
    pub wanted: bool,
}

/// Templates of one table by everything that decides their text: the shape of the query, its frame, and where a cursor
/// holds nulls.
pub type Templates = Mutex<HashMap<(Query, Frame, Vec<bool>), Arc<Template>>>;

/// Shapes come from a few programs; if they do not, starting over is as good as any order of eviction.
const MAX_TEMPLATES: usize = 256;

/// Compiles; `cursor` is the decoded `after`, checked against this query.
pub fn compile(query: &Query, table: &Table, cursor: Option<&Cursor>, frame: Frame) -> Result<Statement, Problem> {
    let nulls = cursor.iter().flat_map(|cursor| &cursor.values).map(Option::is_none).collect();
    let key = (query.shape(), frame, nulls);
    let values = values(query, cursor);
    if let Some(template) = table.templates.lock().expect("invariant: not poisoned").get(&key) {
        return Ok(Statement { template: template.clone(), values });
    }
    let template = Arc::new(template(query, table, cursor, frame)?);
    let mut templates = table.templates.lock().expect("invariant: not poisoned");
    if templates.len() >= MAX_TEMPLATES {
        templates.clear();
    }
    templates.insert(key, template.clone());
    Ok(Statement { template, values })
}

/// The values in the order in which `Compiler` numbers their slots.
fn values(query: &Query, cursor: Option<&Cursor>) -> Vec<Value> {
    let mut values = Vec::new();
    for param in &query.filters {
        collect(&param.filter, &mut values);
    }
    let cursor = cursor.iter().flat_map(|cursor| &cursor.values).flatten();
    values.extend(cursor.map(|value| Value::Text(value.clone())));
    values
}

fn collect(filter: &Filter, values: &mut Vec<Value>) {
    match filter {
        Filter::All(items) | Filter::Any(items) => items.iter().for_each(|item| collect(item, values)),
        Filter::Not(inner) => collect(inner, values),
        Filter::Is { test, .. } => match test {
            Test::Compare(_, value) => values.push(Value::Text(value.clone())),
            Test::In(list) => values.push(Value::List(list.clone())),
            Test::Like { pattern, .. } => values.push(Value::Text(pattern.replace('*', "%"))),
            Test::Is(_) => {}
        },
    }
}

fn template(query: &Query, table: &Table, cursor: Option<&Cursor>, frame: Frame) -> Result<Template, Problem> {
    let mut compiler = Compiler::new(table, frame, false);
    let shown = compiler.shown(query)?;
    let terms = terms(query, table)?;
    let mut conditions = compiler.conditions(query)?;
    let point = cursor.is_none() && frame.limit > 0 && is_point(query, table);
    if let Some(cursor) = cursor {
        conditions.push(compiler.after(&terms, cursor)?);
    }
    let filter = if conditions.is_empty() { String::new() } else { format!(" where {}", conditions.join(" and ")) };
    let row = frame.format.row_sql(&shown);
    let rows = if point {
        format!("select {row} as body, 1::bigint as rows, null::text[] as next from {} t{filter}", table.relation)
    } else {
        page_sql(&row, &shown, &terms, table, &filter, frame)
    };
    let sql = Sql::new(freshness::statement(frame.wanted, Some(&rows)));
    let gather = if point && !frame.wanted { gathered(query, table, frame, &row)? } else { None };
    Ok(Template { sql, slots: compiler.slots, point, shown, gather })
}

/// One row for each element of the arrays of values, looked up one by one: no plan can make it anything but so many point
/// reads. The arrays stand in a `select` of their own so that the planner does not see how long they are: else it takes
/// the plan for few to be so much cheaper that it plans each statement anew.
fn gathered(query: &Query, table: &Table, frame: Frame, row: &str) -> Result<Option<Gather>, Problem> {
    let mut compiler = Compiler::new(table, frame, true);
    let filter = compiler.conditions(query)?.join(" and ");
    if compiler.lists {
        return Ok(None);
    }
    let numbers = compiler.first..compiler.first + compiler.slots.len();
    let arrays: Vec<String> = numbers.clone().map(|number| format!("(select ${number}::text[])")).collect();
    let columns: Vec<String> = numbers.map(|number| format!("v{number}")).collect();
    let rows = format!(
        "select array(select (select {row} from {} t where {filter}) from unnest({}) with ordinality _v({}, n) \
                      order by _v.n) as body, null::bigint as rows, null::text[] as next",
        table.relation,
        arrays.join(", "),
        columns.join(", ")
    );
    Ok(Some(Gather::new(Sql::new(freshness::statement(false, Some(&rows))))))
}

/// One row more than asked is fetched, to know whether there is a next page; it is never printed. Names of our own
/// begin with `_`, which no column that people see does.
fn page_sql(row: &str, shown: &[Shown], terms: &[Term<'_>], table: &Table, filter: &str, frame: Frame) -> String {
    let mut columns: Vec<String> = table.info.columns.iter().map(|c| format!("t.{}", ident(&c.name))).collect();
    columns.retain(|column| {
        let ordering = terms.iter().any(|term| term.expression() == *column);
        ordering || shown.iter().any(|shown| shown.column == *column)
    });
    let columns = columns.join(", ");
    let order: Vec<String> = terms.iter().map(Term::order_sql).collect();
    let next: Vec<String> = terms.iter().map(|term| format!("{}::text", term.expression())).collect();
    let (limit, fetched) = (frame.limit, u64::from(frame.limit) + 1);
    let found =
        format!("select {columns} from {} t{filter} order by {} limit {fetched}", table.relation, order.join(", "));
    let numbered = format!("select row_number() over () as _n, {columns} from ({found}) t");
    let printed = format!(
        "select t._n, {row} as body, case when t._n = {limit} then array[{}]::text[] end as next from ({numbered}) t",
        next.join(", ")
    );
    format!(
        "select string_agg(r.body, {} order by r._n) filter (where r._n <= {limit}) as body, \
                count(*) as rows, max(r.next) as next from ({printed}) r",
        literal(frame.format.separator())
    )
}

/// Whether each column of the key must equal one value.
fn is_point(query: &Query, table: &Table) -> bool {
    let fixed = |key: &String| {
        query.filters.iter().any(|param| match &param.filter {
            Filter::Is { column, test: Test::Compare(super::grammar::Comparison::Eq, _) } => column == key,
            _ => false,
        })
    };
    table.info.key.iter().all(fixed)
}

/// The column of that name, or a problem that names the nearest.
pub fn column<'t>(table: &'t Table, name: &str, parameter: &str) -> Result<&'t ColumnInfo, Problem> {
    table.info.columns.iter().find(|column| column.name == name).ok_or_else(|| {
        let names = || table.info.columns.iter().map(|column| column.name.as_str());
        let detail = if name == parameter {
            format!("{} has no column {}", table.title(), abbreviated(name))
        } else {
            format!("parameter `{parameter}`: {} has no column {}", table.title(), abbreviated(name))
        };
        UNKNOWN_COLUMN
            .problem(detail)
            .with("parameter", parameter)
            .with("columns", names().collect::<Vec<_>>())
            .hint(nearest(name, names()).map(|near| format!("did you mean `{near}`?")))
    })
}

struct Compiler<'t> {
    table: &'t Table,
    slots: Vec<Slot>,
    /// Number of the first parameter that is the query's own.
    first: usize,
    /// Values are columns of `_v`, of one read each, and not parameters.
    gathered: bool,
    /// A value is a list.
    lists: bool,
}

impl<'t> Compiler<'t> {
    fn new(table: &'t Table, frame: Frame, gathered: bool) -> Self {
        Self { table, slots: Vec::new(), first: freshness::parameters(frame.wanted) + 1, gathered, lists: false }
    }

    fn conditions(&mut self, query: &Query) -> Result<Vec<String>, Problem> {
        query.filters.iter().map(|param| self.filter(&param.filter, &param.name)).collect()
    }

    /// The expression of a value.
    fn value(&self, number: usize) -> String {
        if self.gathered { format!("_v.v{number}") } else { format!("${number}") }
    }

    fn shown(&self, query: &Query) -> Result<Vec<Shown>, Problem> {
        let shown = |column: &ColumnInfo, name: &str, as_text: bool| Shown {
            column: format!("t.{}", ident(&column.name)),
            name: name.to_owned(),
            print: match as_text {
                true => Print::Text,
                false if is_instant(&column.pg_type) => Print::Instant,
                false => Print::Json,
            },
        };
        if query.select.is_empty() {
            let all = self.table.info.columns.iter();
            return Ok(all.map(|column| shown(column, &column.name, false)).collect());
        }
        let selected = query.select.iter();
        selected
            .map(|item| Ok(shown(column(self.table, &item.column, "select")?, item.shown_as(), item.as_text)))
            .collect()
    }

    fn filter(&mut self, filter: &Filter, parameter: &str) -> Result<String, Problem> {
        match filter {
            Filter::All(items) => self.group(items, " and ", parameter),
            Filter::Any(items) => self.group(items, " or ", parameter),
            Filter::Not(inner) => Ok(format!("not ({})", self.filter(inner, parameter)?)),
            Filter::Is { column: name, test } => {
                let column = column(self.table, name, parameter)?;
                self.test(column, test, parameter)
            }
        }
    }

    fn group(&mut self, items: &[Filter], joint: &str, parameter: &str) -> Result<String, Problem> {
        let items: Result<Vec<String>, Problem> = items.iter().map(|item| self.filter(item, parameter)).collect();
        Ok(format!("({})", items?.join(joint)))
    }

    fn test(&mut self, column: &ColumnInfo, test: &Test, parameter: &str) -> Result<String, Problem> {
        let sql = format!("t.{}", ident(&column.name));
        let pg_type = value_type(&column.pg_type);
        match test {
            Test::Compare(comparison, _) => {
                Ok(format!("{sql} {} {}", comparison.sql(), self.slot(column, parameter, "")))
            }
            Test::In(_) if pg_type.ends_with(']') => {
                Err(misfit(column, parameter, "in", "a type that is not an array"))
            }
            Test::In(_) => Ok(format!("{sql} = any({})", self.slot(column, parameter, "[]"))),
            Test::Like { ignore_case, .. } => {
                let operator = if *ignore_case { "ilike" } else { "like" };
                if !matches!(pg_type.as_str(), "text" | "character varying" | "bpchar" | "citext" | "name") {
                    return Err(misfit(column, parameter, operator, "text"));
                }
                let number = self.push(column, "text".to_owned(), parameter);
                Ok(format!("{sql} {operator} {}::text", self.value(number)))
            }
            Test::Is(known) => {
                use super::grammar::Known::{NotNull, Null};
                if !matches!(known, Null | NotNull) && pg_type != "boolean" {
                    return Err(misfit(column, parameter, "is.true, is.false and is.unknown", "boolean"));
                }
                Ok(format!("{sql} {}", known.sql()))
            }
        }
    }

    /// Makes room for a value, or a list with `[]`, and answers the expression that reads it as the column's type.
    fn slot(&mut self, column: &ColumnInfo, parameter: &str, list: &str) -> String {
        let pg_type = value_type(&column.pg_type);
        let number = self.push(column, pg_type.clone(), parameter);
        self.lists |= !list.is_empty();
        format!("{}::text{list}::{pg_type}{list}", self.value(number))
    }

    fn push(&mut self, column: &ColumnInfo, pg_type: String, parameter: &str) -> usize {
        let (parameter, column) = (parameter.to_owned(), column.name.clone());
        self.slots.push(Slot { parameter, column, pg_type });
        self.first + self.slots.len() - 1
    }
}

fn misfit(column: &ColumnInfo, parameter: &str, operator: &str, needs: &str) -> Problem {
    let detail =
        format!("parameter `{parameter}`: {operator} needs {needs}, and `{}` is {}", column.name, column.pg_type);
    BAD_OPERATOR.problem(detail).with("parameter", parameter)
}
