//! Where a record's event id comes from: the contract's field, the client's key, or a new UUIDv7.

use uuid::{Uuid, fmt::Hyphenated};

/// The random bits of a UUIDv7 below its variant, which the ids of one request count up.
const COUNTED_BITS: u128 = (1 << 62) - 1;

/// Gives each record of one request its id, where the record has none of its own.
#[derive(Debug)]
pub(super) enum EventIds {
    /// `Idempotency-Key`: the id of a single record, `<key>/<index>` in bulk.
    Client { key: String },
    /// New ids. The clock and the random source are asked once per request; the ids then count up, so they are distinct,
    /// ordered as the records are, and as unique as the first.
    New { next: Uuid },
}

impl EventIds {
    pub(super) fn new(key: Option<String>) -> Self {
        match key {
            Some(key) => Self::Client { key },
            None => Self::New { next: Uuid::now_v7() },
        }
    }

    /// Whether a repeat of the request would carry the same ids.
    pub(super) fn are_the_clients(&self) -> bool {
        matches!(self, Self::Client { .. })
    }

    /// Appends the id of the record at `index`; `single` where the body is one record and no list.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, index: usize, single: bool) {
        match self {
            Self::Client { key } => {
                out.extend_from_slice(key.as_bytes());
                if !single {
                    out.push(b'/');
                    out.extend_from_slice(itoa::Buffer::new().format(index).as_bytes());
                }
            }
            Self::New { next } => {
                let mut text = [0; Hyphenated::LENGTH];
                out.extend_from_slice(next.hyphenated().encode_lower(&mut text).as_bytes());
                let bits = next.as_u128();
                *next = Uuid::from_u128((bits & !COUNTED_BITS) | (bits.wrapping_add(1) & COUNTED_BITS));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(mut source: EventIds, count: usize, single: bool) -> Vec<String> {
        let id = |index| {
            let mut out = Vec::new();
            source.append(&mut out, index, single);
            String::from_utf8(out).unwrap()
        };
        (0..count).map(id).collect()
    }

    #[test]
    fn key_is_the_id_of_a_single_record_and_the_stem_in_bulk() {
        assert_eq!(ids(EventIds::new(Some("k".into())), 1, true), ["k"]);
        assert_eq!(ids(EventIds::new(Some("k".into())), 3, false), ["k/0", "k/1", "k/2"]);
    }

    #[test]
    fn new_ids_are_distinct_ordered_v7() {
        let made = ids(EventIds::new(None), 1000, false);
        assert!(made.is_sorted_by(|a, b| a < b));
        assert!(made.iter().all(|id| Uuid::parse_str(id).unwrap().get_version_num() == 7));
    }

    proptest! {
        #[test]
        fn counting_up_never_leaves_the_form(start in any::<u128>(), millis in 0_u64..1 << 48) {
            let bytes: [u8; 10] = start.to_be_bytes()[..10].try_into().unwrap();
            let next = uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid();
            for id in ids(EventIds::New { next }, 3, false) {
                let id = Uuid::parse_str(&id).unwrap();
                prop_assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
            }
        }
    }
}
