//! The named types of one schema, for following references: Avro defines a type where it is first used, and the parser has
//! written every reference out in full.

use std::collections::HashMap;

use apache_avro::{Schema, schema::Name};

/// The named types that a schema defines, by full name and aliases, logical types included.
#[derive(Default)]
pub(super) struct NamedTypes<'a> {
    types: HashMap<Name, &'a Schema>,
    twice: Vec<&'a Name>,
}

impl<'a> NamedTypes<'a> {
    pub(super) fn of(schema: &'a Schema) -> Self {
        let mut types = Self::default();
        types.collect(schema);
        types
    }

    pub(super) fn get(&self, name: &Name) -> Option<&'a Schema> {
        self.types.get(name).copied()
    }

    /// What a schema stands for: the type that it refers to, or itself.
    pub(super) fn follow(&self, schema: &'a Schema) -> Result<&'a Schema, String> {
        match schema {
            Schema::Ref { name } => self.get(name).ok_or_else(|| undefined(name)),
            other => Ok(other),
        }
    }

    /// What keeps a reference from having one meaning.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        self.twice.iter().map(|name| format!("`{name}` is defined twice: define it once, and then name it"))
    }

    fn collect(&mut self, schema: &'a Schema) {
        match schema {
            Schema::Ref { .. } => return,
            Schema::Array(array) => self.collect(&array.items),
            Schema::Map(map) => self.collect(&map.types),
            Schema::Union(union) => union.variants().iter().for_each(|branch| self.collect(branch)),
            Schema::Record(record) => record.fields.iter().for_each(|field| self.collect(&field.schema)),
            _ => {}
        }
        let Some(name) = schema.name() else { return };
        for alias in schema.aliases().into_iter().flatten() {
            self.types.entry(alias.fully_qualified_name(name.namespace()).into_owned()).or_insert(schema);
        }
        // A name goes before an alias of another type.
        let before = self.types.insert(name.clone(), schema);
        if before.is_some_and(|before| before.name() == Some(name)) {
            self.twice.push(name);
        }
    }
}

/// What is said of a reference to a type that the schema does not define.
pub(super) fn undefined(name: &Name) -> String {
    format!("there is no type `{name}`: define it where it is first used")
}
