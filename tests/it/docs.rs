//! Documentation and code held together: what is generated is up to date, what is linked is there, what is typed exists.
//!
//! `UPDATE_DOCS=1 cargo test --test it docs` writes the generated pages anew.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use axum::http::Uri;
use clap::CommandFactory;

use crate::architecture::{files, root};

/// The generated page is the one in the repository; with `UPDATE_DOCS=1` it becomes it.
fn assert_generated(name: &str, text: &str) {
    let path = root().join("docs").join(name);
    if std::env::var_os("UPDATE_DOCS").is_some_and(|v| v == "1") {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        found == text,
        "docs/{name} is not what the code says (first at line {}): UPDATE_DOCS=1 cargo test --test it docs",
        differs.map_or(found.lines().count().min(text.lines().count()), |at| at) + 1
    );
}

#[test]
fn configuration_page_is_the_codes() {
    assert_generated("configuration.md", &millpond::config::keys::reference());
}

/// Appends a section of the error catalogue.
macro_rules! section {
    ($text:expr, $title:literal, $catalogue:expr) => {
        writeln!($text, "## {}\n", $title).unwrap();
        for kind in $catalogue {
            writeln!($text, "### {}: {} ({})\n", kind.code, kind.title, kind.status).unwrap();
            writeln!($text, "{}\n", sentence(kind.meaning)).unwrap();
            writeln!($text, "**What to do:** {}\n", sentence(kind.remedy)).unwrap();
        }
    };
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    // Names of headers and commands keep their form.
    let first = letters.next().map_or(String::new(), |c| c.to_uppercase().collect());
    format!("{first}{}{}", letters.as_str(), if text.ends_with('.') { "" } else { "." })
}

#[test]
fn error_catalogue_is_the_codes() {
    let mut text = String::from(
        "# Errors\n\nGenerated from the code; do not edit. `millpond explain CODE` prints the same on a terminal.\n\n\
         Every error that leaves over HTTP is `application/problem+json` (RFC 9457): `type`, `title`, `status`, `code`, \
         `detail`, and where it helps more. The code is stable, the detail is for people. Halts of projections \
         are in the [runbook](runbook/halted.md), classes of dead letters in [Operating](operating.md), and `millpond explain` \
         has those too.\n\n\
         Requests that are no requests have answers without a body, and end their connection: 400 for what is not HTTP (a raw \
         `\"`, `<`, `>` or space in the URI among it: write `%22`, `%3C`, `%3E`, `%20`), 431 \
         for a head above `http.max_head` or of more than 100 fields, 414 for a URI above 64 KiB where `http.max_head` \
         lets it in. A head that comes too slowly gets no answer. What breaks the rules of HTTP/2 ends the stream or the \
         connection as RFC 9113 has it.\n\n",
    );
    section!(text, "Every listener", millpond::http::problem::CATALOGUE);
    section!(text, "Posting", millpond::ingest::problems::CATALOGUE);
    section!(text, "Reading", millpond::serve::problem::CATALOGUE);
    assert_generated("errors.md", &(text.trim_end().to_owned() + "\n"));
}

/// A metric as it is declared in `src/telemetry/metrics`.
#[derive(Debug)]
struct Metric {
    kind: String,
    name: String,
    help: String,
    labels: Vec<String>,
}

/// The declarations of one file: `NAME: Kind = "name", "help" [, labels or buckets];`
fn metrics_of(source: &str) -> Vec<Metric> {
    let body = source.split_once("metrics! {").map_or("", |(_, body)| body);
    let mut found = Vec::new();
    let mut rest = body;
    while let Some((head, tail)) = rest.split_once(" = \"") {
        let kind = head.rsplit(": ").next().unwrap_or_default().trim().to_owned();
        let (name, tail) = tail.split_once('"').unwrap();
        let (help, tail) = tail.split_once('"').unwrap().1.split_once('"').unwrap();
        let (extra, tail) = tail.split_once(';').unwrap();
        let labels = extra.split_once('[').and_then(|(_, list)| list.split_once(']')).map_or("", |(list, _)| list);
        let labels =
            labels.split(',').map(|l| l.trim().trim_matches('"').to_owned()).filter(|l| !l.is_empty()).collect();
        found.push(Metric { kind, name: name.to_owned(), help: help.to_owned(), labels });
        rest = tail;
    }
    found
}

#[test]
fn metrics_page_is_the_codes() {
    let mut text = String::from(
        "# Metrics\n\nGenerated from the code; do not edit. `GET /metrics` on every listener gives them in Prometheus' text \
         format; one appears with its first value. What to watch is in [Operating](operating.md).\n\n\
         Names are `millpond_<area>_<thing>_<base unit>[_total]`; durations are in seconds, sizes in bytes. Labels come \
         from bounded sets, never from ids, keys or error texts.\n",
    );
    for path in files("src/telemetry/metrics", "rs") {
        let source = fs::read_to_string(&path).unwrap();
        let metrics = metrics_of(&source);
        if path.ends_with("mod.rs") {
            continue;
        }
        assert!(!metrics.is_empty(), "{} declares nothing", path.display());
        let area = path.file_stem().unwrap().to_string_lossy();
        writeln!(text, "\n## {area}\n\n| metric | kind | labels | |\n|---|---|---|---|").unwrap();
        for Metric { kind, name, help, labels } in metrics {
            assert!(name.starts_with("millpond_"), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                kind.contains("Counter"),
                "{name}: counters end in _total, others do not"
            );
            let kind = ["Counter", "Gauge", "Histogram"].into_iter().find(|k| kind.contains(k)).unwrap().to_lowercase();
            let labels: Vec<String> = labels.iter().map(|l| format!("`{l}`")).collect();
            writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(" ")).unwrap();
        }
    }
    assert_generated("metrics.md", &text);
}

/// Every page of the repository that people read.
fn pages() -> Vec<(String, String)> {
    let mut paths = files("docs", "md");
    for folder in ["consumers", "producers", "data"] {
        paths.extend(files(folder, "md"));
    }
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        paths.push(root().join(name));
    }
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, text)
        })
        .collect()
}

/// The anchors that a page's headings make, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The lines outside of code blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        })
        .collect()
}

/// The lines of code blocks for a shell, and the code spans of the prose.
fn typed(text: &str) -> Vec<String> {
    let mut language: Option<String> = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            language = if language.is_some() { None } else { Some(fence.trim().to_owned()) };
        } else if let Some(language) = &language {
            if ["sh", "console", ""].contains(&language.as_str()) {
                found.push(line.trim_start().trim_start_matches("$ ").to_owned());
            }
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let mut faults = Vec::new();
    for (name, text) in &pages {
        for line in prose(text) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = match file {
                    "" => root().join(name),
                    _ => root().join(name).parent().unwrap().join(file),
                };
                if !path.exists() {
                    faults.push(format!("{name}: {target} is not there"));
                } else if !anchor.is_empty() && !anchors(&fs::read_to_string(&path).unwrap()).contains(anchor) {
                    faults.push(format!("{name}: {target} has no such heading"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn commands_named_in_pages_exist() {
    let tree = millpond::cli::Arguments::command();
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile.lines().filter_map(|l| Some(l.split_once(':')?.0)).collect();
    let mut faults = Vec::new();
    for (name, text) in pages() {
        for line in typed(&text) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["make", target, ..]
                    if target.starts_with(|c: char| c.is_ascii_lowercase()) && !targets.contains(target) =>
                {
                    faults.push(format!("{name}: `{line}`: the Makefile has no {target}"));
                }
                ["millpond", ref rest @ ..] => {
                    if let Err(word) = walk(&tree, rest) {
                        faults.push(format!("{name}: `{line}`: there is no `{word}`"));
                    }
                }
                _ => {}
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Follows subcommands and checks flags, until something that is a value.
fn walk<'a>(tree: &clap::Command, words: &[&'a str]) -> Result<(), &'a str> {
    let mut at = tree;
    let mut arguments =
        tree.get_arguments().map(|a| a.get_long().unwrap_or_default().to_owned()).collect::<BTreeSet<_>>();
    arguments.extend(["help".to_owned(), "version".to_owned()]);
    for (i, word) in words.iter().enumerate() {
        if ["#", "|", ">", "&&", "&", ";"].contains(word) || word.starts_with('#') {
            break;
        }
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or_default().trim_matches(|c: char| ['[', ']', ')'].contains(&c));
            if !flag.is_empty() && !arguments.contains(flag) {
                return Err(word);
            }
            continue;
        }
        if let Some(next) = at.find_subcommand(word) {
            at = next;
            arguments.extend(at.get_arguments().map(|a| a.get_long().unwrap_or_default().to_owned()));
        } else if at.has_subcommands()
            && i == words.iter().position(|w| w == word).unwrap_or(i)
            && at.get_positionals().count() == 0
        {
            // A word in the place of a subcommand: `…` and NAMES stand for any.
            let placeholder =
                word.starts_with('…') || word.chars().all(|c| c.is_ascii_uppercase() || c == '|' || c == '.');
            if !placeholder && !word.contains('|') {
                return Err(word);
            }
            break;
        }
    }
    Ok(())
}

/// The URL that a line tells curl to ask for, as it comes out of the shell's quotes.
fn curl_target(line: &str) -> Option<String> {
    let words = line.split_once("curl ")?.1;
    let at = ["localhost:", "http://", "https://"].iter().filter_map(|start| words.find(start)).min()?;
    let quote = words[..at].chars().next_back().filter(|c| ['\'', '"'].contains(c));
    let url = words[at..].split(|c: char| quote.map_or(c.is_whitespace() || c == '`', |quote| c == quote)).next()?;
    // curl supplies the scheme; without one `Uri` takes no path.
    Some(if url.contains("://") { url.to_owned() } else { format!("http://{url}") })
}

#[test]
fn targets_of_curl_lines_are_requests_as_typed() {
    let is_request = |target: &str| target.parse::<Uri>().is_ok();
    for (list, expected) in [(r#"JFK,"a,b""#, false), ("JFK,%22a,b%22", true)] {
        let line = format!("curl -g 'localhost:8080/v1/views/flights?origin=in.({list})' -i");
        assert_eq!(is_request(&curl_target(&line).unwrap()), expected, "{line}");
    }

    let (mut seen, mut faults) = (0, Vec::new());
    let mut look = |page: &str, target: &str| {
        seen += 1;
        if !is_request(target) {
            faults.push(format!("{page}: {target}"));
        }
    };
    for (name, text) in pages() {
        text.lines().filter_map(curl_target).for_each(|target| look(&name, &target));
    }
    // Filters stand in a table too, to be typed behind a `?`.
    let reading = fs::read_to_string(root().join("docs/reading.md")).unwrap();
    for row in reading.lines().filter(|line| line.starts_with("| `")) {
        let filters = row.split('`').skip(1).step_by(2).filter(|span| span.contains('='));
        filters.for_each(|filter| look("docs/reading.md", &format!("/v1/views/flights?{filter}")));
    }
    assert!(seen > 25, "the examples were not found: {seen}");
    assert!(faults.is_empty(), "these characters must be percent-encoded:\n{}", faults.join("\n"));
}

#[test]
fn every_halt_is_in_the_runbook() {
    let sources = ["src/consume/halts.rs", "src/consume/compare.rs"];
    let text: String = sources.map(|source| fs::read_to_string(root().join(source)).unwrap()).concat();
    let text: String = text.split_whitespace().collect();
    let marks = ["returnhalt(\"", "code:\""];
    let codes: BTreeSet<&str> = marks
        .iter()
        .flat_map(|mark| text.split(mark).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)))
        .collect();
    assert!(codes.len() >= 7, "the halts were not found: {codes:?}");
    let page = fs::read_to_string(root().join("docs/runbook/halted.md")).unwrap();
    for code in codes {
        assert!(
            page.contains(&format!("#### `{code}`")),
            "docs/runbook/halted.md has no heading for the halt `{code}`"
        );
    }
}

#[test]
fn every_page_of_the_runbook_says_what_a_person_needs_and_is_in_its_index() {
    let index = fs::read_to_string(root().join("docs/runbook/README.md")).unwrap();
    for path in files("docs/runbook", "md") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "README.md" {
            continue;
        }
        assert!(index.contains(&format!("]({name})")), "docs/runbook/README.md does not list {name}");
        let page = fs::read_to_string(&path).unwrap().to_lowercase();
        for part in ["what you see", "what to type", "what comes back by itself", "what not to do", "how to be sure"] {
            let told = page.contains(part) || (part == "what to type" && page.contains("what ends it"));
            assert!(told, "docs/runbook/{name} does not say {part}");
        }
    }
}

#[test]
fn every_decision_is_in_the_index() {
    let index = fs::read_to_string(root().join("docs/adr/README.md")).unwrap();
    for path in files("docs/adr", "md") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            name == "README.md" || index.contains(&format!("]({name})")),
            "docs/adr/README.md does not list {name}"
        );
    }
}

#[test]
fn the_promise_is_the_same_everywhere() {
    let promise = "A 202 means the event is on every in-sync replica of its Kafka partition. Each accepted event takes effect exactly \
                   once in every projection, in order per key. A read that carries the position of a write never shows the time before \
                   it. A rebuild never takes a projection offline.";
    let flat = |path: &Path| {
        let text = fs::read_to_string(path).unwrap().replace(['>', '*'], " ");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(
        flat(&root().join("README.md")).contains(&flat_text(promise)),
        "README.md does not hold the promise word for word"
    );
}

fn flat_text(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
