//! What there is to read, with a line to try for each: for programs as JSON, for people as text or a page.

use std::{collections::HashMap, fmt::Write, sync::LazyLock};

use axum::{
    http::{HeaderMap, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    ServeState,
    catalog::{Projection, Table},
    connections::{Lane, Sql},
    failure,
    format::negotiate,
    freshness::{self, Head},
    grammar::encode,
    problem::NOT_ACCEPTABLE,
};
use crate::http::Problem;

/// What the planner knows of the sizes; -1 before a table was first analysed.
static ESTIMATES: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "\
    select w.relation, c.reltuples::float8 from unnest($1::text[]) as w(relation) \
      join pg_class c on c.oid = to_regclass(w.relation)",
    )
});

/// Where this server is, as the client sees it: the beginning of the links it is shown.
pub struct Base(String);

impl Base {
    pub fn of(state: &ServeState, uri: &Uri, headers: &HeaderMap) -> Base {
        if let Some(base) = &state.options().base_url {
            return Base(base.trim_end_matches('/').to_owned());
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = uri.authority().map(axum::http::uri::Authority::as_str).or(host);
        // The name comes from the client and is shown in a shell line: nothing but a host and a port.
        let legal = |host: &&str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-[]".contains(&b));
        Base(format!("http://{}", authority.filter(legal).unwrap_or("localhost")))
    }
}

/// Every table, or those of one consumer.
pub async fn views(state: &ServeState, base: &Base, consumer: Option<&str>) -> Result<Value, Problem> {
    let snapshot = state.snapshot().await?;
    let chosen = || snapshot.projections.values().filter(|p| consumer.is_none_or(|name| *p.name == *name));
    let relations: Vec<&str> = chosen().flat_map(|p| p.tables.iter().map(|t| t.relation.as_str())).collect();
    let estimates = estimates(state, &relations).await?;
    let mut views = Vec::new();
    for projection in chosen() {
        let head = freshness::read(state, projection, None).await?;
        for table in &projection.tables {
            views.push(view(projection, table, base, head.as_ref(), estimates.get(&table.relation).copied()));
        }
    }
    let not_live: Vec<&String> = snapshot.not_live.iter().filter(|name| consumer.is_none_or(|c| c == *name)).collect();
    Ok(json!({ "views": views, "being_built": not_live }))
}

async fn estimates(state: &ServeState, relations: &[&str]) -> Result<HashMap<String, f64>, Problem> {
    let rows = state.connections().rows(Lane::Point, &ESTIMATES, &[&relations]).await;
    let rows = rows.map_err(|error| failure::problem(&error, None))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn view(projection: &Projection, table: &Table, base: &Base, head: Option<&Head>, rows: Option<f64>) -> Value {
    let path = path(projection, table);
    let key: Vec<String> = table.info.key.iter().map(|column| format!("{}=eq.VALUE", encode(column))).collect();
    let columns: Vec<Value> = table
        .info
        .columns
        .iter()
        .map(|column| json!({ "name": column.name, "type": column.pg_type, "nullable": column.nullable }))
        .collect();
    json!({
        "consumer": &*projection.name,
        "table": table.info.name,
        "url": format!("{}{path}", base.0),
        "curl": format!("curl '{}{path}?limit=3'", base.0),
        "curl_by_key": format!("curl '{}{path}?{}'", base.0, key.join("&")),
        "key": table.info.key,
        "columns": columns,
        "estimated_rows": rows.filter(|rows| *rows >= 0.0),
        "version": projection.version,
        "topics": projection.topics,
        "position": head.map(|head| &head.position),
        "age_seconds": head.and_then(|head| head.age).map(|age| (age.max(0.0) * 1000.0).round() / 1000.0),
        "paused": projection.paused,
    })
}

fn path(projection: &Projection, table: &Table) -> String {
    let consumer = encode(&projection.name);
    match projection.tables.len() {
        1 => format!("/v1/views/{consumer}"),
        _ => format!("/v1/views/{consumer}/{}", encode(&table.info.name)),
    }
}

/// The front page.
pub async fn index(state: &ServeState, base: &Base, headers: &HeaderMap) -> Result<Response, Problem> {
    const OFFERED: [&str; 3] = ["application/json", "text/html", "text/plain"];
    let form = negotiate(headers, &OFFERED)
        .ok_or_else(|| NOT_ACCEPTABLE.problem("accept application/json, text/html or text/plain"))?;
    let body = views(state, base, None).await?;
    let json = json!({
        "millpond": env!("CARGO_PKG_VERSION"),
        "links": {
            "views": format!("{}/v1/views", base.0),
            "positions": format!("{}/v1/positions/{{position}}", base.0),
            "versions": format!("{}/v1/versions", base.0),
        },
        "try": [format!("curl '{}/v1/views'", base.0)],
        "views": body["views"],
        "being_built": body["being_built"],
    });
    let (kind, text) = match OFFERED[form] {
        "text/html" => ("text/html; charset=utf-8", page(&json)),
        "text/plain" => ("text/plain; charset=utf-8", plain(&json)),
        _ => ("application/json", format!("{json:#}\n")),
    };
    let fixed = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "Accept, Authorization"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    Ok((fixed, text).into_response())
}

fn text_of<'v>(value: &'v Value, member: &str) -> &'v str {
    value[member].as_str().unwrap_or_default()
}

fn list_of(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn plain(json: &Value) -> String {
    let mut out = format!("Millpond {} serves here:\n", text_of(json, "millpond"));
    for view in list_of(&json["views"]) {
        let columns: Vec<&str> = list_of(&view["columns"]).map(|column| text_of(column, "name")).collect();
        let _ = write!(
            out,
            "\n{}  ({})\n  {}\n  {}\n",
            text_of(view, "url"),
            columns.join(", "),
            text_of(view, "curl"),
            text_of(view, "curl_by_key")
        );
    }
    for name in list_of(&json["being_built"]).filter_map(Value::as_str) {
        let _ = writeln!(out, "\n{name}: its first version is being built");
    }
    if list_of(&json["views"]).next().is_none() {
        out.push_str("\nnothing yet: a table appears when a consumer has a live version\n");
    }
    let _ = writeln!(out, "\nall of it, for programs:\n  curl '{}'", text_of(&json["links"], "views"));
    out
}

fn page(json: &Value) -> String {
    let mut items = String::new();
    for view in list_of(&json["views"]) {
        let columns: Vec<String> = list_of(&view["columns"])
            .map(|column| {
                format!("<span title=\"{}\">{}</span>", html(text_of(column, "type")), html(text_of(column, "name")))
            })
            .collect();
        let _ = write!(
            items,
            "<h2><a href=\"{url}?limit=20\">{consumer} / {table}</a></h2><p>{columns}</p><pre>{curl}\n{by_key}</pre>",
            url = html(text_of(view, "url")),
            consumer = html(text_of(view, "consumer")),
            table = html(text_of(view, "table")),
            columns = columns.join(", "),
            curl = html(text_of(view, "curl")),
            by_key = html(text_of(view, "curl_by_key")),
        );
    }
    if items.is_empty() {
        items.push_str("<p>Nothing yet: a table appears when a consumer has a live version.</p>");
    }
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Millpond</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}\
         pre{{background:#f4f4f4;padding:.6rem;overflow-x:auto}}</style>\
         <h1>Millpond serves here</h1>{items}<p>All of it, for programs: <a href=\"{views}\">{views}</a></p></html>\n",
        views = html(text_of(&json["links"], "views")),
    )
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_hostile_names_as_text() {
        let view = json!({ "consumer": "<script>", "table": "\"x\"", "url": "http://h/'", "columns": [] });
        let page = page(&json!({ "views": [view], "links": { "views": "http://h/v1/views" } }));
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;") && page.contains("&quot;x&quot;"));
    }
}
