//! Avro schema resolution, done once: a writer's and a reader's schema become a plan.
//!
//! Owns the rules by which values of one schema are read as another (missing and reordered fields, defaults,
//! promotions, unions, enums, aliases). The plan holds no unions of the reader and no names to look up: our outputs,
//! columns and plain JSON, show the value and never which branch held it. It knows nothing of either output.

mod scalar;
mod skip;
mod union;

use apache_avro::{
    Schema,
    schema::{EnumSchema, RecordField, RecordSchema},
};

pub(super) use self::skip::skip;
use super::{
    encode::default,
    limits::MAX_SCHEMA_DEPTH,
    named_types::NamedTypes,
    reader::{Cursor, Problem, fault},
};

/// Largest plan. Types used by name are compiled where they are used, so a short schema can ask for very many.
const MAX_NODES: usize = 65_536;

/// Why records of one schema cannot be read as another, or not be put into columns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{pointer}: {reason}", .record, if .pointer.is_empty() { "" } else { " at " })]
pub struct ResolveError {
    /// Full name of the record, or the kind of the schema if it is none.
    pub record: String,
    /// Path to the field, such as `/legs/[]/carrier`; empty for the record itself.
    pub pointer: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// How one value on the wire is read.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Boolean,
    Integer {
        wire: IntegerWire,
        to: Integer,
    },
    Float(NumberWire),
    Double(NumberWire),
    Blob {
        wire: BlobWire,
        to: Blob,
    },
    /// For each symbol of the writer, what the reader makes of it.
    Enum(Box<[Symbol]>),
    /// A union of the writer: the wire says which branch follows.
    Union(Box<[Node]>),
    Array(Box<Items>),
    Map(Box<Items>),
    Record(Box<Record>),
    /// A branch of the writer's union that the reader has no place for: a fault, but only when it occurs.
    Refused(Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IntegerWire {
    Int,
    Long,
}

impl IntegerWire {
    #[inline]
    pub(super) fn read(self, cursor: &mut Cursor<'_>) -> Result<i64, Problem> {
        Ok(match self {
            IntegerWire::Int => i64::from(cursor.int()?),
            IntegerWire::Long => cursor.long()?,
        })
    }
}

/// Meaning of an integer. Units are the writer's: what a column or a text shows does not depend on the reader's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Integer {
    Int,
    Long,
    Date,
    Time(Unit),
    Timestamp(Unit),
    LocalTimestamp(Unit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberWire {
    Int,
    Long,
    Float,
    Double,
}

impl NumberWire {
    /// As a float; what the reader has as a float is never written as a double.
    #[inline]
    pub(super) fn read_f32(self, cursor: &mut Cursor<'_>) -> Result<f32, Problem> {
        Ok(match self {
            NumberWire::Int => cursor.int()? as f32,
            NumberWire::Long => cursor.long()? as f32,
            NumberWire::Float | NumberWire::Double => cursor.float()?,
        })
    }

    #[inline]
    pub(super) fn read_f64(self, cursor: &mut Cursor<'_>) -> Result<f64, Problem> {
        Ok(match self {
            NumberWire::Int => f64::from(cursor.int()?),
            NumberWire::Long => cursor.long()? as f64,
            NumberWire::Float => f64::from(cursor.float()?),
            NumberWire::Double => cursor.double()?,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlobWire {
    /// A length, then the bytes.
    Prefixed,
    /// So many bytes.
    Fixed(u32),
}

impl BlobWire {
    #[inline]
    pub(super) fn read<'a>(self, cursor: &mut Cursor<'a>) -> Result<&'a [u8], Problem> {
        Ok(match self {
            BlobWire::Prefixed => cursor.blob()?,
            BlobWire::Fixed(size) => cursor.take(size as usize)?,
        })
    }
}

/// Meaning of a run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blob {
    Text,
    Bytes,
    UuidText,
    UuidBytes,
    Decimal { precision: u32, scale: u32 },
    BigDecimal,
    Duration,
}

#[derive(Debug)]
pub(super) struct Symbol {
    pub(super) written: Box<str>,
    /// `None`: the reader knows neither the symbol nor a default.
    pub(super) read: Option<Box<str>>,
}

impl Symbol {
    /// The symbol as the reader has it.
    #[inline]
    pub(super) fn resolved(&self) -> Result<&str, Problem> {
        self.read.as_deref().ok_or_else(|| unknown_symbol(&self.written))
    }
}

#[cold]
fn unknown_symbol(written: &str) -> Problem {
    let mut problem = fault("a symbol that the reader's schema has", format_args!("{written:?}"));
    problem.hint = Some("read with a newer schema, or give the enum a default".to_owned());
    problem
}

#[derive(Debug)]
pub(super) struct Items {
    pub(super) node: Node,
    /// An item may take no bytes on the wire.
    pub(super) free: bool,
}

/// Fields as they come on the wire, then those that only the reader has.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) steps: Box<[Step]>,
    pub(super) defaults: Box<[Default]>,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: Box<str>,
    /// Index of the reader's field; `None` skips what only the writer has.
    pub(super) reader: Option<usize>,
    pub(super) node: Node,
}

#[derive(Debug)]
pub(super) struct Default {
    pub(super) name: Box<str>,
    pub(super) reader: usize,
    /// Reads `avro`.
    pub(super) node: Node,
    /// The default as the reader's schema writes it.
    pub(super) avro: Box<[u8]>,
}

impl Node {
    /// Whether a value may take no bytes on the wire.
    fn is_free(&self) -> bool {
        match self {
            Node::Null => true,
            Node::Blob { wire: BlobWire::Fixed(size), .. } => *size == 0,
            Node::Record(record) => record.steps.iter().all(|step| step.node.is_free()),
            _ => false,
        }
    }
}

/// What a value of a branch that the reader has no place for is called.
#[cold]
pub(super) fn refused(kind: &str) -> Problem {
    let mut problem = fault("a branch that the reader's schema has", kind);
    problem.hint = Some("read with a newer schema".to_owned());
    problem
}

/// Compiles the plan by which values of `writer` are read as `reader`.
pub(super) fn compile(writer: &Schema, reader: &Schema) -> Result<Node, ResolveError> {
    compile_fields(writer, reader, &|_| true)
}

/// The same, where of a record only the fields that are `wanted` by name are read: what the reader says of the others
/// decides nothing, and values of them are skipped.
pub(super) fn compile_fields(
    writer: &Schema,
    reader: &Schema,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Node, ResolveError> {
    let record = name_of(reader);
    let refuse = |reason: String| ResolveError { record: record.clone(), pointer: String::new(), reason };
    let (writer_names, reader_names) = (NamedTypes::of(writer), NamedTypes::of(reader));
    if let Some(fault) = writer_names.faults().chain(reader_names.faults()).next() {
        return Err(refuse(fault));
    }
    let mut compiler = Compiler { writer: &writer_names, reader: &reader_names, wanted, nodes: 0 };
    compiler.node(writer, reader, 0).map_err(|stop| ResolveError {
        record: record.clone(),
        pointer: stop.pointer,
        reason: stop.reason,
    })
}

/// What messages call a schema: its full name, or what kind it is.
pub(super) fn name_of(schema: &Schema) -> String {
    match schema.name() {
        Some(name) => name.to_string(),
        None => scalar::kind(schema),
    }
}

/// Why compilation ends here.
struct Stop {
    pointer: String,
    reason: String,
    /// Not a mismatch of two types, which another branch of a union may make good.
    fatal: bool,
}

impl Stop {
    fn mismatch(reason: impl Into<String>) -> Self {
        Self { pointer: String::new(), reason: reason.into(), fatal: false }
    }

    fn fatal(reason: impl Into<String>) -> Self {
        Self { pointer: String::new(), reason: reason.into(), fatal: true }
    }

    fn within(mut self, segment: &str) -> Self {
        self.pointer = format!("/{segment}{}", self.pointer);
        self
    }
}

struct Compiler<'s> {
    writer: &'s NamedTypes<'s>,
    reader: &'s NamedTypes<'s>,
    /// Whether a field of the outermost record is read.
    wanted: &'s dyn Fn(&str) -> bool,
    nodes: usize,
}

impl<'s> Compiler<'s> {
    fn node(&mut self, writer: &'s Schema, reader: &'s Schema, depth: usize) -> Result<Node, Stop> {
        if depth > MAX_SCHEMA_DEPTH {
            return Err(Stop::fatal(format!(
                "nests deeper than {MAX_SCHEMA_DEPTH} levels: flatten it; a record that contains itself cannot be read"
            )));
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Stop::fatal(format!(
                "has more than {MAX_NODES} fields and types, counted where they are used"
            )));
        }
        let writer = self.writer.follow(writer).map_err(Stop::fatal)?;
        let reader = self.reader.follow(reader).map_err(Stop::fatal)?;
        match (writer, reader) {
            (Schema::Union(union), _) => self.written_union(union, reader, depth),
            (_, Schema::Union(union)) => self.read_union(writer, union, depth),
            (Schema::Array(written), Schema::Array(read)) => {
                let items = self.items(&written.items, &read.items, depth)?;
                Ok(Node::Array(items))
            }
            (Schema::Map(written), Schema::Map(read)) => {
                let mut items = self.items(&written.types, &read.types, depth)?;
                items.free = false; // an entry has a key
                Ok(Node::Map(items))
            }
            (Schema::Record(written), Schema::Record(read)) => self.record(written, read, depth),
            (Schema::Enum(written), Schema::Enum(read)) => Ok(symbols(written, read)),
            (written, read) => scalar::node(written, read).map_err(Stop::mismatch),
        }
    }

    fn items(&mut self, writer: &'s Schema, reader: &'s Schema, depth: usize) -> Result<Box<Items>, Stop> {
        let node = self.node(writer, reader, depth + 1).map_err(|stop| stop.within("[]"))?;
        Ok(Box::new(Items { free: node.is_free(), node }))
    }

    fn record(&mut self, written: &'s RecordSchema, read: &'s RecordSchema, depth: usize) -> Result<Node, Stop> {
        let sources = sources(written, read);
        let wanted = self.wanted;
        let is_read = |target: &usize| depth > 0 || wanted(&read.fields[*target].name);
        let mut steps = Vec::with_capacity(written.fields.len());
        for (index, field) in written.fields.iter().enumerate() {
            let target = sources.iter().position(|source| *source == Some(index)).filter(is_read);
            let (name, node) = match target.map(|target| &read.fields[target]) {
                Some(wanted) => (&wanted.name, self.node(&field.schema, &wanted.schema, depth + 1)),
                None => (&field.name, self.unread(&field.schema, depth + 1)),
            };
            let node = node.map_err(|stop| stop.within(name))?;
            steps.push(Step { name: name.as_str().into(), reader: target, node });
        }
        let mut defaults = Vec::new();
        let missing = |(index, _): &(usize, _)| sources[*index].is_none() && is_read(index);
        for (index, field) in read.fields.iter().enumerate().filter(missing) {
            let default = self.default(field, index, depth + 1).map_err(|stop| stop.within(&field.name))?;
            defaults.push(default);
        }
        Ok(Node::Record(Box::new(Record { steps: steps.into(), defaults: defaults.into() })))
    }

    /// A plan for what only the writer has: it is skipped, so nothing is asked of it but its shape.
    fn unread(&mut self, writer: &'s Schema, depth: usize) -> Result<Node, Stop> {
        let mut own = Compiler { reader: self.writer, ..*self };
        let node = own.node(writer, writer, depth);
        self.nodes = own.nodes;
        node
    }

    fn default(&mut self, field: &'s RecordField, index: usize, depth: usize) -> Result<Default, Stop> {
        if field.default.is_none() {
            return Err(Stop::mismatch("the writer has no such field and the reader gives no default: add one"));
        }
        let unfit = |reason| Stop::mismatch(format!("the default does not fit the field's type: {reason}"));
        let avro = default::of_field(self.reader, field).map_err(unfit)?.unwrap_or_default();
        let mut own = Compiler { writer: self.reader, ..*self };
        let node = own.node(&field.schema, &field.schema, depth);
        self.nodes = own.nodes;
        Ok(Default { name: field.name.as_str().into(), reader: index, node: node?, avro: avro.into() })
    }
}

/// For each field of the reader, the index of the writer's field it is read from: the one of its name, else one of its
/// aliases that no other field claims by name.
fn sources(written: &RecordSchema, read: &RecordSchema) -> Vec<Option<usize>> {
    let position = |name: &str| written.fields.iter().position(|field| field.name == name);
    let mut sources: Vec<Option<usize>> = read.fields.iter().map(|field| position(&field.name)).collect();
    for (index, field) in read.fields.iter().enumerate() {
        if sources[index].is_none() {
            let mut aliased = field.aliases.iter().filter_map(|alias| position(alias));
            sources[index] = aliased.find(|found| !sources.contains(&Some(*found)));
        }
    }
    sources
}

fn symbols(written: &EnumSchema, read: &EnumSchema) -> Node {
    let symbols = written.symbols.iter().map(|symbol| {
        let known = read.symbols.contains(symbol).then_some(symbol.as_str());
        Symbol { written: symbol.as_str().into(), read: known.or(read.default.as_deref()).map(Into::into) }
    });
    Node::Enum(symbols.collect())
}

#[cfg(test)]
mod tests;
