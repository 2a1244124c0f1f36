//! Confluent's wire format: a zero byte, the schema's id in four bytes (big-endian), then the Avro encoding.

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 5;
const MAGIC: u8 = 0;

/// Why a record's value is not framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error(
        "the value has {length} bytes, fewer than the {HEADER_BYTES} of a schema header: it was not written as Avro by a registry's serializer"
    )]
    TooShort { length: usize },
    #[error(
        "the value begins with byte {first:#04x} and not with 0x00: it was not written as Avro by a registry's serializer"
    )]
    Magic { first: u8 },
}

/// Appends the header; the encoded record follows it.
pub fn write_header(schema_id: u32, out: &mut Vec<u8>) {
    out.push(MAGIC);
    out.extend_from_slice(&schema_id.to_be_bytes());
}

/// The schema's id and the encoded record.
pub fn split(value: &[u8]) -> Result<(u32, &[u8]), FramingError> {
    match value {
        [MAGIC, a, b, c, d, payload @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), payload)),
        [first, ..] if *first != MAGIC => Err(FramingError::Magic { first: *first }),
        _ => Err(FramingError::TooShort { length: value.len() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_without_a_header_are_refused_with_the_reason() {
        assert_eq!(split(b""), Err(FramingError::TooShort { length: 0 }));
        assert_eq!(split(&[0, 0, 0, 1]), Err(FramingError::TooShort { length: 4 }));
        assert_eq!(split(b"{\"a\":1}"), Err(FramingError::Magic { first: b'{' }));
        assert!(split(b"{").unwrap_err().to_string().contains("0x7b"));
        assert_eq!(split(&[0, 0, 0, 1, 2]), Ok((258, &[][..])));
    }

    proptest! {
        #[test]
        fn a_header_is_read_as_written(id in any::<u32>(), payload in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut value = Vec::new();
            write_header(id, &mut value);
            prop_assert_eq!(value.len(), HEADER_BYTES);
            value.extend_from_slice(&payload);
            prop_assert_eq!(split(&value), Ok((id, &payload[..])));
        }
    }
}
