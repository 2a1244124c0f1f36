//! Whom limits count by.

use std::sync::{Arc, atomic::AtomicUsize};

/// A client in the sense of every limit: the holder of a key, or an address where keys are not asked for.
///
/// All its connections and requests share one value, so that what they take together is found without looking it up.
#[derive(Debug)]
pub struct Client {
    /// Name of the key, or the address as text.
    pub name: Arc<str>,
    /// Bytes that its requests have taken of memory which was scarce when they took it.
    pub scarce_bytes: AtomicUsize,
}

impl Client {
    pub fn new(name: impl Into<Arc<str>>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), scarce_bytes: AtomicUsize::new(0) })
    }
}
