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
/// Written as `topic/partition@N`, joined by commas. The record written at offset 1841 is covered by `@1842`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position(BTreeMap<TopicPartition, i64>);

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
        let entry = self.0.entry(at).or_insert(next_offset);
        *entry = (*entry).max(next_offset);
    }

    /// The least position that covers both.
    pub fn merge(&mut self, other: &Position) {
        for (at, next) in &other.0 {
            self.advance(at.clone(), *next);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TopicPartition, i64)> {
        self.0.iter().map(|(at, next)| (at, *next))
    }

    pub fn get(&self, at: &TopicPartition) -> Option<i64> {
        self.0.get(at).copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a reader that stands at `self` has seen everything that `wanted` covers.
    pub fn covers(&self, wanted: &Position) -> bool {
        wanted.0.iter().all(|(at, next)| self.get(at).is_some_and(|have| have >= *next))
    }

    fn plain(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|(at, next)| format!("{at}@{next}")).collect();
        parts.join(",")
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
            let (at, next) = parse_entry(part.trim()).ok_or_else(|| refuse(part))?;
            position.advance(at, next);
        }
        Ok(position)
    }
}

fn parse_entry(part: &str) -> Option<(TopicPartition, i64)> {
    let (at, next) = part.rsplit_once('@')?;
    let (topic, partition) = at.rsplit_once('/')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > MAX_TOPIC_BYTES || !topic.chars().all(legal) {
        return None;
    }
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(partition) || !digits(next) {
        return None;
    }
    Some((TopicPartition::new(topic, partition.parse().ok()?), next.parse().ok()?))
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
        for text in
            ["", "a", "a/0", "a/0@", "a/-1@2", "a/0@-2", "/0@1", "a b/0@1", "a/0@99999999999999999999", "mp1.!!"]
        {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
        let error = "a/0@1,oops".parse::<Position>().unwrap_err();
        assert_eq!(error.part, "oops");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(entries in prop::collection::btree_map(
            ("[a-z][a-z0-9._-]{0,40}", 0..200_i32), 0..i64::MAX, 1..300)) {
            let mut position = Position::new();
            for ((topic, partition), next) in entries {
                position.advance(TopicPartition::new(topic, partition), next);
            }
            prop_assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = text.parse::<Position>();
        }
    }
}
