//! A TOML file read key by key, so that every fault carries its line and none hides another.
//!
//! Owns the walk over the document: which keys a table may have, what kind of value each takes. Knows no key by name.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{SpecFault, listing};
use crate::domain::nearest;

/// Where faults of one file are gathered.
pub struct Document {
    path: PathBuf,
    text: String,
    faults: RefCell<Vec<SpecFault>>,
}

impl Document {
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into(), faults: RefCell::default() }
    }

    /// Reads the document with `read`; the faults are those of the syntax, of unknown keys and of whatever
    /// `read` reports. A `read` that gives nothing must have reported why.
    ///
    /// # Errors
    /// All faults of the file at once.
    pub fn read<T>(&self, read: impl FnOnce(&TableReader<'_>) -> Option<T>) -> Result<T, Vec<SpecFault>> {
        let (root, errors) = DeTable::parse_recoverable(&self.text);
        if !errors.is_empty() {
            return Err(errors.iter().map(|e| self.syntax_fault(e)).collect());
        }
        let value = read(&TableReader { document: self, name: String::new(), line: 1, table: root.get_ref() });
        let faults = self.faults.take();
        match value {
            Some(value) if faults.is_empty() => Ok(value),
            _ => Err(faults),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn syntax_fault(&self, error: &toml::de::Error) -> SpecFault {
        let line = error.span().map(|span| self.line(span.start));
        SpecFault::new(&self.path, line, format!("not valid TOML: {}", error.message().trim().replace('\n', ", ")))
    }

    fn line(&self, offset: usize) -> u32 {
        let before = self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count();
        u32::try_from(before + 1).unwrap_or(u32::MAX)
    }

    fn fault(&self, line: u32, message: impl Into<String>) {
        self.faults.borrow_mut().push(SpecFault::new(&self.path, Some(line), message));
    }
}

/// One table of a document.
pub struct TableReader<'a> {
    document: &'a Document,
    /// Dotted name of the table, empty for the root.
    name: String,
    line: u32,
    table: &'a DeTable<'a>,
}

impl<'a> TableReader<'a> {
    /// Refuses every key that is not in `known`, with the nearest one named.
    pub fn allow(&self, known: &[&str]) {
        self.allow_with(known, &[]);
    }

    /// As [`Self::allow`]; a key of `planned` is refused with the words given there.
    pub fn allow_with(&self, known: &[&str], planned: &[(&str, &str)]) {
        for key in self.table.keys() {
            let word = key.get_ref().as_ref();
            let line = self.document.line(key.span().start);
            if known.contains(&word) {
                continue;
            }
            if let Some((_, why)) = planned.iter().find(|(name, _)| *name == word) {
                self.document.fault(line, format!("{} {why}; remove the key", self.quoted(word)));
                continue;
            }
            let hint = match nearest(word, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", listing(known.iter().copied())),
            };
            self.document.fault(line, format!("{} is not a known key; {hint}", self.quoted(word)));
        }
    }

    /// Line of the table's own header.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Line of a key, or of the table when the key is not there.
    pub fn line_of(&self, key: &str) -> u32 {
        self.table.get_key_value(key).map_or(self.line, |(key, _)| self.document.line(key.span().start))
    }

    /// Reports a fault at a key.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        self.document.fault(self.line_of(key), message);
    }

    /// The keys in the order of the file.
    pub fn keys(&self) -> Vec<&'a str> {
        let mut keys: Vec<_> = self.table.keys().collect();
        keys.sort_by_key(|key| key.span().start);
        keys.into_iter().map(|key| key.get_ref().as_ref()).collect()
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A table below this one.
    pub fn table(&self, key: &str) -> Option<TableReader<'a>> {
        let value = self.value(key)?;
        let Some(table) = value.as_table() else {
            return self.mismatch(key, "a table", value);
        };
        Some(TableReader { document: self.document, name: self.dotted(key), line: self.line_of(key), table })
    }

    pub fn string(&self, key: &str) -> Option<String> {
        let value = self.value(key)?;
        match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => self.mismatch(key, "a string", value),
        }
    }

    /// A whole number of at least `least`.
    pub fn whole(&self, key: &str, least: u64) -> Option<u64> {
        let value = self.value(key)?;
        let number = value.as_integer().and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok());
        match number.filter(|n| *n >= least) {
            Some(number) => Some(number),
            None => self.mismatch(key, &format!("a whole number of at least {least}"), value),
        }
    }

    /// A list of strings.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        match string_list(value) {
            Some(list) => Some(list),
            None => self.mismatch(key, "a list of strings", value),
        }
    }

    /// A list of lists of strings.
    pub fn string_lists(&self, key: &str) -> Option<Vec<Vec<String>>> {
        let value = self.value(key)?;
        let lists = value.as_array().and_then(|items| items.iter().map(|i| string_list(i.get_ref())).collect());
        match lists {
            Some(lists) => Some(lists),
            None => self.mismatch(key, "a list of lists of strings", value),
        }
    }

    /// A size such as `"4MiB"`, in bytes.
    pub fn bytes(&self, key: &str) -> Option<usize> {
        let value = self.value(key)?;
        match value.as_str().and_then(parse_bytes).filter(|bytes| *bytes > 0) {
            Some(bytes) => Some(bytes),
            None => self.mismatch(key, "a size such as \"512KiB\" or \"4MiB\"", value),
        }
    }

    /// A duration such as `"20ms"`.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        let value = self.value(key)?;
        match value.as_str().and_then(parse_duration) {
            Some(duration) => Some(duration),
            None => self.mismatch(key, "a duration such as \"20ms\", \"5s\" or \"1h\"", value),
        }
    }

    /// One word out of `words`, as its index.
    pub fn choice(&self, key: &str, words: &[&str]) -> Option<usize> {
        let word = self.string(key)?;
        let found = words.iter().position(|candidate| *candidate == word);
        if found.is_none() {
            let what = format!("{} is \"{word}\"; write {}", self.quoted(key), listing(words.iter().copied()));
            self.fault(key, what);
        }
        found
    }

    /// The value of a key if it is a string; without a fault if it is not.
    pub fn word(&self, key: &str) -> Option<&'a str> {
        self.value(key)?.as_str()
    }

    /// Whether the value of a key is an empty list.
    pub fn is_empty_list(&self, key: &str) -> bool {
        self.value(key).and_then(DeValue::as_array).is_some_and(|list| list.is_empty())
    }

    /// Whether the value of a key is a table.
    pub fn is_table(&self, key: &str) -> bool {
        self.value(key).is_some_and(DeValue::is_table)
    }

    fn value(&self, key: &str) -> Option<&'a DeValue<'a>> {
        self.table.get(key).map(Spanned::get_ref)
    }

    fn mismatch<T>(&self, key: &str, wanted: &str, got: &DeValue<'_>) -> Option<T> {
        let shown = match got {
            DeValue::String(text) => format!("\"{text}\""),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            other => format!("a {}", other.type_str()),
        };
        self.fault(key, format!("{} must be {wanted}, but is {shown}", self.quoted(key)));
        None
    }

    fn dotted(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn quoted(&self, key: &str) -> String {
        format!("`{}`", self.dotted(key))
    }
}

fn string_list(value: &DeValue<'_>) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}

fn parse_bytes(text: &str) -> Option<usize> {
    let (number, unit) = split_unit(text.trim())?;
    let factor: u64 = match unit {
        "B" | "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    usize::try_from(number.checked_mul(factor)?).ok()
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text.trim())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    match unit {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3_600),
        "d" => seconds(86_400),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unknown_keys_are_all_named_with_their_lines() {
        let document = Document::new("x.toml", "a = 1\nbatsh = 2\n[deep]\nother = 3\n");
        let faults = document
            .read(|root| {
                root.allow(&["batch", "a"]);
                Some(())
            })
            .unwrap_err();
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(shown[0], "x.toml:2: `batsh` is not a known key; did you mean `batch`?");
        assert_eq!(shown[1], "x.toml:3: `deep` is not a known key; known here: batch or a");
    }

    #[test]
    fn sizes_and_durations_are_read_with_their_units() {
        let document = Document::new("x.toml", "b = \"4MiB\"\nd = \"20ms\"\nbad = \"4 parsecs\"\n");
        let faults = document
            .read(|root| {
                assert_eq!(root.bytes("b"), Some(4 << 20));
                assert_eq!(root.duration("d"), Some(Duration::from_millis(20)));
                assert_eq!(root.duration("bad"), None);
                Some(())
            })
            .unwrap_err();
        assert!(faults[0].message.contains("`bad` must be a duration"), "{faults:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,300}") {
            let _ = Document::new("x", text).read(|root| {
                root.allow(&["a"]);
                Some(())
            });
        }

        #[test]
        fn no_size_or_duration_makes_the_parser_panic(text in "[0-9]{0,30}[a-zA-Z]{0,4}") {
            let _ = parse_bytes(&text);
            let _ = parse_duration(&text);
        }
    }
}
