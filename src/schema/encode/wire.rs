//! Avro's binary encoding of the primitive types.

/// A zig-zag variable-length integer; `int` and `long` share the form.
#[inline]
pub(super) fn long(out: &mut Vec<u8>, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

/// A length or count.
#[inline]
pub(super) fn length(out: &mut Vec<u8>, length: usize) {
    // No slice is longer than i64::MAX.
    long(out, length as i64);
}

/// Bytes or text with the length before.
#[inline]
pub(super) fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Writes a count at `at`, where one byte was left for it, and moves what follows if it takes more.
pub(super) fn patch_count(out: &mut Vec<u8>, at: usize, count: usize) {
    if count < 64 {
        out[at] = (count as u8) << 1;
        return;
    }
    let end = out.len();
    length(out, count);
    let size = out.len() - end;
    out[at..].rotate_right(size);
    // Over the byte that was left.
    out.copy_within(at + size + 1.., at + size);
    out.pop();
}

/// Reads an integer that `long` wrote at the start of `bytes`, and what follows it.
pub(super) fn read_long(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut bits = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        bits |= u64::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(((bits >> 1) as i64 ^ -((bits & 1) as i64), &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_are_read_as_written(value in any::<i64>()) {
            let mut out = Vec::new();
            long(&mut out, value);
            prop_assert_eq!(read_long(&out), Some((value, &[][..])));
        }

        #[test]
        fn a_count_is_written_before_what_it_counts(count in 1..20_000_usize, before in 0..5_usize) {
            let mut out = vec![7; before];
            out.push(0);
            out.extend(std::iter::repeat_n(9, count));
            patch_count(&mut out, before, count);
            let mut expected = vec![7; before];
            length(&mut expected, count);
            expected.extend(std::iter::repeat_n(9, count));
            prop_assert_eq!(out, expected);
        }
    }
}
