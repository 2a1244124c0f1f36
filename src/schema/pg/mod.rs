//! Avro to the fields of Postgres' binary COPY: no JSON, no tree, nothing allocated for a record that is in order.
//!
//! Owns the binary form of every column type of the type table. Refuses, naming the field, whatever Postgres would
//! refuse, so that one record can never fail a whole COPY. Knows nothing of connections and statements.

mod field;
pub(super) mod numeric;

use apache_avro::Schema;

use self::field::Form;
use super::{
    Fault,
    columns::{Column, columns_of},
    reader::{Cursor, Problem, fault, within},
    resolve::{Node, ResolveError, compile_fields, name_of, skip},
};

/// Longest record. However it is made up, its row stays below the gigabyte that Postgres takes, for no type takes more
/// than twelve times the bytes in Postgres that it takes in Avro.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// Turns records of one schema, read as another, into fields of Postgres' binary COPY. Compiled once; shared by
/// threads.
#[derive(Debug)]
pub struct Transcoder {
    /// In the writer's order, for that is how the bytes come.
    ops: Box<[Op]>,
    /// Where the columns come in another order than the writer's fields: for each, where its bytes are found.
    order: Option<Box<[Source]>>,
}

/// Buffers for records whose fields come in another order than the columns; one for each thread or task.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    /// Where the fields end in `bytes`.
    ends: Vec<usize>,
}

#[derive(Debug)]
enum Op {
    Column { name: Box<str>, node: Node, form: Form },
    Skip { name: Box<str>, node: Node },
    Constant(Box<[u8]>),
}

#[derive(Debug)]
enum Source {
    /// So many columns come before it on the wire.
    Wire(usize),
    Constant(Box<[u8]>),
}

impl Transcoder {
    /// Compiles the way from records of `writer` to the columns of `reader`.
    ///
    /// # Errors
    /// When `reader` has no columns, or records of the one cannot be read as the other.
    pub fn compile(writer: &Schema, reader: &Schema) -> Result<Self, ResolveError> {
        Self::compile_columns(writer, reader, &|_| true)
    }

    /// The same for those columns of `reader` that are `wanted` by name. Of the other fields nothing is asked but that
    /// they can be passed over.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub fn compile_columns(
        writer: &Schema,
        reader: &Schema,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ResolveError> {
        let fields = columns_of(reader)?;
        // Where each field of the reader stands among the columns.
        let mut places = Vec::with_capacity(fields.len());
        let mut columns: Vec<Column> = Vec::with_capacity(fields.len());
        for field in fields {
            places.push(columns.len());
            columns.extend(Some(field).filter(|field| wanted(&field.name)));
        }
        let Node::Record(record) = compile_fields(writer, reader, wanted)? else {
            let reason = "the writer's schema is not a record".to_owned();
            return Err(ResolveError { record: name_of(reader), pointer: String::new(), reason });
        };
        let mut constants = Vec::with_capacity(record.defaults.len());
        for default in &record.defaults {
            let place = places[default.reader];
            let form = Form::of(&columns[place].pg_type);
            let mut bytes = Vec::new();
            field::append(form, &default.node, &mut Cursor::new(&default.avro), &mut bytes).map_err(|problem| {
                let pointer = format!("/{}{}", default.name, problem.pointer);
                let reason = format!("the default is not {}: it is {}", problem.expected, problem.got);
                ResolveError { record: name_of(reader), pointer, reason }
            })?;
            constants.push((place, bytes.into_boxed_slice()));
        }
        let read: Vec<usize> = record.steps.iter().filter_map(|step| step.reader).map(|field| places[field]).collect();
        let mut ops: Vec<Op> = Vec::with_capacity(columns.len());
        for step in record.steps {
            ops.push(match step.reader {
                Some(field) => {
                    let form = Form::of(&columns[places[field]].pg_type);
                    Op::Column { name: step.name, node: step.node, form }
                }
                None => Op::Skip { name: step.name, node: step.node },
            });
        }
        let order = if read.is_sorted() {
            insert_constants(&mut ops, &read, constants);
            None
        } else {
            Some(order(columns.len(), &read, constants))
        };
        Ok(Self { ops: ops.into(), order })
    }

    /// Appends one record, given as Avro binary without framing: for each column a length (four bytes, big-endian, -1
    /// for null) and the value. The caller writes the tuple's header, and fields of its own.
    ///
    /// # Errors
    /// When the bytes are no such record or hold what Postgres would refuse, with a pointer to the field; `out` is then
    /// as long as it was.
    pub fn append(&self, payload: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), Fault> {
        let before = out.len();
        let done = match &self.order {
            _ if payload.len() > MAX_RECORD_BYTES => Err(too_large(payload.len())),
            None => self.straight(payload, out),
            Some(order) => self.reordered(order, payload, scratch, out),
        };
        done.map_err(|problem| {
            out.truncate(before);
            *problem
        })
    }

    fn straight(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
        let mut cursor = Cursor::new(payload);
        for op in &self.ops {
            op.run(&mut cursor, out)?;
        }
        cursor.finish()
    }

    fn reordered(
        &self,
        order: &[Source],
        payload: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<(), Problem> {
        scratch.bytes.clear();
        scratch.ends.clear();
        let mut cursor = Cursor::new(payload);
        for op in &self.ops {
            op.run(&mut cursor, &mut scratch.bytes)?;
            if let Op::Column { .. } = op {
                scratch.ends.push(scratch.bytes.len());
            }
        }
        cursor.finish()?;
        for source in order {
            match source {
                Source::Constant(bytes) => out.extend_from_slice(bytes),
                Source::Wire(index) => {
                    let start = index.checked_sub(1).map_or(0, |before| scratch.ends[before]);
                    out.extend_from_slice(&scratch.bytes[start..scratch.ends[*index]]);
                }
            }
        }
        Ok(())
    }
}

#[cold]
fn too_large(length: usize) -> Problem {
    fault(format_args!("a record of at most {MAX_RECORD_BYTES} bytes"), format_args!("{length} bytes"))
}

impl Op {
    #[inline]
    fn run(&self, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
        match self {
            Op::Column { name, node, form } => {
                field::append(*form, node, cursor, out).map_err(|problem| within(problem, name))
            }
            Op::Skip { name, node } => skip(node, cursor).map_err(|problem| within(problem, name)),
            Op::Constant(bytes) => {
                out.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// Puts each constant before the first column on the wire that comes after it.
fn insert_constants(ops: &mut Vec<Op>, read: &[usize], constants: Vec<(usize, Box<[u8]>)>) {
    for (column, bytes) in constants.into_iter().rev() {
        let before = read.iter().filter(|index| **index < column).count();
        let mut seen = 0;
        let at = ops.iter().position(|op| {
            let found = matches!(op, Op::Column { .. }) && seen == before;
            seen += usize::from(matches!(op, Op::Column { .. }));
            found
        });
        // Constants are taken from the last to the first, so one that belongs before others goes in front of them.
        let at = at.unwrap_or(ops.len());
        let at = ops[..at].iter().rposition(|op| !matches!(op, Op::Constant(_))).map_or(0, |last| last + 1);
        ops.insert(at, Op::Constant(bytes));
    }
}

fn order(count: usize, read: &[usize], mut constants: Vec<(usize, Box<[u8]>)>) -> Box<[Source]> {
    let wire = |column: usize| read.iter().position(|index| *index == column).map(Source::Wire);
    let mut constant = |column: usize| {
        let found = constants.iter_mut().find(|(index, _)| *index == column);
        Source::Constant(found.map(|(_, bytes)| std::mem::take(bytes)).unwrap_or_default())
    };
    (0..count).map(|column| wire(column).unwrap_or_else(|| constant(column))).collect()
}

#[cfg(test)]
mod tests;
