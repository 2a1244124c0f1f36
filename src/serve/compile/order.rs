//! The order of rows, and where the page after a cursor begins.

use super::{Compiler, Cursor, Query, Slot, Table, column};
use crate::{
    domain::{ColumnInfo, ident},
    http::Problem,
    serve::problem::BAD_CURSOR,
};

/// One column of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term<'t> {
    column: &'t ColumnInfo,
    descending: bool,
    nulls_first: bool,
    nullable: bool,
}

/// The order asked for, with the columns of the key behind it: no two rows are equal in it, so a page has one end.
pub fn terms<'t>(query: &Query, table: &'t Table) -> Result<Vec<Term<'t>>, Problem> {
    let mut terms = Vec::new();
    let key = &table.info.key;
    for item in &query.order {
        let column = column(table, &item.column, "order")?;
        let nullable = column.nullable && !key.contains(&column.name);
        let nulls_first = item.nulls_first.unwrap_or(item.descending);
        terms.push(Term { column, descending: item.descending, nulls_first, nullable });
    }
    for name in key {
        let column = column(table, name, "order")?;
        if !terms.iter().any(|term| term.column.name == column.name) {
            terms.push(Term { column, descending: false, nulls_first: false, nullable: false });
        }
    }
    Ok(terms)
}

impl Term<'_> {
    pub fn expression(&self) -> String {
        format!("t.{}", ident(&self.column.name))
    }

    /// Null placement is written only where it can matter: an index is not used for an order that says more than its own.
    pub fn order_sql(&self) -> String {
        let direction = if self.descending { " desc" } else { "" };
        let nulls = match (self.nullable && self.nulls_first != self.descending, self.nulls_first) {
            (false, _) => "",
            (true, true) => " nulls first",
            (true, false) => " nulls last",
        };
        format!("{}{direction}{nulls}", self.expression())
    }

    /// For messages and for the identity of a query.
    pub fn text(&self) -> String {
        let nulls = if self.nulls_first { "first" } else { "last" };
        format!("{}.{}.{nulls}", self.column.name, if self.descending { "desc" } else { "asc" })
    }

    fn operator(&self) -> &'static str {
        if self.descending { "<" } else { ">" }
    }

    /// Rows that come after `value` in this column alone; `None` when none can.
    fn beyond(&self, value: Option<&str>) -> Option<String> {
        let expression = self.expression();
        match value {
            None => self.nulls_first.then(|| format!("{expression} is not null")),
            Some(value) => {
                let beyond = format!("{expression} {} {value}", self.operator());
                let nulls_follow = self.nullable && !self.nulls_first;
                Some(if nulls_follow { format!("({beyond} or {expression} is null)") } else { beyond })
            }
        }
    }

    fn same(&self, value: Option<&str>) -> String {
        match value {
            None => format!("{} is null", self.expression()),
            Some(value) => format!("{} = {value}", self.expression()),
        }
    }
}

impl Compiler<'_> {
    /// The rows behind the cursor's, in the order of `terms`.
    pub(super) fn after(&mut self, terms: &[Term<'_>], cursor: &Cursor) -> Result<String, Problem> {
        let nulls_fit = terms.iter().zip(&cursor.values).all(|(term, value)| value.is_some() || term.nullable);
        if cursor.values.len() != terms.len() || !nulls_fit {
            return Err(BAD_CURSOR.problem("parameter `after`: the value is damaged").with("parameter", "after"));
        }
        let mut values = Vec::with_capacity(terms.len());
        for (term, value) in terms.iter().zip(&cursor.values) {
            values.push(value.as_ref().map(|_| self.slot(term.column, "after", "")));
        }
        let uniform = terms.iter().all(|term| !term.nullable && term.descending == terms[0].descending);
        if uniform {
            // One comparison of rows, which an index over these columns answers directly.
            let columns: Vec<String> = terms.iter().map(Term::expression).collect();
            let values: Vec<String> = values.into_iter().flatten().collect();
            return Ok(format!("({}) {} ({})", columns.join(", "), terms[0].operator(), values.join(", ")));
        }
        let mut alternatives = Vec::new();
        let mut prefix: Vec<String> = Vec::new();
        for (term, value) in terms.iter().zip(&values) {
            if let Some(beyond) = term.beyond(value.as_deref()) {
                let mut all = prefix.clone();
                all.push(beyond);
                alternatives.push(format!("({})", all.join(" and ")));
            }
            prefix.push(term.same(value.as_deref()));
        }
        let rows = format!("({})", alternatives.join(" or "));
        // The alternatives alone hide from the planner that the scan may begin at the first column's value.
        Ok(match (&terms[0], &values[0]) {
            (first, Some(value)) if !first.nullable => {
                format!("{} {}= {value} and {rows}", first.expression(), first.operator())
            }
            _ => rows,
        })
    }
}

impl Slot {
    /// A reader of a cursor's fault is shown `after`, not a column.
    pub fn is_of_cursor(&self) -> bool {
        self.parameter == "after"
    }
}
