//! The opaque `after=`: where a page ended, bound to the query and the version it was given by.
//!
//! It is not signed: its values are bound like those of any filter, so a forged one finds nothing that a filter could not.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

/// Values of the order's columns in the last row of a page, as Postgres prints them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub version: i32,
    /// Of everything that decides which rows follow: table, filters, order.
    pub shape: String,
    pub values: Vec<Option<String>>,
}

/// Why a cursor cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    #[error("the value is damaged")]
    Damaged,
    #[error("it was given for another table, filter or order")]
    OtherQuery,
    #[error("it was given by version {0} of the projection")]
    OtherVersion(i32),
}

impl Cursor {
    pub fn encode(&self) -> String {
        let json = serde_json::json!([self.version, self.shape, self.values]);
        URL_SAFE_NO_PAD.encode(json.to_string())
    }

    /// Decodes and checks that it belongs here. The query is checked before the version: a cursor that was never
    /// right is not said to have grown old.
    pub fn decode(text: &str, version: i32, shape: &str) -> Result<Cursor, CursorError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Damaged)?;
        let (from, of, values): (i32, String, Vec<Option<String>>) =
            serde_json::from_slice(&bytes).map_err(|_| CursorError::Damaged)?;
        if of != shape {
            return Err(CursorError::OtherQuery);
        }
        if from != version {
            return Err(CursorError::OtherVersion(from));
        }
        if values.iter().flatten().any(|value| value.contains('\0')) {
            return Err(CursorError::Damaged);
        }
        Ok(Cursor { version, shape: of, values })
    }
}

/// A short stable name for a list of texts; the same in every build and on every node.
pub fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..12])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(values in prop::collection::vec(prop::option::of("[^\0]{0,20}"), 0..5), version: i32) {
            let cursor = Cursor { version, shape: "s".to_owned(), values };
            prop_assert_eq!(Cursor::decode(&cursor.encode(), version, "s"), Ok(cursor.clone()));
            prop_assert_eq!(Cursor::decode(&cursor.encode(), version, "t"), Err(CursorError::OtherQuery));
            let other = version.wrapping_add(1);
            prop_assert_eq!(Cursor::decode(&cursor.encode(), other, "s"), Err(CursorError::OtherVersion(version)));
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in ".{0,100}", bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Cursor::decode(&text, 1, "s");
            let _ = Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes), 1, "s");
        }
    }
}
