//! The paths of the role, and what each answers.

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, Uri, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    ServeState, headers,
    listing::{self, Base},
    outcome,
    read::Read,
    versions,
};
use crate::http::Problem;
use crate::telemetry::metrics::serve as metrics;

/// The routes of `serve`.
pub fn router(state: ServeState) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/v1/views", get(views))
        .route("/v1/views/{consumer}", get(consumer))
        .route("/v1/views/{consumer}/{table}", get(table))
        .route("/v1/positions/{*position}", get(position))
        .route("/v1/versions", get(all_versions))
        .with_state(state)
}

async fn index(State(state): State<ServeState>, uri: Uri, headers: HeaderMap) -> Response {
    let base = Base::of(&state, &uri, &headers);
    match listing::index(&state, &base, &headers).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn views(State(state): State<ServeState>, uri: Uri, headers: HeaderMap) -> Response {
    let base = Base::of(&state, &uri, &headers);
    json(listing::views(&state, &base, None).await)
}

/// A consumer with one table answers with its rows; with several it lists them.
async fn consumer(State(state): State<ServeState>, Path(consumer): Path<String>, request: Request) -> Response {
    let asked = request.into_parts().0;
    match state.find(&consumer).await {
        Ok(projection) if projection.tables.len() == 1 => rows(&state, &consumer, None, &asked).await,
        Ok(_) => {
            let base = Base::of(&state, &asked.uri, &asked.headers);
            json(listing::views(&state, &base, Some(&consumer)).await)
        }
        Err(problem) => counted(&state, &consumer, Err(problem)),
    }
}

async fn table(
    State(state): State<ServeState>,
    Path((consumer, table)): Path<(String, String)>,
    request: Request,
) -> Response {
    rows(&state, &consumer, Some(&table), &request.into_parts().0).await
}

async fn rows(state: &ServeState, consumer: &str, table: Option<&str>, asked: &Parts) -> Response {
    let (path, query) = (asked.uri.path(), asked.uri.query().unwrap_or_default());
    let answered = match Read::new(state, path, query, &asked.headers) {
        Ok(read) => read.answer(state, consumer, table).await,
        Err(problem) => Err(problem),
    };
    counted(state, consumer, answered)
}

fn counted(state: &ServeState, consumer: &str, answered: Result<Response, Problem>) -> Response {
    let (outcome, response) = match answered {
        Ok(response) if response.status().is_success() => ("rows", response),
        Ok(response) => ("not_modified", response),
        Err(problem) => (problem.code, problem.into_response()),
    };
    // Names from outside are no labels.
    let known = state.0.catalog.current().is_some_and(|snapshot| snapshot.projections.contains_key(consumer));
    metrics::READS.with_label_values(&[if known { consumer } else { "" }, outcome]).inc();
    response
}

async fn position(State(state): State<ServeState>, Path(position): Path<String>) -> Response {
    json(outcome::describe(&state, &position).await)
}

async fn all_versions(State(state): State<ServeState>) -> Response {
    json(versions::describe(&state).await)
}

/// Listings are read by people too, so they are indented.
fn json(body: Result<serde_json::Value, Problem>) -> Response {
    match body {
        Ok(body) => {
            let text = format!("{body:#}\n");
            let mut response = ([(header::CONTENT_TYPE, "application/json")], text).into_response();
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response.headers_mut().insert(header::VARY, HeaderValue::from_static(headers::VARY_ON));
            response
        }
        Err(problem) => problem.into_response(),
    }
}
