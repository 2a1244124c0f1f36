//! What is wrong with one value, said so that the person who sent it can mend it.

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
