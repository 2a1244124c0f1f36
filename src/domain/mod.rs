//! The words of the domain, pure: no I/O, no runtime, no client library.
//!
//! Owns identities and coordinates that every other module speaks of. Must not import anything of this crate.

mod fingerprint;
mod nearest;
mod position;
mod quote;
mod table;

pub use fingerprint::Fingerprint;
pub use nearest::{near, nearest};
pub use position::{MAX_PLAIN_POSITION_BYTES, Position, PositionError, Span, TopicPartition};
pub use quote::{MAX_IDENTIFIER_BYTES, bytea, ident, ident_list, literal, plain_ident};
pub use table::{ColumnInfo, IndexInfo, TableInfo, schema_name};

/// Name of the record header that carries the id of an event or command (UTF-8 text).
pub const HEADER_EVENT_ID: &str = "mp-event-id";
/// Name of the record header that says what a record with an id of its client's holds: [`Fingerprint`] in hex. Records
/// whose ids were made for them have none, and nobody asks whether they repeat another.
pub const HEADER_FINGERPRINT: &str = "mp-fingerprint";
/// Name of the header of a mirrored dead letter that carries the id that the record came with, as it came: the mirror is
/// a record of its own, with an id of its own.
pub const HEADER_DLQ_EVENT_ID: &str = "mp-dlq-event-id";
/// As [`HEADER_DLQ_EVENT_ID`], for the fingerprint that goes with that id.
pub const HEADER_DLQ_FINGERPRINT: &str = "mp-dlq-fingerprint";
/// Name of the record header that names the producer folder whose contract let the record in (UTF-8 text).
pub const HEADER_PRODUCER: &str = "mp-producer";
/// W3C trace context, as in the HTTP header of the same name.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// W3C trace state, as in the HTTP header of the same name.
pub const HEADER_TRACESTATE: &str = "tracestate";
