//! A row of the outbox as the record that it becomes.

use std::borrow::Cow;

use crate::{
    domain::{HEADER_DLQ_EVENT_ID, HEADER_EVENT_ID},
    kafka::{EncodedBatch, EncodedRecord},
    store::{headers, outbox::OutboxRow},
};

/// Name and value, or null.
pub type Header = (Cow<'static, str>, Option<Vec<u8>>);

/// The row's headers but for its own id, which the record gets anyway. Any other id is that of the record which a dead
/// letter mirrors: it goes by another name, for a record has one id.
pub fn headers(row: &OutboxRow) -> Vec<Header> {
    let own = row.event_id.to_string();
    let header = |(name, value): headers::Header| match name.as_str() {
        HEADER_EVENT_ID if value.as_deref() == Some(own.as_bytes()) => None,
        HEADER_EVENT_ID => Some((Cow::Borrowed(HEADER_DLQ_EVENT_ID), value)),
        _ => Some((Cow::Owned(name), value)),
    };
    headers::from_json(&row.headers).into_iter().filter_map(header).collect()
}

/// The headers of the record, its id at the end.
pub fn all_headers(row: &OutboxRow) -> Vec<Header> {
    let mut all = headers(row);
    all.push((Cow::Borrowed(HEADER_EVENT_ID), Some(row.event_id.to_string().into_bytes())));
    all
}

/// The record as a batch of its own.
pub fn batch(row: &OutboxRow) -> EncodedBatch {
    let mut bytes = Vec::new();
    let mut append = |value: &[u8]| {
        let start = u32::try_from(bytes.len()).expect("invariant: a row is below 4 GiB");
        bytes.extend_from_slice(value);
        start..u32::try_from(bytes.len()).expect("invariant: a row is below 4 GiB")
    };
    let record = EncodedRecord {
        key: row.key.as_deref().map(&mut append),
        payload: row.payload.as_deref().map(&mut append),
        event_id: append(row.event_id.to_string().as_bytes()),
        // Where there is one it is among the row's headers.
        fingerprint: 0..0,
    };
    EncodedBatch { topic: row.target_topic.as_str().into(), bytes, records: vec![record], headers: headers(row) }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::store::outbox::Lane;

    fn sent(event_id: Uuid, headers: Value) -> Vec<(String, Option<Vec<u8>>)> {
        let row = OutboxRow {
            lane: Lane { projection: "p".into(), topic: "t".into(), partition: 0 },
            version: 1,
            made: 0,
            out_seq: 1,
            event_id,
            target_topic: "p.dlq".into(),
            key: None,
            payload: None,
            headers,
        };
        super::headers(&row).into_iter().map(|(name, value)| (name.into_owned(), value)).collect()
    }

    fn base64(value: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(value)
    }

    #[test]
    fn own_id_of_an_event_is_not_sent_twice() {
        let id = Uuid::from_u128(7);
        assert_eq!(sent(id, json!([[HEADER_EVENT_ID, base64(&id.to_string())]])), []);
    }

    #[test]
    fn headers_of_a_dead_letter_are_those_it_came_with() {
        let headers = json!([["a", base64("1")], [HEADER_EVENT_ID, base64("order-7")], ["none", null], ["a", ""]]);
        let expected = [
            ("a".to_owned(), Some(b"1".to_vec())),
            (HEADER_DLQ_EVENT_ID.to_owned(), Some(b"order-7".to_vec())),
            ("none".to_owned(), None),
            ("a".to_owned(), Some(Vec::new())),
        ];
        assert_eq!(sent(Uuid::from_u128(7), headers), expected);
        assert_eq!(sent(Uuid::nil(), json!([[HEADER_EVENT_ID, null]])), [(HEADER_DLQ_EVENT_ID.to_owned(), None)]);
    }
}
