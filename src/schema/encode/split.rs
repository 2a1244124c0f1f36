//! Cutting a request's body into the documents it holds, without reading what is inside them.
//!
//! Only brackets and strings are looked at; whether a piece is sound JSON is for the encoder to say.

use std::ops::Range;

use super::scan::plain_end;
use crate::schema::fault::Fault;

/// How documents stand in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyShape {
    /// The whole body is one document.
    Object,
    /// Documents in one JSON array.
    Array,
    /// One document to a line; blank lines do not count.
    NdJson,
}

impl BodyShape {
    /// The shape of a body sent as `application/json`: an array if it begins with `[`, else one document.
    pub fn of_json(body: &[u8]) -> Self {
        match body.iter().find(|byte| !is_space(**byte)) {
            Some(b'[') => Self::Array,
            _ => Self::Object,
        }
    }
}

/// Where one document stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Bytes of the body.
    pub range: Range<usize>,
    /// From 0, over all documents of the body.
    pub index: usize,
    /// From 1; only in NDJSON.
    pub line: Option<usize>,
}

/// The body is not what its shape says from here on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("document {index}: {fault}")]
pub struct SplitError {
    /// The number, from 0, of the document at or after which the body breaks off.
    pub index: usize,
    pub fault: Fault,
}

/// The documents of a body, in order; ends after an error. An empty body holds none.
pub fn split_values(body: &[u8], shape: BodyShape) -> Values<'_> {
    Values { body, shape, pos: 0, index: 0, line: 0, state: State::Before }
}

/// See [`split_values`].
#[derive(Debug, Clone)]
pub struct Values<'a> {
    body: &'a [u8],
    shape: BodyShape,
    pos: usize,
    index: usize,
    line: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Inside,
    Done,
}

impl Iterator for Values<'_> {
    type Item = Result<Value, SplitError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = match self.shape {
            _ if self.state == State::Done => return None,
            BodyShape::Object => self.whole(),
            BodyShape::NdJson => self.line(),
            BodyShape::Array => self.element(),
        };
        match found {
            Ok(Some(range)) => {
                let line = (self.shape == BodyShape::NdJson).then_some(self.line);
                self.index += 1;
                Some(Ok(Value { range, index: self.index - 1, line }))
            }
            Ok(None) => {
                self.state = State::Done;
                None
            }
            Err(fault) => {
                self.state = State::Done;
                Some(Err(SplitError { index: self.index, fault }))
            }
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

impl Values<'_> {
    fn whole(&mut self) -> Result<Option<Range<usize>>, Fault> {
        self.state = State::Done;
        Ok(self.trimmed(0..self.body.len()))
    }

    fn line(&mut self) -> Result<Option<Range<usize>>, Fault> {
        while self.pos < self.body.len() {
            let start = self.pos;
            let end = memchr::memchr(b'\n', &self.body[start..]).map_or(self.body.len(), |length| start + length);
            self.pos = end + 1;
            self.line += 1;
            if let Some(range) = self.trimmed(start..end) {
                return Ok(Some(range));
            }
        }
        Ok(None)
    }

    fn element(&mut self) -> Result<Option<Range<usize>>, Fault> {
        if self.state == State::Before {
            self.state = State::Inside;
            match self.next_byte() {
                None => return Ok(None),
                Some(b'[') => self.pos += 1,
                Some(_) => return Err(self.wrong("an array")),
            }
            if self.next_byte() == Some(b']') {
                self.pos += 1;
                return self.nothing_more();
            }
        } else {
            match self.next_byte() {
                Some(b',') => self.pos += 1,
                Some(b']') => {
                    self.pos += 1;
                    return self.nothing_more();
                }
                _ => return Err(self.wrong("`,` or `]` after the document")),
            }
            self.next_byte();
        }
        let start = self.pos;
        if matches!(self.body.get(start), None | Some(b',' | b']' | b'}')) {
            return Err(self.wrong("a JSON object"));
        }
        self.pass_document()?;
        Ok(Some(start..self.pos))
    }

    fn nothing_more(&mut self) -> Result<Option<Range<usize>>, Fault> {
        match self.next_byte() {
            None => Ok(None),
            Some(_) => Err(self.wrong("the end of the body after the array")),
        }
    }

    /// Moves behind the document at `pos`: over matching brackets, or to the next comma or bracket.
    fn pass_document(&mut self) -> Result<(), Fault> {
        let mut depth = 0_usize;
        while let Some(&byte) = self.body.get(self.pos) {
            match byte {
                b'"' => self.pass_string(),
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 1 => depth -= 1,
                b'}' | b']' if depth == 1 => {
                    self.pos += 1;
                    return Ok(());
                }
                b',' | b']' | b'}' if depth == 0 => return Ok(()),
                _ => {}
            }
            self.pos += 1;
        }
        self.pos = self.body.len();
        Err(self.wrong("the end of the document"))
    }

    /// From the opening quote to the closing one, or the end.
    fn pass_string(&mut self) {
        self.pos += 1;
        loop {
            self.pos = plain_end(self.body, self.pos);
            match self.body.get(self.pos) {
                Some(b'"') | None => return,
                Some(b'\\') => self.pos += 2,
                Some(_) => self.pos += 1,
            }
        }
    }

    fn next_byte(&mut self) -> Option<u8> {
        while self.body.get(self.pos).is_some_and(|byte| is_space(*byte)) {
            self.pos += 1;
        }
        self.body.get(self.pos).copied()
    }

    /// Without the white space around; none if nothing is left.
    fn trimmed(&self, mut range: Range<usize>) -> Option<Range<usize>> {
        let piece = &self.body[range.clone()];
        let before = piece.iter().take_while(|byte| is_space(**byte)).count();
        if before == piece.len() {
            return None;
        }
        let after = piece.iter().rev().take_while(|byte| is_space(**byte)).count();
        range.start += before;
        range.end -= after;
        Some(range)
    }

    fn wrong(&self, expected: &str) -> Fault {
        let rest = &self.body[self.pos.min(self.body.len())..];
        let got = match String::from_utf8_lossy(&rest[..rest.len().min(4)]).chars().next() {
            None => "the end of the body".to_owned(),
            Some(c) => format!("`{c}` at byte {}", self.pos),
        };
        Fault::new(expected, got)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(body: &str, shape: BodyShape) -> Vec<Result<&str, String>> {
        split_values(body.as_bytes(), shape)
            .map(|value| value.map(|value| &body[value.range]).map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn documents_of_each_shape_are_found() {
        assert_eq!(pieces(" {\"a\":1}\n", BodyShape::Object), [Ok("{\"a\":1}")]);
        assert_eq!(pieces(" \n", BodyShape::Object), []);
        assert_eq!(pieces("[]", BodyShape::Array), []);
        let array = r#" [ {"a":"]},\""} , 1,"x" ,[ [],{}] ] "#;
        assert_eq!(pieces(array, BodyShape::Array), [Ok(r#"{"a":"]},\""}"#), Ok("1"), Ok("\"x\" "), Ok("[ [],{}]")]);
        assert_eq!(pieces("{}\r\n\n  {\"a\":1} \n7", BodyShape::NdJson), [Ok("{}"), Ok("{\"a\":1}"), Ok("7")]);
    }

    #[test]
    fn lines_are_counted_with_the_blank_ones() {
        let lines: Vec<_> = split_values(b"{}\n\n{}", BodyShape::NdJson).map(|value| value.unwrap().line).collect();
        assert_eq!(lines, [Some(1), Some(3)]);
    }

    #[test]
    fn broken_arrays_are_refused_with_the_place() {
        for (body, last) in [
            ("[", "document 0: expected a JSON object, got the end of the body"),
            ("{}", "document 0: expected an array, got `{` at byte 0"),
            ("[{},]", "document 1: expected a JSON object, got `]` at byte 4"),
            ("[,{}]", "document 0: expected a JSON object, got `,` at byte 1"),
            ("[{} {}]", "document 1: expected `,` or `]` after the document, got `{` at byte 4"),
            ("[{}", "document 1: expected `,` or `]` after the document, got the end of the body"),
            ("[{\"a\":1", "document 0: expected the end of the document, got the end of the body"),
            ("[{}] x", "document 1: expected the end of the body after the array, got `x` at byte 5"),
        ] {
            assert_eq!(pieces(body, BodyShape::Array).pop(), Some(Err(last.to_owned())), "{body}");
        }
    }

    #[test]
    fn the_shape_of_json_shows_in_its_first_byte() {
        assert_eq!(BodyShape::of_json(b" \n["), BodyShape::Array);
        assert_eq!(BodyShape::of_json(b"{"), BodyShape::Object);
        assert_eq!(BodyShape::of_json(b""), BodyShape::Object);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<i32>().prop_map(Into::into),
            any::<String>().prop_map(Into::into)
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_pieces_of_an_array_are_its_elements(values in prop::collection::vec(json(), 0..6), pretty in any::<bool>()) {
            let body = if pretty { serde_json::to_string_pretty(&values) } else { serde_json::to_string(&values) }.unwrap();
            let found: Vec<serde_json::Value> =
                pieces(&body, BodyShape::Array).into_iter().map(|piece| serde_json::from_str(piece.unwrap()).unwrap()).collect();
            prop_assert_eq!(found, values);
        }

        #[test]
        fn no_body_makes_the_cutter_panic(body in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"[]{}\",\\\n"[..])], 0..80)) {
            for shape in [BodyShape::Object, BodyShape::Array, BodyShape::NdJson] {
                let _ = split_values(&body, shape).count();
            }
        }
    }
}
