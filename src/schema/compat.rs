//! Whether versions of a schema can read each other's records, and in words which field prevents it.
//!
//! Stricter than Avro in one thing: a field's logical type may not change. Avro would read a timestamp in milliseconds
//! as one in microseconds, and nobody wants that.

use std::{fmt, str::FromStr};

use apache_avro::{
    Schema,
    schema::{EnumSchema, InnerDecimalSchema, RecordField, RecordSchema, UuidSchema},
    schema_compatibility::{Compatibility, SchemaCompatibility},
};

use super::{limits::MAX_SCHEMA_DEPTH, named_types::NamedTypes};

/// Most pairs of types compared for one pair of versions.
const MAX_PAIRS: usize = 100_000;

/// What a new version must keep to, in Confluent's words. The names say who can read: *backward*, the new version reads
/// what the old ones wrote; *forward*, the old ones read what the new one writes; *transitive*, all earlier versions
/// and not only the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompatibilityLevel {
    None,
    Backward,
    BackwardTransitive,
    Forward,
    ForwardTransitive,
    Full,
    /// The log is read for ever, so this is the default.
    #[default]
    FullTransitive,
}

impl CompatibilityLevel {
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Backward,
        Self::BackwardTransitive,
        Self::Forward,
        Self::ForwardTransitive,
        Self::Full,
        Self::FullTransitive,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Backward => "BACKWARD",
            Self::BackwardTransitive => "BACKWARD_TRANSITIVE",
            Self::Forward => "FORWARD",
            Self::ForwardTransitive => "FORWARD_TRANSITIVE",
            Self::Full => "FULL",
            Self::FullTransitive => "FULL_TRANSITIVE",
        }
    }

    fn backward(self) -> bool {
        matches!(self, Self::Backward | Self::BackwardTransitive | Self::Full | Self::FullTransitive)
    }

    fn forward(self) -> bool {
        matches!(self, Self::Forward | Self::ForwardTransitive | Self::Full | Self::FullTransitive)
    }

    fn transitive(self) -> bool {
        matches!(self, Self::BackwardTransitive | Self::ForwardTransitive | Self::FullTransitive)
    }
}

impl fmt::Display for CompatibilityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a compatibility level: choose one of NONE, BACKWARD, FORWARD, FULL or one of the last three with _TRANSITIVE"
)]
pub struct UnknownLevel(pub String);

impl FromStr for CompatibilityLevel {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownLevel(text.to_owned()))
    }
}

/// Why one version cannot read the records of another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: v{reader} cannot read records of v{writer}; {advice}")]
pub struct Incompatibility {
    pub reader: u32,
    pub writer: u32,
    /// Which field, and what happened to it.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// Everything that keeps `new` from being the next version after `earlier` (in ascending order).
pub fn check(level: CompatibilityLevel, new: (u32, &Schema), earlier: &[(u32, &Schema)]) -> Vec<Incompatibility> {
    let first = if level.transitive() { 0 } else { earlier.len().saturating_sub(1) };
    let mut found = Vec::new();
    for &old in &earlier[first..] {
        if level.backward() {
            found.extend(can_read(new, old));
        }
        if level.forward() {
            found.extend(can_read(old, new));
        }
    }
    found
}

/// Everything that keeps `reader` from reading what was written with `writer`.
pub fn can_read(reader: (u32, &Schema), writer: (u32, &Schema)) -> Vec<Incompatibility> {
    let mut comparison = Comparison {
        reader: reader.0,
        writer: writer.0,
        reader_names: NamedTypes::of(reader.1),
        writer_names: NamedTypes::of(writer.1),
        path: Vec::new(),
        budget: MAX_PAIRS,
        found: Vec::new(),
    };
    comparison.compare(reader.1, writer.1);
    let mut found = comparison.found;
    // Our own comparison has the words; Avro's has the last word.
    if found.is_empty() && !matches!(SchemaCompatibility::can_read(writer.1, reader.1), Ok(Compatibility::Full)) {
        found.push(Incompatibility {
            reader: reader.0,
            writer: writer.0,
            message: "the schemas do not match".to_owned(),
            advice: "compare them, and change only what has a default".to_owned(),
        });
    }
    found
}

struct Comparison<'a> {
    reader: u32,
    writer: u32,
    reader_names: NamedTypes<'a>,
    writer_names: NamedTypes<'a>,
    path: Vec<&'a str>,
    /// Pairs of types still to be compared; unions of look-alike records could make them powers.
    budget: usize,
    found: Vec<Incompatibility>,
}

impl<'a> Comparison<'a> {
    fn compare(&mut self, reader: &'a Schema, writer: &'a Schema) {
        if self.budget == 0 {
            return self.report(
                format!("more than {MAX_PAIRS} pairs of types to compare"),
                "give the branches of unions names of their own".to_owned(),
            );
        }
        self.budget -= 1;
        let reader = resolved(&self.reader_names, reader);
        let writer = resolved(&self.writer_names, writer);
        match (reader, writer) {
            (Schema::Union(_), _) | (_, Schema::Union(_)) => self.unions(reader, writer),
            (Schema::Record(to), Schema::Record(from)) => self.records(to, from),
            (Schema::Array(to), Schema::Array(from)) => self.compare(&to.items, &from.items),
            (Schema::Map(to), Schema::Map(from)) => self.compare(&to.types, &from.types),
            (Schema::Enum(to), Schema::Enum(from)) => self.enums(to, from),
            _ if !same_or_promoted(reader, writer) => self.changed(&describe(reader), &describe(writer)),
            _ => {}
        }
    }

    fn records(&mut self, to: &'a RecordSchema, from: &'a RecordSchema) {
        if to.name.name() != from.name.name() {
            self.changed(&format!("record {}", to.name), &format!("record {}", from.name));
            return;
        }
        // A recursive schema has no end; the limits refuse it elsewhere.
        if self.path.len() > MAX_SCHEMA_DEPTH {
            return;
        }
        for field in &to.fields {
            self.path.push(&field.name);
            let known = |name: &str| from.fields.iter().find(|other| other.name == name);
            match known(&field.name).or_else(|| field.aliases.iter().find_map(|alias| known(alias))) {
                Some(other) => self.compare(&field.schema, &other.schema),
                None if field.default.is_none() => self.absent(field),
                None => {}
            }
            self.path.pop();
        }
    }

    /// A field of the reader that the writer does not have, without a default.
    fn absent(&mut self, field: &RecordField) {
        let (reader, writer) = (self.reader, self.writer);
        let nullable = matches!(&field.schema, Schema::Union(_));
        let default =
            if nullable { "such as \"default\": null (with null first in the union)" } else { "in \"default\"" };
        if reader > writer {
            self.report(
                format!("{} was added in v{reader} without a default", self.place()),
                format!("give it one, {default}"),
            );
        } else {
            self.report(
                format!("{} of v{reader} is missing in v{writer} and has no default", self.place()),
                "keep the field: only fields that always had a default can be removed".to_owned(),
            );
        }
    }

    fn enums(&mut self, to: &EnumSchema, from: &EnumSchema) {
        if to.name.name() != from.name.name() {
            self.changed(&format!("enum {}", to.name), &format!("enum {}", from.name));
            return;
        }
        let unknown: Vec<&str> =
            from.symbols.iter().filter(|symbol| !to.symbols.contains(symbol)).map(String::as_str).collect();
        if unknown.is_empty() || to.default.is_some() {
            return;
        }
        let (reader, writer) = (self.reader, self.writer);
        let advice = if reader > writer {
            "keep the symbols, or give the enum a \"default\" symbol"
        } else {
            "symbols can only be added to an enum that had a \"default\" symbol before: use a string, or a new field"
        };
        self.report(
            format!("{} can be {} in v{writer}, which v{reader} does not know", self.place(), unknown.join(", ")),
            advice.to_owned(),
        );
    }

    /// Each branch of the writer needs one of the reader.
    fn unions(&mut self, to: &'a Schema, from: &'a Schema) {
        let targets = branches(to);
        for branch in branches(from) {
            let source = resolved(&self.writer_names, branch);
            let kin = |target: &&'a Schema| is_kin(resolved(&self.reader_names, target), source);
            let kin: Vec<&'a Schema> = targets.iter().filter(kin).collect();
            match kin[..] {
                [target] => self.compare(target, branch),
                _ if targets.iter().any(|target| self.silent(target, branch)) => {}
                _ => self.no_branch(source, to),
            }
        }
    }

    fn no_branch(&mut self, source: &Schema, to: &Schema) {
        let (reader, writer) = (self.reader, self.writer);
        let place = self.place();
        match (source, to) {
            (Schema::Null, _) => self.report(
                format!("{place} can be null in v{writer} and cannot in v{reader}"),
                "a field that was once nullable stays nullable, and one that was not cannot become it: add a new field"
                    .to_owned(),
            ),
            (_, Schema::Union(_)) => self.report(
                format!("{place} can be {} in v{writer}, which is not in the union of v{reader}", describe(source)),
                "keep the union's types as they were, or add a new field".to_owned(),
            ),
            _ => self.changed(&describe(to), &describe(source)),
        }
    }

    /// Whether the two match, without a report.
    fn silent(&mut self, reader: &'a Schema, writer: &'a Schema) -> bool {
        let before = self.found.len();
        self.compare(reader, writer);
        let matches = self.found.len() == before;
        self.found.truncate(before);
        matches
    }

    fn changed(&mut self, to: &str, from: &str) {
        let (old, new) = if self.reader > self.writer { (from, to) } else { (to, from) };
        let (older, newer) = (self.reader.min(self.writer), self.reader.max(self.writer));
        self.report(
            format!("{} changed from {old} in v{older} to {new} in v{newer}", self.place()),
            "keep its type, and add a new field with a default".to_owned(),
        );
    }

    fn place(&self) -> String {
        if self.path.is_empty() { "the record".to_owned() } else { format!("field `{}`", self.path.join(".")) }
    }

    fn report(&mut self, message: String, advice: String) {
        self.found.push(Incompatibility { reader: self.reader, writer: self.writer, message, advice });
    }
}

/// Whether the two are meant to be the same branch: of the same kind, and of the same name if they have one.
fn is_kin(a: &Schema, b: &Schema) -> bool {
    match (a, b) {
        (Schema::Record(a), Schema::Record(b)) => a.name.name() == b.name.name(),
        (Schema::Enum(a), Schema::Enum(b)) => a.name.name() == b.name.name(),
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

fn resolved<'a>(names: &NamedTypes<'a>, schema: &'a Schema) -> &'a Schema {
    names.follow(schema).unwrap_or(schema)
}

fn branches(schema: &Schema) -> &[Schema] {
    match schema {
        Schema::Union(union) => union.variants(),
        single => std::slice::from_ref(single),
    }
}

/// Avro's promotions of numbers and between bytes and string; logical types only to themselves.
fn same_or_promoted(reader: &Schema, writer: &Schema) -> bool {
    use Schema::{Bytes, Decimal, Double, Duration, Fixed, Float, Int, Long, String, Uuid};
    match (reader, writer) {
        (Long | Float | Double, Int) | (Float | Double, Long) | (Double, Float) | (Bytes, String) | (String, Bytes) => {
            true
        }
        (Fixed(to), Fixed(from)) | (Duration(to), Duration(from)) => {
            to.size == from.size && to.name.name() == from.name.name()
        }
        (Decimal(to), Decimal(from)) => {
            let inner = match (&to.inner, &from.inner) {
                (InnerDecimalSchema::Bytes, InnerDecimalSchema::Bytes) => true,
                (InnerDecimalSchema::Fixed(to), InnerDecimalSchema::Fixed(from)) => to.size == from.size,
                _ => false,
            };
            inner && (to.precision, to.scale) == (from.precision, from.scale)
        }
        (Uuid(to), Uuid(from)) => {
            let form = |uuid: &UuidSchema| std::mem::discriminant(uuid);
            form(to) == form(from)
        }
        _ => std::mem::discriminant(reader) == std::mem::discriminant(writer),
    }
}

/// A type in the words of a schema file.
fn describe(schema: &Schema) -> String {
    match schema {
        Schema::Decimal(decimal) => format!("decimal({},{})", decimal.precision, decimal.scale),
        Schema::Fixed(fixed) => format!("fixed {} of {} bytes", fixed.name, fixed.size),
        Schema::Record(record) => format!("record {}", record.name),
        Schema::Enum(symbols) => format!("enum {}", symbols.name),
        Schema::Union(union) => {
            let parts: Vec<String> = union.variants().iter().map(describe).collect();
            format!("[{}]", parts.join(", "))
        }
        Schema::TimeMillis => "time-millis".to_owned(),
        Schema::TimeMicros => "time-micros".to_owned(),
        Schema::TimestampMillis => "timestamp-millis".to_owned(),
        Schema::TimestampMicros => "timestamp-micros".to_owned(),
        Schema::TimestampNanos => "timestamp-nanos".to_owned(),
        Schema::LocalTimestampMillis => "local-timestamp-millis".to_owned(),
        Schema::LocalTimestampMicros => "local-timestamp-micros".to_owned(),
        Schema::LocalTimestampNanos => "local-timestamp-nanos".to_owned(),
        Schema::BigDecimal => "big-decimal".to_owned(),
        Schema::Ref { name } => name.to_string(),
        other => other.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests;
