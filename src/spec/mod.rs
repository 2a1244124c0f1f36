//! The folders that people write: `producers/` and `consumers/`, read and checked before anything starts.

pub mod producer;

use std::{fmt, path::PathBuf};

/// What is wrong in a file that somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFault {
    pub path: PathBuf,
    /// Counted from 1.
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}
