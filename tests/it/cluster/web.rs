//! HTTP as a client speaks it: answers in time, or none.

use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use millpond::app::Client;
use serde_json::Value;

/// No request may hang longer than this, whatever is stopped.
const LIMIT: Duration = Duration::from_secs(30);

/// A client of one process.
#[derive(Clone)]
pub struct Web {
    client: Client,
    pub base: String,
}

/// An answer, and how long it took.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub took: Duration,
}

impl Web {
    pub fn new(base: &str) -> Self {
        Self { client: Client::new(base), base: base.to_owned() }
    }

    /// Posts; the error is that of a connection that was refused or broke, so that nobody knows.
    pub async fn try_post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer, String> {
        self.read(self.client.post(path, headers, body.as_bytes().to_vec())).await
    }

    pub async fn try_get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        self.read(self.client.get(path, headers)).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.try_post(path, headers, body).await.unwrap()
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_get(path, headers).await.unwrap()
    }

    async fn read(
        &self,
        request: impl Future<Output = anyhow::Result<millpond::app::Answer>>,
    ) -> Result<Answer, String> {
        let begun = Instant::now();
        let answer = tokio::time::timeout(LIMIT, request).await.expect("an answer, good or bad, within 30 s");
        let answer = answer.map_err(|error| format!("{error:#}"))?;
        Ok(Answer {
            status: answer.status.as_u16(),
            headers: answer.headers,
            text: String::from_utf8_lossy(&answer.body).into_owned(),
            took: begun.elapsed(),
        })
    }
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

    /// The path of the next page.
    pub fn next(&self) -> Option<String> {
        let link = self.header("link")?;
        Some(link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned())
    }
}
