//! The headers of records that anyone may have written. Names are bytes on the wire; rdkafka takes them for UTF-8 and
//! panics where they are not.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use rdkafka::message::{BorrowedHeaders, Header, Headers};

/// Stands for a name that is not UTF-8; such a header's value cannot be had.
const UNREADABLE: &str = "\u{fffd}";

thread_local! {
    /// Whether a panic of this thread is the expected one.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Names and values in the record's order.
pub(super) fn of(headers: Option<&BorrowedHeaders>) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    headers.into_iter().flat_map(|headers| {
        (0..headers.count()).map(|index| {
            let header = readable(|| headers.get(index));
            header.map_or((UNREADABLE, None), |Header { key, value }| (key, value))
        })
    })
}

/// `None` where `read` panics.
fn readable<T>(read: impl FnOnce() -> T) -> Option<T> {
    static SILENT: Once = Once::new();
    READING.set(true);
    let read = panic::catch_unwind(AssertUnwindSafe(read));
    READING.set(false);
    if read.is_err() {
        // Only a process that meets one needs it: such records may come in millions.
        SILENT.call_once(|| {
            tracing::warn!(target: "millpond::kafka", "records have headers whose names are not UTF-8; they are read as unnamed");
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                if !READING.get() {
                    report(panic);
                }
            }));
        });
    }
    read.ok()
}
