//! What of a schema decides the value of one field, as text to compare and hash.
//!
//! Owns what does not count: documentation, the order and the other fields of the record, where a named type is defined,
//! attributes that nobody here reads. Two fields of one definition read every record alike.

use apache_avro::{
    Schema,
    schema::{Alias, RecordField, RecordSchema},
};
use serde_json::{Value, json};

use super::{
    limits::MAX_SCHEMA_DEPTH,
    named_types::NamedTypes,
    resolve::{ResolveError, name_of},
};

/// The definitions of a record's fields, in their order.
///
/// # Errors
/// When the schema is no record, or names a type that it does not define.
pub fn definitions_of(reader: &Schema) -> Result<Vec<String>, ResolveError> {
    let refuse = |reason: String| ResolveError { record: name_of(reader), pointer: String::new(), reason };
    let Schema::Record(record) = reader else { return Err(refuse("is not a record".to_owned())) };
    let names = NamedTypes::of(reader);
    let definition = |field| {
        let own = of_field(&names, field, 0)?;
        // By an alias a field may be read from one that the writer has under the name of another.
        let naming = if field.aliases.is_empty() { Value::Null } else { naming(record) };
        Ok(json!([own, naming]).to_string())
    };
    record.fields.iter().map(|field| definition(field).map_err(refuse)).collect()
}

fn naming(record: &RecordSchema) -> Value {
    record.fields.iter().map(|field| json!([field.name, field.aliases])).collect()
}

fn of_field<'s>(names: &NamedTypes<'s>, field: &'s RecordField, depth: usize) -> Result<Value, String> {
    Ok(json!([field.name, field.aliases, field.default, definition(names, &field.schema, depth + 1)?]))
}

fn definition<'s>(names: &NamedTypes<'s>, schema: &'s Schema, depth: usize) -> Result<Value, String> {
    if depth > MAX_SCHEMA_DEPTH {
        return Err(format!("nests deeper than {MAX_SCHEMA_DEPTH} levels: flatten it"));
    }
    let inner = |schema| definition(names, schema, depth + 1);
    Ok(match names.follow(schema)? {
        Schema::Array(array) => json!({ "array": inner(&array.items)? }),
        Schema::Map(map) => json!({ "map": inner(&map.types)? }),
        Schema::Union(union) => {
            let branches: Result<Vec<Value>, String> = union.variants().iter().map(inner).collect();
            json!({ "union": branches? })
        }
        Schema::Record(record) => {
            let fields: Result<Vec<Value>, String> =
                record.fields.iter().map(|field| of_field(names, field, depth)).collect();
            json!({ "record": record.name.to_string(), "aliases": aliases(record.aliases.as_deref()), "fields": fields? })
        }
        Schema::Enum(of) => json!({
            "enum": of.name.to_string(), "aliases": aliases(of.aliases.as_deref()), "symbols": of.symbols,
            "default": of.default,
        }),
        scalar => {
            let mut written = serde_json::to_value(scalar).map_err(|error| error.to_string())?;
            if let Value::Object(members) = &mut written {
                members.remove("doc");
            }
            written
        }
    })
}

fn aliases(aliases: Option<&[Alias]>) -> Vec<String> {
    aliases.unwrap_or_default().iter().map(|alias| alias.fullname(None)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions(fields: &str) -> Vec<String> {
        let schema = format!(r#"{{"type":"record","name":"Thing","namespace":"a.b","fields":[{fields}]}}"#);
        definitions_of(&Schema::parse_str(&schema).unwrap()).unwrap()
    }

    const KIND: &str = r#"{"type":"enum","name":"Kind","symbols":["X","Y"],"default":"X"}"#;

    #[test]
    fn definition_of_a_field_is_its_own() {
        let alone = definitions(r#"{"name":"n","type":["null","long"],"default":null}"#);
        let beside = definitions(
            r#"{"name":"other","type":"string","default":""},
               {"name":"n","doc":"how many","type":["null","long"],"default":null,"unit":"pieces"}"#,
        );
        assert_eq!(alone[0], beside[1]);
        let defined = definitions(&format!(r#"{{"name":"k","type":{KIND}}},{{"name":"l","type":["null","Kind"]}}"#));
        let elsewhere = definitions(&format!(r#"{{"name":"l","type":["null",{KIND}]}}"#));
        assert_eq!(defined[1], elsewhere[0], "wherever the named type is defined");
    }

    #[test]
    fn definition_changes_with_all_that_changes_the_value() {
        let field = |rest: &str| definitions(&format!(r#"{{"name":"n",{rest}}}"#)).remove(0);
        let record = |fields: &str| format!(r#""type":{{"type":"record","name":"R","fields":[{fields}]}}"#);
        let all = [
            field(r#""type":"long""#),
            field(r#""type":"int""#),
            field(r#""type":"long","default":1"#),
            field(r#""type":"long","default":2"#),
            field(r#""type":"long","aliases":["m"]"#),
            field(r#""type":["null","long"]"#),
            field(r#""type":["long","null"]"#),
            field(r#""type":{"type":"long","logicalType":"timestamp-millis"}"#),
            field(r#""type":{"type":"bytes","logicalType":"decimal","precision":5,"scale":2}"#),
            field(r#""type":{"type":"bytes","logicalType":"decimal","precision":5,"scale":1}"#),
            field(&format!(r#""type":{KIND}"#)),
            field(&format!(r#""type":{}"#, KIND.replace("\"Y\"", "\"Y\",\"Z\""))),
            field(&format!(r#""type":{}"#, KIND.replace("\"default\":\"X\"", "\"default\":\"Y\""))),
            field(&format!(r#""type":{{"type":"array","items":{KIND}}}"#)),
            field(&format!(r#""type":{{"type":"map","values":{KIND}}}"#)),
            field(&record(r#"{"name":"a","type":"int"}"#)),
            field(&record(r#"{"name":"a","type":"int"},{"name":"b","type":"int","default":0}"#)),
        ];
        for (at, one) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == one), Some(at), "{one}");
        }
        // `m` of the writer goes to the field of that name, once there is one.
        let aliased = r#"{"name":"n","type":"long","aliases":["m"]}"#;
        let claimed = definitions(&format!(r#"{{"name":"m","type":"long","default":0}},{aliased}"#));
        assert_ne!(definitions(aliased)[0], claimed[1]);
    }
}
