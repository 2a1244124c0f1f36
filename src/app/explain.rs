//! `millpond explain`: what a code means and what to do.
//!
//! Errors that leave over HTTP are explained by their own catalogues; halts by a page of the runbook and classes of dead
//! letters by that for operators, which are a part of the binary, so that there is one text of each.

use std::process::ExitCode;

use anyhow::bail;

use crate::{cli::say::say, domain::nearest, http::Kind, ingest};

const HALTS: &str = include_str!("../../docs/runbook/halted.md");
const OPERATING: &str = include_str!("../../docs/operating.md");
/// The heading of the page below which classes are in a table.
const DEAD_LETTERS: &str = "\n## Dead letters\n";

/// Something of the runbook.
#[derive(Debug)]
struct Entry {
    code: &'static str,
    /// What it is a code of.
    kind: &'static str,
    text: String,
}

/// `millpond explain [CODE]`
pub fn explain(code: Option<&str>) -> anyhow::Result<ExitCode> {
    let (errors, entries) = (catalogue(), runbook());
    let wanted = |known: &str| code.is_none_or(|code| known.eq_ignore_ascii_case(code));
    let known = || errors.iter().map(|kind| kind.code).chain(entries.iter().map(|entry| entry.code));
    if !known().any(wanted) {
        let code = code.unwrap_or_default();
        match nearest(code, known()) {
            Some(near) => bail!("there is no code {code}; did you mean {near}?"),
            None => bail!("there is no code {code}; `millpond explain` lists all"),
        }
    }
    for kind in errors.iter().filter(|kind| wanted(kind.code)) {
        say!("{} ({}) {}\n    {}\n    What to do: {}\n", kind.code, kind.status, kind.title, kind.meaning, kind.remedy);
    }
    for entry in entries.iter().filter(|entry| wanted(entry.code)) {
        say!("{} ({})\n{}\n", entry.code, entry.kind, entry.text);
    }
    Ok(ExitCode::SUCCESS)
}

/// Every error that can leave over HTTP.
fn catalogue() -> Vec<&'static Kind> {
    let mut all: Vec<&'static Kind> =
        crate::http::problem::CATALOGUE.iter().chain(ingest::problems::CATALOGUE).copied().collect();
    all.extend(crate::serve::problem::CATALOGUE.iter().copied());
    all.sort_by_key(|kind| kind.code);
    all
}

/// The halts and the classes of dead letters.
fn runbook() -> Vec<Entry> {
    let mut entries: Vec<Entry> = HALTS.split("\n#### `").skip(1).filter_map(halt).collect();
    let classes = OPERATING.split_once(DEAD_LETTERS).map_or("", |(_, rest)| rest);
    let classes = classes.split("\n## ").next().unwrap_or_default();
    entries.extend(classes.lines().filter_map(class));
    entries
}

/// A section that begins with its code.
fn halt(section: &'static str) -> Option<Entry> {
    let (code, rest) = section.split_once("`\n")?;
    let body = rest.split("\n## ").next().unwrap_or_default().trim();
    Some(Entry { code, kind: "a projection has halted", text: indented(body) })
}

/// A row of the table: class, meaning, usual cause.
fn class(row: &'static str) -> Option<Entry> {
    let mut cells = row.strip_prefix("| `")?.split('|').map(str::trim);
    let code = cells.next()?.trim_end_matches('`');
    let text = format!("{}\n\nUsual cause: {}", cells.next()?, cells.next()?);
    Some(Entry { code, kind: "a class of dead letters", text: indented(&text) })
}

/// Markdown for a terminal: links as their words, four spaces before each line.
fn indented(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, (label, after))) =
        rest.split_once('[').and_then(|(before, link)| Some((before, link.split_once("](")?)))
    {
        text += before;
        text += label;
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    text += rest;
    let lines = text.lines().map(|line| if line.is_empty() { String::new() } else { format!("    {line}") });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_halt_and_every_class_is_explained() {
        let entries = runbook();
        let codes: Vec<&str> = entries.iter().map(|entry| entry.code).collect();
        let logs = ["log_is_shorter", "log_was_cut", "log_is_another", "partitions_added"];
        for code in ["poison", "statements_do_not_fit", "breaker", "panicked", "handler_is_wrong"].iter().chain(&logs) {
            assert!(codes.contains(code), "{codes:?}");
        }
        assert_eq!(codes[codes.len() - 5..], ["decode", "refused_by_postgres", "handler", "crash", "id_conflict"]);
        for entry in entries {
            assert!(entry.text.len() > 60 && !entry.text.contains("]("), "{entry:?}");
        }
    }

    #[test]
    fn code_that_is_not_there_is_answered_with_the_nearest() {
        assert_eq!(explain(Some("poisson")).unwrap_err().to_string(), "there is no code poisson; did you mean poison?");
        assert!(explain(Some("mp1009")).is_ok() && explain(Some("Breaker")).is_ok() && explain(None).is_ok());
    }

    #[test]
    fn links_are_shown_as_their_words() {
        assert_eq!(indented("see [A page](#a-page), then\n\n1. `x`"), "    see A page, then\n\n    1. `x`");
    }
}
