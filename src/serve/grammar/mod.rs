//! The grammar of a read: PostgREST's query string, as a typed tree.
//!
//! Owns syntax and its limits, and nothing else: it knows no table and no SQL. What it lets through is data; whether a
//! column exists, and what a value means, is settled by `compile`.

mod parse;
mod print;

pub use parse::{decode, parse};
pub use print::encode;

/// Bounds on what one query may ask; they keep a hostile query as cheap as a small one.
pub const MAX_QUERY_BYTES: usize = 8 * 1024;
/// Conditions over all filters of a query.
pub const MAX_CONDITIONS: usize = 64;
/// Nested `and`/`or` groups.
pub const MAX_DEPTH: usize = 8;
/// Values in one `in.(…)`.
pub const MAX_LIST: usize = 500;
/// Items of `select`, and of `order`.
pub const MAX_COLUMNS: usize = 200;

/// Parameters that are not column names. A column of such a name is filtered through `and=(…)`.
#[cfg(test)]
const RESERVED: [&str; 9] = ["select", "order", "limit", "offset", "after", "and", "or", "not.and", "not.or"];

/// One parsed query string.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Query {
    /// Columns asked for, in order; empty means all.
    pub select: Vec<Selected>,
    pub order: Vec<Ordered>,
    pub limit: Option<u32>,
    /// The opaque cursor of `after=`, not yet decoded.
    pub after: Option<String>,
    /// One per parameter; all must hold.
    pub filters: Vec<Param>,
}

/// One item of `select`: `column`, `alias:column`, `column::text`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selected {
    pub column: String,
    pub alias: Option<String>,
    /// `::text`: the value as Postgres prints it, for clients whose JSON numbers lose digits.
    pub as_text: bool,
}

impl Selected {
    /// The name under which the value is shown.
    pub fn shown_as(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.column)
    }
}

/// One item of `order`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ordered {
    pub column: String,
    pub descending: bool,
    /// `None` is Postgres' default: last when ascending, first when descending.
    pub nulls_first: Option<bool>,
}

/// A filter and the parameter it was written in, for messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Param {
    pub name: String,
    pub filter: Filter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Is { column: String, test: Test },
}

/// What a column is held against. Values are the client's text, unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Test {
    Compare(Comparison, String),
    In(Vec<String>),
    /// `*` stands for any run of characters, as does `%`.
    Like {
        pattern: String,
        ignore_case: bool,
    },
    Is(Known),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
}

/// Right-hand side of `is.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Known {
    Null,
    NotNull,
    True,
    False,
    Unknown,
}

impl Query {
    /// The same query with its values left out: two of one shape are one statement.
    pub fn shape(&self) -> Query {
        let mut shape = self.clone();
        shape.after = shape.after.map(|_| String::new());
        shape.filters.iter_mut().for_each(|param| {
            param.filter.each_test(&mut |test| match test {
                Test::Compare(_, value) | Test::Like { pattern: value, .. } => *value = String::new(),
                Test::In(values) => *values = Vec::new(),
                Test::Is(_) => {}
            })
        });
        shape
    }
}

impl Filter {
    /// Visits the tests in the order in which they are written.
    fn each_test(&mut self, visit: &mut impl FnMut(&mut Test)) {
        match self {
            Filter::All(items) | Filter::Any(items) => items.iter_mut().for_each(|item| item.each_test(visit)),
            Filter::Not(inner) => inner.each_test(visit),
            Filter::Is { test, .. } => visit(test),
        }
    }
}

impl Comparison {
    pub const ALL: [(Comparison, &'static str, &'static str); 6] = [
        (Comparison::Eq, "eq", "="),
        (Comparison::Neq, "neq", "<>"),
        (Comparison::Gt, "gt", ">"),
        (Comparison::Gte, "gte", ">="),
        (Comparison::Lt, "lt", "<"),
        (Comparison::Lte, "lte", "<="),
    ];

    fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    pub fn sql(self) -> &'static str {
        Self::ALL[self as usize].2
    }
}

impl Known {
    pub const ALL: [(Known, &'static str, &'static str); 5] = [
        (Known::Null, "null", "is null"),
        (Known::NotNull, "not_null", "is not null"),
        (Known::True, "true", "is true"),
        (Known::False, "false", "is false"),
        (Known::Unknown, "unknown", "is unknown"),
    ];

    fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    pub fn sql(self) -> &'static str {
        Self::ALL[self as usize].2
    }
}

/// Why a query string is not in the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parameter `{parameter}`{}: expected {expected}, got {got}", at.map(|at| format!(" at character {at}")).unwrap_or_default())]
pub struct SyntaxError {
    pub parameter: String,
    /// Characters before the fault in the decoded value; `None` when it is about the parameter as a whole.
    pub at: Option<usize>,
    pub expected: String,
    pub got: String,
    pub hint: Option<String>,
}

/// Cut for a message: long enough to recognise, short enough not to be an echo.
pub fn abbreviated(text: &str) -> String {
    const MAX: usize = 40;
    let mut cut: String = text.chars().take(MAX).collect();
    if text.chars().nth(MAX).is_some() {
        cut.push('…');
    }
    format!("`{cut}`")
}
