//! From query string to tree. Strict: what is not understood is refused with its place, never skipped.

use super::{
    Comparison, Filter, Known, MAX_COLUMNS, MAX_CONDITIONS, MAX_DEPTH, MAX_LIST, MAX_QUERY_BYTES, Ordered, Param,
    Query, Selected, SyntaxError, Test, abbreviated,
};
use crate::domain::nearest;

const OPERATORS: [&str; 10] = ["eq", "neq", "gt", "gte", "lt", "lte", "in", "is", "like", "ilike"];

/// Parses the raw (still percent-encoded) query string of a request.
pub fn parse(raw: &str) -> Result<Query, SyntaxError> {
    if raw.len() > MAX_QUERY_BYTES {
        return Err(fault(
            "",
            None,
            format!("a query string of at most {MAX_QUERY_BYTES} bytes"),
            raw.len().to_string(),
        ));
    }
    let mut query = Query::default();
    let mut conditions = 0;
    let mut seen: Vec<String> = Vec::new();
    for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).ok_or_else(|| bad_encoding(name))?;
        let value = decode(value).ok_or_else(|| bad_encoding(&name))?;
        if matches!(name.as_str(), "select" | "order" | "limit" | "after") {
            if seen.contains(&name) {
                return Err(fault(&name, None, "the parameter once", "it a second time"));
            }
            seen.push(name.clone());
        }
        let mut text = Scanner::new(&name, &value);
        match name.as_str() {
            "select" => query.select = select(&mut text)?,
            "order" => query.order = order(&mut text)?,
            "limit" => query.limit = Some(limit(&text)?),
            "after" => query.after = Some(value.clone()),
            "offset" => return Err(offset_refused()),
            _ => {
                let filter = parameter(&mut text, &name, &mut conditions)?;
                query.filters.push(Param { name: name.clone(), filter });
            }
        }
    }
    Ok(query)
}

/// Percent-decodes one part of a form-encoded query; `None` when it is not UTF-8, not well-formed or holds a NUL.
pub fn decode(part: &str) -> Option<String> {
    if !part.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Some(part.to_owned());
    }
    let mut bytes = part.bytes();
    let mut out = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok().filter(|b| *b != 0)?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn select(text: &mut Scanner<'_>) -> Result<Vec<Selected>, SyntaxError> {
    if text.rest() == "*" {
        return Ok(Vec::new());
    }
    let mut items: Vec<Selected> = Vec::new();
    loop {
        text.spaces();
        let first = text.name(&[',', ':', '(', '-'], "a column")?;
        let (alias, column) = if text.rest().starts_with(':') && !text.rest().starts_with("::") {
            text.bump(1);
            (Some(first), text.name(&[',', ':', '(', '-'], "a column")?)
        } else {
            (None, first)
        };
        let as_text = text.eat("::text");
        if text.rest().starts_with("::") {
            return Err(text.fault("no cast but ::text"));
        }
        if text.rest().starts_with("->") || text.rest().starts_with('(') {
            return Err(text.fault("a column by its name (paths into JSON and embedded tables are not supported)"));
        }
        let item = Selected { column, alias, as_text };
        if items.iter().any(|other| other.shown_as() == item.shown_as()) {
            let shown = abbreviated(item.shown_as());
            return Err(fault(
                text.parameter,
                None,
                "each name once (rename with alias:column)",
                format!("{shown} twice"),
            ));
        }
        items.push(item);
        if !text.more(items.len())? {
            return Ok(items);
        }
    }
}

fn order(text: &mut Scanner<'_>) -> Result<Vec<Ordered>, SyntaxError> {
    let mut items: Vec<Ordered> = Vec::new();
    loop {
        text.spaces();
        let column = text.name(&[',', '.'], "a column")?;
        if items.iter().any(|other| other.column == column) {
            return Err(fault(text.parameter, None, "each column once", format!("{} twice", abbreviated(&column))));
        }
        let mut item = Ordered { column, descending: false, nulls_first: None };
        if text.eat(".desc") {
            item.descending = true;
        } else {
            text.eat(".asc");
        }
        if text.eat(".nullsfirst") {
            item.nulls_first = Some(true);
        } else if text.eat(".nullslast") {
            item.nulls_first = Some(false);
        }
        if text.rest().starts_with('.') {
            return Err(text.fault("column[.asc|.desc][.nullsfirst|.nullslast]"));
        }
        items.push(item);
        if !text.more(items.len())? {
            return Ok(items);
        }
    }
}

fn limit(text: &Scanner<'_>) -> Result<u32, SyntaxError> {
    let digits = !text.rest().is_empty() && text.rest().bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.rest().parse().ok()).flatten().ok_or_else(|| text.fault("a number of rows, such as 100"))
}

/// A filter as a parameter of its own: `column=op.value`, `and=(…)`, `not.or=(…)`.
fn parameter(text: &mut Scanner<'_>, name: &str, conditions: &mut usize) -> Result<Filter, SyntaxError> {
    let (negated, word) = match name.strip_prefix("not.") {
        Some(word @ ("and" | "or")) => (true, word),
        _ => (false, name),
    };
    let filter = match word {
        "and" | "or" => {
            let filter = group(text, word == "or", 1, conditions)?;
            if !text.rest().is_empty() {
                return Err(text.fault("the end of the value"));
            }
            filter
        }
        _ => test(text, name, false, conditions)?,
    };
    Ok(if negated { Filter::Not(Box::new(filter)) } else { filter })
}

/// `(item,item,…)`, where an item is a test or a group again.
fn group(text: &mut Scanner<'_>, any: bool, depth: usize, conditions: &mut usize) -> Result<Filter, SyntaxError> {
    if depth > MAX_DEPTH {
        return Err(text.fault(format!("groups nested at most {MAX_DEPTH} deep")));
    }
    if !text.eat("(") {
        return Err(text.fault("`(` and conditions such as (delay.gt.15,carrier.eq.UA)"));
    }
    let mut items = Vec::new();
    loop {
        text.spaces();
        items.push(item(text, depth, conditions)?);
        text.spaces();
        if text.eat(")") {
            return Ok(if any { Filter::Any(items) } else { Filter::All(items) });
        }
        if !text.eat(",") {
            return Err(text.fault("`,` or `)`"));
        }
    }
}

fn item(text: &mut Scanner<'_>, depth: usize, conditions: &mut usize) -> Result<Filter, SyntaxError> {
    for (opening, any, negated) in
        [("and(", false, false), ("or(", true, false), ("not.and(", false, true), ("not.or(", true, true)]
    {
        if text.rest().starts_with(opening) {
            text.bump(opening.len() - 1);
            let filter = group(text, any, depth + 1, conditions)?;
            return Ok(if negated { Filter::Not(Box::new(filter)) } else { filter });
        }
    }
    let column = text.name(&['.', ',', '(', ')'], "a condition such as delay.gt.15")?;
    if !text.eat(".") {
        return Err(text.fault("`.` and an operator"));
    }
    test(text, &column, true, conditions)
}

/// `[not.]op.value`; inside a group the value ends at `,` or `)` unless it is quoted.
fn test(text: &mut Scanner<'_>, column: &str, grouped: bool, conditions: &mut usize) -> Result<Filter, SyntaxError> {
    *conditions += 1;
    if *conditions > MAX_CONDITIONS {
        return Err(fault(text.parameter, None, format!("at most {MAX_CONDITIONS} conditions in all"), "more"));
    }
    let negated = text.eat("not.");
    let test = operator(text, grouped)?;
    if !grouped && !text.rest().is_empty() {
        return Err(text.fault("the end of the value"));
    }
    let filter = Filter::Is { column: column.to_owned(), test };
    Ok(if negated { Filter::Not(Box::new(filter)) } else { filter })
}

fn operator(text: &mut Scanner<'_>, grouped: bool) -> Result<Test, SyntaxError> {
    let word_bytes = text.rest().bytes().take_while(u8::is_ascii_lowercase).count();
    let word = &text.rest()[..word_bytes];
    let known = OPERATORS.contains(&word) && text.rest()[word_bytes..].starts_with('.');
    if !known {
        let mut refusal = text.fault(format!("an operator and a dot, one of {}", OPERATORS.join(" ")));
        refusal.hint = Some(match nearest(word, OPERATORS) {
            Some(near) if near != word => format!("did you mean `{near}.`?"),
            _ => format!("for equality write `eq.`: {}=eq.VALUE", text.parameter),
        });
        return Err(refusal);
    }
    text.bump(word_bytes + 1);
    if let Some((comparison, ..)) = Comparison::ALL.into_iter().find(|(_, name, _)| *name == word) {
        return Ok(Test::Compare(comparison, text.value(grouped)?));
    }
    match word {
        "in" => Ok(Test::In(text.list()?)),
        "is" => {
            let at = text.at;
            let value = text.value(grouped)?;
            match Known::ALL.into_iter().find(|(_, name, _)| *name == value) {
                Some((known, ..)) => Ok(Test::Is(known)),
                None => Err(text.fault_at(at, "null, not_null, true, false or unknown")),
            }
        }
        _ => {
            let at = text.at;
            let pattern = text.value(grouped)?;
            // Postgres refuses it too, but only once a row gets that far.
            if pattern.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1 {
                return Err(text.fault_at(at, "a pattern that does not end in an escaping backslash"));
            }
            Ok(Test::Like { pattern, ignore_case: word == "ilike" })
        }
    }
}

fn offset_refused() -> SyntaxError {
    let mut refusal = fault("offset", None, "no `offset`", "it");
    refusal.hint = Some(
        "pages are taken by cursor: follow the `Link: <…>; rel=\"next\"` of the answer before, which carries `after=`; \
         unlike an offset it neither skips nor repeats rows while the table changes, and costs the same on every page"
            .to_owned(),
    );
    refusal
}

fn bad_encoding(name: &str) -> SyntaxError {
    fault(name, None, "percent-encoded UTF-8 without NUL", "bytes that are not")
}

fn fault(parameter: &str, at: Option<usize>, expected: impl Into<String>, got: impl Into<String>) -> SyntaxError {
    let parameter = parameter.chars().take(64).collect();
    SyntaxError { parameter, at, expected: expected.into(), got: got.into(), hint: None }
}

/// A place in a decoded value. `at` is always on a character boundary.
struct Scanner<'a> {
    parameter: &'a str,
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn new(parameter: &'a str, text: &'a str) -> Self {
        Self { parameter, text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn bump(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.bump(token.len());
        }
        found
    }

    fn spaces(&mut self) {
        while self.eat(" ") {}
    }

    fn fault(&self, expected: impl Into<String>) -> SyntaxError {
        self.fault_at(self.at, expected)
    }

    fn fault_at(&self, at: usize, expected: impl Into<String>) -> SyntaxError {
        let rest = &self.text[at..];
        let got = if rest.is_empty() { "nothing more".to_owned() } else { abbreviated(rest) };
        fault(self.parameter, Some(self.text[..at].chars().count()), expected, got)
    }

    /// After an item of a flat list: whether another follows.
    fn more(&mut self, so_far: usize) -> Result<bool, SyntaxError> {
        self.spaces();
        if self.rest().is_empty() {
            return Ok(false);
        }
        if !self.eat(",") {
            return Err(self.fault("`,` or the end of the value"));
        }
        if so_far >= MAX_COLUMNS {
            return Err(self.fault(format!("at most {MAX_COLUMNS} columns")));
        }
        Ok(true)
    }

    /// A name: quoted, or everything up to one of `ends`.
    fn name(&mut self, ends: &[char], expected: &str) -> Result<String, SyntaxError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let rest = self.rest();
        // A minus ends a name only as the beginning of `->`.
        let end = rest
            .char_indices()
            .find(|(i, c)| ends.contains(c) && (*c != '-' || rest[*i..].starts_with("->")))
            .map_or(rest.len(), |(i, _)| i);
        let name = rest[..end].trim_end_matches(' ');
        if name.is_empty() {
            return Err(self.fault(expected));
        }
        self.bump(name.len());
        Ok(name.to_owned())
    }

    fn value(&mut self, grouped: bool) -> Result<String, SyntaxError> {
        if !grouped {
            let value = self.rest().to_owned();
            self.at = self.text.len();
            return Ok(value);
        }
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let end = self.rest().find([',', ')']).unwrap_or(self.rest().len());
        let value = self.rest()[..end].to_owned();
        self.bump(end);
        Ok(value)
    }

    /// `(a,b,"c,d")`.
    fn list(&mut self) -> Result<Vec<String>, SyntaxError> {
        if !self.eat("(") {
            return Err(self.fault("`(` and values, such as in.(JFK,LGA)"));
        }
        let mut values = Vec::new();
        if self.eat(")") {
            return Ok(values);
        }
        loop {
            values.push(self.value(true)?);
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(self.fault("`,` or `)`"));
            }
            if values.len() >= MAX_LIST {
                return Err(self.fault(format!("at most {MAX_LIST} values in one list")));
            }
        }
    }

    /// `"…"`, in which a backslash takes the next character as it is.
    fn quoted(&mut self) -> Result<String, SyntaxError> {
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.bump(at + 1);
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, escaped)) => out.push(escaped),
                    None => break,
                },
                other => out.push(other),
            }
        }
        Err(self.fault("a closing `\"`"))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
