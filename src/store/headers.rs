//! The headers of a record that waits in a table: `[[name, base64 value or null], …]`, in the record's order.
//!
//! The one place that writes and reads them. They stand in columns that anybody with the right may change by hand: what
//! cannot be read never fails, for it would hold up what stands behind it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// Name and value, or none.
pub type Header = (String, Option<Vec<u8>>);

/// A header as it stands in the table. JSON in Postgres has no NUL.
pub fn to_json(name: &str, value: Option<&[u8]>) -> Value {
    json!([name.replace('\0', ""), value.map(|value| STANDARD.encode(value))])
}

/// The headers as the record had them. One whose value is not base64 keeps its name, as one without a value: to lose it
/// altogether would say that it never was there.
pub fn from_json(headers: &Value) -> Vec<Header> {
    let header = |pair: &Value| {
        let value = pair.get(1)?.as_str().and_then(|value| STANDARD.decode(value).ok());
        Some((pair.get(0)?.as_str()?.to_owned(), value))
    };
    headers.as_array().into_iter().flatten().filter_map(header).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_come_back_as_they_were(
            headers in prop::collection::vec(("[^\0]{0,8}", prop::option::of(prop::collection::vec(any::<u8>(), 0..20))), 0..6),
        ) {
            let json: Vec<Value> = headers.iter().map(|(name, value)| to_json(name, value.as_deref())).collect();
            prop_assert_eq!(from_json(&Value::from(json)), headers);
        }
    }

    #[test]
    fn what_somebody_has_written_by_hand_loses_no_name_and_fails_nobody() {
        let json = json!([["a", "not base64!"], ["b", 7], ["c", null], ["d"], [7, "aWQ="], "e", ["f", "aWQ="]]);
        let read = from_json(&json);
        let value = |name: &str| read.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
        assert_eq!([value("a"), value("b"), value("c")], [Some(None), Some(None), Some(None)]);
        assert_eq!((value("f"), value("d"), read.len()), (Some(Some(b"id".to_vec())), None, 4));
        assert_eq!(from_json(&json!({"a": 1})), []);
        assert_eq!(to_json("a\0b", None), json!(["ab", null]));
    }
}
