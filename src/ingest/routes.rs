//! The routes, and what is done with a request's head before its body is read.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::request::Parts,
    response::Response,
    routing::get,
};

use super::{
    IngestState, Intake, Shared, answer, lenient, list, negotiate,
    negotiate::Preferences,
    problems::{NOT_WRITTEN, REQUEST_HEADER},
    publish::retry_seconds,
    strict,
};
use crate::{
    http::{Connection, Principal, Problem, TraceContext},
    spec::producer::RecordKind,
};

/// The native write API: `/v1/commands`, `/v1/events` and their types.
pub fn router(state: IngestState) -> Router {
    let routes = |router: Router<IngestState>, kind: RecordKind| {
        let list = async move |State(state): State<IngestState>, request: Request| {
            let (parts, _) = request.into_parts();
            answer_or(list_all(&state.0, kind, &parts))
        };
        let describe = async move |State(state): State<IngestState>, Path(name): Path<String>, request: Request| {
            let (parts, _) = request.into_parts();
            answer_or(list_one(&state.0, kind, &name, &parts))
        };
        let post = async move |State(state): State<IngestState>, Path(name): Path<String>, request: Request| {
            post(state.0, kind, &name, request).await
        };
        router
            .route(&format!("/v1/{}", kind.plural()), get(list))
            .route(&format!("/v1/{}/{{type}}", kind.plural()), get(describe).post(post))
    };
    RecordKind::ALL.into_iter().fold(Router::new(), routes).with_state(state)
}

fn answer_or(answer: Result<Response, Problem>) -> Response {
    answer.unwrap_or_else(answer::rejected)
}

fn list_all(state: &Shared, kind: RecordKind, parts: &Parts) -> Result<Response, Problem> {
    authenticate(state, parts)?;
    Ok(list::all(&state.contracts, kind, &parts.headers))
}

fn list_one(state: &Shared, kind: RecordKind, name: &str, parts: &Parts) -> Result<Response, Problem> {
    authenticate(state, parts)?;
    let contracts = &state.contracts;
    Ok(list::one(contracts.lookup(kind, name)?, &parts.headers))
}

fn authenticate(state: &Shared, parts: &Parts) -> Result<Principal, Problem> {
    let connection = parts.extensions.get::<Arc<Connection>>();
    state.auth.authenticate(&parts.headers, connection.map(|connection| &connection.client))
}

async fn post(state: Arc<Shared>, kind: RecordKind, name: &str, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let preferences = negotiate::preferences(&parts.headers);
    let answer = take(state, kind, name, parts, preferences, body).await;
    answer::with_preferences(answer_or(answer), preferences)
}

/// Who sends is settled first, then what, and only then is the body touched.
async fn take(
    state: Arc<Shared>,
    kind: RecordKind,
    name: &str,
    parts: Parts,
    preferences: Preferences,
    body: Body,
) -> Result<Response, Problem> {
    let principal = authenticate(&state, &parts)?;
    let contract = Arc::clone(state.contracts.lookup(kind, name)?);
    let sender = contract.sender(&principal)?;
    let headers = &parts.headers;
    let intake = Intake {
        principal,
        producer: Arc::clone(&sender.producer),
        max_record_bytes: sender.max_bytes,
        format: negotiate::format(headers)?,
        encoding: negotiate::encoding(headers)?,
        preferences,
        idempotency_key: negotiate::idempotency_key(headers)?,
        validate_only: validate_only(parts.uri.query())?,
        trace: parts.extensions.get::<TraceContext>().cloned(),
        contract,
        state,
    };
    if intake.validate_only {
        // Nothing is sent, so neither the schema's id nor Kafka is needed.
        return strict::handle(intake, body, 0).await;
    }
    let schema_id = intake.contract.registered_id()?;
    // There is no use in reading a body that cannot be written.
    intake.state.check_kafka().map_err(|why| {
        NOT_WRITTEN
            .problem(format!("kafka cannot take records now: {why}"))
            .with("outcome", "not_written")
            .retry_after(retry_seconds(2))
    })?;
    if preferences.is_lenient() {
        lenient::handle(intake, body, schema_id).await
    } else {
        strict::handle(intake, body, schema_id).await
    }
}

fn validate_only(query: Option<&str>) -> Result<bool, Problem> {
    let mut only = false;
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("validate", "only")) => only = true,
            Some(("validate", other)) => {
                return Err(REQUEST_HEADER.problem(format!("validate={other}: the one value is `only`")));
            }
            _ => {
                let name = parameter.split('=').next().unwrap_or_default();
                return Err(REQUEST_HEADER.problem(format!("no parameter {name:?}: the one there is is validate=only")));
            }
        }
    }
    Ok(only)
}
