//! Unions on either side.

use apache_avro::{
    Schema,
    schema::{Name, UnionSchema},
};

use super::{Compiler, Node, Stop, scalar::kind};

/// How well a branch of the reader's union fits; the first of the best wins.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Fit {
    /// The same type; for a named one also the same full name or an alias of it.
    Same,
    /// A named type of the same name in another namespace.
    SameName,
    /// Another type, which may be promoted to.
    Other,
}

impl<'s> Compiler<'s> {
    /// The wire says which branch follows. A branch that the reader cannot take is a fault only when it occurs.
    pub(super) fn written_union(
        &mut self,
        union: &'s UnionSchema,
        reader: &'s Schema,
        depth: usize,
    ) -> Result<Node, Stop> {
        let mut branches = Vec::with_capacity(union.variants().len());
        let mut first = None;
        for variant in union.variants() {
            match self.node(variant, reader, depth) {
                Ok(node) => branches.push(node),
                Err(stop) if stop.fatal => return Err(stop),
                Err(stop) => {
                    branches.push(Node::Refused(kind(variant).into()));
                    first.get_or_insert(stop);
                }
            }
        }
        match first {
            Some(stop) if branches.iter().all(|branch| matches!(branch, Node::Refused(_))) => Err(stop),
            _ => Ok(Node::Union(branches.into())),
        }
    }

    /// Picks the branch of the reader's union that the value is read as.
    pub(super) fn read_union(
        &mut self,
        writer: &'s Schema,
        union: &'s UnionSchema,
        depth: usize,
    ) -> Result<Node, Stop> {
        let mut branches = Vec::with_capacity(union.variants().len());
        for variant in union.variants() {
            let branch = self.reader.follow(variant).map_err(Stop::fatal)?;
            if let Some(fit) = fit(writer, branch) {
                branches.push((fit, branch));
            }
        }
        branches.sort_by_key(|(fit, _)| *fit); // stable: the first of the best stays first
        let mut first = None;
        for (_, branch) in branches {
            match self.node(writer, branch, depth) {
                Ok(node) => return Ok(node),
                Err(stop) if stop.fatal => return Err(stop),
                Err(stop) => first = first.or(Some(stop)),
            }
        }
        let kinds: Vec<String> = union.variants().iter().map(kind).collect();
        let none = || Stop::mismatch(format!("{} fits no branch of {}", kind(writer), kinds.join(", ")));
        Err(first.filter(|stop| !stop.pointer.is_empty()).unwrap_or_else(none))
    }
}

/// Named types fit by name alone: another record with the same fields is another thing.
fn fit(written: &Schema, read: &Schema) -> Option<Fit> {
    let same_kind = std::mem::discriminant(written) == std::mem::discriminant(read);
    match (named(written), named(read)) {
        (Some(written), Some(read_name)) if same_kind => {
            let aliases = read.aliases().into_iter().flatten();
            let full: &str = written.as_ref();
            let mut known = aliases.map(|alias| alias.fully_qualified_name(read_name.namespace()));
            if full == read_name.as_ref() || known.any(|alias| alias.as_ref() == written) {
                Some(Fit::Same)
            } else {
                (written.name() == read_name.name()).then_some(Fit::SameName)
            }
        }
        _ if same_kind => Some(Fit::Same),
        _ => Some(Fit::Other),
    }
}

fn named(schema: &Schema) -> Option<&Name> {
    match schema {
        Schema::Record(_) | Schema::Enum(_) | Schema::Fixed(_) => schema.name(),
        _ => None,
    }
}
