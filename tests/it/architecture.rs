//! The rules that hold the modules apart, read off the source: who may import whom, and what every file owes its reader.
//!
//! The table is the rule; `docs/ARCHITECTURE.md` gives the reasons. A fault names the line and the rule it breaks.

mod source;

use std::{fmt::Write as _, fs, path::PathBuf};

use source::{Source, tokens};
pub use source::{files, root};

/// Modules from the ground up. A module may import what stands on a lower line, and within its own line only what
/// [`WITHIN`] lists: so roles never import each other.
const LAYERS: &[&[&str]] = &[
    &["planted"],
    &["domain"],
    &["telemetry", "schema", "dev"],
    &["spec"],
    &["config", "kafka", "store", "http", "projection", "cli"],
    &["ingest", "consume", "publish", "serve"],
    &["app"],
    &["lib"],
    &["main"],
];

/// Imports within one layer.
const WITHIN: &[(&str, &str)] = &[];

/// Imports that the layers would allow, and something else forbids.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("ingest", "store", "a slow database must never slow a write"),
    ("ingest", "projection", "a slow database must never slow a write"),
    ("serve", "kafka", "a lost broker must never stop a read"),
    ("http", "spec", "a listener knows nothing of what its roles serve"),
    ("http", "schema", "a listener knows nothing of what its roles serve"),
    ("kafka", "schema", "the log carries bytes; what they mean is for the roles to say"),
    ("kafka", "spec", "folders are read by the composition root"),
    ("store", "spec", "folders are read by the composition root"),
];

/// Libraries that only some modules may name.
const LIBRARIES: &[(&str, &[&str], &str)] = &[
    ("rdkafka", &["kafka"], "one place for the client's settings and its errors"),
    ("sqlx", &["store", "projection"], "statements on Postgres: platform tables, Postgres as judge of SQL"),
    ("tokio_postgres", &["serve", "store"], "what has to be fast: reads are pipelined, batches are not held up"),
    ("apache_avro", &["schema"], "one place for the format and its traps"),
    ("axum", &["http", "ingest", "serve", "app"], "what listens"),
    ("sqlparser", &["projection"], "one place that judges SQL"),
    ("figment", &["config"], "one place that knows where values come from"),
    ("clap", &["cli", "app"], "the command line"),
];

/// A file has at most so many lines: longer ones hold two things.
const MAX_LINES: usize = 500;

fn sources() -> Vec<Source> {
    files("src", "rs").into_iter().map(Source::read).collect()
}

fn layer(area: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&area))
}

/// Why `area` may not import `other`; none when it may.
fn against(area: &str, other: &str) -> Option<String> {
    let (from, to) = (layer(area)?, layer(other)?);
    if let Some((.., why)) = FORBIDDEN.iter().find(|(a, b, _)| (*a, *b) == (area, other)) {
        return Some(format!("`{area}` must not import `{other}`: {why}"));
    }
    if from == to && !WITHIN.contains(&(area, other)) {
        return Some(format!("`{area}` and `{other}` are of one layer, and neither imports the other"));
    }
    (from < to).then(|| format!("`{area}` is below `{other}`: imports point down"))
}

fn assert_none(faults: &[String], rule: &str) {
    let list = faults.iter().fold(String::new(), |mut list, fault| {
        let _ = writeln!(list, "  {fault}");
        list
    });
    assert!(faults.is_empty(), "{rule}:\n{list}");
}

#[test]
fn every_module_has_its_layer() {
    let homeless: Vec<String> = sources()
        .iter()
        .filter(|s| layer(s.area()).is_none())
        .map(|s| format!("{}: `{}` is in no layer; add it to LAYERS", s.path.display(), s.area()))
        .collect();
    assert_none(&homeless, "a top-level module belongs to a layer");
}

#[test]
fn imports_point_down() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test()) {
        for (line, other) in source.imports() {
            if other == source.area() {
                continue;
            }
            if let Some(why) = against(source.area(), &other) {
                faults.push(format!("{}:{line}: {why}", source.path.display()));
            }
        }
    }
    faults.dedup();
    assert_none(&faults, "imports that the layers do not allow");
}

#[test]
fn libraries_are_named_where_they_belong() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test()) {
        for (library, areas, why) in LIBRARIES {
            if areas.contains(&source.area()) {
                continue;
            }
            let named = source.tokens.windows(2).find(|pair| pair[0].text == *library && pair[1].text != ".");
            if let Some(pair) = named {
                let areas = areas.join(", ");
                faults.push(format!(
                    "{}:{}: `{library}` belongs in {areas}: {why}",
                    source.path.display(),
                    pair[0].line
                ));
            }
        }
    }
    assert_none(&faults, "libraries outside of their modules");
}

#[test]
fn ingest_reaches_postgres_through_no_module() {
    // Transitively: whatever ingest imports may not import a client of Postgres either.
    let all = sources();
    let mut reached = vec!["ingest".to_owned()];
    let mut next = 0;
    while next < reached.len() {
        let area = reached[next].clone();
        next += 1;
        for source in all.iter().filter(|s| s.area() == area && !s.is_test()) {
            for (_, other) in source.imports() {
                if layer(&other).is_some() && !reached.contains(&other) {
                    reached.push(other);
                }
            }
        }
    }
    for forbidden in ["store", "projection", "consume", "serve"] {
        assert!(!reached.contains(&forbidden.to_owned()), "ingest reaches {forbidden} through {reached:?}");
    }
}

#[test]
fn metrics_are_declared_in_telemetry_and_used_outside() {
    let all = sources();
    let declared: Vec<(String, String)> = all
        .iter()
        .filter(|s| s.path.starts_with("src/telemetry/metrics") && !s.path.ends_with("mod.rs"))
        .flat_map(|s| {
            let area = s.module.last().cloned().unwrap_or_default();
            let names = s.tokens.windows(2).filter(|pair| pair[1].text == ":" && is_constant(&pair[0].text));
            names.map(move |pair| (area.clone(), pair[0].text.clone())).collect::<Vec<_>>()
        })
        .collect();
    assert!(declared.len() > 20, "the declarations were not found: {declared:?}");
    let mut faults = Vec::new();
    for (area, name) in declared {
        let used = |s: &Source| !s.path.starts_with("src/telemetry") && s.tokens.iter().any(|t| t.text == name);
        if !all.iter().any(used) {
            faults.push(format!("src/telemetry/metrics/{area}.rs: {name} is declared and never set"));
        }
    }
    for source in all.iter().filter(|s| s.area() != "telemetry") {
        for token in
            source.tokens.iter().filter(|t| t.text.starts_with("register_int") || t.text.starts_with("register_hist"))
        {
            faults.push(format!(
                "{}:{}: metrics are declared in src/telemetry/metrics",
                source.path.display(),
                token.line
            ));
        }
    }
    assert_none(&faults, "metrics");
}

fn is_constant(text: &str) -> bool {
    text.len() > 2 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let mut faults = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines >= MAX_LINES {
            faults.push(format!(
                "{}: {lines} lines; below {MAX_LINES}, please: it holds two things",
                source.path.display()
            ));
        }
        if !source.is_test() && !source.text.starts_with("//!") {
            faults.push(format!(
                "{}: begins without `//!`: say what it owns and what it must not do",
                source.path.display()
            ));
        }
    }
    for path in files("tests", "rs") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines >= MAX_LINES {
            faults.push(format!("{}: {lines} lines; below {MAX_LINES}, please", path.display()));
        }
    }
    assert_none(&faults, "files");
}

#[test]
fn every_planted_bug_has_its_place_and_nothing_ordinary_turns_it_on() {
    let all = sources();
    let planted = |s: &&Source| s.area() != "planted";
    let placed = |bug: &millpond::planted::Bug| {
        let site = format!("Bug::{bug:?}");
        all.iter().filter(planted).any(|s| s.text.contains(&site))
    };
    let without: Vec<String> = millpond::planted::Bug::ALL
        .iter()
        .filter(|bug| !placed(bug))
        .map(|bug| format!("src/planted.rs: `{bug:?}` is planted nowhere"))
        .collect();
    assert_none(&without, "planted bugs");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let default = manifest.lines().find(|line| line.starts_with("default = ")).unwrap();
    assert!(!default.contains("planted"), "an ordinary build carries no bugs: {default}");
}

#[test]
fn nothing_panics_on_purpose() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test()) {
        for window in source.tokens.windows(4) {
            let [dot, name, open, argument] = window else { continue };
            if dot.text != "." || open.text != "(" {
                continue;
            }
            let message = argument.text.strip_prefix('"');
            let bad = match name.text.as_str() {
                "unwrap" => argument.text == ")",
                "expect" => message.is_some_and(|m| !m.starts_with("invariant: ")),
                _ => false,
            };
            if bad {
                let what = "answer the error, or `expect(\"invariant: …\")` where none can be";
                faults.push(format!("{}:{}: `{}`: {what}", source.path.display(), name.line, name.text));
            }
        }
    }
    assert_none(&faults, "panics outside of tests");
}

#[test]
fn handlers_shipped_here_use_what_anyone_can() {
    let mut faults = Vec::new();
    for path in files("consumers", "rs") {
        let text = fs::read_to_string(&path).unwrap();
        for pair in tokens(&text).windows(4).filter(|w| w[0].text == "millpond" && w[1].text == ":") {
            if pair[3].text != "handler" {
                faults.push(format!("{}:{}: only millpond::handler is for handlers", path.display(), pair[0].line));
            }
        }
    }
    assert_none(&faults, "handlers");
}

#[test]
fn reader_of_sources_sees_through_comments_strings_and_braces() {
    let text = "// crate::a\nuse crate::{b::{self, c}, d as e};\nlet s = \"crate::f\"; /* crate::g */ 'x'; r#\"crate::h\"#; super::i::j();";
    let source = Source {
        path: PathBuf::new(),
        module: vec!["k".into(), "l".into(), "m".into()],
        text: text.into(),
        tokens: tokens(text),
    };
    let mut names: Vec<String> = source.imports().into_iter().map(|(_, name)| name).collect();
    names.dedup();
    assert_eq!(names, ["b", "d"]);
    let shallow = Source { module: vec!["k".into()], ..source };
    let mut names: Vec<String> = shallow.imports().into_iter().map(|(_, name)| name).collect();
    names.dedup();
    assert_eq!(names, ["b", "d", "i"]);
    assert_eq!(
        against("ingest", "serve").as_deref(),
        Some("`ingest` and `serve` are of one layer, and neither imports the other")
    );
    assert!(
        against("serve", "kafka").is_some() && against("domain", "app").is_some() && against("app", "kafka").is_none()
    );
}
