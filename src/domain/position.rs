//! Positions: "everything below offset N of this partition", for any number of partitions.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// Longest plain-text position; a longer one is written as an opaque token.
pub const MAX_PLAIN_POSITION_BYTES: usize = 4096;
const TOKEN_PREFIX: &str = "mp1.";
/// Longest topic name that Kafka allows.
const MAX_TOPIC_BYTES: usize = 249;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A point in the log: for each partition named, everything below an offset.
///
/// Written as `topic/partition@N`, joined by commas. The record written at offset 1841 is covered by `@1842`. The position
/// of a write of several records also says where they begin, `@1342..1842`, so that the outcome of each can be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position(BTreeMap<TopicPartition, Span>);

/// Offsets of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where the records begin that the position was given for; without more knowledge the last one below `next`.
    /// -1 at the start of a partition, which has no record below it.
    pub first: i64,
    /// Everything below is covered.
    pub next: i64,
}

impl Span {
    fn below(next: i64) -> Self {
        Self { first: next - 1, next }
    }

    fn union(self, other: Span) -> Self {
        Self { first: self.first.min(other.first), next: self.next.max(other.next) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.next - 1 {
            write!(f, "{}", self.next)
        } else {
            write!(f, "{}..{}", self.first, self.next)
        }
    }
}

/// Why a text is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` is not a position: expected topic/partition@offset, such as flights.commands.v1/0@1842")]
pub struct PositionError {
    pub part: String,
}

impl Position {
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the offset of one partition; a lower one changes nothing.
    pub fn advance(&mut self, at: TopicPartition, next_offset: i64) {
        let span = self.0.entry(at).or_insert(Span::below(next_offset));
        if span.next < next_offset {
            *span = Span::below(next_offset);
        }
    }

    /// Covers one more record of a write, besides those before it.
    pub fn include(&mut self, at: TopicPartition, offset: i64) {
        self.unite(at, Span::below(offset + 1));
    }

    /// The least position that covers both, and all records that either was given for.
    pub fn merge(&mut self, other: &Position) {
        for (at, span) in &other.0 {
            self.unite(at.clone(), *span);
        }
    }

    fn unite(&mut self, at: TopicPartition, span: Span) {
        self.0.entry(at).and_modify(|entry| *entry = entry.union(span)).or_insert(span);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TopicPartition, Span)> {
        self.0.iter().map(|(at, span)| (at, *span))
    }

    /// First offset of the partition that is not covered.
    pub fn get(&self, at: &TopicPartition) -> Option<i64> {
        self.0.get(at).map(|span| span.next)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a reader that stands at `self` has seen everything that `wanted` covers; nothing is below offset 0.
    pub fn covers(&self, wanted: &Position) -> bool {
        wanted.0.iter().all(|(at, span)| span.next == 0 || self.get(at).is_some_and(|have| have >= span.next))
    }

    fn plain(&self) -> String {
        use std::fmt::Write as _;
        const ENTRY_BYTES: usize = 64;
        let mut text = String::with_capacity(self.0.len() * ENTRY_BYTES);
        for (at, span) in &self.0 {
            if !text.is_empty() {
                text.push(',');
            }
            // In parts rather than by `{at}@{span}`: one is written into every answer.
            text.push_str(&at.topic);
            write!(text, "/{}@{span}", at.partition).expect("invariant: writing to memory cannot fail");
        }
        text
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.plain();
        if plain.len() <= MAX_PLAIN_POSITION_BYTES {
            return f.write_str(&plain);
        }
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(deflate(plain.as_bytes())))
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let refuse = |part: &str| PositionError { part: part.chars().take(80).collect() };
        let text = text.trim();
        let plain = match text.strip_prefix(TOKEN_PREFIX) {
            None => text.to_owned(),
            Some(token) => {
                URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| inflate(&bytes)).ok_or_else(|| refuse(text))?
            }
        };
        let mut position = Position::new();
        for part in plain.split(',') {
            let (at, span) = parse_entry(part.trim()).ok_or_else(|| refuse(part))?;
            position.unite(at, span);
        }
        Ok(position)
    }
}

fn parse_entry(part: &str) -> Option<(TopicPartition, Span)> {
    let (at, span) = part.rsplit_once('@')?;
    let (topic, partition) = at.rsplit_once('/')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > MAX_TOPIC_BYTES || !topic.chars().all(legal) {
        return None;
    }
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let offset = |s: &str| if digits(s) { s.parse::<i64>().ok() } else { None };
    let span = match span.split_once("..") {
        None => Span::below(offset(span)?),
        Some((first, next)) => Span { first: offset(first)?, next: offset(next)? },
    };
    if !digits(partition) || span.first >= span.next {
        return None;
    }
    Some((TopicPartition::new(topic, partition.parse().ok()?), span))
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(plain).and_then(|()| out.finish()).expect("invariant: writing to memory cannot fail")
}

/// Bounded: a token comes from outside, and a megabyte of text names more partitions than a cluster has.
fn inflate(bytes: &[u8]) -> Option<String> {
    use std::io::Read;
    const MAX: u64 = 1 << 20;
    let mut text = String::new();
    let read = flate2::read::DeflateDecoder::new(bytes).take(MAX + 1).read_to_string(&mut text).ok()?;
    (read as u64 <= MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn position_of_a_record_covers_it() {
        let written: Position = "flights.commands.v1/0@1842".parse().unwrap();
        let mut reader = Position::new();
        reader.advance(TopicPartition::new("flights.commands.v1", 0), 1841);
        assert!(!reader.covers(&written));
        reader.advance(TopicPartition::new("flights.commands.v1", 0), 1842);
        assert!(reader.covers(&written));
    }

    #[test]
    fn faulty_texts_are_refused_with_the_part() {
        for text in [
            "",
            "a",
            "a/0",
            "a/0@",
            "a/-1@2",
            "a/0@-2",
            "/0@1",
            "a b/0@1",
            "a/0@99999999999999999999",
            "mp1.!!",
            "a/0@5..5",
            "a/0@6..5",
            "a/0@..5",
            "a/0@5..",
            "a/0@1..2..3",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
        let error = "a/0@1,oops".parse::<Position>().unwrap_err();
        assert_eq!(error.part, "oops");
    }

    #[test]
    fn position_of_several_records_says_where_they_begin() {
        let at = || TopicPartition::new("a", 0);
        let mut written = Position::new();
        written.include(at(), 7);
        assert_eq!(written.to_string(), "a/0@8");
        written.include(at(), 9);
        written.include(at(), 8);
        assert_eq!(written.to_string(), "a/0@7..10");
        written.merge(&"a/0@12,b/0@3".parse().unwrap());
        assert_eq!(written.to_string(), "a/0@7..12,b/0@3");
    }

    #[test]
    fn start_of_a_partition_is_covered_by_whoever_has_not_begun() {
        assert!(Position::new().covers(&"a/0@0".parse().unwrap()));
        assert!(!Position::new().covers(&"a/0@1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(entries in prop::collection::btree_map(
            ("[a-z][a-z0-9._-]{0,40}", 0..200_i32), (0..i64::MAX - 9, 0..9_i64), 1..300)) {
            let mut position = Position::new();
            for ((topic, partition), (first, more)) in entries {
                position.include(TopicPartition::new(topic.as_str(), partition), first);
                position.include(TopicPartition::new(topic, partition), first + more);
            }
            prop_assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = text.parse::<Position>();
        }
    }
}
