//! Reading JSON text byte by byte: the grammar of RFC 8259 and nothing about Avro.
//!
//! Every string, number and literal is checked whole when it is passed, also in values that are only skipped. Two
//! things are stricter than the RFC: lone surrogates are refused, as is nesting beyond [`MAX_JSON_DEPTH`].

use std::borrow::Cow;

use crate::schema::limits::MAX_JSON_DEPTH;

/// A place where the text stops being JSON. Kept to eight bytes: it is part of every result of the hot path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syntax {
    /// Byte offset into the text.
    pub at: u32,
    pub wanted: Wanted,
}

/// What the grammar asks for at the place where it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Wanted {
    Value,
    FieldName,
    Colon,
    CommaOrBrace,
    CommaOrBracket,
    StringEnd,
    EscapedControl,
    Escape,
    Surrogate,
    Digit,
    NoLeadingZero,
    Shallow,
    End,
}

impl Wanted {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Value => "a JSON value",
            Self::FieldName => "a field name in double quotes",
            Self::Colon => "`:` after the field name",
            Self::CommaOrBrace => "`,` or `}`",
            Self::CommaOrBracket => "`,` or `]`",
            Self::StringEnd => "the closing quote of a string",
            Self::EscapedControl => "control characters written as escapes, such as \\n",
            Self::Escape => "an escape that JSON has, such as \\n or \\u00e9",
            Self::Surrogate => "surrogates in pairs, such as \\ud83d\\ude00",
            Self::Digit => "a digit",
            Self::NoLeadingZero => "a number without leading zeros",
            Self::Shallow => "at most 64 levels of nesting",
            Self::End => "the end of the document",
        }
    }
}

/// A string token: what stands between the quotes, as it was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawString<'a> {
    pub bytes: &'a [u8],
    /// Whether it holds escapes; they are known to be sound.
    pub escaped: bool,
    /// Whether one of the escapes is `\u0000`.
    pub nul: bool,
}

impl<'a> RawString<'a> {
    /// The text itself; copied only when it holds escapes.
    pub(super) fn text(&self) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.bytes);
        }
        let mut text = Vec::with_capacity(self.bytes.len());
        self.unescape(&mut text);
        Cow::Owned(text)
    }

    /// Appends the text itself to `out`.
    pub(super) fn unescape(&self, out: &mut Vec<u8>) {
        let mut rest = self.bytes;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at + 1..];
            let (c, used) = match rest[0] {
                b'u' => unescape_unicode(rest),
                b'b' => ('\u{8}', 1),
                b'f' => ('\u{c}', 1),
                b'n' => ('\n', 1),
                b'r' => ('\r', 1),
                b't' => ('\t', 1),
                other => (char::from(other), 1),
            };
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[used..];
        }
        out.extend_from_slice(rest);
    }
}

/// The character of `uXXXX` or `uXXXX\uXXXX` at the start of `rest`, and how many bytes it takes.
fn unescape_unicode(rest: &[u8]) -> (char, usize) {
    let first = hex4(&rest[1..]).expect("invariant: the scanner checked the escape");
    if !(0xD800..0xDC00).contains(&first) {
        return (char::from_u32(first).expect("invariant: the scanner refused lone surrogates"), 5);
    }
    let second = hex4(&rest[7..]).expect("invariant: the scanner checked the pair");
    let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    (char::from_u32(code).expect("invariant: a surrogate pair is a character"), 11)
}

/// The next quote, backslash or control character from `pos` on (or the end), found eight bytes at a time.
#[inline]
pub(super) fn plain_end(input: &[u8], mut pos: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    while let Some(Ok(chunk)) = input.get(pos..pos + 8).map(<[u8; 8]>::try_from) {
        let word = u64::from_le_bytes(chunk);
        // For each byte its high bit is set where the byte is below `n`; exact for the lowest such byte, which is all
        // we use.
        let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & HIGHS;
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let special = below(word, 0x20) | quote | backslash;
        if special != 0 {
            return pos + special.trailing_zeros() as usize / 8;
        }
        pos += 8;
    }
    while input.get(pos).is_some_and(|&byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        pos += 1;
    }
    pos
}

fn hex4(bytes: &[u8]) -> Option<u32> {
    let mut code = 0;
    for &byte in bytes.get(..4)? {
        code = code * 16 + char::from(byte).to_digit(16)?;
    }
    Some(code)
}

/// A number token, as it was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawNumber<'a> {
    pub bytes: &'a [u8],
    /// Neither a fraction nor an exponent.
    pub integer: bool,
}

/// What a value turned out to be, for the text of a fault.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found<'a> {
    Text(RawString<'a>),
    Number(RawNumber<'a>),
    Literal(&'static str),
    Object,
    Array,
}

/// A place in a JSON text.
#[derive(Clone)]
pub(super) struct Scanner<'a> {
    /// Known to be UTF-8, so that a piece between two ASCII bytes is UTF-8 too.
    input: &'a [u8],
    pub pos: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { input: text.as_bytes(), pos: 0, depth: 0 }
    }

    pub(super) fn input(&self) -> &'a [u8] {
        self.input
    }

    pub(super) fn wrong(&self, wanted: Wanted) -> Syntax {
        // The caller refuses texts of 4 GiB and more.
        Syntax { at: self.pos as u32, wanted }
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.input.get(self.pos).copied()
    }

    /// Passes white space; the next byte, if there is one.
    #[inline]
    pub(super) fn next_byte(&mut self) -> Option<u8> {
        loop {
            match self.input.get(self.pos) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.pos += 1,
                other => return other.copied(),
            }
        }
    }

    /// Passes `bytes` if they come next.
    #[inline]
    pub(super) fn eat(&mut self, bytes: &[u8]) -> bool {
        let here = self.input[self.pos..].starts_with(bytes);
        if here {
            self.pos += bytes.len();
        }
        here
    }

    #[inline]
    pub(super) fn colon(&mut self) -> Result<(), Syntax> {
        if self.next_byte() != Some(b':') {
            return Err(self.wrong(Wanted::Colon));
        }
        self.pos += 1;
        Ok(())
    }

    /// Passes the bracket that opens an object or array.
    pub(super) fn open(&mut self) -> Result<(), Syntax> {
        if self.depth == MAX_JSON_DEPTH {
            return Err(self.wrong(Wanted::Shallow));
        }
        self.depth += 1;
        self.pos += 1;
        Ok(())
    }

    /// Whether the container just opened ends at once; then it is passed.
    pub(super) fn close_empty(&mut self, closing: u8) -> bool {
        let empty = self.next_byte() == Some(closing);
        if empty {
            self.pos += 1;
            self.depth -= 1;
        }
        empty
    }

    /// After an element: passes `,` and answers true, or the closing bracket and answers false.
    #[inline]
    pub(super) fn more(&mut self, closing: u8) -> Result<bool, Syntax> {
        match self.next_byte() {
            Some(b',') => {
                self.pos += 1;
                Ok(true)
            }
            Some(byte) if byte == closing => {
                self.pos += 1;
                self.depth -= 1;
                Ok(false)
            }
            _ if closing == b'}' => Err(self.wrong(Wanted::CommaOrBrace)),
            _ => Err(self.wrong(Wanted::CommaOrBracket)),
        }
    }

    /// Goes back to a place it has been at, inside the same containers or with the depth it had there.
    pub(super) fn rewind(&mut self, to: &Scanner<'a>) {
        self.pos = to.pos;
        self.depth = to.depth;
    }

    /// A field name; the scanner stands at its quote.
    pub(super) fn field_name(&mut self) -> Result<RawString<'a>, Syntax> {
        if self.next_byte() != Some(b'"') {
            return Err(self.wrong(Wanted::FieldName));
        }
        self.string()
    }

    /// A string; the scanner stands at its opening quote.
    #[inline]
    pub(super) fn string(&mut self) -> Result<RawString<'a>, Syntax> {
        self.pos += 1;
        let start = self.pos;
        self.plain_run();
        if self.peek() == Some(b'"') {
            let bytes = &self.input[start..self.pos];
            self.pos += 1;
            return Ok(RawString { bytes, escaped: false, nul: false });
        }
        self.string_with_escapes(start)
    }

    fn string_with_escapes(&mut self, start: usize) -> Result<RawString<'a>, Syntax> {
        let (mut escaped, mut nul) = (false, false);
        loop {
            match self.peek() {
                Some(b'"') => {
                    let bytes = &self.input[start..self.pos];
                    self.pos += 1;
                    return Ok(RawString { bytes, escaped, nul });
                }
                Some(b'\\') => {
                    escaped = true;
                    nul |= self.escape()?;
                }
                Some(_) => return Err(self.wrong(Wanted::EscapedControl)),
                None => return Err(self.wrong(Wanted::StringEnd)),
            }
            self.plain_run();
        }
    }

    #[inline]
    fn plain_run(&mut self) {
        self.pos = plain_end(self.input, self.pos);
    }

    /// Passes one escape; whether it is `\u0000`. Two halves of a surrogate pair are one escape.
    fn escape(&mut self) -> Result<bool, Syntax> {
        match self.input.get(self.pos + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.pos += 2;
                return Ok(false);
            }
            Some(b'u') => {}
            _ => return Err(self.wrong(Wanted::Escape)),
        }
        let code = |at: usize| self.input.get(at..).and_then(hex4);
        let first = code(self.pos + 2).ok_or_else(|| self.wrong(Wanted::Escape))?;
        match first {
            0xD800..0xDC00 => {
                let low = self.input[self.pos + 6..].starts_with(b"\\u").then(|| code(self.pos + 8)).flatten();
                if !low.is_some_and(|low| (0xDC00..0xE000).contains(&low)) {
                    return Err(self.wrong(Wanted::Surrogate));
                }
                self.pos += 12;
            }
            0xDC00..0xE000 => return Err(self.wrong(Wanted::Surrogate)),
            _ => self.pos += 6,
        }
        Ok(first == 0)
    }

    /// A number; the scanner stands at its first byte, a digit or a minus sign.
    #[inline]
    pub(super) fn number(&mut self) -> Result<RawNumber<'a>, Syntax> {
        let start = self.pos;
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        let leading = self.pos;
        self.digits()?;
        if self.input[leading] == b'0' && self.pos > leading + 1 {
            self.pos = start;
            return Err(self.wrong(Wanted::NoLeadingZero));
        }
        let mut integer = true;
        if self.peek() == Some(b'.') {
            integer = false;
            self.pos += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            integer = false;
            self.pos += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.pos += 1;
            }
            self.digits()?;
        }
        Ok(RawNumber { bytes: &self.input[start..self.pos], integer })
    }

    /// At least one digit.
    #[inline]
    fn digits(&mut self) -> Result<(), Syntax> {
        let start = self.pos;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.pos += 1;
        }
        if self.pos == start { Err(self.wrong(Wanted::Digit)) } else { Ok(()) }
    }

    /// `true`, `false` or `null`; which of them.
    pub(super) fn literal(&mut self) -> Result<&'static str, Syntax> {
        for literal in ["true", "false", "null"] {
            if self.eat(literal.as_bytes()) {
                return Ok(literal);
            }
        }
        Err(self.wrong(Wanted::Value))
    }

    /// Passes one whole value, checking its grammar; what it was.
    pub(super) fn skip(&mut self) -> Result<Found<'a>, Syntax> {
        match self.next_byte() {
            Some(b'"') => Ok(Found::Text(self.string()?)),
            Some(b'-' | b'0'..=b'9') => Ok(Found::Number(self.number()?)),
            Some(b'{') => {
                self.open()?;
                if !self.close_empty(b'}') {
                    loop {
                        self.field_name()?;
                        self.colon()?;
                        self.skip()?;
                        if !self.more(b'}')? {
                            break;
                        }
                    }
                }
                Ok(Found::Object)
            }
            Some(b'[') => {
                self.open()?;
                if !self.close_empty(b']') {
                    loop {
                        self.skip()?;
                        if !self.more(b']')? {
                            break;
                        }
                    }
                }
                Ok(Found::Array)
            }
            _ => Ok(Found::Literal(self.literal()?)),
        }
    }

    /// Nothing but white space may be left.
    pub(super) fn end(&mut self) -> Result<(), Syntax> {
        if self.next_byte().is_some() { Err(self.wrong(Wanted::End)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(text: &str) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.skip().and_then(|_| scanner.end()).is_ok()
    }

    #[test]
    fn json_at_the_edges_is_judged_as_serde_json_does() {
        let texts = "0¦-0¦00¦01¦-01¦-¦1.¦1.5¦.5¦1e5¦1e¦1E+5¦1e+¦10¦100¦-10¦+1¦tru¦true¦nul¦null ¦ null¦nullx¦NaN¦'a'¦0.0e-0¦-0.0¦\
            \"\\u00e9\"¦\"\\ud83d\\ude00\"¦\"\\ud83d\"¦\"\\ude00\"¦\"\\ud83d\\ud83d\"¦\"\\x\"¦\"\\u12\"¦\"a\nb\"¦\"abc¦\"\u{7f}é日本語😀\"¦\
            [\"a\\\\\"]¦[\"a\\\"]¦[]¦[,]¦[1,]¦[1 2]¦[1,2]¦[¦{¦]¦1 2¦\u{feff}1¦ ¦¦{}¦{,}¦{\"a\":1,}¦{\"a\":1}¦{\"a\" 1}¦{a:1}¦{\"a\":}¦\
            {\"a\":[{\"b\":null}]}";
        for text in texts.split('¦') {
            assert_eq!(accepts(text), serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(accepts(&nested(MAX_JSON_DEPTH)));
        assert!(!accepts(&nested(MAX_JSON_DEPTH + 1)));
        assert!(!accepts(&"[".repeat(1_000_000)));
    }

    #[test]
    fn nul_escapes_are_noticed() {
        for (text, nul) in
            [("\"\\u0000\"", true), ("\"a\\n\\u0000b\"", true), ("\"\\\\u0000\"", false), ("\"0000\"", false)]
        {
            assert_eq!(Scanner::new(text).string().unwrap().nul, nul, "{text}");
        }
    }

    proptest! {
        #[test]
        fn strings_read_as_serde_json_reads_them(text in any::<String>(), ascii in any::<bool>()) {
            let mut json = serde_json::to_string(&text).unwrap();
            if ascii {
                json = json.encode_utf16().map(|unit| match u8::try_from(unit) {
                    Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
                    _ => format!("\\u{unit:04x}"),
                }).collect();
            }
            let raw = Scanner::new(&json).string().unwrap();
            let read = raw.text();
            prop_assert_eq!(read.as_ref(), text.as_bytes());
            prop_assert_eq!(raw.nul, text.contains('\0'));
        }

        #[test]
        fn what_is_accepted_serde_json_accepts(text in r#"[\[\]{}",:0-9eE+.\-\\untrfalsbd \n]{0,24}"#) {
            match serde_json::from_str::<serde_json::Value>(&text) {
                // Size is a matter of the field's type, not of the grammar.
                Err(error) if error.to_string().contains("number out of range") => {}
                judged => prop_assert_eq!(accepts(&text), judged.is_ok()),
            }
        }

        #[test]
        fn no_text_makes_the_scanner_panic(text in any::<String>()) {
            let _ = Scanner::new(&text).skip();
            let _ = Scanner::new(&format!("\"{text}\"")).skip();
        }
    }
}
