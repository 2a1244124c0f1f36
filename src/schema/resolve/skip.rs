//! Passes over a value that nobody reads.

use super::{Items, Node, refused};
use crate::schema::reader::{Cursor, Problem};

/// Moves the cursor behind one value.
pub(in crate::schema) fn skip(node: &Node, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
    match node {
        Node::Null => Ok(()),
        Node::Boolean => cursor.boolean().map(drop),
        Node::Integer { wire, .. } => wire.read(cursor).map(drop),
        Node::Float(wire) | Node::Double(wire) => wire.read_f64(cursor).map(drop),
        Node::Blob { wire, .. } => wire.read(cursor).map(drop),
        Node::Enum(symbols) => cursor.index(symbols.len(), "symbol").map(drop),
        Node::Union(branches) => skip(&branches[cursor.index(branches.len(), "branch")?], cursor),
        Node::Array(items) => blocks(items, cursor, |cursor| skip(&items.node, cursor)),
        Node::Map(items) => blocks(items, cursor, |cursor| {
            cursor.blob()?;
            skip(&items.node, cursor)
        }),
        Node::Record(record) => record.steps.iter().try_for_each(|step| skip(&step.node, cursor)),
        Node::Refused(kind) => Err(refused(kind)),
    }
}

fn blocks(
    items: &Items,
    cursor: &mut Cursor<'_>,
    mut one: impl FnMut(&mut Cursor<'_>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    loop {
        match cursor.skip_block(items.free)? {
            Some(0) => return Ok(()),
            Some(count) => (0..count).try_for_each(|_| one(cursor))?,
            None => {}
        }
    }
}
