//! Which records of the log a replay looks at: those of a key, those whose fields are as asked.

use std::{
    cmp::Ordering,
    collections::HashMap,
    str::FromStr,
    sync::{Arc, RwLock},
};

use serde_json::Value;

use super::prepare::WriterSchemas;
use crate::schema::{JsonDecoder, framing, parse_registered};

/// A choice of records; all of it must hold.
#[derive(Default)]
pub struct Only {
    pub key: Option<Vec<u8>>,
    pub conditions: Vec<Condition>,
    /// By schema id, as records were written; none for what cannot be read.
    decoders: RwLock<HashMap<i32, Option<Arc<JsonDecoder>>>>,
}

/// What a field has to be: `amount>=15`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Names of fields, from the outside in.
    pub path: Vec<String>,
    operator: Operator,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Is,
    IsNot,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// As they are written; those of two characters first, for each begins with one of the others.
const OPERATORS: [(&str, Operator); 6] = [
    ("!=", Operator::IsNot),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("=", Operator::Is),
    ("<", Operator::Less),
    (">", Operator::More),
];

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{text}`: expected a field, one of = != < <= > >= and a value, such as account=a1 or delay_minutes>=15"
            )
        };
        let at = text.find(['!', '<', '>', '=']).ok_or_else(expected)?;
        let (field, rest) = text.split_at(at);
        let found = OPERATORS.iter().find_map(|(written, operator)| Some((rest.strip_prefix(written)?, *operator)));
        let (value, operator) = found.ok_or_else(expected)?;
        let path: Vec<String> = field.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(expected());
        }
        let value = value.trim();
        // A slip of the finger, as `a==1` or `a>>1`, would match nothing and say nothing.
        if value.starts_with(['!', '<', '>', '=']) {
            return Err(format!("`{text}`: two operators follow each other; {}", expected()));
        }
        Ok(Self { path, operator, value: value.to_owned() })
    }
}

impl Condition {
    /// Whether the value can be compared with a number, or with what is none.
    pub fn is_of_number(&self) -> bool {
        self.value == "null" || self.value.parse::<f64>().is_ok()
    }

    /// A field that is not there is not as asked, whatever is asked.
    fn holds(&self, record: &Value) -> bool {
        let mut found = record;
        for name in &self.path {
            match found.get(name) {
                Some(inner) => found = inner,
                None => return false,
            }
        }
        let Some(order) = self.compare(found) else { return self.operator == Operator::IsNot };
        match self.operator {
            Operator::Is => order == Ordering::Equal,
            Operator::IsNot => order != Ordering::Equal,
            Operator::Less => order == Ordering::Less,
            Operator::AtMost => order != Ordering::Greater,
            Operator::More => order == Ordering::Greater,
            Operator::AtLeast => order != Ordering::Less,
        }
    }

    /// How the field is to the value: as numbers where it is one, else as text. None when they cannot be compared.
    fn compare(&self, field: &Value) -> Option<Ordering> {
        match field {
            Value::Number(number) => match (number.as_i64(), self.value.parse::<i64>()) {
                (Some(number), Ok(value)) => Some(number.cmp(&value)),
                _ => number.as_f64()?.partial_cmp(&self.value.parse().ok()?),
            },
            // Decimals are texts in JSON.
            Value::String(text) => match (text.parse::<f64>(), self.value.parse::<f64>()) {
                (Ok(number), Ok(value)) => number.partial_cmp(&value),
                _ => Some(text.as_str().cmp(&self.value)),
            },
            Value::Bool(value) => Some(value.cmp(&self.value.parse().ok()?)),
            Value::Null if self.value == "null" => Some(Ordering::Equal),
            _ => None,
        }
    }
}

impl Only {
    pub fn new(key: Option<&str>, conditions: Vec<Condition>) -> Self {
        Self { key: key.map(|key| key.as_bytes().to_vec()), conditions, decoders: RwLock::default() }
    }

    pub fn is_all(&self) -> bool {
        self.key.is_none() && self.conditions.is_empty()
    }

    /// Whether a record is looked at. One whose fields cannot be read is not as asked; one of a schema that is not known
    /// yet may be.
    pub(super) fn matches(&self, schemas: &WriterSchemas, key: Option<&[u8]>, payload: Option<&[u8]>) -> bool {
        if self.key.as_deref().is_some_and(|wanted| key != Some(wanted)) {
            return false;
        }
        if self.conditions.is_empty() {
            return true;
        }
        // It has no fields, and can only remove: without it, rows would stay that are gone.
        let Some(payload) = payload else { return true };
        let Ok((id, body)) = framing::split(payload) else { return false };
        let id = i32::try_from(id).unwrap_or(i32::MAX);
        let Some(decoder) = self.decoder(schemas, id) else { return true };
        let Some(decoder) = decoder else { return false };
        let mut json = Vec::new();
        let record =
            decoder.append_json(body, &mut json).ok().and_then(|()| serde_json::from_slice::<Value>(&json).ok());
        record.is_some_and(|record| self.conditions.iter().all(|condition| condition.holds(&record)))
    }

    /// None for a schema that is not known yet.
    fn decoder(&self, schemas: &WriterSchemas, id: i32) -> Option<Option<Arc<JsonDecoder>>> {
        if let Some(known) = self.decoders.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(&id) {
            return Some(known.clone());
        }
        let registered = schemas.by_id(id)?;
        let compile = || {
            let schema = parse_registered(&registered.text).ok()?.schema;
            JsonDecoder::compile(&schema, &schema).ok().map(Arc::new)
        };
        let decoder = compile();
        let mut decoders = self.decoders.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        decoders.insert(id, decoder.clone());
        Some(decoder)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_compared_as_what_they_are() {
        let record = json!({ "n": 15, "x": 1.5, "s": "2013-01-02T00:00:00Z", "b": true, "d": "9.50", "none": null, "inner": { "a": "9" } });
        let holds = |text: &str| text.parse::<Condition>().unwrap().holds(&record);
        for text in [
            "n=15",
            "n>=15",
            "n<=15",
            "n!=14",
            "n>9",
            "n<100",
            "n<15.5",
            "x=1.5",
            "x>1",
            "s>=2013-01-02",
            "s<2014",
            "b=true",
            "b!=false",
            "none=null",
            "inner.a=9",
            " inner.a = 9 ",
            "n!=abc",
            "d<15",
            "d=9.5",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in
            ["n=14", "n>15", "n<15", "x<1", "s<2013-01-02", "b=false", "none=x", "inner.b=9", "absent!=1", "n=abc"]
        {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused_with_an_example() {
        for text in ["", "a", "=1", "a.=1", "a!1", ".a=1", "a==1", "a>>1", "a= =1"] {
            let error = text.parse::<Condition>().unwrap_err();
            assert!(error.contains("such as account=a1"), "{error}");
        }
        let condition: Condition = "a.b!=x=y".parse().unwrap();
        assert_eq!(condition.path, ["a", "b"]);
        assert_eq!((condition.operator, condition.value.as_str()), (Operator::IsNot, "x=y"));
    }
}
