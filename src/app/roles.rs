//! Roles of a process: which parts run, in which order they start and stop.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use anyhow::Context;
use axum::Router;
use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};
use tracing::{info, warn};

use super::{
    consumers::{self, Members},
    database::{self, Tables},
    open_files,
    project::Project,
    schemas, wiring,
};
use crate::{
    config::{self, Config},
    consume::Handlers,
    http::{self, Health, auth::Auth},
    ingest::{self, Contracts, IngestState},
    kafka::{Publisher, registry::Registry},
    publish,
    serve::{self, ServeState},
    store::versions::OnChange,
};

/// Which roles a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    pub ingest: bool,
    pub consume: bool,
    pub serve: bool,
    pub publish: bool,
}

impl Roles {
    const NONE: Self = Self { ingest: false, consume: false, serve: false, publish: false };
    pub const ALL: Self = Self { ingest: true, consume: true, serve: true, publish: true };
    pub const INGEST: Self = Self { ingest: true, ..Self::NONE };
    pub const CONSUME: Self = Self { consume: true, ..Self::NONE };
    pub const SERVE: Self = Self { serve: true, ..Self::NONE };
    pub const PUBLISH: Self = Self { publish: true, ..Self::NONE };

    fn needs_registry(self) -> bool {
        self.ingest || self.consume
    }

    fn needs_publisher(self) -> bool {
        self.ingest || self.publish
    }
}

/// What consumers, relay and publisher may take to end after the HTTP drain.
const GRACE: Duration = Duration::from_secs(20);

/// Connections that wait to be accepted, as far as the system lets us: those of a burst would else be lost without a word.
const BACKLOG: u32 = 4096;

/// Runs roles until SIGTERM or Ctrl-C, then drains.
pub async fn run(config: Config, roles: Roles, handlers: Arc<Handlers>) -> anyhow::Result<()> {
    tell_of_dev(&config);
    let listener = bind(&config).await?;
    let project = Project::load(&config.project.dir)?;
    let running = Running::start(&config, &project, roles, handlers, OnChange::Refuse, listener).await?;
    info!(address = %running.address, ?roles, "ready");
    stop_signal().await?;
    info!("stopping");
    // What is safe to leave unfinished is left: fences and positions make a later start go on where this one ended.
    let deadline = config.http.drain + GRACE;
    if tokio::time::timeout(deadline, running.stop()).await.is_err() {
        warn!(seconds = deadline.as_secs(), "not everything ended in time; leaving it");
    }
    Ok(())
}

/// A role that is started beside a `dev` may have been meant for other servers.
fn tell_of_dev(config: &Config) {
    let given: Vec<String> = config
        .settings
        .iter()
        .filter(|setting| setting.source == config::DEV)
        .map(|setting| format!("{} = {}", setting.name, setting.shown))
        .collect();
    if !given.is_empty() {
        let given = given.join(", ");
        info!(
            given,
            "using the servers of the `millpond dev` that runs in this project; flags or the environment choose others"
        );
    }
}

pub async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.http.listen;
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A process that was stopped a moment ago leaves connections behind that would be in the way.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("cannot listen on {address} (http.listen); choose another address with --listen"))
}

/// Resolves on SIGTERM or Ctrl-C.
pub async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The parts of a process at work.
pub struct Running {
    pub address: std::net::SocketAddr,
    stop_http: watch::Sender<bool>,
    http: JoinHandle<std::io::Result<()>>,
    parts: Parts,
    relay: Option<Relay>,
    pub members: Option<Arc<Members>>,
    publisher: Option<Arc<Publisher>>,
    drain: Duration,
}

/// Parts that may be ended at any moment, and end with this: a start that fails half-way must leave nothing running.
#[derive(Default)]
struct Parts(Vec<JoinHandle<()>>);

impl Drop for Parts {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// The relay, which ends what it has under way.
struct Relay {
    stop: watch::Sender<bool>,
    ended: JoinHandle<()>,
}

impl Relay {
    fn start(config: &Config, publisher: &Arc<Publisher>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let relay = publish::run(wiring::publish_options(config), Arc::clone(publisher), stopped);
        Self { stop, ended: essential("relay", relay) }
    }

    /// What is not committed by the deadline is for the next relay to find out.
    async fn stop(mut self, deadline: Instant) {
        self.stop.send_replace(true);
        if tokio::time::timeout_at(deadline, &mut self.ended).await.is_err() {
            warn!("the relay did not end within the drain; the next one finds out what has left");
            self.ended.abort();
        }
    }
}

impl Running {
    pub async fn start(
        config: &Config,
        project: &Project,
        roles: Roles,
        handlers: Arc<Handlers>,
        on_change: OnChange,
        listener: TcpListener,
    ) -> anyhow::Result<Self> {
        open_files::raise_limit(config.http.max_connections);
        let address = listener.local_addr()?;
        let mut parts = Parts::default();
        let mut health = Health::new();
        let mut router = Router::new();

        let registry = if roles.needs_registry() { Some(schemas::connect(config).await?) } else { None };
        let publisher = if roles.needs_publisher() { Some(start_publisher(config, roles, project)?) } else { None };
        if let (true, Some(registry), Some(publisher)) = (roles.ingest, &registry, &publisher) {
            let state = ingest_state(config, project, registry, publisher, address)?;
            let follow = follow_schema_ids(state.clone(), project.schemas.clone(), Arc::clone(registry));
            parts.0.push(essential("schema ids", follow));
            health = health.and(state.health());
            router = router.merge(ingest::router(state)).merge(ingest::registry_routes::routes(Arc::clone(registry)));
        }
        if roles.consume || roles.publish {
            database::migrate(config).await?;
        }
        let mut members = None;
        if let (true, Some(registry)) = (roles.consume, registry) {
            let context = consumers::Context::new(config, registry, handlers, on_change)?;
            let started = Arc::new(Members::start(context, project).await?);
            parts.0.push(essential("consumers", Arc::clone(&started).follow(config.project.dir.clone())));
            let checked = Arc::clone(&started);
            health = health.with("consumers", move || checked.check());
            members = Some(started);
        }
        if roles.serve {
            let state = ServeState::start(wiring::serve_options(config))?;
            let (reads, tables) = (state.clone(), Arc::new(Tables::default()));
            parts.0.push(essential("tables", Arc::clone(&tables).make(config.postgres.url.clone())));
            health = health.with("postgres", move || {
                tables.check()?;
                let health = reads.health();
                let why = health.last_error.unwrap_or_else(|| "no connection to Postgres yet".to_owned());
                if health.ready { Ok(()) } else { Err(format!("{why}; run `millpond doctor`")) }
            });
            router = router.merge(serve::router(state));
        }
        // Nothing can fail from here on.
        let relay = publisher.as_ref().filter(|_| roles.publish).map(|publisher| Relay::start(config, publisher));
        let app = http::app(router.merge(http::health::router(health)));
        let (stop_http, http) = serve_http(config, app, listener);
        Ok(Self { address, stop_http, http, parts, relay, members, publisher, drain: config.http.drain })
    }

    /// Stops in the order of an event's path, so that nothing new comes while what came is finished: HTTP, consumers,
    /// relay, publisher.
    pub async fn stop(mut self) {
        self.stop_http.send_replace(true);
        let _ = self.http.await;
        for part in std::mem::take(&mut self.parts.0) {
            part.abort();
            let _ = part.await;
        }
        if let Some(members) = self.members {
            members.stop().await;
        }
        let deadline = Instant::now() + self.drain;
        if let Some(relay) = self.relay {
            relay.stop(deadline).await;
        }
        if let Some(publisher) = self.publisher {
            let unknown = publisher.close(deadline - Instant::now()).await;
            if unknown > 0 {
                warn!(records = unknown, "records were still unacknowledged at the end of the drain");
            }
        }
    }
}

/// Spawns a part that the process cannot do without: should it panic, the process ends, to be started again, rather
/// than go on looking healthy.
fn essential(name: &'static str, part: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async move {
        if AssertUnwindSafe(part).catch_unwind().await.is_err() {
            tracing::error!(part = name, "a part of the process panicked; the process ends");
            std::process::exit(70);
        }
    })
}

fn serve_http(
    config: &Config,
    app: Router,
    listener: TcpListener,
) -> (watch::Sender<bool>, JoinHandle<std::io::Result<()>>) {
    let (stop, mut stopped) = watch::channel(false);
    let options = wiring::http_options(config);
    let shutdown = async move {
        let _ = stopped.wait_for(|s| *s).await;
    };
    (stop, tokio::spawn(http::serve(vec![listener], app, shutdown, options)))
}

fn start_publisher(config: &Config, roles: Roles, project: &Project) -> anyhow::Result<Arc<Publisher>> {
    let topics = project.topics();
    let names = topics.iter().map(|t| t.name.as_str());
    let mut options = wiring::kafka_options(config);
    options.declared_partitions = project.declared_partitions();
    if !roles.ingest && !config.kafka.client.contains_key("linger.ms") {
        // A relay that cannot use transactions waits for each row: nothing would join it in its batch.
        options.client.insert("linger.ms".to_owned(), "0".to_owned());
    }
    Ok(Arc::new(Publisher::start(&options, names)?))
}

fn ingest_state(
    config: &Config,
    project: &Project,
    registry: &Arc<Registry>,
    publisher: &Arc<Publisher>,
    address: std::net::SocketAddr,
) -> anyhow::Result<IngestState> {
    let contracts = contracts(project)?;
    set_schema_ids(&contracts, &project.schemas, registry);
    let auth = auth(config, address)?;
    let options = wiring::ingest_options(config);
    Ok(IngestState::new(contracts, Arc::clone(publisher), Arc::new(auth), options))
}

/// Who may post, by the file of keys.
pub fn auth(config: &Config, address: std::net::SocketAddr) -> anyhow::Result<Auth> {
    Ok(Auth::new(&[address], config.http.keys_file.as_deref(), config.http.insecure)?)
}

/// The contracts of a project with their schemas compiled.
pub fn contracts(project: &Project) -> anyhow::Result<Contracts> {
    Contracts::compile(&project.producers, &project.schemas).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the producers' folders have faults:\n  {}", faults.join("\n  "))
    })
}

fn set_schema_ids(contracts: &Contracts, schemas: &crate::schema::SchemaSet, registry: &Registry) {
    for contract in contracts.iter() {
        let record = schemas.get(&contract.name);
        let found = record.and_then(|r| registry.lookup(&r.subject, &r.latest().text));
        if let Some(id) = found.and_then(|r| u32::try_from(r.id).ok()) {
            contract.set_schema_id(id);
        }
    }
}

/// A schema may be pushed while ingest waits for it.
async fn follow_schema_ids(state: IngestState, schemas: crate::schema::SchemaSet, registry: Arc<Registry>) {
    let mut changes = registry.watch();
    while changes.changed().await.is_ok() {
        set_schema_ids(state.contracts(), &schemas, &registry);
    }
}
