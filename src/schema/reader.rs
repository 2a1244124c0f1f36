//! Reads Avro's binary primitives from bytes that nobody vouches for.
//!
//! Owns the bounds: no length, count or number is believed before the bytes that are left allow it. Knows nothing of
//! schemas. Allocates only for a fault.

use super::Fault;

/// What stops a decoder; boxed, so that a result is one word wide while all goes well.
pub(super) type Problem = Box<Fault>;

/// Items that take no bytes at all (`null`, an empty record), over a whole payload: with no bytes to count them
/// against, nothing else bounds them.
const MAX_FREE_ITEMS: u64 = 65_536;

const MISFIT: &str = "the bytes do not fit the schema they name: was the record written with another one?";

/// The bytes of one payload that are still to be read.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    free_items: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload, free_items: MAX_FREE_ITEMS }
    }

    /// Checks that nothing is left.
    #[inline]
    pub(super) fn finish(&self) -> Result<(), Problem> {
        if self.rest.is_empty() { Ok(()) } else { Err(trailing(self.rest.len())) }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Problem> {
        let Some((&first, rest)) = self.rest.split_first() else { return Err(short(1, 0)) };
        self.rest = rest;
        Ok(first)
    }

    /// The next `count` bytes as they are.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else { return Err(short(count, self.rest.len())) };
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else { return Err(short(N, self.rest.len())) };
        self.rest = rest;
        Ok(*head)
    }

    /// A `long`: zigzag, base 128, least significant group first.
    #[inline]
    pub(super) fn long(&mut self) -> Result<i64, Problem> {
        match self.rest.split_first() {
            Some((&first, rest)) if first < 0x80 => {
                self.rest = rest;
                Ok(unzigzag(u64::from(first)))
            }
            _ => self.long_of_many_bytes(),
        }
    }

    fn long_of_many_bytes(&mut self) -> Result<i64, Problem> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                return Err(fault("an integer of at most 64 bits", "a longer one"));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(unzigzag(value));
            }
        }
        Err(fault("an integer of at most 64 bits", "a longer one"))
    }

    /// An `int`: the same encoding as a `long`, within 32 bits.
    #[inline]
    pub(super) fn int(&mut self) -> Result<i32, Problem> {
        let value = self.long()?;
        i32::try_from(value).map_err(|_| fault("an integer of at most 32 bits", value))
    }

    #[inline]
    pub(super) fn boolean(&mut self) -> Result<bool, Problem> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(fault("a boolean, 0 or 1", format_args!("byte {other}"))),
        }
    }

    #[inline]
    pub(super) fn float(&mut self) -> Result<f32, Problem> {
        self.array().map(f32::from_le_bytes)
    }

    #[inline]
    pub(super) fn double(&mut self) -> Result<f64, Problem> {
        self.array().map(f64::from_le_bytes)
    }

    /// `bytes` or `string`: a length and as many bytes.
    #[inline]
    pub(super) fn blob(&mut self) -> Result<&'a [u8], Problem> {
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(count) => self.take(count),
            Err(_) => Err(fault("a length", length)),
        }
    }

    /// A `string`, UTF-8.
    #[inline]
    pub(super) fn text(&mut self) -> Result<&'a str, Problem> {
        utf8(self.blob()?)
    }

    /// Index of a union's branch or of an enum's symbol.
    #[inline]
    pub(super) fn index(&mut self, count: usize, of: &'static str) -> Result<usize, Problem> {
        let index = self.long()?;
        match usize::try_from(index) {
            Ok(index) if index < count => Ok(index),
            _ => Err(fault(format_args!("a {of} below {count}"), index)),
        }
    }

    /// How many items the next block of an array or a map holds; 0 ends it. `free`: an item may take no bytes.
    #[inline]
    pub(super) fn block(&mut self, free: bool) -> Result<u64, Problem> {
        let count = self.long()?;
        if count == 0 {
            return Ok(0);
        }
        if count < 0 {
            let size = self.long()?;
            if usize::try_from(size).map_or(true, |size| size > self.rest.len()) {
                return Err(fault(format_args!("a block of at most {} bytes", self.rest.len()), size));
            }
        }
        self.admit(count.unsigned_abs(), free)
    }

    /// Skips the items of a block whose size in bytes is written before it: `None` when it was, else the count.
    pub(super) fn skip_block(&mut self, free: bool) -> Result<Option<u64>, Problem> {
        let count = self.long()?;
        if count >= 0 {
            return self.admit(count.unsigned_abs(), free).map(Some);
        }
        self.blob()?;
        Ok(None)
    }

    fn admit(&mut self, count: u64, free: bool) -> Result<u64, Problem> {
        let most = if free { self.free_items } else { self.rest.len() as u64 };
        if count > most {
            return Err(fault(format_args!("a block of at most {most} items"), count));
        }
        if free {
            self.free_items -= count;
        }
        Ok(count)
    }
}

#[inline]
fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Bytes as UTF-8 text.
#[inline]
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|error| not_utf8(bytes.len(), error))
}

#[cold]
fn not_utf8(length: usize, error: std::str::Utf8Error) -> Problem {
    fault("UTF-8 text", format_args!("{length} bytes that are not UTF-8 from byte {}", error.valid_up_to()))
}

#[cold]
fn short(wanted: usize, left: usize) -> Problem {
    let mut problem = fault(format_args!("{wanted} more bytes"), format_args!("the end of the record after {left}"));
    problem.hint = Some(MISFIT.to_owned());
    problem
}

#[cold]
fn trailing(left: usize) -> Problem {
    let mut problem = fault("the end of the record", format_args!("{left} more bytes"));
    problem.hint = Some(MISFIT.to_owned());
    problem
}

/// A fault at the place being read; the callers add the path on the way out.
#[cold]
pub(super) fn fault(expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Problem {
    Box::new(Fault { pointer: String::new(), expected: expected.to_string(), got: got.to_string(), hint: None })
}

/// Puts one more step in front of a fault's pointer.
#[cold]
pub(super) fn within(mut problem: Problem, segment: impl std::fmt::Display) -> Problem {
    let segment = segment.to_string().replace('~', "~0").replace('/', "~1");
    problem.pointer = format!("/{segment}{}", problem.pointer);
    problem
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(value: i64) -> Vec<u8> {
        let mut rest = (value << 1 ^ value >> 63).cast_unsigned();
        let mut out = Vec::new();
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
        out
    }

    #[test]
    fn long_beyond_64_bits_is_refused() {
        let too_long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(Cursor::new(&too_long).long().unwrap_err().got, "a longer one");
        assert_eq!(Cursor::new(&[0xff; 12]).long().unwrap_err().got, "a longer one");
    }

    #[test]
    fn length_beyond_the_payload_is_refused_without_allocating() {
        for claimed in [1, 1 << 20, i64::MAX, i64::MIN, -1] {
            assert!(Cursor::new(&bytes_of(claimed)).blob().is_err(), "{claimed}");
        }
    }

    #[test]
    fn count_beyond_the_payload_is_refused() {
        for claimed in [3, 1 << 40, i64::MAX, i64::MIN] {
            let mut payload = bytes_of(claimed);
            payload.extend([0, 0]);
            assert!(Cursor::new(&payload).block(false).is_err(), "{claimed}");
        }
    }

    #[test]
    fn items_without_bytes_are_bounded_over_the_whole_payload() {
        let mut payload = bytes_of(40_000);
        payload.extend(bytes_of(40_000));
        let mut cursor = Cursor::new(&payload);
        assert_eq!(cursor.block(true).unwrap(), 40_000);
        assert_eq!(cursor.block(true).unwrap_err().expected, "a block of at most 25536 items");
    }

    #[test]
    fn pointer_segments_are_escaped() {
        assert_eq!(within(within(fault("a", "b"), "a/b~"), "m").pointer, "/m/a~1b~0");
    }

    proptest! {
        #[test]
        fn every_long_is_read_back(value: i64) {
            let bytes = bytes_of(value);
            let mut cursor = Cursor::new(&bytes);
            prop_assert_eq!(cursor.long().unwrap(), value);
            prop_assert!(cursor.finish().is_ok());
        }

        #[test]
        fn no_bytes_make_the_cursor_panic(payload: Vec<u8>) {
            let _ = Cursor::new(&payload).long();
            let _ = Cursor::new(&payload).int();
            let _ = Cursor::new(&payload).text();
            let _ = Cursor::new(&payload).block(true);
            let _ = Cursor::new(&payload).skip_block(false);
            let _ = Cursor::new(&payload).index(3, "branch");
        }
    }
}
