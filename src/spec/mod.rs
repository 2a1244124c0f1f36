//! The folders of an application: what `consumers/` and `producers/` declare, read and checked as written.
//!
//! Owns the shape of the files and of the faults found in them. Knows nothing of Postgres, Kafka or Avro: whether the
//! SQL of a consumer is sound is for `projection` to say.

mod consumer;
mod document;
mod files;
mod manifest;
pub mod producer;

use std::{fmt, path::PathBuf};

pub use consumer::{
    BatchLimits, ConsumerSpec, DEDUPE_WINDOW, MergeRule, OnError, Order, Source, TableSpec, UnknownType, Writes,
    name_fault,
};
pub use document::{Document, TableReader};
pub use files::{SourceFile, folder_files};
pub use producer::ProducerSpec;

/// One thing that is wrong in a folder: where, what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFault {
    /// The file, as the folder was named by the caller: `consumers/punctuality/consumer.toml`.
    pub path: PathBuf,
    /// Line in the file, from 1; none when the file as a whole is meant.
    pub line: Option<u32>,
    /// What is wrong and what to do, in one sentence.
    pub message: String,
}

impl SpecFault {
    pub fn new(path: impl Into<PathBuf>, line: Option<u32>, message: impl Into<String>) -> Self {
        Self { path: path.into(), line, message: message.into() }
    }
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.message),
            None => write!(f, "{}: {}", self.path.display(), self.message),
        }
    }
}

/// Words in the form `a, b or c`.
pub fn listing<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    match words.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => (*only).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_of_words_reads_as_a_sentence() {
        assert_eq!(listing(["a", "b", "c"]), "a, b or c");
        assert_eq!(listing(["a"]), "a");
    }
}
