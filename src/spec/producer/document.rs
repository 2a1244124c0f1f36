//! A TOML file read with care: every fault is collected with its line, and the reading goes on.

use std::{ops::RangeInclusive, path::PathBuf};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::values::shown;
use crate::spec::SpecFault;

/// Names farther apart than this are not offered as what was meant.
const NEAR: f64 = 0.7;

/// The text of a file and the faults found in it so far.
pub(super) struct Document<'t> {
    path: PathBuf,
    text: &'t str,
    faults: Vec<SpecFault>,
}

/// A table of the file, by the name that messages use.
pub(super) struct Table<'d> {
    /// As it stands in the file: `commands.ScheduleFlight`; empty at the root.
    name: String,
    pub(super) line: Option<u32>,
    entries: &'d DeTable<'d>,
    lines: &'d str,
}

impl<'t> Document<'t> {
    pub(super) fn new(path: PathBuf, text: &'t str) -> Self {
        Self { path, text, faults: Vec::new() }
    }

    pub(super) fn fault(&mut self, line: Option<u32>, message: String) {
        self.faults.push(SpecFault { path: self.path.clone(), line, message });
    }

    pub(super) fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    /// The value, if no fault was found.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, Vec<SpecFault>> {
        if self.faults.is_empty() { Ok(value) } else { Err(self.faults) }
    }

    /// The document's tree, or the faults of its syntax.
    pub(super) fn parse(&mut self) -> Option<(Spanned<DeTable<'t>>, &'t str)> {
        let (tree, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let line = error.span().map(|span| line_at(self.text, span.start));
            self.fault(line, format!("is not TOML: {}", error.message()));
        }
        errors.is_empty().then_some((tree, self.text))
    }

    /// Refuses every key that is not among `known`, naming the nearest.
    pub(super) fn check_keys(&mut self, table: &Table<'_>, known: &[&str]) {
        for key in table.entries.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let place = if table.name.is_empty() { String::new() } else { format!(" in [{}]", table.name) };
            let message = match nearest(name, known) {
                Some(near) => format!("unknown key {name:?}{place}: did you mean {near:?}?"),
                None => format!("unknown key {name:?}{place}: known are {}", known.join(", ")),
            };
            self.fault(Some(line_at(self.text, key.span().start)), message);
        }
    }

    /// The table under `key`, if there is one.
    pub(super) fn subtable<'d>(&mut self, table: &Table<'d>, key: &str) -> Option<Table<'d>> {
        let value = table.get(key)?;
        let name = if table.name.is_empty() { key.to_owned() } else { format!("{}.{key}", table.name) };
        let line = table.line_of(key);
        match value.as_table() {
            Some(entries) => Some(Table { name, line, entries, lines: table.lines }),
            None => {
                self.fault(line, format!("{key} must be a table, found {}", shown(value)));
                None
            }
        }
    }

    /// The tables one level below `key`: `[key.a]`, `[key.b]`.
    pub(super) fn subtables<'d>(&mut self, table: &Table<'d>, key: &str) -> Vec<(&'d str, Table<'d>)> {
        let Some(parent) = self.subtable(table, key) else { return Vec::new() };
        let names: Vec<&'d str> = parent.entries.keys().map(|name| name.get_ref().as_ref()).collect();
        names.into_iter().filter_map(|name| Some((name, self.subtable(&parent, name)?))).collect()
    }

    /// A string, if there is one.
    pub(super) fn string(&mut self, table: &Table<'_>, key: &str) -> Option<String> {
        self.parsed(table, key, |value| match value.as_str() {
            Some("") => Err("is empty".into()),
            Some(text) => Ok(text.to_owned()),
            None => Err(format!("must be a string, found {}", shown(value))),
        })
    }

    /// A string that must be there; `what` and `meaning` make the fault.
    pub(super) fn required(&mut self, table: &Table<'_>, key: &str, what: &str, meaning: &str) -> Option<String> {
        if table.get(key).is_none() {
            self.fault(table.line, format!("{what} has no {key}: {meaning}"));
        }
        self.string(table, key)
    }

    /// One string or several.
    pub(super) fn strings(&mut self, table: &Table<'_>, key: &str) -> Option<Vec<String>> {
        self.parsed(table, key, |value| {
            let refuse = || Err(format!("must be a string or an array of strings, found {}", shown(value)));
            match value {
                DeValue::String(text) if !text.is_empty() => Ok(vec![text.to_string()]),
                DeValue::Array(values) => {
                    let texts: Option<Vec<String>> = values
                        .iter()
                        .map(|value| value.get_ref().as_str().filter(|text| !text.is_empty()).map(str::to_owned))
                        .collect();
                    texts.map_or_else(refuse, Ok)
                }
                _ => refuse(),
            }
        })
    }

    /// A whole number in `range`.
    pub(super) fn integer(&mut self, table: &Table<'_>, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        self.parsed(table, key, |value| {
            let number = value.as_integer().and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| {
                format!("must be a whole number from {} to {}, found {}", range.start(), range.end(), shown(value))
            })
        })
    }

    /// What `parse` makes of the value under `key`; its error continues the sentence that the key begins.
    pub(super) fn parsed<T>(
        &mut self,
        table: &Table<'_>,
        key: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        match parse(table.get(key)?) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault(table.line_of(key), format!("{key} {fault}"));
                None
            }
        }
    }
}

impl<'d> Table<'d> {
    pub(super) fn root((tree, text): &'d (Spanned<DeTable<'d>>, &'d str)) -> Self {
        Self { name: String::new(), line: None, entries: tree.get_ref(), lines: text }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'d DeValue<'d>> {
        self.entries.get(key).map(Spanned::get_ref)
    }

    /// The line on which `key` stands.
    pub(super) fn line_of(&self, key: &str) -> Option<u32> {
        let (key, _) = self.entries.get_key_value(key)?;
        Some(line_at(self.lines, key.span().start))
    }

    pub(super) fn is_empty_array(value: &DeValue<'_>) -> bool {
        value.as_array().is_some_and(|array| array.is_empty())
    }
}

fn line_at(text: &str, offset: usize) -> u32 {
    let before = text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
    u32::try_from(before).map_or(u32::MAX, |lines| lines + 1)
}

/// The name most like `name`, if one is like it.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let scored = known.iter().map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate));
    scored.filter(|(score, _)| *score >= NEAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, near)| near)
}
