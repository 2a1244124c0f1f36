//! Problems: every error that leaves over HTTP, in the shape of RFC 9457.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};

use super::trace::TraceId;

/// Media type of a problem's body.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// One entry of the error catalogue: what a code stands for, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Stable, such as `MP1004`.
    pub code: &'static str,
    /// HTTP status it usually comes with.
    pub status: u16,
    /// The same text in every occurrence.
    pub title: &'static str,
    /// What has happened, for someone who has never seen the code.
    pub meaning: &'static str,
    /// The next step.
    pub remedy: &'static str,
}

impl Kind {
    /// An occurrence of this kind. `detail` is for people: it names the object and the value at fault.
    pub fn problem(&'static self, detail: impl Into<String>) -> Problem {
        Problem {
            status: self.status,
            code: self.code,
            title: self.title,
            detail: detail.into(),
            extra: Map::new(),
            headers: Box::default(),
            retry_after: None,
        }
    }
}

/// One occurrence of an error, ready to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub status: u16,
    pub code: &'static str,
    pub title: &'static str,
    pub detail: String,
    /// Further members of the body; the names of RFC 9457, `code` and `trace_id` are taken.
    pub extra: Map<String, Value>,
    /// Further headers of the answer.
    pub headers: Box<HeaderMap>,
    /// Seconds until a retry makes sense; also sent as `Retry-After`.
    pub retry_after: Option<u32>,
}

impl Problem {
    /// Adds a member to the body.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// Adds what is probably meant, if anything is.
    #[must_use]
    pub fn hint(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.with("hint", hint.into()),
            None => self,
        }
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Tells the client when to come back.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Takes another status than the usual one of its kind.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The body as JSON: the members of RFC 9457, `code`, `trace_id` inside a request, then the extra ones.
    pub fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("type".into(), format!("urn:millpond:problem:{}", self.code).into());
        body.insert("title".into(), self.title.into());
        body.insert("status".into(), self.status.into());
        body.insert("code".into(), self.code.into());
        body.insert("detail".into(), self.detail.as_str().into());
        if let Some(trace_id) = TraceId::current() {
            body.insert("trace_id".into(), trace_id.to_string().into());
        }
        if let Some(seconds) = self.retry_after {
            body.insert("retry_after".into(), seconds.into());
        }
        for (name, value) in &self.extra {
            body.entry(name).or_insert_with(|| value.clone());
        }
        Value::Object(body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.extend(*self.headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED.as_u16() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"millpond\""));
        }
        response
    }
}

/// The problems that any listener may answer.
pub const CATALOGUE: &[&Kind] = &[&NO_ROUTE, &METHOD, &NO_KEY, &WRONG_KEY, &NOT_ALLOWED, &INTERNAL, &BUSY, &MALFORMED];

/// No route has this path.
pub const NO_ROUTE: Kind = Kind {
    code: "MP0001",
    status: 404,
    title: "no such path",
    meaning: "no route of this listener has the path that was asked for",
    remedy: "compare the path with the documentation; a role may listen on another address",
};
/// The path exists with other methods.
pub const METHOD: Kind = Kind {
    code: "MP0002",
    status: 405,
    title: "method not allowed here",
    meaning: "the path exists, but not with this method",
    remedy: "use one of the methods in the answer's Allow header",
};
/// A key is required and none came.
pub const NO_KEY: Kind = Kind {
    code: "MP0003",
    status: 401,
    title: "a key is required",
    meaning: "this listener wants a bearer key and the request carries none",
    remedy: "send Authorization: Bearer <key>; the operator adds keys to the keys file",
};
/// The key is not in the keys file.
pub const WRONG_KEY: Kind = Kind {
    code: "MP0004",
    status: 401,
    title: "the key is not known",
    meaning: "the bearer key is not in the keys file, or was taken out of it",
    remedy: "check the key for missing characters, or ask the operator for a new one",
};
/// The key is good, but not for this.
pub const NOT_ALLOWED: Kind = Kind {
    code: "MP0005",
    status: 403,
    title: "the key may not do this",
    meaning: "the bearer key is valid, but the keys file does not list the producer folder that the record type belongs to",
    remedy: "ask the operator to add the producer to the key's line in the keys file; it is read again by itself",
};
/// A fault of Millpond itself.
pub const INTERNAL: Kind = Kind {
    code: "MP0006",
    status: 500,
    title: "internal error",
    meaning: "Millpond met a fault of its own; the log has the details under the same trace_id",
    remedy: "report it with the log lines of the trace_id; whether a write happened is unknown, so retry with the same event id",
};
/// There are too many requests.
pub const BUSY: Kind = Kind {
    code: "MP0007",
    status: 503,
    title: "too many requests under way",
    meaning: "the listener has as many requests under way as it takes; from half of that on, an HTTP/2 connection gets one at a time",
    remedy: "retry after Retry-After seconds, with fewer streams at once; nothing of the request was looked at. If it lasts, add a process or raise http.max_requests",
};
/// It is not clear what is asked.
pub const MALFORMED: Kind = Kind {
    code: "MP0008",
    status: 400,
    title: "the request is malformed",
    meaning: "the head breaks a rule of HTTP/1.1 that keeps two readers from taking one request for two different ones",
    remedy: "mend the client, or the proxy before this listener: HTTP/1.1 wants exactly one Host header",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_body_keeps_its_own_members_over_extra_ones() {
        let problem = NO_ROUTE.problem("no route for /x").with("status", 1).with("near", "/y").retry_after(2);
        let body = problem.body();
        assert_eq!(body["status"], 404);
        assert_eq!(body["near"], "/y");
        assert_eq!(body["retry_after"], 2);
        assert_eq!(body["type"], "urn:millpond:problem:MP0001");
        assert_eq!(problem.into_response().headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn unauthorized_problem_says_how_to_authenticate() {
        let response = NO_KEY.problem("no key").into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"millpond\"");
    }

    #[test]
    fn codes_are_unique() {
        let codes: std::collections::BTreeSet<_> = CATALOGUE.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), CATALOGUE.len());
    }
}
