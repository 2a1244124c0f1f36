//! What the request's head asks for: media type, encoding, preferences, the client's key.

use axum::http::{HeaderMap, HeaderName, header};

use super::problems::{CONTENT_ENCODING, MEDIA_TYPE, REQUEST_HEADER};
use crate::http::Problem;

/// Longest event id, in bytes, wherever it comes from.
pub(super) const MAX_EVENT_ID_BYTES: usize = 255;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// How records follow one another in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One object, or an array of objects.
    Json,
    /// One object a line.
    Ndjson,
}

/// How the body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// What the client prefers (RFC 7240); what is not understood is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Preferences {
    /// `handling`, where it was given.
    pub(super) handling: Option<Handling>,
    /// `return=representation`: list every record in the answer; `None` where `return` was not given.
    pub(super) representation: Option<bool>,
}

/// What a fault in one record means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    /// All or nothing before the first record is sent.
    Strict,
    /// Good records are written, bad ones reported.
    Lenient,
}

impl Preferences {
    pub(super) fn is_lenient(self) -> bool {
        self.handling == Some(Handling::Lenient)
    }

    pub(super) fn wants_representation(self) -> bool {
        self.representation == Some(true)
    }

    /// The value of `Preference-Applied`; empty where nothing was preferred.
    pub(super) fn applied(self) -> &'static str {
        match (self.handling, self.representation) {
            (None, None) => "",
            (None, Some(true)) => "return=representation",
            (None, Some(false)) => "return=minimal",
            (Some(Handling::Strict), None) => "handling=strict",
            (Some(Handling::Strict), Some(true)) => "handling=strict, return=representation",
            (Some(Handling::Strict), Some(false)) => "handling=strict, return=minimal",
            (Some(Handling::Lenient), None) => "handling=lenient",
            (Some(Handling::Lenient), Some(true)) => "handling=lenient, return=representation",
            (Some(Handling::Lenient), Some(false)) => "handling=lenient, return=minimal",
        }
    }
}

/// The body's format; no Content-Type at all is taken as JSON, for that is what a curl user means.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Format::Json) };
    if value == "application/json" {
        return Ok(Format::Json);
    }
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Ok(Format::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Format::Ndjson),
        // The media type that curl sends with -d unless told otherwise.
        "application/x-www-form-urlencoded" => Err(MEDIA_TYPE.problem(
            "Content-Type is application/x-www-form-urlencoded: with curl, add -H 'content-type: application/json'",
        )),
        other => Err(MEDIA_TYPE.problem(format!(
            "Content-Type is {other:?}: send application/json (an object or an array) or application/x-ndjson"
        ))),
    }
}

/// How the body is compressed; several encodings, one on another, are refused.
pub(super) fn encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(value) = values.next() else { return Ok(Encoding::Identity) };
    let text = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
    match text.as_str() {
        _ if values.next().is_some() => {
            Err(CONTENT_ENCODING.problem("several Content-Encoding headers: compress once"))
        }
        "identity" => Ok(Encoding::Identity),
        "gzip" | "x-gzip" => Ok(Encoding::Gzip),
        "zstd" => Ok(Encoding::Zstd),
        other => Err(CONTENT_ENCODING.problem(format!("Content-Encoding is {other:?}: send gzip, zstd or identity"))),
    }
}

/// Reads every `Prefer` header; the first mention of a preference counts.
pub(super) fn preferences(headers: &HeaderMap) -> Preferences {
    let mut found = Preferences::default();
    for value in headers.get_all(PREFER) {
        for preference in value.to_str().unwrap_or_default().split(',') {
            // Parameters, after a semicolon, refine a preference; none of ours has any.
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            let value = value.trim().trim_matches('"');
            match (name.trim().to_ascii_lowercase().as_str(), value) {
                ("handling", "strict") => found.handling = found.handling.or(Some(Handling::Strict)),
                ("handling", "lenient") => found.handling = found.handling.or(Some(Handling::Lenient)),
                ("return", "representation") => found.representation = found.representation.or(Some(true)),
                ("return", "minimal") => found.representation = found.representation.or(Some(false)),
                _ => {}
            }
        }
    }
    found
}

/// The client's key: a structured-field string (`"8e03…"`) as the draft has it, or bare, as many clients send it.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse = |what: &str| Err(REQUEST_HEADER.problem(format!("Idempotency-Key {what}")));
    if values.next().is_some() {
        return refuse("came more than once: send one");
    }
    let Some(text) = value.to_str().ok().map(str::trim) else {
        return refuse("is not visible ASCII: send a UUID or the like");
    };
    let key = match text.strip_prefix('"') {
        Some(rest) => unquote(rest),
        None => (!text.contains(['"', ','])).then(|| text.to_owned()),
    };
    match key {
        None => refuse("is neither a quoted string nor a bare word: send \"8e03978e-40d5-43e8-bc93-6894a57f9324\""),
        Some(key) if key.trim().is_empty() => refuse("is empty: send a UUID or the like, or leave the header out"),
        Some(key) if key.len() > MAX_EVENT_ID_BYTES => refuse("is longer than 255 bytes"),
        Some(key) => Ok(Some(key)),
    }
}

/// The rest of a structured-field string, after its opening quote (RFC 9651).
fn unquote(rest: &str) -> Option<String> {
    let mut out = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => out.push(c),
                _ => return None,
            },
            c => out.push(c),
        }
    }
    // Parameters may follow; the draft defines none.
    let after = chars.as_str().trim_start();
    (after.is_empty() || after.starts_with(';')).then_some(out)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn key(values: &[&str]) -> Option<Option<String>> {
        idempotency_key(&headers(IDEMPOTENCY_KEY, values)).ok()
    }

    #[test]
    fn key_is_taken_quoted_and_bare() {
        for text in ["\"8e03\"", "8e03", "  8e03 ", "\"8e03\";a=1"] {
            assert_eq!(key(&[text]), Some(Some("8e03".to_owned())), "{text}");
        }
        assert_eq!(key(&["\"a\\\"b\\\\c\""]), Some(Some("a\"b\\c".to_owned())));
        assert_eq!(key(&[]), Some(None));
    }

    #[test]
    fn faulty_key_is_refused() {
        let long = "x".repeat(256);
        for text in ["", "\"\"", "\"open", "\"a\"b", "a\"b", "a, b", "\"a\\n\"", "\u{e9}", long.as_str()] {
            assert_eq!(key(&[text]), None, "{text}");
        }
        assert_eq!(key(&["a", "b"]), None);
    }

    #[test]
    fn preferences_are_found_among_others() {
        let prefer = |values: &[&str]| preferences(&headers(PREFER, values));
        let found = prefer(&["respond-async, Handling = lenient; x=1", "return=\"representation\", handling=strict"]);
        assert!(found.is_lenient() && found.wants_representation());
        assert_eq!(found.applied(), "handling=lenient, return=representation");
        assert_eq!(prefer(&["wait=3"]).applied(), "");
        assert_eq!(prefer(&["handling=kind"]), Preferences::default());
    }

    #[test]
    fn media_types_and_encodings_outside_the_list_are_refused() {
        let of = |text: &str| format(&headers(header::CONTENT_TYPE, &[text])).map_err(|problem| problem.status);
        assert_eq!(of("Application/JSON; charset=utf-8"), Ok(Format::Json));
        assert_eq!(of("application/x-ndjson"), Ok(Format::Ndjson));
        assert_eq!(of("text/plain"), Err(415));
        assert_eq!(of("application/x-www-form-urlencoded"), Err(415));
        assert_eq!(format(&HeaderMap::new()), Ok(Format::Json));
        let of = |texts: &[&str]| encoding(&headers(header::CONTENT_ENCODING, texts)).map_err(|problem| problem.status);
        assert_eq!(of(&[]), Ok(Encoding::Identity));
        assert_eq!(of(&["GZIP"]), Ok(Encoding::Gzip));
        assert_eq!(of(&["zstd"]), Ok(Encoding::Zstd));
        for stacked in [&["gzip, gzip"][..], &["gzip", "zstd"], &["br"]] {
            assert_eq!(of(stacked), Err(415), "{stacked:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                for name in [IDEMPOTENCY_KEY, PREFER, header::CONTENT_TYPE, header::CONTENT_ENCODING] {
                    headers.insert(name, value.clone());
                }
                let _ = (idempotency_key(&headers), preferences(&headers), format(&headers), encoding(&headers));
            }
        }

        #[test]
        fn quoted_key_is_read_as_it_was_meant(key in "[ -~]{1,60}") {
            prop_assume!(!key.trim().is_empty());
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(super::tests::key(&[&quoted]), Some(Some(key)));
        }
    }
}
