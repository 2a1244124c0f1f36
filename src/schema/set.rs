//! The record types of a project: `schemas/<RecordName>/v1.avsc, v2.avsc, …`.
//!
//! The folder is the source; a registry holds what was pushed from it. Reads files once at start and on reload, and
//! nothing else touches them. Hidden files and `README.md` are passed over; anything else that does not belong is an
//! error.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use apache_avro::Schema;

use super::{
    compat::{self, CompatibilityLevel},
    limits::MAX_NAME_BYTES,
    parse::{ParsedSchema, parse},
};
use crate::domain::nearest;

/// The relation of every consumer that holds the null values.
const TOMBSTONES: &str = "tombstones";

/// What is wrong with the schemas of a project, at one file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaFault {
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for SchemaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

impl std::error::Error for SchemaFault {}

/// One version of a record type.
#[derive(Debug, Clone)]
pub struct SchemaVersion {
    /// From 1, without gaps.
    pub version: u32,
    /// The JSON to register, without white space.
    pub text: String,
    pub schema: Schema,
    /// The file it was read from.
    pub path: PathBuf,
}

/// A record type with all its versions.
#[derive(Debug, Clone)]
pub struct RecordType {
    /// Simple name, as in `POST /v1/commands/ScheduleFlight`; also the name of the folder.
    pub name: String,
    /// Full name, as in `flights.ScheduleFlight`.
    pub subject: String,
    /// In ascending order, at least one.
    pub versions: Vec<SchemaVersion>,
}

impl RecordType {
    pub fn latest(&self) -> &SchemaVersion {
        self.versions.last().expect("invariant: a record type has a version")
    }

    pub fn version(&self, version: u32) -> Option<&SchemaVersion> {
        self.versions.iter().find(|candidate| candidate.version == version)
    }

    /// Name of the relation that a consumer's SQL sees: `schedule_flight` for `ScheduleFlight`.
    pub fn relation_name(&self) -> String {
        relation_name(&self.name)
    }
}

/// `ScheduleFlight` as `schedule_flight`, `HTTPRequestSent` as `http_request_sent`, `Leg2Added` as `leg2_added`.
pub fn relation_name(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut relation = String::with_capacity(name.len() + 4);
    for (at, c) in chars.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| chars[at]);
        let word_ends = before.is_some_and(|before| before.is_lowercase() || before.is_ascii_digit());
        // The last capital of an acronym begins the next word.
        let acronym_ends =
            before.is_some_and(char::is_uppercase) && chars.get(at + 1).is_some_and(|next| next.is_lowercase());
        if c.is_uppercase() && (word_ends || acronym_ends) {
            relation.push('_');
        }
        relation.extend(c.to_lowercase());
    }
    relation
}

/// All record types of a project, by name.
#[derive(Debug, Clone, Default)]
pub struct SchemaSet {
    types: Vec<RecordType>,
}

impl SchemaSet {
    /// Reads the folder.
    ///
    /// # Errors
    /// Everything that is wrong with any file, in the order of paths.
    pub fn load(dir: &Path) -> Result<Self, Vec<SchemaFault>> {
        let mut reader = Reader { faults: Vec::new() };
        let mut types: Vec<RecordType> =
            reader.entries(dir).into_iter().filter_map(|path| reader.record_type(&path)).collect();
        types.sort_by(|a, b| a.name.cmp(&b.name));
        reader.refuse_clashes(&types, dir);
        if reader.faults.is_empty() { Ok(Self { types }) } else { Err(reader.faults) }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, RecordType> {
        self.types.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// By simple name, exactly.
    pub fn by_name(&self, name: &str) -> Option<&RecordType> {
        self.types.iter().find(|record_type| record_type.name == name)
    }

    /// By full name.
    pub fn by_subject(&self, subject: &str) -> Option<&RecordType> {
        self.types.iter().find(|record_type| record_type.subject == subject)
    }

    /// By either of the two.
    pub fn get(&self, name: &str) -> Option<&RecordType> {
        self.by_name(name).or_else(|| self.by_subject(name))
    }

    /// The simple name that was probably meant.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.types.iter().map(|record_type| record_type.name.as_str()))
    }

    /// Whether each version of each type keeps to the level towards those before it.
    pub fn incompatibilities(&self, level: CompatibilityLevel) -> Vec<SchemaFault> {
        let mut faults = Vec::new();
        for record_type in &self.types {
            let versions: Vec<(u32, &Schema)> =
                record_type.versions.iter().map(|version| (version.version, &version.schema)).collect();
            for (at, version) in record_type.versions.iter().enumerate() {
                let found = compat::check(level, versions[at], &versions[..at]);
                faults.extend(
                    found.iter().map(|found| SchemaFault { path: version.path.clone(), message: found.to_string() }),
                );
            }
        }
        faults
    }
}

impl<'a> IntoIterator for &'a SchemaSet {
    type Item = &'a RecordType;
    type IntoIter = std::slice::Iter<'a, RecordType>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Reads files and gathers what is wrong with them.
struct Reader {
    faults: Vec<SchemaFault>,
}

impl Reader {
    fn fault(&mut self, path: &Path, message: impl Into<String>) {
        self.faults.push(SchemaFault { path: path.to_owned(), message: message.into() });
    }

    /// What is in a folder, sorted, without what is passed over.
    fn entries(&mut self, dir: &Path) -> Vec<PathBuf> {
        let read = fs::read_dir(dir)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
        match read {
            Ok(mut paths) => {
                paths.retain(|path| !is_passed_over(path));
                paths.sort();
                paths
            }
            Err(error) => {
                self.fault(dir, format!("cannot read the folder: {error}"));
                Vec::new()
            }
        }
    }

    fn record_type(&mut self, dir: &Path) -> Option<RecordType> {
        let name = file_name(dir)?;
        if !dir.is_dir() {
            self.fault(
                dir,
                format!(
                    "schemas are in a folder per record type: move it to {name}/v1.avsc, named as the record",
                    name = stem(name)
                ),
            );
            return None;
        }
        let before = self.faults.len();
        let mut versions: Vec<(u32, PathBuf)> = Vec::new();
        for path in self.entries(dir) {
            match version_of(&path) {
                Some(version) => versions.push((version, path)),
                None => self.fault(&path, "not the name of a version: versions are v1.avsc, v2.avsc and so on"),
            }
        }
        versions.sort();
        if versions.is_empty() && self.faults.len() == before {
            self.fault(dir, "no schema here: write v1.avsc, or remove the folder");
        }
        for (expected, (version, path)) in (1..).zip(&versions) {
            if *version != expected {
                self.fault(
                    path,
                    format!("version {expected} is missing before it: versions count from 1 without gaps"),
                );
                break;
            }
        }
        let versions: Vec<SchemaVersion> =
            versions.into_iter().filter_map(|(version, path)| self.version(version, path, name)).collect();
        let subject = versions.first().and_then(|first| full_name(&first.schema))?;
        for later in &versions[1..] {
            let other = full_name(&later.schema).unwrap_or_default();
            if other != subject {
                self.fault(
                    &later.path,
                    format!("the record is called {other}, in v1 {subject}: keep the name, or make a new folder"),
                );
            }
        }
        Some(RecordType { name: name.to_owned(), subject, versions })
    }

    fn version(&mut self, version: u32, path: PathBuf, folder: &str) -> Option<SchemaVersion> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                self.fault(&path, format!("cannot read the file: {error}"));
                return None;
            }
        };
        match parse(&text) {
            Ok(ParsedSchema { text, schema }) => {
                let simple = schema.name().map(|name| name.name().to_owned()).unwrap_or_default();
                if simple != folder {
                    self.fault(
                        &path,
                        format!("the record is called `{simple}`, the folder `{folder}`: give both one name"),
                    );
                }
                Some(SchemaVersion { version, text, schema, path })
            }
            Err(faults) => {
                faults.into_iter().for_each(|fault| self.fault(&path, fault));
                None
            }
        }
    }

    /// Names are the address of a type in URLs and in SQL, which must not depend on upper and lower case.
    fn refuse_clashes(&mut self, types: &[RecordType], dir: &Path) {
        for (at, record_type) in types.iter().enumerate() {
            let path = dir.join(&record_type.name);
            let relation = record_type.relation_name();
            let clash = types[..at]
                .iter()
                .find(|other| other.name.eq_ignore_ascii_case(&record_type.name) || other.relation_name() == relation);
            if let Some(other) = clash {
                self.fault(
                    &path,
                    format!(
                        "`{}` and `{}` are one name to URLs and SQL: rename one of them",
                        record_type.name, other.name
                    ),
                );
            }
            if let Some(why) = relation_fault(&relation) {
                self.fault(&path, why);
            }
        }
    }
}

/// Why a record type whose relation would have that name is refused.
pub fn relation_fault(relation: &str) -> Option<String> {
    if relation == TOMBSTONES || relation.starts_with('_') {
        return Some(format!("its relation would be `{relation}`, which is the engine's own: rename the record"));
    }
    let too_long = relation.len() > MAX_NAME_BYTES;
    too_long.then(|| {
        format!("its relation `{relation}` has more than the {MAX_NAME_BYTES} bytes of a Postgres name: shorten it")
    })
}

fn full_name(schema: &Schema) -> Option<String> {
    schema.name().map(|name| name.fullname(None))
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn stem(name: &str) -> &str {
    name.split_once('.').map_or(name, |(stem, _)| stem)
}

fn is_passed_over(path: &Path) -> bool {
    file_name(path).is_some_and(|name| name.starts_with('.') || name == "README.md")
}

/// The number in `v12.avsc`.
fn version_of(path: &Path) -> Option<u32> {
    let number = file_name(path)?.strip_prefix('v')?.strip_suffix(".avsc")?;
    let plain = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    if plain { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn faults(files: &[(&str, &str)]) -> Vec<String> {
        let dir = folder(files);
        let faults = SchemaSet::load(dir.path()).map(|set| set.types.len()).unwrap_err();
        let prefix = format!("{}/", dir.path().display());
        faults.iter().map(|fault| fault.to_string().replace(&prefix, "")).collect()
    }

    const ONE: &str =
        r#"{"type":"record","name":"Delayed","namespace":"flights","fields":[{"name":"id","type":"string"}]}"#;
    const TWO: &str = r#"{"type":"record","name":"flights.Delayed","fields":[{"name":"id","type":"string"},{"name":"by","type":"int"}]}"#;

    #[test]
    fn types_are_found_by_name_and_subject() {
        let dir = folder(&[
            ("Delayed/v1.avsc", ONE),
            ("Delayed/v2.avsc", TWO),
            ("README.md", ""),
            (".keep", ""),
            ("Delayed/README.md", ""),
        ]);
        let set = SchemaSet::load(dir.path()).unwrap();
        let delayed = set.get("flights.Delayed").unwrap();
        assert_eq!(set.get("Delayed").unwrap().subject, "flights.Delayed");
        assert_eq!((delayed.latest().version, delayed.version(1).unwrap().text.as_str()), (2, ONE));
        assert_eq!(delayed.relation_name(), "delayed");
        assert_eq!(set.nearest("delayd"), Some("Delayed"));
        assert!(set.get("delayed").is_none());
        assert_eq!(set.iter().count(), 1);
    }

    #[test]
    fn versions_are_checked_against_those_before() {
        let dir = folder(&[("Delayed/v1.avsc", ONE), ("Delayed/v2.avsc", TWO)]);
        let found = SchemaSet::load(dir.path()).unwrap().incompatibilities(CompatibilityLevel::default());
        assert_eq!(found.len(), 1);
        assert!(found[0].path.ends_with("Delayed/v2.avsc"));
        assert!(found[0].message.starts_with("field `by` was added in v2 without a default"), "{}", found[0]);
    }

    #[test]
    fn all_faults_are_told_at_once_with_their_file() {
        assert_eq!(
            faults(&[
                ("Delayed/v1.avsc", ONE),
                ("Delayed/v3.avsc", &TWO.replace("flights.", "other.")),
                ("Delayed/notes.txt", ""),
                ("Empty/.keep", ""),
                ("Wrong/v1.avsc", ONE),
                ("DELAYED/v1.avsc", &ONE.replace("Delayed", "DELAYED")),
                ("Tombstones/v1.avsc", &ONE.replace("Delayed", "Tombstones")),
                ("Broken/v1.avsc", "{"),
                ("loose.avsc", ONE),
            ]),
            [
                "Broken/v1.avsc: not JSON: EOF while parsing an object at line 1 column 1",
                "Delayed/notes.txt: not the name of a version: versions are v1.avsc, v2.avsc and so on",
                "Delayed/v3.avsc: version 2 is missing before it: versions count from 1 without gaps",
                "Delayed/v3.avsc: the record is called other.Delayed, in v1 flights.Delayed: keep the name, or make a new folder",
                "Empty: no schema here: write v1.avsc, or remove the folder",
                "Wrong/v1.avsc: the record is called `Delayed`, the folder `Wrong`: give both one name",
                "loose.avsc: schemas are in a folder per record type: move it to loose/v1.avsc, named as the record",
                "Delayed: `Delayed` and `DELAYED` are one name to URLs and SQL: rename one of them",
                "Tombstones: its relation would be `tombstones`, which is the engine's own: rename the record",
            ]
        );
    }

    #[test]
    fn a_missing_folder_is_a_fault_and_an_empty_one_is_not() {
        let dir = folder(&[]);
        assert!(SchemaSet::load(dir.path()).unwrap().is_empty());
        let faults = SchemaSet::load(&dir.path().join("none")).unwrap_err();
        assert!(faults[0].message.starts_with("cannot read the folder"));
    }

    #[test]
    fn relation_names_are_snake_case() {
        for (name, relation) in [
            ("ScheduleFlight", "schedule_flight"),
            ("HTTPRequestSent", "http_request_sent"),
            ("RequestHTTP", "request_http"),
            ("FlightID", "flight_id"),
            ("Leg2Added", "leg2_added"),
            ("already_snake", "already_snake"),
            ("Mixed_Case", "mixed_case"),
            ("A", "a"),
            ("ABTest", "ab_test"),
        ] {
            assert_eq!(relation_name(name), relation);
        }
    }

    #[test]
    fn versions_are_plain_numbers() {
        for (name, version) in [
            ("v1.avsc", Some(1)),
            ("v12.avsc", Some(12)),
            ("v01.avsc", None),
            ("v.avsc", None),
            ("1.avsc", None),
            ("v1.json", None),
            ("v-1.avsc", None),
            ("v+1.avsc", None),
        ] {
            assert_eq!(version_of(Path::new(name)), version, "{name}");
        }
    }
}
