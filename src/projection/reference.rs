//! `reference/*.csv`: small tables that are loaded with a version. Pure.
//!
//! The first line names the columns, each with a Postgres type after a colon (`carrier:text`); no type is `text`. Values
//! are RFC 4180: quotes around a value that has a comma, quote or line break. An empty value without quotes is NULL.

use sqlparser::{ast::DataType, dialect::PostgreSqlDialect, parser::Parser};

use crate::{
    domain::{ident, literal},
    spec::{SourceFile, SpecFault},
};

/// Rows per INSERT.
const ROWS_PER_STATEMENT: usize = 500;

/// One table of reference data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceTable {
    pub name: String,
    pub path: std::path::PathBuf,
    /// Names and types.
    pub columns: Vec<(String, String)>,
    /// Values as text; none is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

impl ReferenceTable {
    /// Reads one file.
    ///
    /// # Errors
    /// All faults of the header, and the first hundred faulty rows.
    pub fn parse(file: &SourceFile) -> Result<Self, Vec<SpecFault>> {
        let fault = |line: u32, message: String| SpecFault::new(&file.path, Some(line), message);
        let mut lines = parse_csv(&file.text).map_err(|(line, message)| vec![fault(line, message)])?.into_iter();
        let Some((_, header)) = lines.next() else {
            return Err(vec![fault(
                1,
                "the file is empty; its first line names the columns: carrier:text,name:text".into(),
            )]);
        };
        let mut faults = Vec::new();
        let columns = parse_header(&header, |message| faults.push(fault(1, message)));
        let mut rows = Vec::new();
        for (line, row) in lines {
            if row.len() != columns.len() {
                faults.push(fault(
                    line,
                    format!("{} values where the header names {} columns", row.len(), columns.len()),
                ));
            }
            rows.push(row);
        }
        faults.truncate(100);
        let table = Self { name: file.stem.clone(), path: file.path.clone(), columns, rows };
        if faults.is_empty() { Ok(table) } else { Err(faults) }
    }

    /// The statements that make the table and fill it.
    pub fn create_sql(&self, schema: &str) -> Vec<String> {
        let table = format!("{}.{}", ident(schema), ident(&self.name));
        let columns: Vec<String> =
            self.columns.iter().map(|(name, pg_type)| format!("{} {pg_type}", ident(name))).collect();
        let mut sql = vec![format!("create table {table} ({})", columns.join(", "))];
        for rows in self.rows.chunks(ROWS_PER_STATEMENT) {
            let rows: Vec<String> = rows.iter().map(|row| self.row_sql(row)).collect();
            sql.push(format!("insert into {table} values {}", rows.join(", ")));
        }
        if !self.rows.is_empty() {
            sql.push(format!("analyze {table}"));
        }
        sql
    }

    fn row_sql(&self, row: &[Option<String>]) -> String {
        let values: Vec<String> = row
            .iter()
            .zip(&self.columns)
            .map(|(value, (_, pg_type))| match value {
                Some(text) => format!("{}::{pg_type}", literal(text)),
                None => "null".to_owned(),
            })
            .collect();
        format!("({})", values.join(", "))
    }
}

fn parse_header(header: &[Option<String>], mut fault: impl FnMut(String)) -> Vec<(String, String)> {
    let mut columns: Vec<(String, String)> = Vec::new();
    for cell in header {
        let cell = cell.as_deref().unwrap_or_default();
        let (name, pg_type) = cell.split_once(':').unwrap_or((cell, "text"));
        let (name, pg_type) = (name.trim(), pg_type.trim());
        if name.is_empty() || name.starts_with('_') {
            fault(format!("column name `{name}` must not be empty nor begin with `_`"));
        }
        if columns.iter().any(|(known, _)| known == name) {
            fault(format!("column `{name}` is named twice"));
        }
        match parse_type(pg_type) {
            Some(pg_type) => columns.push((name.to_owned(), pg_type)),
            None => {
                fault(format!("`{pg_type}` of column `{name}` is not a type; write one such as text, integer or date"));
                columns.push((name.to_owned(), "text".to_owned()));
            }
        }
    }
    columns
}

/// A type as one, and nothing but a type: it goes into DDL.
pub(super) fn parse_type(text: &str) -> Option<String> {
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(text).ok()?;
    let parsed = parser.parse_data_type().ok()?;
    let whole = parser.peek_token().token == sqlparser::tokenizer::Token::EOF;
    (whole && !foreign_type(&parsed)).then(|| parsed.to_string())
}

/// Whether a type is named in a schema other than Postgres' own: a domain, or a type of an extension, which no folder
/// declares and whose checks nobody here has read.
pub(super) fn foreign_type(data_type: &DataType) -> bool {
    let name = data_type.to_string().to_lowercase().replace('"', "");
    name.split('(').next().is_some_and(|name| name.trim_start_matches("pg_catalog.").contains('.'))
}

type Row = (u32, Vec<Option<String>>);

/// Rows with the line each begins on; blank lines are left out.
fn parse_csv(text: &str) -> Result<Vec<Row>, (u32, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut rows, mut row, mut value) = (Vec::new(), Vec::new(), None::<String>);
    let (mut line, mut row_line) = (1, 1);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if value.is_none() => value = Some(quoted_value(&mut chars, &mut line)?),
            ',' => row.push(value.take()),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                if value.is_some() || !row.is_empty() {
                    row.push(value.take());
                    rows.push((row_line, std::mem::take(&mut row)));
                }
                line += 1;
                row_line = line;
            }
            '\0' => return Err((line, "a NUL character, which Postgres cannot keep".to_owned())),
            other => value.get_or_insert_default().push(other),
        }
    }
    if value.is_some() || !row.is_empty() {
        row.push(value);
        rows.push((row_line, row));
    }
    Ok(rows)
}

fn quoted_value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, line: &mut u32) -> Result<String, (u32, String)> {
    let (begun, mut value) = (*line, String::new());
    while let Some(c) = chars.next() {
        match c {
            '"' if chars.peek() == Some(&'"') => {
                chars.next();
                value.push('"');
            }
            '"' => return Ok(value),
            '\0' => return Err((*line, "a NUL character, which Postgres cannot keep".to_owned())),
            other => {
                *line += u32::from(other == '\n');
                value.push(other);
            }
        }
    }
    Err((begun, "a quote is opened here and never closed".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<ReferenceTable, Vec<SpecFault>> {
        ReferenceTable::parse(&SourceFile::new("reference/airlines.csv", text))
    }

    #[test]
    fn csv_with_types_quotes_and_nulls_is_read() {
        let table = parse("carrier,since:date,\"n\"\r\nUA,1926-04-06,\"a \"\"b\"\",\nc\"\n\nAA,,\"\"\n").unwrap();
        assert_eq!(table.columns[1], ("since".to_owned(), "DATE".to_owned()));
        assert_eq!(table.rows[0][2].as_deref(), Some("a \"b\",\nc"));
        assert_eq!(table.rows[1], [Some("AA".to_owned()), None, Some(String::new())]);
    }

    #[test]
    fn csv_faults_are_named_with_their_lines() {
        let faults = parse("a:nonsense type,a\n1,2,3\n").unwrap_err();
        assert_eq!(faults.iter().map(|f| f.line.unwrap()).collect::<Vec<_>>(), [1, 1, 2], "{faults:?}");
        assert_eq!(parse("a\n\"open\n\n").unwrap_err()[0].line, Some(2));
        assert!(parse("a:text); drop table x --\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z,:\"\\n\\r\\x00ü]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn values_are_read_as_they_were_written(values in prop::collection::vec(prop::collection::vec("[a\",\\n ü]{0,6}", 2), 0..6)) {
            let quote = |v: &String| format!("\"{}\"", v.replace('"', "\"\""));
            let lines: Vec<String> = values.iter().map(|row| row.iter().map(quote).collect::<Vec<_>>().join(",")).collect();
            let table = parse(&format!("a,b\n{}\n", lines.join("\n"))).unwrap();
            let read: Vec<Vec<String>> = table.rows.into_iter().map(|r| r.into_iter().map(Option::unwrap).collect()).collect();
            prop_assert_eq!(read, values);
        }
    }
}
