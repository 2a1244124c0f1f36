//! SQL files as statements, each with its text and place. Pure.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use sqlparser::{
    ast::Statement,
    dialect::PostgreSqlDialect,
    parser::Parser,
    tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer},
};

use crate::spec::{SourceFile, SpecFault};

/// One statement of a file.
#[derive(Debug, Clone)]
pub struct SqlStatement {
    pub path: PathBuf,
    /// Line of its first word, from 1.
    pub line: u32,
    /// As written, without the semicolon.
    pub text: String,
    /// The same without comments and layout, unquoted words in lowercase.
    pub canonical: String,
    /// All words in it, as Postgres folds them: no name can be meant that is not among these.
    pub words: BTreeSet<String>,
    pub ast: Statement,
}

impl SqlStatement {
    /// Line of the file at which the character `position` (from 1) of the statement's text stands.
    pub fn line_at(&self, position: usize) -> u32 {
        let newlines = self.text.chars().take(position.saturating_sub(1)).filter(|c| *c == '\n').count();
        self.line + u32::try_from(newlines).unwrap_or(0)
    }

    /// Name of the table that the statement makes, if it makes one.
    pub fn made_table(&self) -> Option<String> {
        match &self.ast {
            Statement::CreateTable(create) => super::uses::last_part(&create.name),
            _ => None,
        }
    }

    pub fn fault(&self, message: impl Into<String>) -> SpecFault {
        SpecFault::new(&self.path, Some(self.line), message)
    }

    /// A fault at a part of the statement; at its beginning where the parser does not know the part's place.
    pub(super) fn fault_at(&self, part: Span, message: impl Into<String>) -> SpecFault {
        SpecFault::new(&self.path, line_of(part.start).or(Some(self.line)), message)
    }
}

/// Cuts a file into statements.
///
/// # Errors
/// A fault for each statement that is not SQL of Postgres, or one where the file breaks off inside a string or comment.
pub fn split(file: &SourceFile) -> Result<Vec<SqlStatement>, Vec<SpecFault>> {
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, &file.text).tokenize_with_location().map_err(|error| {
        vec![SpecFault::new(&file.path, line_of(error.location), format!("not valid SQL: {}", error.message))]
    })?;
    let offsets = LineOffsets::new(&file.text);
    let (mut statements, mut faults) = (Vec::new(), Vec::new());
    for tokens in tokens.split(|token| token.token == Token::SemiColon) {
        let words: Vec<&TokenWithSpan> =
            tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_) | Token::EOF)).collect();
        let (Some(first), Some(last)) = (words.first(), words.last()) else { continue };
        let (start, end) = (offsets.byte(first.span.start), offsets.byte(last.span.end));
        let text = file.text.get(start..end).unwrap_or_default().to_owned();
        let canonical = words.iter().map(|word| canonical(&word.token)).collect::<Vec<_>>().join(" ");
        match parse_one(&dialect, tokens.to_vec()) {
            Ok(ast) => {
                let line = line_of(first.span.start).unwrap_or(1);
                let words = words.iter().filter_map(|word| folded_word(&word.token)).collect();
                statements.push(SqlStatement { path: file.path.clone(), line, text, canonical, words, ast });
            }
            Err(error) => faults.push(parse_fault(&file.path, first.span.start, &error)),
        }
    }
    if faults.is_empty() { Ok(statements) } else { Err(faults) }
}

fn canonical(token: &Token) -> String {
    match token {
        Token::Word(word) if word.quote_style.is_none() => word.value.to_lowercase(),
        other => other.to_string(),
    }
}

fn folded_word(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_lowercase()),
        Token::Word(word) => Some(word.value.clone()),
        _ => None,
    }
}

fn parse_one(dialect: &PostgreSqlDialect, tokens: Vec<TokenWithSpan>) -> Result<Statement, String> {
    let mut parser = Parser::new(dialect).with_tokens_with_locations(tokens);
    let statement = parser.parse_statement().map_err(|error| error.to_string())?;
    let rest = parser.peek_token();
    match rest.token {
        Token::EOF => Ok(statement),
        other => Err(format!("Expected: end of statement, found: {other}{}", rest.span.start)),
    }
}

/// The parser puts the place at the end of its words: `…, found: x at Line: 3, Column: 5`.
fn parse_fault(path: &Path, start: Location, error: &str) -> SpecFault {
    let error = error.trim_start_matches("sql parser error: ");
    let (what, place) = error.split_once(" at Line: ").unwrap_or((error, ""));
    let line = place.split(',').next().and_then(|line| line.trim().parse().ok()).or_else(|| line_of(start));
    let what = what.replace("Expected: ", "expected ").replace("found: ", "but found ");
    SpecFault::new(path, line, format!("not valid SQL: {what}"))
}

fn line_of(location: Location) -> Option<u32> {
    u32::try_from(location.line).ok().filter(|line| *line > 0)
}

/// Byte offsets of places that are given as line and column, both from 1, columns in characters.
struct LineOffsets<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> LineOffsets<'a> {
    fn new(text: &'a str) -> Self {
        let after_newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    fn byte(&self, at: Location) -> usize {
        let line = usize::try_from(at.line).unwrap_or(1).saturating_sub(1);
        let Some(start) = self.starts.get(line).copied() else { return self.text.len() };
        let column = usize::try_from(at.column).unwrap_or(1).saturating_sub(1);
        let rest = &self.text[start..];
        start + rest.char_indices().nth(column).map_or(rest.len(), |(offset, _)| offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile::new("a/t.sql", text)
    }

    #[test]
    fn statements_keep_text_and_line() {
        let found =
            split(&file("-- häd;\nselect ';' as \"ü;\",\n  $$;$$ as b from r;\n\n/* ; */ select 2 as x;;\n")).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].line, found[1].line), (2, 5));
        assert_eq!(found[0].text, "select ';' as \"ü;\",\n  $$;$$ as b from r");
        assert_eq!(found[1].text, "select 2 as x");
        assert_eq!(found[0].line_at(21), 3);
    }

    #[test]
    fn statement_that_is_not_sql_is_named_with_its_line() {
        let faults = split(&file("select 1 as a;\nselect from where\n  group;\nselect 2 2")).unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert_eq!(faults[1].line, Some(4));
        let faults = split(&file("select 1;\nselect 'open")).unwrap_err();
        assert_eq!(faults[0].line, Some(2));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_splitter_panic(text in "(select|from|;|'|\"|\\$\\$|--|/\\*|\n|[a-zü(),.* ])*") {
            let _ = split(&file(&text));
        }
    }
}
