//! Fields that a JSON document gives more than once.
//!
//! A parsed `Value` keeps the last of them and says nothing, so this reads the text by itself. The encoder of the ingest path
//! sees them on its own way through a document.

use std::{collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// JSON pointers (RFC 6901) of the fields that are given again, in the order of the text; serde_json bounds the depth.
///
/// # Errors
/// When the text is not JSON.
pub(super) fn repeated_fields(json: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    let mut found = Vec::new();
    let mut text = serde_json::Deserializer::from_slice(json);
    Walk { pointer: "", found: &mut found }.deserialize(&mut text)?;
    text.end()?;
    Ok(found)
}

/// The value at a place, and where to note what is found inside of it.
struct Walk<'a> {
    pointer: &'a str,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = fields.next_key::<String>()? {
            let pointer = format!("{}/{}", self.pointer, name.replace('~', "~0").replace('/', "~1"));
            fields.next_value_seed(Walk { pointer: &pointer, found: self.found })?;
            if !seen.insert(name) {
                self.found.push(pointer);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut at = 0;
        let mut pointer = format!("{}/{at}", self.pointer);
        while items.next_element_seed(Walk { pointer: &pointer, found: self.found })?.is_some() {
            at += 1;
            pointer = format!("{}/{at}", self.pointer);
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_given_again_is_found_at_every_depth() {
        for (json, expected) in [
            (r#"{"a":1,"b":[true,null,-1,1.5,"a"],"c":{"a":1}}"#, &[][..]),
            (r#"{"a":1,"a":"x"}"#, &["/a"]),
            (r#"{"a":1,"\u0061":1,"a":1}"#, &["/a", "/a"]),
            (r#"[{"x":{"y":1}},{"x":[{"a/b":1,"a/b":2}],"x":0}]"#, &["/1/x/0/a~1b", "/1/x"]),
        ] {
            assert_eq!(repeated_fields(json.as_bytes()).unwrap(), expected, "{json}");
        }
        assert!(repeated_fields(b"{\"a\":1").is_err());
        assert!(repeated_fields(b"{} {}").is_err());
    }
}
