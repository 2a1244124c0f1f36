//! The registry over HTTP: Confluent's paths, bodies and codes.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Method, Request},
};
use http_body_util::BodyExt;
use millpond::ingest::registry_routes::routes;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::registry::{new_registry, open, register, text};

async fn ask(router: &Router, method: Method, uri: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(uri).body(Body::from(body.to_owned())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/vnd.schemaregistry.v1+json", "{uri}");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_answers_as_confluents_clients_expect() {
    let registry = open(&new_registry().await).await;
    let (first, second) = (text("First"), text("First").replace("int", "long"));
    for schema in [&first, &second] {
        register(&registry, "a.First", schema).await.unwrap();
    }
    let router = routes(Arc::clone(&registry));
    let full =
        |version: i32, schema: &str| json!({"subject": "a.First", "version": version, "id": version, "schema": schema});
    for (uri, body) in [
        ("/schemas/types", json!(["AVRO"])),
        ("/schemas/ids/2?fetchMaxId=false&subject=x&deleted=true", full(2, &second)),
        ("/schemas/ids/1/schema", serde_json::from_str(&first).unwrap()),
        ("/schemas/ids/1/subjects", json!(["a.First"])),
        ("/schemas/ids/1/versions", json!([{"subject": "a.First", "version": 1}])),
        ("/subjects", json!(["a.First"])),
        ("/subjects?subjectPrefix=b", json!([])),
        ("/subjects/a.First/versions", json!([1, 2])),
        ("/subjects/a.First/versions/latest", full(2, &second)),
        ("/subjects/a.First/versions/1", full(1, &first)),
        ("/subjects/a.First/versions/2/schema", serde_json::from_str(&second).unwrap()),
        ("/subjects/a.First/versions/2/referencedby", json!([])),
        ("/config", json!({"compatibilityLevel": "FULL_TRANSITIVE"})),
        ("/config/a.First?defaultToGlobal=true", json!({"compatibilityLevel": "FULL_TRANSITIVE"})),
        ("/mode", json!({"mode": "READONLY"})),
    ] {
        assert_eq!(ask(&router, Method::GET, uri, "").await, (200, body), "{uri}");
    }
    for (uri, status, code) in [
        ("/schemas/ids/99", 404, 40403),
        ("/schemas/ids/x", 404, 40403),
        ("/subjects/none/versions", 404, 40401),
        ("/subjects/none/versions/1", 404, 40401),
        ("/subjects/a.First/versions/9", 404, 40402),
        ("/subjects/a.First/versions/0", 422, 42202),
        ("/subjects/a.First/versions/x", 422, 42202),
    ] {
        let (got, body) = ask(&router, Method::GET, uri, "").await;
        assert_eq!((got, &body["error_code"]), (status, &json!(code)), "{uri}");
    }

    let lookup = json!({"schema": first, "schemaType": "AVRO"}).to_string();
    assert_eq!(ask(&router, Method::POST, "/subjects/a.First?deleted=false", &lookup).await, (200, full(1, &first)));
    let other = json!({"schema": "\"int\""}).to_string();
    for (subject, body, code) in [("a.First", other.as_str(), 40403), ("none", &other, 40401), ("a.First", "{", 422)] {
        let (_, answer) = ask(&router, Method::POST, &format!("/subjects/{subject}"), body).await;
        assert_eq!(answer["error_code"], json!(code), "{subject} {body}");
    }
    for (method, uri) in [
        (Method::POST, "/subjects/a.First/versions"),
        (Method::DELETE, "/subjects/a.First"),
        (Method::DELETE, "/subjects/a.First/versions/1"),
        (Method::PUT, "/config"),
        (Method::PUT, "/mode/a.First"),
    ] {
        let (status, answer) = ask(&router, method, uri, &lookup).await;
        assert_eq!((status, &answer["error_code"]), (422, &json!(42205)), "{uri}");
        assert!(answer["message"].as_str().unwrap().contains("millpond schema push"));
    }
}
