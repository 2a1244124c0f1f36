//! Cutting a body into documents while it arrives.
//!
//! [`split_values`](crate::schema::encode::split_values) wants whole documents; this finds, in what has arrived, how far the
//! documents are whole. It looks at brackets and strings only, as that does: what is wrong inside is for the encoder to say.

use crate::schema::encode::BodyShape;

/// Documents that have arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// A body of the stream's shape by itself: lines, or an array.
    pub(super) bytes: Vec<u8>,
    /// Lines before this chunk.
    pub(super) lines_before: usize,
}

/// What has arrived of a body and was not taken yet.
#[derive(Debug)]
pub(super) struct Cutter {
    shape: BodyShape,
    buffer: Vec<u8>,
    /// The buffer is looked through up to here.
    looked: usize,
    /// Up to here documents are whole: behind the last line feed, or at the last comma between documents.
    whole: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    lines: usize,
}

impl Cutter {
    /// For lines or an array; a single document needs no cutting.
    pub(super) fn new(shape: BodyShape) -> Self {
        Self { shape, buffer: Vec::new(), looked: 0, whole: 0, depth: 0, in_string: false, escaped: false, lines: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        match self.shape {
            BodyShape::NdJson => {
                if let Some(at) = memchr::memrchr(b'\n', &self.buffer[self.looked..]) {
                    self.whole = self.looked + at + 1;
                }
                self.looked = self.buffer.len();
            }
            _ => self.look_through_array(),
        }
    }

    fn look_through_array(&mut self) {
        for (at, byte) in self.buffer.iter().enumerate().skip(self.looked) {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'[' | b'{' => self.depth += 1,
                b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                b',' if self.depth == 1 => self.whole = at,
                _ => {}
            }
        }
        self.looked = self.buffer.len();
    }

    /// Bytes of documents that are whole.
    pub(super) fn whole_bytes(&self) -> usize {
        self.whole
    }

    /// Bytes of the document that is not whole yet.
    pub(super) fn partial_bytes(&self) -> usize {
        self.buffer.len() - self.whole
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the documents that are whole, or at the body's end all that is left, whole or not.
    pub(super) fn take(&mut self, at_end: bool) -> Chunk {
        let lines_before = self.lines;
        let cut = if at_end { self.buffer.len() } else { self.whole };
        let rest = self.buffer.split_off(cut);
        let mut bytes = std::mem::replace(&mut self.buffer, rest);
        match self.shape {
            BodyShape::NdJson => self.lines += memchr::memchr_iter(b'\n', &bytes).count(),
            _ if at_end => {}
            // The comma that parts this chunk from the rest: here the array ends, there it begins.
            _ => {
                bytes.push(b']');
                if let Some(comma) = self.buffer.first_mut() {
                    *comma = b'[';
                }
            }
        }
        self.whole = 0;
        self.looked = self.buffer.len();
        Chunk { bytes, lines_before }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schema::encode::split_values;

    fn documents(body: &[u8], shape: BodyShape) -> Vec<String> {
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&body[range]).into_owned();
        split_values(body, shape)
            .map(|value| value.map_or_else(|_| "broken".into(), |value| text(value.range)))
            .collect()
    }

    /// What comes out when the body arrives in pieces of `size` and is taken whenever something is whole.
    fn streamed(body: &[u8], shape: BodyShape, size: usize) -> Vec<String> {
        let (mut cutter, mut found) = (Cutter::new(shape), Vec::new());
        for piece in body.chunks(size) {
            cutter.push(piece);
            if cutter.whole_bytes() > 0 {
                found.extend(documents(&cutter.take(false).bytes, shape));
            }
        }
        found.extend(documents(&cutter.take(true).bytes, shape));
        found
    }

    #[test]
    fn lines_before_a_chunk_are_counted() {
        let mut cutter = Cutter::new(BodyShape::NdJson);
        cutter.push(b"{}\n\n{}\n{");
        assert_eq!(cutter.take(false), Chunk { bytes: b"{}\n\n{}\n".to_vec(), lines_before: 0 });
        cutter.push(b"}");
        assert_eq!((cutter.whole_bytes(), cutter.partial_bytes()), (0, 2));
        assert_eq!(cutter.take(true), Chunk { bytes: b"{}".to_vec(), lines_before: 3 });
    }

    #[test]
    fn array_that_breaks_off_is_seen_at_the_end() {
        assert_eq!(streamed(br#"[{"a":1},{"b":"#, BodyShape::Array, 3), [r#"{"a":1}"#, "broken"]);
    }

    proptest! {
        #[test]
        fn documents_in_pieces_are_those_of_the_whole(
            documents_in in prop::collection::vec(
                prop_oneof![
                    Just(r#"{"a":[1,{"b":"],[\\\"{"}],"c":2}"#.to_owned()),
                    Just("{}".to_owned()),
                    Just("12".to_owned()),
                    "[a-z,\\[\\]]{0,8}".prop_map(|text| format!("{text:?}")),
                ],
                0..12,
            ),
            size in 1_usize..20,
            array in any::<bool>(),
        ) {
            let (body, shape) = if array {
                (format!("[{}]", documents_in.join(" ,\n")), BodyShape::Array)
            } else {
                (documents_in.join("\n"), BodyShape::NdJson)
            };
            let whole = documents(body.as_bytes(), shape);
            prop_assert_eq!(whole.len(), documents_in.len());
            prop_assert_eq!(streamed(body.as_bytes(), shape, size), whole);
        }

        #[test]
        fn no_bytes_make_the_cutter_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1_usize..20) {
            for shape in [BodyShape::Array, BodyShape::NdJson] {
                let _ = streamed(&bytes, shape, size);
            }
        }
    }
}
