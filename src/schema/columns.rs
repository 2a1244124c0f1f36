//! Which Postgres column a field becomes: the type table of `docs/avro-types.md`.
//!
//! Owns the names, object ids and order of columns. Knows nothing of bytes.

use apache_avro::{Schema, schema::RecordField};

use super::{
    limits::{HIDDEN_COLUMNS, MAX_NAME_BYTES},
    named_types::NamedTypes,
    resolve::{ResolveError, name_of},
};

/// Postgres allows 1600 columns; the relation needs some of its own.
const MAX_COLUMNS: usize = 1_500;
/// Most digits, and most digits after the point, that a `numeric` may be declared with.
pub(super) const MAX_NUMERIC_PRECISION: usize = 1_000;

/// A Postgres type that a field of a record is stored as.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PgType {
    Boolean,
    Int4,
    Int8,
    Float4,
    Float8,
    /// A `numeric` with declared precision and scale.
    Decimal {
        precision: u16,
        scale: u16,
    },
    /// A `numeric` of any precision and scale.
    Numeric,
    Text,
    Bytea,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Jsonb,
    /// An array of scalars, one-dimensional.
    Array(Box<PgType>),
}

/// A column of the relation that a record type becomes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Column {
    /// The field's name as the schema has it; quote it in SQL.
    pub name: String,
    pub pg_type: PgType,
    /// Whether the field may be null.
    pub nullable: bool,
}

impl PgType {
    /// The type in SQL, spelt as Postgres' own `format_type` does.
    pub fn sql(&self) -> String {
        let name = match self {
            PgType::Boolean => "boolean",
            PgType::Int4 => "integer",
            PgType::Int8 => "bigint",
            PgType::Float4 => "real",
            PgType::Float8 => "double precision",
            PgType::Decimal { precision, scale } => return format!("numeric({precision},{scale})"),
            PgType::Numeric => "numeric",
            PgType::Text => "text",
            PgType::Bytea => "bytea",
            PgType::Uuid => "uuid",
            PgType::Date => "date",
            PgType::Time => "time without time zone",
            PgType::Timestamp => "timestamp without time zone",
            PgType::Timestamptz => "timestamp with time zone",
            PgType::Interval => "interval",
            PgType::Jsonb => "jsonb",
            PgType::Array(item) => return format!("{}[]", item.sql()),
        };
        name.to_owned()
    }

    /// The type's fixed object id.
    pub fn oid(&self) -> u32 {
        self.oids().0
    }

    /// Object id of the array over this type; an array's is its own, for Postgres' arrays have any number of dimensions.
    pub fn array_oid(&self) -> u32 {
        self.oids().1
    }

    fn oids(&self) -> (u32, u32) {
        match self {
            PgType::Boolean => (16, 1000),
            PgType::Bytea => (17, 1001),
            PgType::Int8 => (20, 1016),
            PgType::Int4 => (23, 1007),
            PgType::Text => (25, 1009),
            PgType::Float4 => (700, 1021),
            PgType::Float8 => (701, 1022),
            PgType::Date => (1082, 1182),
            PgType::Time => (1083, 1183),
            PgType::Timestamp => (1114, 1115),
            PgType::Timestamptz => (1184, 1185),
            PgType::Interval => (1186, 1187),
            PgType::Decimal { .. } | PgType::Numeric => (1700, 1231),
            PgType::Uuid => (2950, 2951),
            PgType::Jsonb => (3802, 3807),
            PgType::Array(item) => (item.array_oid(), item.array_oid()),
        }
    }
}

/// The columns of a record type, in the order of its fields.
///
/// # Errors
/// When the schema is no record, or a field has a name or a type that no column can have.
pub fn columns_of(reader: &Schema) -> Result<Vec<Column>, ResolveError> {
    let refuse = |reason: String| ResolveError { record: name_of(reader), pointer: String::new(), reason };
    let Schema::Record(record) = reader else {
        return Err(refuse("is not a record: only the fields of a record become columns".to_owned()));
    };
    if record.fields.len() > MAX_COLUMNS {
        return Err(refuse(format!("has {} fields: a table takes at most {MAX_COLUMNS}", record.fields.len())));
    }
    let types = Types(NamedTypes::of(reader));
    if let Some(fault) = types.0.faults().next() {
        return Err(refuse(fault));
    }
    let column = |field: &RecordField| {
        let found = check_name(&field.name).and_then(|()| types.column(&field.schema));
        let (pg_type, nullable) = found.map_err(|reason| ResolveError {
            record: name_of(reader),
            pointer: format!("/{}", field.name),
            reason,
        })?;
        Ok(Column { name: field.name.clone(), pg_type, nullable })
    };
    record.fields.iter().map(column).collect()
}

fn check_name(name: &str) -> Result<(), String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("a column's name has at most {MAX_NAME_BYTES} bytes, this one has {}", name.len()));
    }
    if HIDDEN_COLUMNS.contains(&name) {
        return Err("every table has a hidden column of this name: choose another".to_owned());
    }
    Ok(())
}

struct Types<'s>(NamedTypes<'s>);

impl<'s> Types<'s> {
    /// Type of a column and whether it is nullable.
    fn column(&self, schema: &'s Schema) -> Result<(PgType, bool), String> {
        let (schema, nullable) = self.unwrap(self.0.follow(schema)?);
        let pg_type = match schema {
            None => PgType::Text,
            Some(schema) => match self.0.follow(schema)? {
                Schema::Array(array) => match self.item(&array.items)? {
                    Some(item) => PgType::Array(Box::new(item)),
                    None => PgType::Jsonb,
                },
                Schema::Map(_) | Schema::Record(_) | Schema::Union(_) => PgType::Jsonb,
                scalar => scalar_type(scalar)?,
            },
        };
        Ok((pg_type, nullable))
    }

    /// Type of an array's items when they are scalars.
    fn item(&self, schema: &'s Schema) -> Result<Option<PgType>, String> {
        let (Some(schema), _) = self.unwrap(self.0.follow(schema)?) else { return Ok(None) };
        match self.0.follow(schema)? {
            Schema::Array(_) | Schema::Map(_) | Schema::Record(_) | Schema::Union(_) => Ok(None),
            scalar => scalar_type(scalar).map(Some),
        }
    }

    /// What is left of a schema without null, and whether null was there; a union of several types stays one.
    fn unwrap(&self, schema: &'s Schema) -> (Option<&'s Schema>, bool) {
        match schema {
            Schema::Null => (None, true),
            Schema::Union(union) => {
                let mut others = union.variants().iter().filter(|variant| !matches!(variant, Schema::Null));
                match (others.next(), others.next()) {
                    (only, None) => (only, union.is_nullable()),
                    _ => (Some(schema), union.is_nullable()),
                }
            }
            other => (Some(other), false),
        }
    }
}

fn scalar_type(schema: &Schema) -> Result<PgType, String> {
    Ok(match schema {
        Schema::Boolean => PgType::Boolean,
        Schema::Int => PgType::Int4,
        Schema::Long => PgType::Int8,
        Schema::Float => PgType::Float4,
        Schema::Double => PgType::Float8,
        Schema::Bytes | Schema::Fixed(_) => PgType::Bytea,
        Schema::String | Schema::Enum(_) => PgType::Text,
        Schema::Decimal(decimal) => {
            let declared = |value: usize| u16::try_from(value).ok().filter(|_| value <= MAX_NUMERIC_PRECISION);
            let (Some(precision), Some(scale)) = (declared(decimal.precision), declared(decimal.scale)) else {
                return Err(format!(
                    "decimal({},{}) has no column: Postgres' numeric is declared with at most {MAX_NUMERIC_PRECISION} digits",
                    decimal.precision, decimal.scale
                ));
            };
            PgType::Decimal { precision, scale }
        }
        Schema::BigDecimal => PgType::Numeric,
        Schema::Uuid(_) => PgType::Uuid,
        Schema::Date => PgType::Date,
        Schema::TimeMillis | Schema::TimeMicros => PgType::Time,
        Schema::TimestampMillis | Schema::TimestampMicros | Schema::TimestampNanos => PgType::Timestamptz,
        Schema::LocalTimestampMillis | Schema::LocalTimestampMicros | Schema::LocalTimestampNanos => PgType::Timestamp,
        Schema::Duration(_) => PgType::Interval,
        Schema::Null => PgType::Text,
        Schema::Array(_) | Schema::Map(_) | Schema::Union(_) | Schema::Record(_) | Schema::Ref { .. } => PgType::Jsonb,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(fields: &str) -> Result<Vec<Column>, ResolveError> {
        let schema = format!(r#"{{"type":"record","name":"Thing","namespace":"a.b","fields":[{fields}]}}"#);
        columns_of(&Schema::parse_str(&schema).unwrap())
    }

    fn column(field_type: &str) -> (String, bool) {
        let columns = columns(&format!(r#"{{"name":"f","type":{field_type}}}"#)).unwrap();
        (columns[0].pg_type.sql(), columns[0].nullable)
    }

    #[test]
    fn nullable_union_is_a_nullable_column_of_its_type() {
        assert_eq!(column(r#"["null","long"]"#), ("bigint".into(), true));
        assert_eq!(column(r#"["string","null"]"#), ("text".into(), true));
        assert_eq!(column(r#"["string"]"#), ("text".into(), false));
        assert_eq!(column(r#"["null"]"#), ("text".into(), true));
        assert_eq!(column(r#""null""#), ("text".into(), true));
        assert_eq!(column(r#"["null","int","string"]"#), ("jsonb".into(), true));
        assert_eq!(column(r#"["int","string"]"#), ("jsonb".into(), false));
    }

    #[test]
    fn arrays_of_scalars_are_arrays_and_of_others_jsonb() {
        assert_eq!(column(r#"{"type":"array","items":"string"}"#), ("text[]".into(), false));
        assert_eq!(column(r#"{"type":"array","items":["null","int"]}"#), ("integer[]".into(), false));
        assert_eq!(column(r#"["null",{"type":"array","items":"double"}]"#), ("double precision[]".into(), true));
        for nested in [
            r#"{"type":"array","items":{"type":"array","items":"int"}}"#,
            r#"{"type":"array","items":"null"}"#,
            r#"{"type":"array","items":["int","string"]}"#,
            r#"{"type":"array","items":{"type":"map","values":"int"}}"#,
        ] {
            assert_eq!(column(nested), ("jsonb".into(), false), "{nested}");
        }
    }

    #[test]
    fn named_type_used_by_reference_has_the_same_column() {
        let fields = r#"{"name":"a","type":{"type":"enum","name":"Kind","symbols":["X"]}},
            {"name":"b","type":["null","Kind"]},{"name":"c","type":{"type":"array","items":"a.b.Kind"}}"#;
        let columns = columns(fields).unwrap();
        let types: Vec<String> = columns.iter().map(|column| column.pg_type.sql()).collect();
        assert_eq!(types, ["text", "text", "text[]"]);
    }

    #[test]
    fn what_no_table_can_hold_is_refused_with_the_field() {
        let long_name = "x".repeat(64);
        for (name, field_type) in [
            ("ctid", r#""int""#),
            (long_name.as_str(), r#""int""#),
            ("f", r#"{"type":"bytes","logicalType":"decimal","precision":1001,"scale":2}"#),
        ] {
            let error = columns(&format!(r#"{{"name":"{name}","type":{field_type}}}"#)).unwrap_err();
            assert_eq!((error.record.as_str(), error.pointer), ("a.b.Thing", format!("/{name}")));
        }
        assert_eq!(
            columns_of(&Schema::String).unwrap_err().to_string(),
            "string: is not a record: only the fields of a record become columns"
        );
    }

    #[test]
    fn object_ids_are_those_of_the_client_library() {
        use tokio_postgres::types::{Kind, Type};
        let all = [
            PgType::Boolean,
            PgType::Int4,
            PgType::Int8,
            PgType::Float4,
            PgType::Float8,
            PgType::Decimal { precision: 1, scale: 0 },
            PgType::Numeric,
            PgType::Text,
            PgType::Bytea,
            PgType::Uuid,
            PgType::Date,
            PgType::Time,
            PgType::Timestamp,
            PgType::Timestamptz,
            PgType::Interval,
            PgType::Jsonb,
        ];
        for scalar in all {
            let array = Type::from_oid(scalar.array_oid()).unwrap();
            assert_eq!(array.kind(), &Kind::Array(Type::from_oid(scalar.oid()).unwrap()), "{scalar:?}");
            assert_eq!(PgType::Array(Box::new(scalar.clone())).oid(), scalar.array_oid());
        }
    }
}
