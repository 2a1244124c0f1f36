//! What a case says must come out: `<table>.csv`, `emitted.jsonl`, `refused.jsonl`, `dead_letters.jsonl`. Read, compared,
//! and written anew by `--accept`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};

use super::{
    case::{Case, EVENTS, name_of},
    lab::{self, DEAD_LETTERS, EMITTED, Lab, REFUSED},
    sheet::{Cell, EXPECTED, Outcome, Sheet, differences, shown},
};
use crate::{
    domain::{ColumnInfo, TableInfo, nearest},
    spec::{SpecFault, listing},
    store::trial::{self, CsvError},
};

/// What the files of a case say.
#[derive(Default)]
pub struct Expected {
    /// By file; tables without a file are not there.
    sheets: BTreeMap<String, Result<Sheet, Vec<SpecFault>>>,
    /// Files that nothing reads: a misspelt one would expect nothing, silently.
    pub strays: Vec<SpecFault>,
}

impl Expected {
    /// Whether a file says what must come out.
    pub fn has(&self, name: &str) -> bool {
        self.sheets.contains_key(name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Emitted<'a> {
    line: usize,
    topic: Option<String>,
    #[serde(rename = "type")]
    record_type: String,
    key: Option<String>,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    line: usize,
    code: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadLetter {
    line: usize,
    class: String,
    reason: String,
}

/// Reads a case's files.
pub async fn load(lab: &mut Lab<'_>, case: &Case) -> anyhow::Result<Expected> {
    let mut expected = Expected { sheets: BTreeMap::new(), strays: strays(lab, case)? };
    for table in lab.tables.clone() {
        let path = case.folder.join(format!("{}.csv", table.name));
        let Some(text) = read(&path)? else { continue };
        let sheet = csv(lab, &table, &path, &text).await?.map_err(|fault| vec![fault]);
        expected.sheets.insert(name_of(&path), sheet);
    }
    for name in [EMITTED, REFUSED, DEAD_LETTERS] {
        let path = case.folder.join(name);
        let text = read(&path)?.unwrap_or_default();
        let sheet = match name {
            EMITTED => emitted(lab, case, &path, &text),
            REFUSED => judged(&path, &text, lab::refused_sheet(), |r: Refused| (r.line, r.code, r.reason)),
            _ => judged(&path, &text, lab::dead_letters_sheet(), |d: DeadLetter| (d.line, d.class, d.reason)),
        };
        expected.sheets.insert(name.to_owned(), sheet);
    }
    Ok(expected)
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow::anyhow!("cannot read {}: {error}", path.display())),
    }
}

fn strays(lab: &Lab<'_>, case: &Case) -> anyhow::Result<Vec<SpecFault>> {
    let mut known: Vec<String> = lab.tables.iter().map(|table| format!("{}.csv", table.name)).collect();
    known.extend([EVENTS, EMITTED, REFUSED, DEAD_LETTERS, "README.md"].map(str::to_owned));
    let mut faults = Vec::new();
    for entry in std::fs::read_dir(&case.folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !known.contains(&name) {
            let near = nearest(&name, known.iter().map(String::as_str)).map(|near| format!("; did you mean {near}?"));
            let message = format!(
                "is not a file of a case; there are {}{}",
                listing(known.iter().map(String::as_str)),
                near.unwrap_or_default()
            );
            faults.push(SpecFault::new(case.folder.join(name), None, message));
        }
    }
    faults.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(faults)
}

async fn csv(
    lab: &mut Lab<'_>,
    table: &TableInfo,
    path: &Path,
    text: &str,
) -> anyhow::Result<Result<Sheet, SpecFault>> {
    let columns = match header(table, text) {
        Ok(columns) => columns,
        Err(message) => return Ok(Err(SpecFault::new(path, Some(1), message))),
    };
    let schema = lab.version(lab::FIRST)?.schema.clone();
    let rows = match trial::csv_rows(lab.connection(), &schema, table, &columns, text).await {
        Ok(rows) => rows,
        Err(CsvError::Refused { line, message }) => return Ok(Err(SpecFault::new(path, line, message))),
        Err(CsvError::Store(error)) => return Err(error.into()),
    };
    let mut sheet = Sheet::new(columns.iter().map(|column| column.name.clone()).collect(), &table.key);
    for row in rows {
        if let Some(before) = sheet.insert(row.into_iter().map(Cell::from).collect()) {
            let message = format!("there are two rows with {}; the key of a row is its own", sheet.key_of(&before));
            return Ok(Err(SpecFault::new(path, None, message)));
        }
    }
    Ok(Ok(sheet))
}

/// The columns in the order in which the first line names them: all of them.
fn header<'t>(table: &'t TableInfo, text: &str) -> Result<Vec<&'t ColumnInfo>, String> {
    let all = || table.columns.iter().map(|column| column.name.as_str());
    let first = text.trim_start_matches('\u{feff}').lines().next().unwrap_or_default().trim_end();
    if first.is_empty() {
        return Err(format!("the first line must name the columns: {}", all().collect::<Vec<_>>().join(",")));
    }
    let names = first.split(',').map(|name| name.trim().trim_matches('"'));
    let mut columns: Vec<&ColumnInfo> = Vec::new();
    for name in names {
        let Some(column) = table.columns.iter().find(|column| column.name == name) else {
            let near = nearest(name, all()).map(|near| format!("; did you mean {near}?"));
            return Err(format!("table {} has no column {name}{}", table.name, near.unwrap_or_default()));
        };
        if columns.contains(&column) {
            return Err(format!("column {name} is named twice"));
        }
        columns.push(column);
    }
    let missing: Vec<&str> = all().filter(|name| !columns.iter().any(|column| column.name == **name)).collect();
    match missing.as_slice() {
        [] => Ok(columns),
        [one] => Err(format!("column {one} is missing; --accept adds it")),
        many => Err(format!("columns {} are missing; --accept adds them", many.join(", "))),
    }
}

/// The documents of a file with their lines.
fn documents<'t, T: Deserialize<'t>>(path: &Path, text: &'t str) -> Result<Vec<(u32, T)>, Vec<SpecFault>> {
    let (mut documents, mut faults) = (Vec::new(), Vec::new());
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        match serde_json::from_str(text) {
            Ok(document) => documents.push((line, document)),
            Err(error) => {
                let error = error.to_string();
                let what = error.split(" at line ").next().unwrap_or_default();
                faults.push(SpecFault::new(path, Some(line), what));
            }
        }
    }
    if faults.is_empty() { Ok(documents) } else { Err(faults) }
}

fn emitted(lab: &Lab<'_>, case: &Case, path: &Path, text: &str) -> Result<Sheet, Vec<SpecFault>> {
    let (mut sheet, mut faults) = (lab::emitted_sheet(), Vec::new());
    let mut indices: HashMap<usize, usize> = HashMap::new();
    for (number, event) in documents::<Emitted<'_>>(path, text)? {
        let topic = event.topic.or_else(|| lab.spec.emits.get(&event.record_type).cloned()).unwrap_or_default();
        // Written and read back, so that 1.0 and 1.00, or two ways to write a time, are the same.
        let body = match lab.codec.encode(&event.record_type, event.body.get()) {
            Ok(encoded) => lab.codec.decode(&encoded.payload).unwrap_or_default(),
            Err(found) => {
                let fault = |what| SpecFault::new(path, Some(number), format!("{}: {what}", event.record_type));
                faults.extend(found.into_iter().map(fault));
                continue;
            }
        };
        if !case.events.iter().any(|of_case| of_case.line == event.line) {
            faults.push(SpecFault::new(path, Some(number), format!("{EVENTS} has no record in line {}", event.line)));
        }
        let index = indices.entry(event.line).or_insert(0);
        sheet.insert(lab::emitted_row(event.line, *index, topic, event.record_type, event.key, body));
        *index += 1;
    }
    if faults.is_empty() { Ok(sheet) } else { Err(faults) }
}

fn judged<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    mut sheet: Sheet,
    parts: impl Fn(T) -> (usize, String, String),
) -> Result<Sheet, Vec<SpecFault>> {
    for (number, document) in documents::<T>(path, text)? {
        let (line, code, reason) = parts(document);
        if sheet.insert(lab::judged_row(line, code, reason)).is_some() {
            return Err(vec![SpecFault::new(path, Some(number), format!("line {line} is judged twice"))]);
        }
    }
    Ok(sheet)
}

/// What is not as expected, by file; the text is indented.
pub fn compare(expected: &Expected, came: &Outcome, indent: usize) -> BTreeMap<String, String> {
    let mut differing = BTreeMap::new();
    for (name, sheet) in &came.sheets {
        let (heading, lines) = match expected.sheets.get(name) {
            Some(Ok(expected)) => (name.clone(), differences(expected, sheet, &EXPECTED)),
            Some(Err(faults)) => (name.clone(), faults.iter().map(ToString::to_string).collect()),
            None => {
                let nothing = Sheet { rows: BTreeMap::new(), ..sheet.clone() };
                (format!("{name} is not there"), differences(&nothing, sheet, &EXPECTED))
            }
        };
        if !lines.is_empty() {
            differing.insert(name.clone(), shown(&heading, &lines, indent));
        }
    }
    for stray in &expected.strays {
        differing.insert(name_of(&stray.path), shown(&stray.to_string(), &[], indent));
    }
    differing
}

/// Writes what came out over the files that say something else; returns those written or removed.
pub fn accept(case: &Case, expected: &Expected, came: &Outcome) -> anyhow::Result<Vec<PathBuf>> {
    let differing = compare(expected, came, 0);
    let is_new = !expected.sheets.keys().any(|name| name.ends_with(".csv"));
    let mut written = Vec::new();
    for (name, sheet) in &came.sheets {
        let path = case.folder.join(name);
        let is_table = name.ends_with(".csv");
        // A first run writes all tables, the empty ones too: that nothing came is said as well.
        let wanted = differing.contains_key(name) || (is_table && is_new);
        if !wanted {
            continue;
        }
        if is_table {
            let columns = match expected.sheets.get(name) {
                Some(Ok(expected)) => &expected.columns,
                _ => &sheet.columns,
            };
            std::fs::write(&path, csv_text(sheet, columns))?;
        } else if sheet.rows.is_empty() {
            std::fs::remove_file(&path)?;
        } else {
            std::fs::write(&path, jsonl_text(sheet))?;
        }
        written.push(path);
    }
    Ok(written)
}

fn csv_text(sheet: &Sheet, columns: &[String]) -> String {
    let places: Vec<usize> =
        columns.iter().filter_map(|name| sheet.columns.iter().position(|column| column == name)).collect();
    let mut text = columns.join(",") + "\n";
    for row in sheet.rows.values() {
        let fields: Vec<String> = places.iter().map(|at| csv_field(&row[*at])).collect();
        let _ = writeln!(text, "{}", fields.join(","));
    }
    text
}

fn csv_field(cell: &Cell) -> String {
    let text = match cell {
        Cell::Null => return String::new(),
        Cell::Text(text) => text.clone(),
        Cell::Json(value) => value.to_string(),
    };
    // A backslash alone ends a COPY.
    let quoted =
        text.is_empty() || text.starts_with('\\') || text.contains(['"', ',', '\n', '\r']) || text.trim() != text;
    if quoted { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// One object a row with the columns as members; `index` follows from the order.
fn jsonl_text(sheet: &Sheet) -> String {
    let mut text = String::new();
    for row in sheet.rows.values() {
        let mut object = serde_json::Map::new();
        for (name, cell) in sheet.columns.iter().zip(row).filter(|(name, _)| *name != "index") {
            let value = match cell {
                Cell::Null => continue,
                Cell::Json(value) => value.clone(),
                Cell::Text(text) if name == "line" => json!(text.parse::<u64>().unwrap_or_default()),
                Cell::Text(text) => json!(text),
            };
            object.insert(name.clone(), value);
        }
        let _ = writeln!(text, "{}", serde_json::Value::Object(object));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TableInfo {
        let column = |name: &str| ColumnInfo { name: name.to_owned(), pg_type: "text".to_owned(), nullable: true };
        let key = vec!["carrier".to_owned(), "day".to_owned()];
        TableInfo { name: "punctuality".to_owned(), key, columns: ["carrier", "day", "late"].map(column).to_vec() }
    }

    fn names(text: &str) -> Result<Vec<String>, String> {
        header(&table(), text).map(|columns| columns.iter().map(|column| column.name.clone()).collect())
    }

    #[test]
    fn header_names_all_columns_in_any_order() {
        assert_eq!(names("day,\"carrier\",late\r\n1,2").unwrap(), ["day", "carrier", "late"]);
        assert_eq!(names("carrier,late").unwrap_err(), "column day is missing; --accept adds it");
        assert_eq!(names("carrier,day,lte").unwrap_err(), "table punctuality has no column lte; did you mean late?");
        assert_eq!(names("carrier,day,day").unwrap_err(), "column day is named twice");
        assert_eq!(names("").unwrap_err(), "the first line must name the columns: carrier,day,late");
    }

    #[test]
    fn csv_tells_null_from_the_empty_text() {
        let mut sheet = Sheet::new(["a", "b"].map(str::to_owned).to_vec(), &["a".to_owned()]);
        sheet.insert(vec![Cell::Text("x, \"y\"".to_owned()), Cell::Null]);
        sheet.insert(vec![Cell::Text("\\.".to_owned()), Cell::Text(String::new())]);
        let columns = sheet.columns.clone();
        assert_eq!(csv_text(&sheet, &columns), "a,b\n\"\\.\",\"\"\n\"x, \"\"y\"\"\",\n");
    }

    #[test]
    fn lines_are_written_as_they_are_read() {
        let mut sheet = lab::refused_sheet();
        sheet.insert(lab::judged_row(12, "late".to_owned(), "too \"late\"".to_owned()));
        assert_eq!(jsonl_text(&sheet), "{\"line\":12,\"code\":\"late\",\"reason\":\"too \\\"late\\\"\"}\n");
    }
}
