//! W3C trace context: taken from the request or begun here, handed on in record headers.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
};

use axum::http::{HeaderMap, HeaderValue, header::HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Longest `tracestate` that is handed on; the recommendation asks for at least 512 characters.
const MAX_TRACESTATE_BYTES: usize = 512;
const FLAG_SAMPLED: u8 = 1;

tokio::task_local! {
    static CURRENT: TraceId;
}

/// The id that all spans of one trace share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl TraceId {
    /// The trace of the request that the current task answers.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|id| *id).ok()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Runs `future` with `id` as the trace of its task, so that problems can name it.
pub(super) async fn with_trace<F: Future>(id: TraceId, future: F) -> F::Output {
    CURRENT.scope(id, future).await
}

/// The trace that a request belongs to, and this process' span in it; an extension of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: TraceId,
    span_id: u64,
    flags: u8,
    state: Option<HeaderValue>,
    from_caller: bool,
}

impl TraceContext {
    /// The caller's trace with a new span of ours, or a new trace where the caller sent none or a faulty one.
    pub fn of(headers: &HeaderMap) -> Self {
        let parent = headers.get(TRACEPARENT).and_then(|value| parse_traceparent(value.as_bytes()));
        match parent {
            // `tracestate` counts only beside a valid `traceparent`.
            Some((trace_id, flags)) => {
                let state = headers.get(TRACESTATE).filter(|state| state.len() <= MAX_TRACESTATE_BYTES).cloned();
                Self { trace_id, span_id: random_nonzero(), flags, state, from_caller: true }
            }
            None => Self {
                trace_id: TraceId((u128::from(random_nonzero()) << 64) | u128::from(random_nonzero())),
                span_id: random_nonzero(),
                flags: FLAG_SAMPLED,
                state: None,
                from_caller: false,
            },
        }
    }

    /// Whether the caller's trace goes on here, rather than a new one that nobody else knows.
    pub fn is_from_caller(&self) -> bool {
        self.from_caller
    }

    /// Our span as the parent of what follows, in the form of the `traceparent` header (55 bytes).
    pub fn traceparent(&self) -> String {
        // By hand: for every request, and `format!` takes ten times as long.
        let mut text = *b"00-................................-................-..";
        let parts: [(usize, &[u8]); 3] =
            [(3, &self.trace_id.0.to_be_bytes()), (36, &self.span_id.to_be_bytes()), (53, &[self.flags])];
        for (at, bytes) in parts {
            hex::encode_to_slice(bytes, &mut text[at..at + 2 * bytes.len()]).expect("invariant: two digits a byte");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The caller's `tracestate`, unchanged.
    pub fn tracestate(&self) -> Option<&[u8]> {
        self.state.as_ref().map(HeaderValue::as_bytes)
    }
}

/// Reads trace id and flags from `version-traceid-parentid-flags`; a later version may have more fields behind.
fn parse_traceparent(value: &[u8]) -> Option<(TraceId, u8)> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let mut fields = text.split('-');
    let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let sized = version.len() == 2 && trace.len() == 32 && parent.len() == 16 && flags.len() == 2;
    let hexadecimal = |s: &str| s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !sized || ![version, trace, parent, flags].into_iter().all(hexadecimal) {
        return None;
    }
    if version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let parent = u64::from_str_radix(parent, 16).ok()?;
    if trace == 0 || parent == 0 {
        return None;
    }
    Some((TraceId(trace), u8::from_str_radix(flags, 16).ok()? & FLAG_SAMPLED))
}

/// Random enough to tell spans apart, without a system call: each `RandomState` has keys of its own, seeded per thread.
fn random_nonzero() -> u64 {
    RandomState::new().hash_one(()).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(traceparent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_str(traceparent).unwrap());
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        headers
    }

    #[test]
    fn context_of_a_caller_keeps_its_trace_with_a_span_of_ours() {
        let ours = TraceContext::of(&headers(CALLER));
        assert_eq!(ours.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(ours.traceparent(), CALLER);
        assert_eq!(ours.traceparent().len(), 55);
        assert_eq!(ours.tracestate(), Some(&b"vendor=1"[..]));
    }

    #[test]
    fn context_of_a_faulty_header_begins_a_new_trace() {
        for faulty in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            let ours = TraceContext::of(&headers(faulty));
            assert_ne!(ours.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736", "{faulty}");
            assert_eq!(ours.tracestate(), None, "{faulty}");
            assert!(parse_traceparent(ours.traceparent().as_bytes()).is_some(), "{faulty}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_traceparent(&bytes);
        }
    }
}
