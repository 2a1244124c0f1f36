//! The limit of HTTP: a bare axum handler that answers 202 and does nothing, as a process of its own.

use std::process::Stdio;

use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::post};

use crate::{http, millpond::Running};

/// First argument of the bench's own binary that makes it this server.
pub const ARGUMENT: &str = "bare-server";
/// Any path with one parameter, as Millpond's own.
pub const PATH: &str = "/v1/commands/{type}";

/// Listens where the next argument says.
pub async fn serve() -> anyhow::Result<()> {
    let address = std::env::args().nth(2).context("an address is needed")?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    let router = Router::new()
        .route(PATH, post(async || StatusCode::ACCEPTED))
        .route("/readyz", axum::routing::get(async || StatusCode::OK));
    // The standard server's own accept loop, with what every HTTP server sets.
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

/// Starts it as a child.
pub async fn start() -> anyhow::Result<Running> {
    let address = http::free_address()?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg(ARGUMENT).arg(address.to_string()).stdin(Stdio::null());
    Running::spawn(command, address).await
}
