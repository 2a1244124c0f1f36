//! What is wrong with one value, said so that the person who sent it can mend it.

use std::fmt;

use serde::Serialize;

/// One problem at one place of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// RFC 6901 JSON pointer to the value; empty for the whole document.
    pub pointer: String,
    /// What the schema asks for, in plain words: `a timestamp such as 2013-01-01T10:15:00Z`.
    pub expected: String,
    /// What came, abbreviated: `string "yesterday"`, `nothing`.
    pub got: String,
    /// A next step where one is likely: `did you mean "carrier"?`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Fault {
    /// A fault of the whole document; whoever contains the value puts the pointer before it.
    pub fn new(expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self { pointer: String::new(), expected: expected.into(), got: got.into(), hint: None }
    }

    /// Sets the hint, if there is one; otherwise leaves what is there.
    pub fn hinted(mut self, hint: Option<impl Into<String>>) -> Self {
        self.hint = hint.map(Into::into).or(self.hint);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.pointer.is_empty() {
            write!(f, "{}: ", self.pointer)?;
        }
        write!(f, "expected {}, got {}", self.expected, self.got)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}
