//! `/livez`, `/readyz` and `/metrics`.
//!
//! Alive means that the process answers; ready means that it can do its work. A lost broker or database makes it not ready
//! and never dead, for a restart would mend nothing.

use std::{fmt, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use crate::telemetry::metrics;

/// Looks at one thing this process needs. Called per request: it reads what is already known and asks no server.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The named checks that decide whether this process is ready.
#[derive(Clone, Default)]
pub struct Health {
    checks: Vec<(&'static str, Check)>,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub ready: bool,
    /// Why it is not ready and what to do; absent when it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}

impl Health {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check; the text of its error is the reason shown to people, with the next step in it.
    #[must_use]
    pub fn with(mut self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.checks.push((name, Arc::new(check)));
        self
    }

    /// All checks of both.
    #[must_use]
    pub fn and(mut self, other: Health) -> Self {
        self.checks.extend(other.checks);
        self
    }

    /// Runs every check now.
    pub fn findings(&self) -> Vec<Finding> {
        let find = |(name, check): &(&'static str, Check)| {
            let reason = check().err();
            Finding { name, ready: reason.is_none(), reason }
        };
        self.checks.iter().map(find).collect()
    }
}

/// The three routes; they need no key.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> Response {
    let checks = health.findings();
    let ready = checks.iter().all(|check| check.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": ready, "checks": checks }))).into_response()
}

async fn metrics() -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn readyz_names_the_check_that_fails() {
        let health = Health::new()
            .with("kafka", || Ok(()))
            .with("schemas", || Err("no id for ScheduleFlight: run `millpond schema push`".into()));
        let answer = router(health).oneshot(Request::get("/readyz").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["checks"][0]["ready"], true);
        assert_eq!(body["checks"][1]["reason"], "no id for ScheduleFlight: run `millpond schema push`");
    }

    #[tokio::test]
    async fn livez_answers_whatever_the_checks_say() {
        let health = Health::new().with("kafka", || Err("away".into()));
        let answer = router(health).oneshot(Request::get("/livez").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
}
