//! Source files, as far as the rules of the architecture look at them: what a file imports, and its tokens.

use std::{
    fs,
    path::{Path, PathBuf},
};

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
pub struct Source {
    pub path: PathBuf,
    /// Path of the module, from the crate: `["consume", "worker"]`.
    pub module: Vec<String>,
    pub text: String,
    pub tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub line: usize,
    /// An identifier, a string's contents with `"` before them, or one character.
    pub text: String,
}

impl Source {
    pub fn read(path: PathBuf) -> Self {
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
    pub fn is_test(&self) -> bool {
        self.module.iter().any(|name| name == "testing" || name == "tests" || name.ends_with("_tests"))
    }

    pub fn area(&self) -> &str {
        &self.module[0]
    }

    /// Modules of this crate that the file names by `crate::` or `super::`, with the lines.
    pub fn imports(&self) -> Vec<(usize, String)> {
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
pub fn tokens(text: &str) -> Vec<Token> {
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
