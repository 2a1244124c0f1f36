//! Records of a schema registry's topic, in Confluent's format. Pure.
//!
//! Any registry of that format may have written before us: what is not understood is skipped, never an error.

use serde::{Deserialize, Serialize};

/// What a record of the topic says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A version of a subject; without a value it is gone for good.
    Schema { subject: String, version: i32, value: Option<SchemaValue> },
    /// All versions of the subject up to this one are deleted.
    DeleteSubject { subject: String, version: i32 },
    /// Known and of no meaning to us, or not known.
    Other,
}

/// The value of a schema's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaValue {
    pub subject: String,
    pub version: i32,
    pub id: i32,
    /// Absent for Avro.
    #[serde(rename = "schemaType", skip_serializing_if = "Option::is_none", default)]
    pub schema_type: Option<String>,
    pub schema: String,
    #[serde(default)]
    pub deleted: bool,
}

#[derive(Deserialize)]
struct Key {
    keytype: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    version: Option<i32>,
}

#[derive(Deserialize)]
struct DeleteSubjectValue {
    subject: String,
    version: i32,
}

/// Key of a schema's record. The order of fields is part of the key, for compaction compares bytes.
#[derive(Serialize)]
struct SchemaKey<'a> {
    keytype: &'static str,
    subject: &'a str,
    version: i32,
    magic: i32,
}

/// Reads a record.
pub fn parse(key: Option<&[u8]>, payload: Option<&[u8]>) -> Entry {
    let Some(key) = key.and_then(|key| serde_json::from_slice::<Key>(key).ok()) else { return Entry::Other };
    match (key.keytype.as_str(), key.subject, key.version) {
        ("SCHEMA", Some(subject), Some(version)) => match payload.map(serde_json::from_slice) {
            None => Entry::Schema { subject, version, value: None },
            Some(Ok(value)) => Entry::Schema { subject, version, value: Some(value) },
            Some(Err(_)) => Entry::Other,
        },
        ("DELETE_SUBJECT", ..) => match payload.map(serde_json::from_slice::<DeleteSubjectValue>) {
            Some(Ok(value)) => Entry::DeleteSubject { subject: value.subject, version: value.version },
            _ => Entry::Other,
        },
        _ => Entry::Other,
    }
}

/// Writes the record of a schema: key and payload.
pub fn schema_record(value: &SchemaValue) -> (Vec<u8>, Vec<u8>) {
    let key = SchemaKey { keytype: "SCHEMA", subject: &value.subject, version: value.version, magic: 1 };
    let json = "invariant: strings and numbers are always JSON";
    (serde_json::to_vec(&key).expect(json), serde_json::to_vec(value).expect(json))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> SchemaValue {
        let schema = r#"{"type":"string"}"#.to_owned();
        SchemaValue { subject: "a.B".into(), version: 2, id: 7, schema_type: None, schema, deleted: false }
    }

    #[test]
    fn schema_is_written_byte_for_byte_as_confluent_does() {
        let (key, payload) = schema_record(&value());
        assert_eq!(String::from_utf8(key).unwrap(), r#"{"keytype":"SCHEMA","subject":"a.B","version":2,"magic":1}"#);
        assert_eq!(
            String::from_utf8(payload).unwrap(),
            r#"{"subject":"a.B","version":2,"id":7,"schema":"{\"type\":\"string\"}","deleted":false}"#
        );
    }

    #[test]
    fn records_of_other_registries_are_understood_or_skipped() {
        let (key, payload) = schema_record(&value());
        let schema = Entry::Schema { subject: "a.B".into(), version: 2, value: Some(value()) };
        assert_eq!(parse(Some(&key), Some(&payload)), schema);
        assert_eq!(parse(Some(&key), None), Entry::Schema { subject: "a.B".into(), version: 2, value: None });
        // A newer registry adds fields.
        let newer = br#"{"subject":"a.B","version":2,"id":7,"guid":"x","schema":"{\"type\":\"string\"}","deleted":false,"ts":1}"#;
        assert_eq!(parse(Some(&key), Some(newer)), schema);
        let delete = parse(
            Some(br#"{"keytype":"DELETE_SUBJECT","subject":"a.B","magic":0}"#),
            Some(br#"{"subject":"a.B","version":2}"#),
        );
        assert_eq!(delete, Entry::DeleteSubject { subject: "a.B".into(), version: 2 });
        let config = parse(
            Some(br#"{"keytype":"CONFIG","subject":null,"magic":0}"#),
            Some(br#"{"compatibilityLevel":"FULL_TRANSITIVE"}"#),
        );
        assert_eq!(config, Entry::Other, "levels are kept to by those who register");
        assert_eq!(parse(Some(br#"{"keytype":"NOOP","magic":0}"#), None), Entry::Other);
        assert_eq!(parse(None, None), Entry::Other);
    }

    proptest! {
        #[test]
        fn no_record_makes_the_parser_panic(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..80)),
            payload in prop::option::of(".{0,80}"),
        ) {
            parse(key.as_deref(), payload.as_deref().map(str::as_bytes));
        }

        #[test]
        fn what_is_written_is_read(subject in ".{0,20}", version in any::<i32>(), id in any::<i32>(), schema in ".{0,40}") {
            let value = SchemaValue { subject: subject.clone(), version, id, schema_type: None, schema, deleted: false };
            let (key, payload) = schema_record(&value);
            prop_assert_eq!(parse(Some(&key), Some(&payload)), Entry::Schema { subject, version, value: Some(value) });
        }
    }
}
