//! The plan that a schema is compiled to: a tree with every reference written out and every default already encoded.

use apache_avro::{
    Schema,
    schema::{DecimalSchema, EnumSchema, InnerDecimalSchema, RecordSchema, UnionSchema, UuidSchema},
};

use super::{Error, default, time::Unit};
use crate::schema::{limits, named_types::NamedTypes};

/// What to write for one value.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Enum(Box<[Box<str>]>),
    Decimal(Decimal),
    BigDecimal,
    Uuid(UuidForm),
    Date,
    TimeMillis,
    TimeMicros,
    Timestamp(Unit),
    LocalTimestamp(Unit),
    Duration,
    Array(Box<Node>),
    Map(Box<Node>),
    Record(Box<Record>),
    /// A union of null and one other type, by far the most frequent.
    Nullable(Box<Nullable>),
    /// Any other union.
    Union(Box<[Branch]>),
}

#[derive(Debug)]
pub(super) struct Decimal {
    pub precision: usize,
    pub scale: usize,
    /// Bytes of the value if it is kept in a `fixed`.
    pub fixed: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum UuidForm {
    Text,
    /// 16 bytes after their length; older writers of Avro made these.
    Bytes,
    Fixed,
}

#[derive(Debug)]
pub(super) struct Nullable {
    /// Encoded branch numbers.
    pub null: u8,
    pub other: u8,
    pub branch: Branch,
}

/// One branch of a union.
#[derive(Debug)]
pub(super) struct Branch {
    /// Avro's name of the type: what a client that wraps unions would write.
    pub tag: Box<str>,
    pub node: Node,
}

#[derive(Debug)]
pub(super) struct Record {
    /// Full name.
    pub name: Box<str>,
    pub fields: Box<[Field]>,
    /// Field numbers by length and name.
    sorted: Box<[u32]>,
}

#[derive(Debug)]
pub(super) struct Field {
    /// The name in quotes, as it stands in nearly every document.
    pub quoted: Box<[u8]>,
    pub node: Node,
    /// What to write when the field is missing; none if it may not be.
    pub missing: Option<Box<[u8]>>,
    /// Where to note the place of this field's value in the output, if its text is wanted.
    pub captured: Option<usize>,
}

impl Field {
    pub(super) fn name(&self) -> &str {
        let name = &self.quoted[1..self.quoted.len() - 1];
        std::str::from_utf8(name).expect("invariant: compiled from a string")
    }
}

impl Record {
    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        let key = |&at: &u32| {
            let quoted = &self.fields[at as usize].quoted;
            let found = &quoted[1..quoted.len() - 1];
            found.len().cmp(&name.len()).then_with(|| found.cmp(name))
        };
        self.sorted.binary_search_by(key).ok().map(|at| self.sorted[at] as usize)
    }
}

/// Compiles a record schema within the limits.
pub(super) fn compile(schema: &Schema) -> Result<Record, Error> {
    let Schema::Record(record) = schema else { return Err(Error::NotARecord) };
    let faults = limits::faults(schema);
    if !faults.is_empty() {
        return Err(Error::Limits(faults));
    }
    Compiler { names: NamedTypes::of(schema) }.record(record)
}

/// May recurse: the limits were checked, so the schema is neither deep nor recursive.
struct Compiler<'a> {
    names: NamedTypes<'a>,
}

impl Compiler<'_> {
    fn node(&self, schema: &Schema) -> Result<Node, Error> {
        Ok(match schema {
            Schema::Null => Node::Null,
            Schema::Boolean => Node::Boolean,
            Schema::Int => Node::Int,
            Schema::Long => Node::Long,
            Schema::Float => Node::Float,
            Schema::Double => Node::Double,
            Schema::Bytes => Node::Bytes,
            Schema::String => Node::String,
            Schema::Fixed(fixed) => Node::Fixed(fixed.size),
            Schema::Enum(EnumSchema { symbols, .. }) => {
                Node::Enum(symbols.iter().map(|symbol| symbol.as_str().into()).collect())
            }
            Schema::Decimal(DecimalSchema { precision, scale, inner }) => {
                let fixed = match inner {
                    InnerDecimalSchema::Bytes => None,
                    InnerDecimalSchema::Fixed(fixed) => Some(fixed.size),
                };
                Node::Decimal(Decimal { precision: *precision, scale: *scale, fixed })
            }
            Schema::BigDecimal => Node::BigDecimal,
            Schema::Uuid(UuidSchema::String) => Node::Uuid(UuidForm::Text),
            Schema::Uuid(UuidSchema::Bytes) => Node::Uuid(UuidForm::Bytes),
            Schema::Uuid(UuidSchema::Fixed(_)) => Node::Uuid(UuidForm::Fixed),
            Schema::Date => Node::Date,
            Schema::TimeMillis => Node::TimeMillis,
            Schema::TimeMicros => Node::TimeMicros,
            Schema::TimestampMillis => Node::Timestamp(Unit::Millis),
            Schema::TimestampMicros => Node::Timestamp(Unit::Micros),
            Schema::TimestampNanos => Node::Timestamp(Unit::Nanos),
            Schema::LocalTimestampMillis => Node::LocalTimestamp(Unit::Millis),
            Schema::LocalTimestampMicros => Node::LocalTimestamp(Unit::Micros),
            Schema::LocalTimestampNanos => Node::LocalTimestamp(Unit::Nanos),
            Schema::Duration(_) => Node::Duration,
            Schema::Array(array) => Node::Array(Box::new(self.node(&array.items)?)),
            Schema::Map(map) => Node::Map(Box::new(self.node(&map.types)?)),
            Schema::Record(record) => Node::Record(Box::new(self.record(record)?)),
            Schema::Union(union) => self.union(union)?,
            Schema::Ref { name } => match self.names.get(name) {
                Some(target) => self.node(target)?,
                None => return Err(Error::UnknownType { name: name.to_string() }),
            },
        })
    }

    fn union(&self, union: &UnionSchema) -> Result<Node, Error> {
        let mut branches = union
            .variants()
            .iter()
            .map(|schema| Ok(Branch { tag: tag(schema).into(), node: self.node(schema)? }))
            .collect::<Result<Vec<Branch>, Error>>()?;
        let null = branches.iter().position(|branch| matches!(branch.node, Node::Null));
        match (null, branches.len()) {
            (Some(at), 2) => {
                let branch = branches.swap_remove(1 - at);
                // Branch numbers are zig-zag integers of one byte.
                let (null, other) = if at == 0 { (0, 2) } else { (2, 0) };
                Ok(Node::Nullable(Box::new(Nullable { null, other, branch })))
            }
            _ => Ok(Node::Union(branches.into())),
        }
    }

    fn record(&self, record: &RecordSchema) -> Result<Record, Error> {
        let mut fields = Vec::with_capacity(record.fields.len());
        for field in &record.fields {
            let node = self.node(&field.schema)?;
            let missing = default::of_field(&self.names, field).map_err(|reason| Error::Default {
                record: record.name.to_string(),
                field: field.name.clone(),
                reason,
            })?;
            let missing = missing.map(Into::into);
            let quoted = format!("\"{}\"", field.name).into_bytes().into();
            fields.push(Field { quoted, node, missing, captured: None });
        }
        let mut sorted: Vec<u32> = (0..).take(fields.len()).collect();
        sorted.sort_by_key(|&at| {
            let quoted = &fields[at as usize].quoted;
            (quoted.len(), quoted.clone())
        });
        Ok(Record { name: record.name.to_string().into(), fields: fields.into(), sorted: sorted.into() })
    }
}

/// Avro's name of a branch.
fn tag(schema: &Schema) -> String {
    match schema {
        Schema::Null => "null".to_owned(),
        Schema::Boolean => "boolean".to_owned(),
        Schema::Int | Schema::Date | Schema::TimeMillis => "int".to_owned(),
        Schema::Long
        | Schema::TimeMicros
        | Schema::TimestampMillis
        | Schema::TimestampMicros
        | Schema::TimestampNanos
        | Schema::LocalTimestampMillis
        | Schema::LocalTimestampMicros
        | Schema::LocalTimestampNanos => "long".to_owned(),
        Schema::Float => "float".to_owned(),
        Schema::Double => "double".to_owned(),
        Schema::String | Schema::Uuid(UuidSchema::String) => "string".to_owned(),
        Schema::Bytes | Schema::BigDecimal | Schema::Uuid(UuidSchema::Bytes) => "bytes".to_owned(),
        Schema::Array(_) => "array".to_owned(),
        Schema::Map(_) => "map".to_owned(),
        Schema::Union(_) => "union".to_owned(),
        Schema::Record(record) => record.name.to_string(),
        Schema::Enum(symbols) => symbols.name.to_string(),
        Schema::Fixed(fixed) | Schema::Duration(fixed) | Schema::Uuid(UuidSchema::Fixed(fixed)) => {
            fixed.name.to_string()
        }
        Schema::Decimal(decimal) => match &decimal.inner {
            InnerDecimalSchema::Bytes => "bytes".to_owned(),
            InnerDecimalSchema::Fixed(fixed) => fixed.name.to_string(),
        },
        Schema::Ref { name } => name.to_string(),
    }
}
