//! The rules that hold the modules apart, read off the source: who may import whom, and what every file owes its reader.
//!
//! The table is the rule; `docs/ARCHITECTURE.md` gives the reasons. A fault names the line and the rule it breaks.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Modules from the ground up. A module may import what stands on a lower line, and within its own line only what
/// [`WITHIN`] lists: so roles never import each other.
const LAYERS: &[&[&str]] = &[
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
    (
        "sqlx",
        &["store", "projection", "consume"],
        "statements on Postgres: platform tables, Postgres as judge of SQL, a handler's reads",
    ),
    ("tokio_postgres", &["serve"], "reads are pipelined, and nothing else is"),
    ("apache_avro", &["schema"], "one place for the format and its traps"),
    ("axum", &["http", "ingest", "serve", "app"], "what listens"),
    ("sqlparser", &["projection"], "one place that judges SQL"),
    ("figment", &["config"], "one place that knows where values come from"),
    ("clap", &["cli", "app"], "the command line"),
];

/// A file has at most so many lines: longer ones hold two things.
const MAX_LINES: usize = 500;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` whose name ends in `extension`, in order of their paths.
pub fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, extension, found);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), extension, &mut found);
    found.sort();
    found
}

/// One source file, as far as these rules look.
struct Source {
    path: PathBuf,
    /// Path of the module, from the crate: `["consume", "worker"]`.
    module: Vec<String>,
    text: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq)]
struct Token {
    line: usize,
    /// An identifier, a string's contents with `"` before them, or one character.
    text: String,
}

impl Source {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(root().join("src")).unwrap().with_extension("");
        let mut module: Vec<String> = relative.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        if module.last().is_some_and(|name| name == "mod") {
            module.pop();
        }
        let shown = path.strip_prefix(root()).unwrap().to_owned();
        let tokens = without_tests(tokens(&text));
        Self { path: shown, module, text, tokens }
    }

    /// Whether the file is compiled for tests only.
    fn is_test(&self) -> bool {
        self.module.iter().any(|name| name == "testing" || name == "tests" || name.ends_with("_tests"))
    }

    fn area(&self) -> &str {
        &self.module[0]
    }

    /// Modules of this crate that the file names by `crate::` or `super::`, with the lines.
    fn imports(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let base = match self.tokens[at].text.as_str() {
                "crate" => Vec::new(),
                "super" => self.module[..self.module.len() - 1].to_vec(),
                _ => {
                    at += 1;
                    continue;
                }
            };
            at = self.names(at + 1, base, &mut found);
        }
        found
    }

    /// Follows a path, and each branch of a braced one, until the first module below the crate is known.
    fn names(&self, mut at: usize, mut base: Vec<String>, found: &mut Vec<(usize, String)>) -> usize {
        let text = |at: usize| self.tokens.get(at).map_or("", |t| t.text.as_str());
        while text(at) == ":" && text(at + 1) == ":" {
            at += 2;
            match text(at) {
                "super" => {
                    base.pop();
                    at += 1;
                }
                "{" => {
                    at += 1;
                    while text(at) != "}" && at < self.tokens.len() {
                        at = if base.is_empty() || text(at) == "super" {
                            self.branch(at, base.clone(), found)
                        } else {
                            self.skip_branch(at)
                        };
                        at += usize::from(text(at) == ",");
                    }
                    at += 1;
                    break;
                }
                name => {
                    if base.is_empty() {
                        found.push((self.tokens[at].line, name.to_owned()));
                    }
                    base.push(name.to_owned());
                    at += 1;
                }
            }
        }
        if let Some(area) = base.first().filter(|area| *area != self.area()) {
            found.push((self.tokens[at.min(self.tokens.len()) - 1].line, area.clone()));
        }
        at
    }

    fn branch(&self, at: usize, mut base: Vec<String>, found: &mut Vec<(usize, String)>) -> usize {
        let name = &self.tokens[at].text;
        if name == "super" {
            base.pop();
        } else {
            found.push((self.tokens[at].line, name.clone()));
            base.push(name.clone());
        }
        let end = self.names(at + 1, base, found);
        // `x as y`, `*`
        self.skip_branch(end)
    }

    /// The place of the comma or brace that ends the branch at `at`.
    fn skip_branch(&self, mut at: usize) -> usize {
        let mut depth = 0;
        while let Some(token) = self.tokens.get(at) {
            match token.text.as_str() {
                "{" => depth += 1,
                "}" if depth == 0 => break,
                "}" => depth -= 1,
                "," if depth == 0 => break,
                _ => {}
            }
            at += 1;
        }
        at
    }
}

/// Everything before the tests that close a file.
fn without_tests(mut tokens: Vec<Token>) -> Vec<Token> {
    let is = |tokens: &[Token], at: usize, wanted: &[&str]| {
        wanted.iter().enumerate().all(|(i, w)| tokens.get(at + i).is_some_and(|t| t.text == *w))
    };
    let inline = (0..tokens.len())
        .find(|at| is(&tokens, *at, &["#", "[", "cfg", "(", "test", ")", "]", "mod"]) && is(&tokens, *at + 9, &["{"]));
    tokens.truncate(inline.unwrap_or(tokens.len()));
    tokens
}

/// Just enough of Rust's lexical grammar: comments vanish, strings become one token.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    while at < chars.len() {
        let start = at;
        let rest = &chars[at..];
        let token = match rest {
            ['/', '/', ..] => {
                at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
                None
            }
            ['/', '*', ..] => {
                at += block_comment(rest);
                None
            }
            ['"', ..] | ['b', '"', ..] => {
                at += string(rest);
                Some(format!("\"{}", rest[1..at - start].iter().collect::<String>()))
            }
            ['r', ..] | ['b', 'r', ..] if raw_string(rest).is_some() => {
                at += raw_string(rest).unwrap_or(1);
                Some("\"".to_owned())
            }
            ['\'', '\\', ..] => {
                at += 4 + rest[3..].iter().position(|c| *c == '\'').unwrap_or(0);
                None
            }
            ['\'', _, '\'', ..] => {
                at += 3;
                None
            }
            [c, ..] if c.is_alphanumeric() || *c == '_' => {
                at += rest.iter().position(|c| !c.is_alphanumeric() && *c != '_').unwrap_or(rest.len());
                Some(rest[..at - start].iter().collect())
            }
            [c, ..] => {
                at += 1;
                (!c.is_whitespace()).then(|| c.to_string())
            }
            [] => None,
        };
        found.extend(token.map(|text| Token { line, text }));
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn block_comment(rest: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1 + rest.iter().position(|c| *c == '"').unwrap_or(0);
    while at < rest.len() && rest[at] != '"' {
        at += 1 + usize::from(rest[at] == '\\');
    }
    (at + 1).min(rest.len())
}

/// Length of the raw string that begins here, if one does.
fn raw_string(rest: &[char]) -> Option<usize> {
    let prefix = usize::from(rest[0] == 'b');
    let rest = &rest[prefix..];
    (rest.first() == Some(&'r')).then_some(())?;
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    (rest.get(1 + hashes) == Some(&'"')).then_some(())?;
    let mut at = hashes + 2;
    while at < rest.len() {
        if rest[at] == '"' && rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return Some(prefix + at + 1 + hashes);
        }
        at += 1;
    }
    None
}

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
    assert_none(&faults, "files");
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
