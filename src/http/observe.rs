//! What is done around every request: trace, span, metrics, and an answer even where a handler panics.

use std::{panic::AssertUnwindSafe, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request},
    http::{Method, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use tracing::{Instrument as _, debug, debug_span, error};

use super::{
    problem::{INTERNAL, METHOD, NO_ROUTE, Problem},
    trace::{self, TraceContext},
};
use crate::telemetry::{
    metrics::http::{PANICS, REQUEST_SECONDS},
    panic_message,
};

/// Label of requests whose path no route has; the path itself would make a metric without bound.
const NO_ROUTE_LABEL: &str = "none";

/// Finishes a listener's router: problems for unknown paths and methods, and `observe` around everything.
///
/// Call it once, last, on the merged router.
pub fn app(router: Router) -> Router {
    router
        .fallback(async |uri: Uri| no_route(&uri))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| wrong_method(&method, &uri))
        .layer(middleware::from_fn(observe))
}

fn no_route(uri: &Uri) -> Problem {
    NO_ROUTE.problem(format!("no route has the path {}", uri.path()))
}

fn wrong_method(method: &Method, uri: &Uri) -> Problem {
    METHOD.problem(format!("{} does not take {method}", uri.path()))
}

/// Gives the request its trace and span, counts and times the answer, and turns a panic into a problem.
async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let context = TraceContext::of(request.headers());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NO_ROUTE_LABEL, MatchedPath::as_str);
    let method = method_label(request.method());
    let trace_id = context.trace_id;
    // At the level of its event: in JSON a span is put into text when it begins, an eighth of what a request costs.
    let span = debug_span!("request", %trace_id, method, route);
    request.extensions_mut().insert(context);

    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    let response = trace::with_trace(trace_id, async {
        answer.await.unwrap_or_else(|panic| {
            PANICS.inc();
            error!(%trace_id, method, route, panic = panic_message(panic.as_ref()), "a handler panicked");
            INTERNAL.problem("the request met a fault of Millpond; the log has the details").into_response()
        })
    })
    .instrument(span.clone())
    .await;

    let elapsed = started.elapsed();
    let status = response.status();
    REQUEST_SECONDS.with_label_values(&[route, method, status.as_str()]).observe(elapsed.as_secs_f64());
    debug!(parent: &span, status = status.as_u16(), duration_ms = elapsed.as_millis() as u64, "request answered");
    response
}

/// Methods come from clients: only the known ones become labels.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::StatusCode, routing::get};
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;

    fn router() -> Router {
        async fn breaks() {
            panic!("broken on purpose");
        }
        app(Router::new().route("/breaks/{id}", get(breaks)))
    }

    async fn ask(request: Request) -> (StatusCode, Value) {
        let response = router().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn panic_in_a_handler_is_a_problem_with_the_callers_trace() {
        let request = Request::get("/breaks/1")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .body(Body::empty())
            .unwrap();
        let (status, body) = ask(request).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(body["code"], "MP0006");
        assert_eq!(body["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(!body.to_string().contains("on purpose"), "internals stay in the log");
    }

    #[tokio::test]
    async fn unknown_path_and_method_are_problems() {
        let (status, body) = ask(Request::get("/nowhere").body(Body::empty()).unwrap()).await;
        assert_eq!((status, body["code"].as_str()), (StatusCode::NOT_FOUND, Some("MP0001")));
        let (status, body) = ask(Request::post("/breaks/1").body(Body::empty()).unwrap()).await;
        assert_eq!((status, body["code"].as_str()), (StatusCode::METHOD_NOT_ALLOWED, Some("MP0002")));
    }
}
