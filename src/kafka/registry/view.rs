//! What the records of a registry's topic add up to. Pure: records in, answers out.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::Value;

use super::record::{Entry, SchemaValue};

/// One schema under one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub id: i32,
    pub subject: String,
    /// From 1, per subject.
    pub version: i32,
    /// The schema as it was registered.
    pub text: String,
    /// `None` for Avro.
    pub schema_type: Option<String>,
    /// Taken out of its subject; its id is still served, for the log has records of it.
    pub deleted: bool,
}

/// The state of a registry.
#[derive(Default)]
pub struct View {
    subjects: BTreeMap<String, BTreeMap<i32, Version>>,
    by_id: HashMap<i32, Vec<(String, i32)>>,
    schemas: usize,
}

struct Version {
    registered: Arc<Registered>,
    shape: Shape,
}

/// A schema's text without its whitespace and the order of its fields.
#[derive(PartialEq)]
struct Shape(Value);

impl Shape {
    /// Text that is no JSON (another kind of schema) stands for itself.
    fn of(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
    }
}

impl View {
    /// Takes a record. The same record twice changes nothing.
    pub fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Schema { subject, version, value: Some(value) } => self.put(subject, version, value),
            Entry::Schema { subject, version, value: None } => self.remove(&subject, version),
            Entry::DeleteSubject { subject, version } => {
                for entry in self.subjects.get_mut(&subject).into_iter().flat_map(|v| v.range_mut(..=version)) {
                    Arc::make_mut(&mut entry.1.registered).deleted = true;
                }
            }
            Entry::Other => {}
        }
    }

    fn put(&mut self, subject: String, version: i32, value: SchemaValue) {
        self.remove(&subject, version);
        let SchemaValue { id, schema: text, schema_type, deleted, .. } = value;
        let shape = Shape::of(&text);
        let registered = Registered { id, subject: subject.clone(), version, text, schema_type, deleted };
        self.by_id.entry(id).or_default().push((subject.clone(), version));
        self.subjects.entry(subject).or_default().insert(version, Version { registered: Arc::new(registered), shape });
        self.schemas += 1;
    }

    fn remove(&mut self, subject: &str, version: i32) {
        let Some(versions) = self.subjects.get_mut(subject) else { return };
        let Some(removed) = versions.remove(&version) else { return };
        if versions.is_empty() {
            self.subjects.remove(subject);
        }
        self.schemas -= 1;
        let id = removed.registered.id;
        if let Some(places) = self.by_id.get_mut(&id) {
            places.retain(|(s, v)| (s.as_str(), *v) != (subject, version));
            if places.is_empty() {
                self.by_id.remove(&id);
            }
        }
    }

    /// Number of versions of all subjects.
    pub fn len(&self) -> usize {
        self.schemas
    }

    /// Every place of an id; equal schemas of several subjects share one.
    pub fn places_of(&self, id: i32) -> impl Iterator<Item = &Arc<Registered>> {
        let places = self.by_id.get(&id).into_iter().flatten();
        places.filter_map(|(subject, version)| Some(&self.subjects.get(subject)?.get(version)?.registered))
    }

    pub fn by_id(&self, id: i32) -> Option<&Arc<Registered>> {
        self.places_of(id).next()
    }

    /// The version of a subject that has this schema, whatever its whitespace.
    pub fn lookup(&self, subject: &str, text: &str) -> Option<&Arc<Registered>> {
        let shape = Shape::of(text);
        let mut versions = self.subjects.get(subject)?.values().rev();
        versions.find(|v| !v.registered.deleted && v.shape == shape).map(|v| &v.registered)
    }

    /// The id of this schema under any subject.
    pub fn id_of(&self, text: &str) -> Option<i32> {
        let shape = Shape::of(text);
        let mut versions = self.subjects.values().flat_map(BTreeMap::values);
        versions.find(|v| v.shape == shape).map(|v| v.registered.id)
    }

    /// Versions of a subject, oldest first.
    pub fn versions(&self, subject: &str) -> impl Iterator<Item = &Arc<Registered>> {
        let versions = self.subjects.get(subject).into_iter().flat_map(BTreeMap::values);
        versions.map(|v| &v.registered).filter(|registered| !registered.deleted)
    }

    pub fn version(&self, subject: &str, version: i32) -> Option<&Arc<Registered>> {
        let found = &self.subjects.get(subject)?.get(&version)?.registered;
        Some(found).filter(|registered| !registered.deleted)
    }

    /// The number of a subject's next version; those of deleted ones are not given again.
    pub fn next_version(&self, subject: &str) -> i32 {
        self.subjects.get(subject).and_then(|v| v.keys().next_back()).map_or(1, |last| last + 1)
    }

    /// Subjects that have a version.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        let alive = |versions: &BTreeMap<i32, Version>| versions.values().any(|v| !v.registered.deleted);
        self.subjects.iter().filter(move |(_, versions)| alive(versions)).map(|(subject, _)| subject.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(subject: &str, version: i32, id: i32, text: &str) -> Entry {
        let value = SchemaValue {
            subject: subject.into(),
            version,
            id,
            schema_type: None,
            schema: text.into(),
            deleted: false,
        };
        Entry::Schema { subject: subject.into(), version, value: Some(value) }
    }

    fn view(entries: impl IntoIterator<Item = Entry>) -> View {
        let mut view = View::default();
        entries.into_iter().for_each(|entry| view.apply(entry));
        view
    }

    #[test]
    fn schema_is_found_whatever_its_whitespace_and_order_of_fields() {
        let view = view([schema("s", 1, 5, r#"{"type":"fixed","name":"F","size":4}"#)]);
        assert_eq!(view.lookup("s", "{ \"size\": 4,\n\"name\":\"F\", \"type\":\"fixed\"}").unwrap().id, 5);
        assert!(view.lookup("s", r#"{"type":"fixed","name":"F","size":5}"#).is_none());
        assert!(view.lookup("t", r#"{"type":"fixed","name":"F","size":4}"#).is_none());
    }

    #[test]
    fn deleted_subject_keeps_its_ids_and_its_version_numbers() {
        let delete = Entry::DeleteSubject { subject: "s".into(), version: 2 };
        let view = view([schema("s", 1, 5, "\"int\""), schema("s", 2, 6, "\"long\""), delete]);
        assert_eq!(view.subjects().count(), 0);
        assert_eq!(view.by_id(6).unwrap().text, "\"long\"");
        assert_eq!(view.next_version("s"), 3);
        assert!(view.lookup("s", "\"int\"").is_none() && view.version("s", 1).is_none());
    }

    #[test]
    fn record_applied_twice_changes_nothing() {
        let view = view([schema("s", 1, 5, "\"int\""), schema("s", 1, 5, "\"int\""), schema("t", 1, 5, "\"int\"")]);
        assert_eq!(view.len(), 2);
        assert_eq!(view.places_of(5).map(|r| r.subject.as_str()).collect::<Vec<_>>(), ["s", "t"]);
    }

    #[test]
    fn tombstone_removes_a_version_for_good() {
        let gone = Entry::Schema { subject: "s".into(), version: 1, value: None };
        let view = view([schema("s", 1, 5, "\"int\""), gone]);
        assert!(view.by_id(5).is_none());
        assert_eq!(view.len(), 0);
    }
}
