//! What a record with an id of its client's says, in 16 bytes: the same id with another fingerprint is another record.

use std::fmt;

/// The hash of what a client sent, as the header [`HEADER_FINGERPRINT`](super::HEADER_FINGERPRINT) has it in hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Digits of the text.
    pub const HEX_BYTES: usize = 32;

    /// Reads the text of the header; none for whatever else somebody has put there.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The text of the header: hex in lower case.
    pub fn to_hex(self) -> [u8; Self::HEX_BYTES] {
        let mut text = [0; Self::HEX_BYTES];
        hex::encode_to_slice(self.0, &mut text).expect("invariant: two digits a byte");
        text
    }
}

impl From<u128> for Fingerprint {
    fn from(hash: u128) -> Self {
        Self(hash.to_be_bytes())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_is_read_as_it_was_written(hash in any::<u128>()) {
            let fingerprint = Fingerprint::from(hash);
            prop_assert_eq!(Fingerprint::from_hex(&fingerprint.to_hex()), Some(fingerprint));
            prop_assert_eq!(fingerprint.as_bytes(), &hash.to_be_bytes());
        }

        #[test]
        fn what_is_no_fingerprint_is_none(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let hex = text.len() == Fingerprint::HEX_BYTES && text.iter().all(u8::is_ascii_hexdigit);
            prop_assert_eq!(Fingerprint::from_hex(&text).is_some(), hex);
        }
    }
}
