//! Bounds on schemas and documents, in one place, with the reason for each.

use apache_avro::{
    Schema,
    schema::{InnerDecimalSchema, Name, RecordSchema},
};

use super::named_types::{NamedTypes, undefined};
use crate::domain::MAX_IDENTIFIER_BYTES;

/// Longest schema file or registration, in bytes.
pub const MAX_SCHEMA_BYTES: usize = 256 * 1024;
/// Deepest nesting of a schema. Decoders recurse by it, and a stack that overflows ends the process.
pub const MAX_SCHEMA_DEPTH: usize = 32;
/// Most fields of one record; Postgres tables end at 1,600 columns.
pub const MAX_FIELDS: usize = 1_000;
/// Most types of a schema with every reference written out. References to references grow by powers.
pub const MAX_SCHEMA_NODES: usize = 10_000;
/// Longest name of a field or relation in bytes; Postgres cuts longer ones off.
pub const MAX_NAME_BYTES: usize = MAX_IDENTIFIER_BYTES;
/// Names that every table of Postgres already has, hidden.
pub(super) const HIDDEN_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];
/// Largest `fixed`, in bytes.
pub const MAX_FIXED_BYTES: usize = 1024 * 1024;
/// Most digits of a decimal; the most that `numeric(p, s)` can declare.
pub const MAX_DECIMAL_DIGITS: usize = 1_000;
/// Deepest nesting of a JSON document.
pub const MAX_JSON_DEPTH: usize = 64;
/// Most faults reported of one document.
pub const MAX_FAULTS: usize = 20;

/// Everything about a record schema that Millpond cannot take, whoever wrote it, each said with what to do.
pub fn faults(schema: &Schema) -> Vec<String> {
    if !matches!(schema, Schema::Record(_)) {
        return vec!["the schema is not a record: wrap it in one, with this value as a field".to_owned()];
    }
    let names = NamedTypes::of(schema);
    let mut walk = Walk { names: &names, path: Vec::new(), open: Vec::new(), nodes: 0, faults: Vec::new() };
    walk.visit(schema);
    let mut faults = walk.faults;
    faults.extend(names.faults());
    faults
}

/// Names of fields that no consumer can read: the fields of the top record become columns of a relation.
///
/// Apart from [`faults`], for a field that only the writer of a record has is passed over, whatever its name.
pub(super) fn column_faults(schema: &Schema) -> Vec<String> {
    let mut faults = Vec::new();
    let Schema::Record(record) = schema else { return faults };
    for field in &record.fields {
        if field.name.starts_with('_') {
            faults.push(format!(
                "field `{}`: names that begin with `_` are the engine's own columns: rename it",
                field.name
            ));
        }
        if HIDDEN_COLUMNS.contains(&field.name.as_str()) {
            faults.push(format!(
                "field `{}`: every table of Postgres has a hidden column of this name: rename it",
                field.name
            ));
        }
        if field.name.len() > MAX_NAME_BYTES {
            faults.push(format!(
                "field `{}` has {} bytes; a Postgres column has at most {MAX_NAME_BYTES}: shorten it",
                field.name,
                field.name.len()
            ));
        }
    }
    faults
}

struct Walk<'a> {
    names: &'a NamedTypes<'a>,
    path: Vec<&'a str>,
    /// Records that the walk is inside of.
    open: Vec<&'a Name>,
    nodes: usize,
    faults: Vec<String>,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, schema: &'a Schema) {
        self.nodes += 1;
        if self.nodes > MAX_SCHEMA_NODES {
            if self.nodes == MAX_SCHEMA_NODES + 1 {
                self.faults.push(format!(
                    "the schema has more than {MAX_SCHEMA_NODES} types with its references written out: split the record"
                ));
            }
            return;
        }
        match schema {
            Schema::Array(array) => self.inside("items", &array.items),
            Schema::Map(map) => self.inside("values", &map.types),
            Schema::Union(union) => {
                if union.variants().is_empty() {
                    self.fault("a union needs at least one branch");
                }
                union.variants().iter().for_each(|branch| self.visit(branch));
            }
            Schema::Record(record) => self.record(record),
            Schema::Ref { name } => match self.names.get(name) {
                Some(_) if self.open.contains(&name) => {
                    self.fault(&format!("`{name}` contains itself: recursive schemas are refused; hold the id of the other record instead"));
                }
                Some(target) => self.visit(target),
                None => self.fault(&undefined(name)),
            },
            Schema::Fixed(fixed) if fixed.size > MAX_FIXED_BYTES => {
                self.fault(&format!(
                    "a fixed of {} bytes is above the limit of {MAX_FIXED_BYTES}: use bytes",
                    fixed.size
                ));
            }
            Schema::Decimal(decimal) => {
                let most = match &decimal.inner {
                    // 256^n / 2 is the number of values on each side of zero.
                    InnerDecimalSchema::Fixed(fixed) => {
                        ((fixed.size.saturating_mul(8).saturating_sub(1)) as f64 * std::f64::consts::LOG10_2) as usize
                    }
                    InnerDecimalSchema::Bytes => MAX_DECIMAL_DIGITS,
                }
                .min(MAX_DECIMAL_DIGITS);
                if decimal.precision > most {
                    self.fault(&format!(
                        "precision {} is above the {most} digits that fit: lower it",
                        decimal.precision
                    ));
                }
            }
            _ => {}
        }
    }

    fn record(&mut self, record: &'a RecordSchema) {
        if record.fields.len() > MAX_FIELDS {
            self.fault(&format!(
                "{} fields are above the limit of {MAX_FIELDS}: split the record",
                record.fields.len()
            ));
        }
        self.open.push(&record.name);
        for field in &record.fields {
            self.inside(&field.name, &field.schema);
        }
        self.open.pop();
    }

    fn inside(&mut self, step: &'a str, schema: &'a Schema) {
        self.path.push(step);
        if self.path.len() > MAX_SCHEMA_DEPTH {
            self.fault(&format!("nested deeper than {MAX_SCHEMA_DEPTH} levels: flatten it"));
        } else {
            self.visit(schema);
        }
        self.path.pop();
    }

    fn fault(&mut self, message: &str) {
        let place =
            if self.path.is_empty() { "the schema".to_owned() } else { format!("field `{}`", self.path.join(".")) };
        self.faults.push(format!("{place}: {message}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(schema: &str) -> Vec<String> {
        faults(&Schema::parse_str(schema).unwrap())
    }

    #[test]
    fn fields_that_cannot_be_columns_are_refused() {
        let of = |name: &str| {
            let schema = format!(
                r#"{{"type":"record","name":"F","fields":[{{"name":"x","type":"int"}},{{"name":"{name}","type":"int"}}]}}"#
            );
            column_faults(&Schema::parse_str(&schema).unwrap())
        };
        for name in HIDDEN_COLUMNS {
            assert_eq!(
                of(name),
                [format!("field `{name}`: every table of Postgres has a hidden column of this name: rename it")]
            );
        }
        assert_eq!(of("_seq"), ["field `_seq`: names that begin with `_` are the engine's own columns: rename it"]);
        assert_eq!(of(&"y".repeat(MAX_NAME_BYTES + 1)).len(), 1);
        // Postgres tells them apart, and so do we.
        assert_eq!(of("CTID"), [""; 0]);
    }

    #[test]
    fn unusable_schemas_are_refused_with_the_reason() {
        assert_eq!(faults_of("\"string\""), ["the schema is not a record: wrap it in one, with this value as a field"]);
        assert_eq!(
            faults_of(
                r#"{"type":"record","name":"Node","fields":[
                    {"name":"next","type":["null","Node"]},
                    {"name":"price","type":{"type":"fixed","size":2,"name":"Price","logicalType":"decimal","precision":5}}]}"#
            ),
            [
                "field `next`: `Node` contains itself: recursive schemas are refused; hold the id of the other record instead",
                "field `price`: precision 5 is above the 4 digits that fit: lower it",
            ]
        );
    }

    #[test]
    fn type_defined_twice_is_refused() {
        let defined = r#"{"type":"enum","name":"E","symbols":["A"]}"#;
        let schema = |second: &str| {
            format!(
                r#"{{"type":"record","name":"a.R","fields":[{{"name":"x","type":{defined}}},{{"name":"y","type":{second}}}]}}"#
            )
        };
        assert_eq!(faults_of(&schema(defined)), ["`a.E` is defined twice: define it once, and then name it"]);
        assert!(faults_of(&schema("\"E\"")).is_empty());
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| {
            let field =
                (1..levels).fold("\"int\"".to_owned(), |inner, _| format!(r#"{{"type":"array","items":{inner}}}"#));
            format!(r#"{{"type":"record","name":"Deep","fields":[{{"name":"a","type":{field}}}]}}"#)
        };
        assert!(faults_of(&nested(MAX_SCHEMA_DEPTH)).is_empty());
        assert_eq!(faults_of(&nested(MAX_SCHEMA_DEPTH + 1)).len(), 1);
    }

    #[test]
    fn references_that_multiply_are_bounded() {
        let mut fields = vec![
            r#"{"name":"r0","type":{"type":"record","name":"R0","fields":[{"name":"x","type":"int"}]}}"#.to_owned(),
        ];
        for level in 1..20 {
            let below = level - 1;
            fields.push(format!(
                r#"{{"name":"r{level}","type":{{"type":"record","name":"R{level}","fields":[
                    {{"name":"a","type":"R{below}"}},{{"name":"b","type":"R{below}"}}]}}}}"#
            ));
        }
        let schema = format!(r#"{{"type":"record","name":"Bomb","fields":[{}]}}"#, fields.join(","));
        assert_eq!(
            faults_of(&schema),
            ["the schema has more than 10000 types with its references written out: split the record"]
        );
    }
}
