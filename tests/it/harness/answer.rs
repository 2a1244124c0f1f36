//! An HTTP answer as tests look at it.

use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::Value;

/// An answer, and how long it took.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub took: Duration,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The position of a write.
    #[track_caller]
    pub fn position(&self) -> &str {
        self.header("millpond-position").unwrap_or_else(|| panic!("no position: {self:?}"))
    }

    /// The path of `Link: <…>; rel="next"`.
    pub fn next(&self) -> Option<String> {
        let link = self.header("link")?;
        Some(link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned())
    }

    /// That it is this problem, in the form of RFC 9457.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let body = self.json();
        assert_eq!((body["code"].as_str(), body["status"].as_u64()), (Some(code), Some(status.into())), "{body}");
        assert_eq!(body["type"], format!("urn:millpond:problem:{code}"));
        body
    }
}
