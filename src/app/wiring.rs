//! From configuration to the options of each part.

use anyhow::Context as _;

use crate::{
    config::Config,
    http, ingest, kafka, publish, serve,
    store::{self, PgConnection},
};

pub fn kafka_options(config: &Config) -> kafka::Options {
    let mut client = config.kafka.client.clone();
    let linger = config.ingest.linger.as_millis().to_string();
    client.entry("linger.ms".to_owned()).or_insert(linger);
    kafka::Options {
        brokers: config.kafka.brokers.clone(),
        client,
        client_id: config.kafka.client_id.clone(),
        replication: config.kafka.replication.and_then(|n| u16::try_from(n).ok()),
        in_flight_bytes: config.ingest.in_flight,
        max_record_bytes: config.ingest.max_record,
        ..kafka::Options::default()
    }
}

/// A connection for a command; the error says where it looked.
pub async fn database(config: &Config, application: &str) -> anyhow::Result<PgConnection> {
    store::connect(&config.postgres.url, application).await.with_context(|| {
        let shown = config.settings.iter().find(|s| s.name == "postgres.url").map_or("postgres.url", |s| &s.shown);
        format!("no connection to {shown} (postgres.url); does Postgres run there? `millpond dev` starts one, `millpond doctor` looks further")
    })
}

pub fn serve_options(config: &Config) -> serve::Options {
    serve::Options {
        database_url: config.postgres.url.clone(),
        connections: config.serve.connections,
        statement_timeout: config.serve.statement_timeout,
        max_wait: config.serve.max_wait,
        default_limit: u32::try_from(config.serve.default_limit).unwrap_or(u32::MAX),
        max_limit: u32::try_from(config.serve.max_limit).unwrap_or(u32::MAX),
        ..serve::Options::default()
    }
}

pub fn publish_options(config: &Config) -> publish::Options {
    publish::Options {
        url: config.postgres.url.clone(),
        kafka: kafka_options(config),
        transactions: match config.publish.transactions.as_str() {
            "off" => publish::Transactions::Off,
            "required" => publish::Transactions::Required,
            _ => publish::Transactions::Auto,
        },
    }
}

pub fn ingest_options(config: &Config) -> ingest::Options {
    let ingest = &config.ingest;
    ingest::Options {
        max_body_bytes: ingest.max_body,
        max_json_bytes: ingest.max_body,
        max_strict_bytes: ingest.max_strict,
        max_record_bytes: ingest.max_record,
        max_ratio: ingest.max_ratio,
        in_flight_bytes: ingest.request_memory,
        window_bytes: ingest.window,
        turn_timeout: ingest.turn_timeout,
        body_patience: ingest.body_patience,
        least_body_rate: ingest.body_rate,
        ..ingest::Options::default()
    }
}

pub fn http_options(config: &Config) -> http::Options {
    let http = &config.http;
    http::Options {
        head_timeout: http.head_timeout,
        idle_timeout: http.idle_timeout,
        write_timeout: http.write_timeout,
        max_connections: http.max_connections,
        max_connections_per_client: http.max_connections_per_client,
        max_requests: http.max_requests,
        max_streams: http.http2_streams,
        max_resets: http.http2_resets,
        max_head_bytes: http.max_head,
        http2_ping_interval: http.http2_ping,
        drain: http.drain,
    }
}
