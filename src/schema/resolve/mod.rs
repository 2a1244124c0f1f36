//! Avro schema resolution, done once: a writer's and a reader's schema become a plan.
//!
//! Owns the rules by which values of one schema are read as another (missing and reordered fields, defaults,
//! promotions, unions, enums, aliases). The plan holds no unions of the reader and no names to look up: our outputs,
//! columns and plain JSON, show the value and never which branch held it. It knows nothing of either output.

mod default;
mod scalar;
mod skip;
mod union;

use std::collections::HashMap;

use apache_avro::{
    Schema,
    schema::{EnumSchema, Name, RecordField, RecordSchema, ResolvedSchema},
};

pub(super) use self::skip::skip;
use super::reader::{Problem, fault};

/// Deepest nesting of a schema. Bounds the stack of every decoder, for the plan is what they recurse over.
const MAX_DEPTH: usize = 32;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlobWire {
    /// A length, then the bytes.
    Prefixed,
    /// So many bytes.
    Fixed(u32),
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
    let record = name_of(reader);
    let refuse = |reason: String| ResolveError { record: record.clone(), pointer: String::new(), reason };
    let names = |schema| ResolvedSchema::new(schema).map_err(|error| refuse(error.to_string()));
    let (writer_names, reader_names) = (names(writer)?, names(reader)?);
    let mut compiler = Compiler { writer: writer_names.get_names(), reader: reader_names.get_names(), nodes: 0 };
    let node = compiler.node(At::root(writer), At::root(reader), 0);
    node.map_err(|stop| ResolveError { record: record.clone(), pointer: stop.pointer, reason: stop.reason })
}

/// What messages call a schema: its full name, or what kind it is.
pub(super) fn name_of(schema: &Schema) -> String {
    match schema.name() {
        Some(name) => name.to_string(),
        None => scalar::kind(schema),
    }
}

/// A schema and the namespace that the names in it are relative to.
#[derive(Clone, Copy)]
struct At<'s> {
    schema: &'s Schema,
    namespace: Option<&'s str>,
}

impl<'s> At<'s> {
    fn root(schema: &'s Schema) -> Self {
        Self { schema, namespace: None }
    }

    fn child(self, schema: &'s Schema) -> Self {
        Self { schema, ..self }
    }
}

type Names<'s> = HashMap<Name, &'s Schema>;

/// Follows references, and enters the namespace of a record.
fn follow<'s>(names: &'s Names<'s>, at: At<'s>) -> Result<At<'s>, Stop> {
    let name = match at.schema {
        Schema::Ref { name } => name,
        Schema::Record(RecordSchema { name, .. }) => name,
        _ => return Ok(at),
    };
    let full = name.fully_qualified_name(at.namespace);
    match names.get_key_value(full.as_ref()) {
        Some((name, schema)) => Ok(At { schema, namespace: name.namespace() }),
        None => Err(Stop::fatal(format!("the type `{full}` is not defined"))),
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
    writer: &'s Names<'s>,
    reader: &'s Names<'s>,
    nodes: usize,
}

impl<'s> Compiler<'s> {
    fn node(&mut self, writer: At<'s>, reader: At<'s>, depth: usize) -> Result<Node, Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::fatal(format!(
                "nests deeper than {MAX_DEPTH} levels: flatten it; a record that contains itself cannot be read"
            )));
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Stop::fatal(format!(
                "has more than {MAX_NODES} fields and types, counted where they are used"
            )));
        }
        let (writer, reader) = (follow(self.writer, writer)?, follow(self.reader, reader)?);
        match (writer.schema, reader.schema) {
            (Schema::Union(union), _) => self.written_union(writer, union, reader, depth),
            (_, Schema::Union(union)) => self.read_union(writer, reader, union, depth),
            (Schema::Array(written), Schema::Array(read)) => {
                let items = self.items(writer.child(&written.items), reader.child(&read.items), depth)?;
                Ok(Node::Array(items))
            }
            (Schema::Map(written), Schema::Map(read)) => {
                let mut items = self.items(writer.child(&written.types), reader.child(&read.types), depth)?;
                items.free = false; // an entry has a key
                Ok(Node::Map(items))
            }
            (Schema::Record(written), Schema::Record(read)) => self.record(writer, written, reader, read, depth),
            (Schema::Enum(written), Schema::Enum(read)) => Ok(symbols(written, read)),
            (written, read) => scalar::node(written, read).map_err(Stop::mismatch),
        }
    }

    fn items(&mut self, writer: At<'s>, reader: At<'s>, depth: usize) -> Result<Box<Items>, Stop> {
        let node = self.node(writer, reader, depth + 1).map_err(|stop| stop.within("[]"))?;
        Ok(Box::new(Items { free: node.is_free(), node }))
    }

    fn record(
        &mut self,
        writer: At<'s>,
        written: &'s RecordSchema,
        reader: At<'s>,
        read: &'s RecordSchema,
        depth: usize,
    ) -> Result<Node, Stop> {
        let sources = sources(written, read);
        let mut steps = Vec::with_capacity(written.fields.len());
        for (index, field) in written.fields.iter().enumerate() {
            let target = sources.iter().position(|source| *source == Some(index));
            let at = writer.child(&field.schema);
            let (name, node) = match target.map(|target| &read.fields[target]) {
                Some(wanted) => (&wanted.name, self.node(at, reader.child(&wanted.schema), depth + 1)),
                None => (&field.name, self.unread(at, depth + 1)),
            };
            let node = node.map_err(|stop| stop.within(name))?;
            steps.push(Step { name: name.as_str().into(), reader: target, node });
        }
        let mut defaults = Vec::new();
        for (index, field) in read.fields.iter().enumerate().filter(|(index, _)| sources[*index].is_none()) {
            let default = self.default(reader, field, index, depth + 1).map_err(|stop| stop.within(&field.name))?;
            defaults.push(default);
        }
        Ok(Node::Record(Box::new(Record { steps: steps.into(), defaults: defaults.into() })))
    }

    /// A plan for what only the writer has: it is skipped, so nothing is asked of it but its shape.
    fn unread(&mut self, writer: At<'s>, depth: usize) -> Result<Node, Stop> {
        let mut own = Compiler { writer: self.writer, reader: self.writer, nodes: self.nodes };
        let node = own.node(writer, writer, depth);
        self.nodes = own.nodes;
        node
    }

    fn default(&mut self, reader: At<'s>, field: &'s RecordField, index: usize, depth: usize) -> Result<Default, Stop> {
        let Some(value) = &field.default else {
            return Err(Stop::mismatch("the writer has no such field and the reader gives no default: add one"));
        };
        let at = reader.child(&field.schema);
        let mut avro = Vec::new();
        default::encode(self.reader, at, value, &mut avro, 0).map_err(Stop::mismatch)?;
        let mut own = Compiler { writer: self.reader, reader: self.reader, nodes: self.nodes };
        let node = own.node(at, at, depth);
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
