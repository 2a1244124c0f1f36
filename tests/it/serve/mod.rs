//! Reads against a real Postgres, through the router as a client sees it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod consistency;
mod grants;
mod paging;
mod reads;

use std::time::{Duration, Instant};

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt as _;
use millpond::serve::{Options, ServeState, router};
use tokio_postgres::{Client, NoTls};
use tower::ServiceExt as _;

use crate::cluster::SOON;
use crate::harness::{Answer, database, eventually_async};

pub const TOPIC: &str = "flights.commands.v1";

/// What the engine writes for a projection, done by hand, and the role that serves it.
pub struct Served {
    /// Of the database, with an account that may do everything.
    pub url: String,
    pub postgres: Client,
    pub state: ServeState,
    app: Router,
}

impl Served {
    /// One version of `flights` with one table and no rows.
    pub async fn flights() -> Served {
        Served::flights_with(|_| {}).await
    }

    /// The same, with other options.
    pub async fn flights_with(change: impl FnOnce(&mut Options)) -> Served {
        let served = Served::with(change).await;
        served.version("flights", 1, &flights_table(1)).await;
        served.live("flights", 1).await;
        served
    }

    /// No projection yet.
    pub async fn with(change: impl FnOnce(&mut Options)) -> Served {
        let database = database();
        let (postgres, connection) = tokio_postgres::connect(&database.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut options = Options { database_url: database.url.clone(), connections: 2, ..Options::default() };
        change(&mut options);
        let state = ServeState::start(options).unwrap();
        let app = router(state.clone());
        let served = Served { url: database.url, postgres, state, app };
        eventually_async(SOON, || async { served.state.health().ready }).await;
        served
    }

    pub async fn sql(&self, sql: &str) {
        self.postgres.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?}: {sql}"));
    }

    /// Creates a version with its tables; `ddl` is what stands in its schema, described to readers from Postgres' catalog.
    pub async fn version(&self, projection: &str, version: i32, ddl: &str) {
        let schema = format!("p_{projection}_v{version}");
        self.sql(&format!(
            "create schema {schema}; set search_path = {schema}; {ddl}; reset search_path;
             insert into millpond.projections (projection) values ('{projection}') on conflict do nothing;
             insert into millpond.versions (projection, version, hash, schema_name, state, topics, tables)
             select '{projection}', {version}, 'hash', '{schema}', 'building', '{{{TOPIC}}}', coalesce(json_agg(t), '[]') from (
               select c.relname as name,
                      (select array_agg(a.attname::text order by array_position(i.indkey::int2[], a.attnum))
                         from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any(i.indkey)
                        where i.indrelid = c.oid and i.indisprimary) as key,
                      (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                                                         'nullable', not a.attnotnull) order by a.attnum)
                         from pg_attribute a
                        where a.attrelid = c.oid and a.attnum > 0 and a.attname not like '\\_%') as columns
                 from pg_class c where c.relnamespace = '{schema}'::regnamespace and c.relkind = 'r' order by 1) t;
             insert into millpond.fences (projection, version, topic, partition, next_offset, last_timestamp)
             values ('{projection}', {version}, '{TOPIC}', 0, 100, now() - interval '30 s'),
                    ('{projection}', {version}, '{TOPIC}', 1, 50, now() - interval '60 s')"
        ))
        .await;
    }

    pub async fn live(&self, projection: &str, version: i32) {
        self.sql(&format!(
            "update millpond.projections set live_version = {version} where projection = '{projection}'"
        ))
        .await;
    }

    pub async fn fence(&self, partition: i32, next_offset: i64) {
        self.sql(&format!("update millpond.fences set next_offset = {next_offset} where partition = {partition}"))
            .await;
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(&self.app, request.body(Body::empty()).unwrap()).await
    }
}

async fn answer(app: &Router, request: Request<Body>) -> Answer {
    let begun = Instant::now();
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, text, took: begun.elapsed() }
}

/// `marker` is what the rows of a version can be told apart by.
pub fn flights_table(marker: i32) -> String {
    format!(
        "create table flights (
            flight_id text primary key, carrier varchar(8), delay integer, scheduled_at timestamptz, distance bigint,
            share double precision, amount numeric(10,2), late boolean, tags text[], details jsonb, raw json,
            day date, marker integer not null default {marker}, _offset bigint not null default 0)"
    )
}
