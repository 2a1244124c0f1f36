//! HTTP as a client speaks it: answers in time, or none.

use std::time::{Duration, Instant};

use millpond::app::Client;

use crate::harness::Answer;

/// No request may hang longer than this, whatever is stopped.
const LIMIT: Duration = Duration::from_secs(30);

/// A client of one process.
#[derive(Clone)]
pub struct Web {
    client: Client,
    pub base: String,
}

impl Web {
    pub fn new(base: &str) -> Self {
        Self { client: Client::new(base), base: base.to_owned() }
    }

    /// Posts; the error is that of a connection that was refused or broke, so that nobody knows.
    pub async fn try_post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer, String> {
        self.try_post_bytes(path, headers, body.as_bytes().to_vec()).await
    }

    /// [`Self::try_post`] of a body that is no text.
    pub async fn try_post_bytes(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, String> {
        self.read(self.client.post(path, headers, body)).await
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
