//! `GET /v1/commands` and `/v1/events`: what may be sent, each with a line to try.

use axum::{
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json, value::RawValue};

use super::{
    answer,
    contract::{Contract, Contracts},
};
use crate::spec::producer::RecordKind;

/// Lists every type of a kind.
pub(super) fn all(contracts: &Contracts, kind: RecordKind, headers: &HeaderMap) -> Response {
    let types: Vec<Value> =
        contracts.iter().filter(|contract| contract.kind == kind).map(|contract| describe(contract, headers)).collect();
    answer::json(StatusCode::OK, format!("{:#}\n", json!({ kind.plural(): types })))
}

/// Describes one type.
pub(super) fn one(contract: &Contract, headers: &HeaderMap) -> Response {
    answer::json(StatusCode::OK, format!("{:#}\n", describe(contract, headers)))
}

fn describe(contract: &Contract, headers: &HeaderMap) -> Value {
    let schema: Value = serde_json::from_str(&contract.schema).unwrap_or_default();
    json!({
        "type": contract.name,
        "kind": contract.kind.singular(),
        "topic": contract.topic.as_ref(),
        "key": contract.key,
        "event_id": contract.event_id,
        "producers": contract.producers().collect::<Vec<_>>(),
        "schema_id": contract.schema_id(),
        "schema": schema,
        "example": contract.example.as_ref().and_then(|body| serde_json::from_str::<Value>(body.get()).ok()),
        "curl": curl(contract, headers),
    })
}

fn curl(contract: &Contract, headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    contract.curl(&format!("http://{host}"), headers.contains_key(header::AUTHORIZATION))
}

impl Contract {
    /// A line for the shell that posts the contract's own example to the listener at `base`.
    pub fn curl(&self, base: &str, with_key: bool) -> String {
        let key = if with_key { " -H \"authorization: Bearer $MILLPOND_KEY\"" } else { "" };
        let body = self.example.as_deref().map_or("{…}".to_owned(), one_line);
        let (kind, name) = (self.kind.plural(), &self.name);
        format!(
            "curl -i {base}/v1/{kind}/{name} -H 'content-type: application/json'{key} -d '{}'",
            body.replace('\'', r"'\''")
        )
    }
}

fn one_line(body: &RawValue) -> String {
    serde_json::from_str::<Value>(body.get()).map(|value| value.to_string()).unwrap_or_default()
}
