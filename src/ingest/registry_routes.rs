//! The schema registry's reads over HTTP, as Confluent's clients speak it: paths, bodies, error codes.
//!
//! Answers come from memory and need no broker. Writes are refused with a pointer to `millpond schema push`.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::kafka::{Registry, registry::Registered};

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// The level that Millpond checks: the log is read for ever, in both directions.
const LEVEL: &str = "FULL_TRANSITIVE";
/// Largest schema that is looked up, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The routes, to be merged into ingest's.
pub fn routes(registry: Arc<Registry>) -> Router {
    let config = get(config).put(refuse_write).delete(refuse_write);
    let mode = get(mode).put(refuse_write).delete(refuse_write);
    Router::new()
        .route("/schemas/types", get(types))
        .route("/schemas/ids/{id}", get(schema_by_id))
        .route("/schemas/ids/{id}/schema", get(text_by_id))
        .route("/schemas/ids/{id}/subjects", get(subjects_of_id))
        .route("/schemas/ids/{id}/versions", get(versions_of_id))
        .route("/subjects", get(subjects))
        .route("/subjects/{subject}", axum::routing::post(lookup).delete(refuse_write))
        .route("/subjects/{subject}/versions", get(versions).post(refuse_write))
        .route("/subjects/{subject}/versions/{version}", get(version).delete(refuse_write))
        .route("/subjects/{subject}/versions/{version}/schema", get(text_of_version))
        .route("/subjects/{subject}/versions/{version}/referencedby", get(referenced_by))
        .route("/config", config.clone())
        .route("/config/{subject}", config)
        .route("/mode", mode.clone())
        .route("/mode/{subject}", mode)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(registry)
}

/// An error as Confluent's clients expect it: the first three digits of the code are the status.
#[derive(Debug, Serialize)]
struct Fault {
    error_code: u32,
    message: String,
}

impl Fault {
    fn new(error_code: u32, message: impl Into<String>) -> Self {
        Self { error_code, message: message.into() }
    }

    fn no_subject(subject: &str) -> Self {
        Self::new(40401, format!("Subject '{subject}' not found."))
    }

    fn no_version(version: &str) -> Self {
        Self::new(40402, format!("Version {version} not found."))
    }

    fn no_schema() -> Self {
        Self::new(40403, "Schema not found")
    }

    fn faulty_version(version: &str) -> Self {
        let expected = "Allowed values are between [1, 2^31-1] and the string \"latest\"";
        Self::new(42202, format!("The specified version '{version}' is not a valid version id. {expected}"))
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = if self.error_code >= 1000 { self.error_code / 100 } else { self.error_code };
        let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), [(header::CONTENT_TYPE, CONTENT_TYPE)], Json(self))
            .into_response()
    }
}

type Answer = Result<Response, Fault>;
type Shared = State<Arc<Registry>>;

fn answer(body: impl Serialize) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], Json(body)).into_response()
}

/// A schema is answered as its own text, not as a JSON string of it.
fn answer_text(registered: &Registered) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], registered.text.clone()).into_response()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SchemaOfSubject<'a> {
    subject: &'a str,
    version: i32,
    id: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_type: Option<&'a str>,
    schema: &'a str,
}

impl<'a> SchemaOfSubject<'a> {
    fn of(registered: &'a Registered) -> Self {
        let Registered { id, subject, version, text, schema_type, .. } = registered;
        Self { subject, version: *version, id: *id, schema_type: schema_type.as_deref(), schema: text }
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(default, rename = "subjectPrefix")]
    prefix: String,
    #[serde(default)]
    offset: usize,
    /// Negative: all.
    limit: Option<i64>,
}

impl Page {
    fn cut<T>(&self, items: Vec<T>) -> Vec<T> {
        let limit = self.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        items.into_iter().skip(self.offset).take(limit).collect()
    }
}

async fn types() -> Response {
    answer(["AVRO"])
}

fn by_id(registry: &Registry, id: &str) -> Result<Arc<Registered>, Fault> {
    let missing = || Fault::new(40403, format!("Schema {id} not found"));
    id.parse().ok().and_then(|id| registry.schema_by_id(id)).ok_or_else(missing)
}

/// With the id, although it was asked for by it: Confluent's Python client keeps the answer as the subject's version,
/// and would later write records without one.
async fn schema_by_id(State(registry): Shared, Path(id): Path<String>) -> Answer {
    Ok(answer(SchemaOfSubject::of(&*by_id(&registry, &id)?)))
}

async fn text_by_id(State(registry): Shared, Path(id): Path<String>) -> Answer {
    Ok(answer_text(&*by_id(&registry, &id)?))
}

async fn subjects_of_id(State(registry): Shared, Path(id): Path<String>) -> Answer {
    let id = by_id(&registry, &id)?.id;
    let places = registry.places_of(id);
    let subjects: Vec<&str> = places.iter().filter(|r| !r.deleted).map(|r| r.subject.as_str()).collect();
    Ok(answer(subjects))
}

async fn versions_of_id(State(registry): Shared, Path(id): Path<String>) -> Answer {
    let id = by_id(&registry, &id)?.id;
    let places = registry.places_of(id);
    let alive = places.iter().filter(|r| !r.deleted);
    Ok(answer(alive.map(|r| json!({"subject": r.subject, "version": r.version})).collect::<Vec<_>>()))
}

async fn subjects(State(registry): Shared, Query(page): Query<Page>) -> Response {
    let subjects = registry.subjects().into_iter().filter(|subject| subject.starts_with(&page.prefix)).collect();
    answer(page.cut::<String>(subjects))
}

async fn versions(State(registry): Shared, Path(subject): Path<String>, Query(page): Query<Page>) -> Answer {
    let versions = registry.versions(&subject);
    if versions.is_empty() {
        return Err(Fault::no_subject(&subject));
    }
    Ok(answer(page.cut(versions.iter().map(|registered| registered.version).collect())))
}

fn at(registry: &Registry, subject: &str, version: &str) -> Result<Arc<Registered>, Fault> {
    let latest = registry.latest(subject).ok_or_else(|| Fault::no_subject(subject))?;
    if matches!(version, "latest" | "-1") {
        return Ok(latest);
    }
    let number: i32 = version.parse().ok().filter(|n| *n > 0).ok_or_else(|| Fault::faulty_version(version))?;
    registry.version(subject, number).ok_or_else(|| Fault::no_version(version))
}

async fn version(State(registry): Shared, Path((subject, version)): Path<(String, String)>) -> Answer {
    Ok(answer(SchemaOfSubject::of(&*at(&registry, &subject, &version)?)))
}

async fn text_of_version(State(registry): Shared, Path((subject, version)): Path<(String, String)>) -> Answer {
    Ok(answer_text(&*at(&registry, &subject, &version)?))
}

/// Schemas here stand for themselves: there are no references.
async fn referenced_by(State(registry): Shared, Path((subject, version)): Path<(String, String)>) -> Answer {
    at(&registry, &subject, &version)?;
    Ok(answer([0_i32; 0]))
}

#[derive(Deserialize)]
struct LookupBody {
    schema: String,
}

/// Which version of the subject has this schema.
async fn lookup(State(registry): Shared, Path(subject): Path<String>, body: Bytes) -> Answer {
    // By hand: clients send any of three content types.
    let faulty = |error| Fault::new(422, format!("the body must be {{\"schema\": \"…\"}}: {error}"));
    let body: LookupBody = serde_json::from_slice(&body).map_err(faulty)?;
    if registry.latest(&subject).is_none() {
        return Err(Fault::no_subject(&subject));
    }
    let found = registry.lookup(&subject, &body.schema).ok_or_else(Fault::no_schema)?;
    Ok(answer(SchemaOfSubject::of(&found)))
}

async fn config() -> Response {
    answer(json!({"compatibilityLevel": LEVEL}))
}

async fn mode() -> Response {
    answer(json!({"mode": "READONLY"}))
}

async fn refuse_write() -> Fault {
    Fault::new(
        42205,
        "this registry is written by `millpond schema push`, which checks compatibility and keeps the file",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_the_start_of_the_error_code() {
        for (fault, status) in
            [(Fault::no_subject("s"), 404), (Fault::faulty_version("x"), 422), (Fault::new(422, "x"), 422)]
        {
            assert_eq!(fault.into_response().status().as_u16(), status);
        }
    }

    #[test]
    fn page_with_a_negative_limit_is_everything() {
        let page = |offset, limit| Page { prefix: String::new(), offset, limit };
        assert_eq!(page(0, Some(-1)).cut(vec![1, 2, 3]), [1, 2, 3]);
        assert_eq!(page(1, Some(1)).cut(vec![1, 2, 3]), [2]);
        assert_eq!(page(9, None).cut(vec![1, 2, 3]), [0; 0]);
    }
}
