//! What a run left behind, as sheets of rows with keys, and how two of them differ. Pure.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use serde_json::Value;

/// Differences shown of one sheet; the others are counted.
const SHOWN: usize = 8;

/// A value in a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Text(String),
    /// Compared as JSON: the order of members does not count.
    Json(Value),
}

impl From<Option<String>> for Cell {
    fn from(value: Option<String>) -> Self {
        value.map_or(Self::Null, Self::Text)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Text(text) if text.is_empty() => f.write_str("\"\""),
            Self::Text(text) => f.write_str(text),
            Self::Json(value) => write!(f, "{value}"),
        }
    }
}

/// One value of a key. Numbers come in their order, before texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Number(i64),
    Text(String),
}

impl From<&Cell> for Part {
    fn from(cell: &Cell) -> Self {
        let text = match cell {
            Cell::Text(text) => text.clone(),
            other => other.to_string(),
        };
        match text.parse::<i64>() {
            Ok(number) if number.to_string() == text => Self::Number(number),
            _ => Self::Text(text),
        }
    }
}

/// Rows by their key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sheet {
    /// Names of all columns, those of the key among them.
    pub columns: Vec<String>,
    /// Which columns are the key.
    pub key: Vec<usize>,
    pub rows: BTreeMap<Vec<Part>, Vec<Cell>>,
}

impl Sheet {
    /// `key` names columns that are among `columns`.
    pub fn new(columns: Vec<String>, key: &[String]) -> Self {
        let key = key.iter().filter_map(|name| columns.iter().position(|column| column == name)).collect();
        Self { columns, key, rows: BTreeMap::new() }
    }

    /// Adds a row; returns the one that had its key before.
    pub fn insert(&mut self, row: Vec<Cell>) -> Option<Vec<Cell>> {
        let key = self.key.iter().map(|at| Part::from(&row[*at])).collect();
        self.rows.insert(key, row)
    }

    /// How a row is named: `flight_id=UA1545, day=2013-01-01`.
    pub fn key_of(&self, row: &[Cell]) -> String {
        let part = |at: &usize| format!("{}={}", self.columns[*at], row[*at]);
        self.key.iter().map(part).collect::<Vec<_>>().join(", ")
    }

    /// The columns beside the key that are not null.
    fn rest_of(&self, row: &[Cell]) -> String {
        let rest = (0..self.columns.len()).filter(|at| !self.key.contains(at) && row[*at] != Cell::Null);
        rest.map(|at| format!("{}={}", self.columns[at], row[at])).collect::<Vec<_>>().join(", ")
    }
}

/// What the two sides of a difference are called.
pub struct Sides {
    pub left: &'static str,
    pub right: &'static str,
    pub only_left: &'static str,
    pub only_right: &'static str,
}

pub const EXPECTED: Sides = Sides { left: "expected", right: "came", only_left: "missing", only_right: "unexpected" };
pub const LAW: Sides = Sides { left: "one by one", right: "so", only_left: "only one by one", only_right: "only so" };

/// How `right` differs from `left` in the columns of `left`; one line a row, none when it does not.
pub fn differences(left: &Sheet, right: &Sheet, sides: &Sides) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, row) in &left.rows {
        match right.rows.get(key) {
            None => lines.push(format!("{}: {} ({})", sides.only_left, left.key_of(row), left.rest_of(row))),
            Some(other) => {
                let changes = changes(left, row, right, other, sides);
                if !changes.is_empty() {
                    lines.push(format!("{}: {}", left.key_of(row), changes.join("; ")));
                }
            }
        }
    }
    for (_, row) in right.rows.iter().filter(|(key, _)| !left.rows.contains_key(*key)) {
        lines.push(format!("{}: {} ({})", sides.only_right, right.key_of(row), right.rest_of(row)));
    }
    lines
}

fn changes(left: &Sheet, row: &[Cell], right: &Sheet, other: &[Cell], sides: &Sides) -> Vec<String> {
    let mut changes = Vec::new();
    for (at, name) in left.columns.iter().enumerate() {
        let found = right.columns.iter().position(|column| column == name).map(|at| &other[at]);
        if found != Some(&row[at]) {
            let found = found.map_or_else(|| "no such column".to_owned(), ToString::to_string);
            changes.push(format!("{name} {} {}, {} {found}", sides.left, row[at], sides.right));
        }
    }
    changes
}

/// The lines below a heading, indented; the first few of many.
pub fn shown(heading: &str, lines: &[String], indent: usize) -> String {
    let pad = " ".repeat(indent);
    let mut text = format!("{pad}{heading}\n");
    for line in lines.iter().take(SHOWN) {
        let _ = writeln!(text, "{pad}  {line}");
    }
    if lines.len() > SHOWN {
        let _ = writeln!(text, "{pad}  and {} more", lines.len() - SHOWN);
    }
    text
}

/// Everything that a run left behind, by the name of the file that says what is expected of it; `order` is not in a file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    pub sheets: BTreeMap<String, Sheet>,
    /// In which order the events of one key leave.
    pub order: Sheet,
}

impl Outcome {
    /// How another run's outcome differs, as indented text; empty when it does not.
    pub fn compare(&self, other: &Self, indent: usize) -> String {
        let mut text = String::new();
        for (name, sheet) in &self.sheets {
            let lines = other.sheets.get(name).map(|other| differences(sheet, other, &LAW)).unwrap_or_default();
            if !lines.is_empty() {
                text.push_str(&shown(name, &lines, indent));
            }
        }
        let lines = differences(&self.order, &other.order, &LAW);
        if text.is_empty() && !lines.is_empty() {
            text.push_str(&shown("order of the emitted events of a key", &lines, indent));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(columns: &[&str], rows: &[&[&str]]) -> Sheet {
        let mut sheet = Sheet::new(columns.iter().map(|c| (*c).to_owned()).collect(), &["id".to_owned()]);
        for row in rows {
            let cell = |text: &&str| if text.is_empty() { Cell::Null } else { Cell::Text((*text).to_owned()) };
            sheet.insert(row.iter().map(cell).collect());
        }
        sheet
    }

    #[test]
    fn sheets_that_differ_give_a_line_a_row() {
        let left = sheet(&["id", "a"], &[&["1", "x"], &["2", "y"], &["10", ""]]);
        let right = sheet(&["b", "id", "a"], &[&["7", "1", "x"], &["7", "10", "z"], &["", "3", "w"]]);
        assert_eq!(
            differences(&left, &right, &EXPECTED),
            ["missing: id=2 (a=y)", "id=10: a expected null, came z", "unexpected: id=3 (a=w)"]
        );
    }

    #[test]
    fn json_is_compared_without_the_order_of_its_members() {
        let json = |text: &str| Cell::Json(serde_json::from_str(text).unwrap());
        assert_eq!(json(r#"{"a":1,"b":2}"#), json(r#"{"b":2,"a":1}"#));
        assert_ne!(json(r#"{"a":1}"#), json(r#"{"a":2}"#));
    }

    #[test]
    fn keys_of_numbers_come_in_their_order() {
        let numbers = sheet(&["id"], &[&["10"], &["9"], &["x"], &["010"]]);
        let order: Vec<String> = numbers.rows.values().map(|row| row[0].to_string()).collect();
        assert_eq!(order, ["9", "10", "010", "x"]);
    }
}
