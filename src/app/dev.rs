//! `millpond dev`: real servers, all roles, real flights, and folders that are picked up as they change.

use std::{
    collections::BTreeSet,
    io::IsTerminal,
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tracing::warn;

use super::{
    client::Client,
    consumers::Members,
    demo::{self, Demo},
    live_line::LiveLine,
    project::Project,
    roles::{Roles, Running, stop_signal},
    running_dev::RunningDev,
    schemas,
};
use crate::{
    cli::args::Dev,
    config::Config,
    consume::Handlers,
    dev::{
        self, Servers,
        progress::Progress,
        watch::{self, Changed, Watch},
    },
    store::versions::OnChange,
};

/// How long the roles may take to get ready, and how often they are asked.
const READY_WITHIN: Duration = Duration::from_secs(20);
const READY_TICK: Duration = Duration::from_millis(50);
/// How often changes that could not be taken in are tried again while roles run: soon enough after an outage, and seldom
/// enough for a fault that only a change of the folders ends, which is seen by itself.
const AGAIN: Duration = Duration::from_secs(5);
/// Where `dev` keeps everything, below the project's folder.
pub const STATE: &str = ".millpond";

pub async fn run(mut config: Config, arguments: Dev, handlers: Arc<Handlers>) -> anyhow::Result<()> {
    let stopping = stop_signal();
    tokio::pin!(stopping);
    let state = config.project.dir.join(STATE);
    let progress = Progress::for_terminal();
    let starting = start_servers(&state, &arguments, progress);
    // Ctrl-C while servers start: dropping what has been started ends it.
    let mut servers = tokio::select! {
        servers = starting => servers?,
        result = &mut stopping => return result,
    };
    config.kafka.brokers = servers.brokers();
    config.postgres.url = servers.postgres_url();
    RunningDev::announce(&state, &config.kafka.brokers, &config.postgres.url)?;
    if arguments.reset {
        forget_demo(&state);
    }
    let mut roles = DevRoles {
        config: config.clone(),
        handlers,
        address: config.http.listen,
        running: None,
        missed: BTreeSet::new(),
        tried: Instant::now(),
        said: String::new(),
        told: BTreeSet::new(),
    };
    let result = tokio::select! {
        result = live(&config, &arguments, &state, &mut roles, &mut servers) => result,
        result = &mut stopping => result,
    };
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    eprintln!("stopping; the data stays in {}", state.display());
    if let Some(running) = roles.running.take() {
        running.stop().await;
    }
    let stopped = tokio::task::spawn_blocking(move || servers.stop()).await?;
    result?;
    Ok(stopped?)
}

async fn start_servers(state: &Path, arguments: &Dev, progress: Progress) -> anyhow::Result<Servers> {
    let mut options = dev::Options::new(state);
    options.kafka.clone_from(&arguments.kafka);
    options.postgres.clone_from(&arguments.postgres);
    options.reset = arguments.reset;
    Ok(tokio::task::spawn_blocking(move || Servers::start(&options, &progress)).await??)
}

fn forget_demo(state: &Path) {
    // Absent on the first start.
    let _ = std::fs::remove_file(state.join(demo::MEMORY));
}

/// Everything after the servers are up, until an error.
async fn live(
    config: &Config,
    arguments: &Dev,
    state: &Path,
    roles: &mut DevRoles,
    servers: &mut Servers,
) -> anyhow::Result<()> {
    let listener = listen(config, state).await?;
    roles.address = listener.local_addr()?;
    // From before the folders are read: what changes while the roles start is taken in afterwards.
    let mut watch = Watch::new(&config.project.dir);
    let project = Project::load(&config.project.dir)?;
    schemas::create_topics(config, &project).await?;
    schemas::push(&project, schemas::connect(config).await?).await?;
    roles.start(&project, listener).await?;
    let base = format!("http://{}", roles.address);
    let demo = start_demo(config, arguments, state, &base).await?;
    let is_posting = demo.as_ref().is_some_and(|(progress, _)| !progress.ended.load(Ordering::Relaxed));
    banner(config, &base, &examples(&base, &project, roles.lines_to_post(&project)?), is_posting);
    let mut line = LiveLine::new(config, demo);
    let mut ticks = 0_u32;
    loop {
        tokio::time::sleep(watch::INTERVAL).await;
        let changes = watch.changes();
        for unreadable in watch.newly_unreadable() {
            line.clear();
            eprintln!("cannot be watched, as if it were not there: {unreadable}");
        }
        if !changes.is_empty() {
            line.clear();
            roles.pick_up(&changes).await;
        }
        ticks += 1;
        if ticks.is_multiple_of(4) {
            servers.check()?;
            if roles.is_due() {
                line.clear();
                roles.take_in().await;
            }
            line.show().await;
        }
    }
}

/// The usual address, or the one of the last start; the next free port when it is taken.
async fn listen(config: &Config, state: &Path) -> anyhow::Result<TcpListener> {
    let memory = state.join("http-port");
    let remembered = std::fs::read_to_string(&memory).ok().and_then(|t| t.trim().parse().ok());
    let wanted = config.http.listen;
    let first = remembered.filter(|_| wanted.port() == 8080).unwrap_or(wanted.port());
    let ports = std::iter::once(first).chain(wanted.port()..wanted.port().saturating_add(100));
    for port in ports {
        if let Ok(listener) = TcpListener::bind(SocketAddr::new(wanted.ip(), port)).await {
            let _ = std::fs::write(&memory, listener.local_addr()?.port().to_string());
            return Ok(listener);
        }
    }
    anyhow::bail!("no free port from {wanted} on")
}

/// The roles of `dev`, which restart when contracts or schemas change.
struct DevRoles {
    config: Config,
    handlers: Arc<Handlers>,
    address: SocketAddr,
    running: Option<Running>,
    /// Changes that could not be taken in yet.
    missed: BTreeSet<Changed>,
    /// When that was tried last.
    tried: Instant,
    /// What was said last about them.
    said: String,
    /// Record types of which it was said how to post them.
    told: BTreeSet<String>,
}

impl DevRoles {
    async fn start(&mut self, project: &Project, listener: TcpListener) -> anyhow::Result<()> {
        let (config, handlers) = (&self.config, Arc::clone(&self.handlers));
        let running = Running::start(config, project, Roles::ALL, handlers, OnChange::Build, listener).await?;
        self.running = Some(running);
        self.ready().await;
        Ok(())
    }

    /// Waits until what is told to be typed will do. What does not get ready says why by itself.
    async fn ready(&self) {
        let client = Client::new(&format!("http://{}", self.address));
        let until = Instant::now() + READY_WITHIN;
        while Instant::now() < until {
            if client.get("/readyz", &[]).await.is_ok_and(|answer| answer.status == 200) {
                return;
            }
            tokio::time::sleep(READY_TICK).await;
        }
    }

    /// Takes changed folders in. A fault of a folder leaves what runs as it is; whatever the fault, it is said what runs and
    /// what to mend, and the change is kept in mind: mending one folder takes in the others that had to wait for it.
    async fn pick_up(&mut self, changes: &[Changed]) {
        self.missed.extend(changes.iter().cloned());
        self.said.clear();
        self.take_in().await;
    }

    /// Whether it is time to try again what could not be taken in, as because Postgres did not answer. Every second where
    /// nothing runs. Consumers that are stopped try that themselves.
    fn is_due(&self) -> bool {
        if self.running.is_none() {
            return true;
        }
        let stopped = self.stopped();
        let is_ours = |change: &Changed| change.kind != "consumers" || !stopped.contains(&change.name);
        self.tried.elapsed() >= AGAIN && self.missed.iter().any(is_ours)
    }

    async fn take_in(&mut self) {
        let was_down = self.running.is_none();
        match self.try_pick_up().await {
            Ok(()) => {
                if was_down {
                    eprintln!("the roles run again");
                } else if !self.said.is_empty() {
                    eprintln!("the change is taken in now");
                }
                self.missed.clear();
                self.said.clear();
            }
            Err(error) => {
                let error = format!("{error:#}").replace('\n', "\n  ");
                let text = format!("the change is not taken in, {}:\n  {error}", self.what_runs());
                // Not each time the same.
                if text != self.said {
                    eprintln!("{text}");
                    self.said = text;
                }
            }
        }
        self.tried = Instant::now();
    }

    fn members(&self) -> Option<&Arc<Members>> {
        self.running.as_ref()?.members.as_ref()
    }

    fn stopped(&self) -> Vec<String> {
        self.members().map(|members| members.stopped()).unwrap_or_default()
    }

    /// What has become of what ran before a change that was not taken in.
    fn what_runs(&self) -> String {
        if self.running.is_none() {
            return "nothing runs until it is, which is tried every second".to_owned();
        }
        let stopped = self.stopped();
        match stopped.as_slice() {
            [] => "what ran before goes on".to_owned(),
            [one] => format!("consumer {one} is stopped and tried again every second"),
            _ => format!("consumers {} are stopped and tried again every second", stopped.join(", ")),
        }
    }

    /// Everything in it goes by one reading of the folders. What changes after that, the next look of the watch finds: what
    /// it compares with is older.
    async fn try_pick_up(&mut self) -> anyhow::Result<()> {
        let project = Project::load(&self.config.project.dir)?;
        if self.running.is_none() || self.missed.iter().any(|c| c.kind != "consumers") {
            return self.restart(&project).await;
        }
        schemas::create_topics(&self.config, &project).await?;
        let Some(members) = self.members() else { return Ok(()) };
        let (mut missed, mut faults) = (BTreeSet::new(), Vec::new());
        for change in &self.missed {
            if let Err(error) = members.reload(&project, &change.name).await {
                faults.push(format!("{error:#}"));
                missed.insert(change.clone());
            }
        }
        self.missed = missed;
        if faults.is_empty() { Ok(()) } else { anyhow::bail!("{}", faults.join("\n")) }
    }

    /// Starts the roles anew; whatever can be found wrong beforehand is, so that a fault stops nothing.
    async fn restart(&mut self, project: &Project) -> anyhow::Result<()> {
        super::roles::contracts(project)?;
        super::roles::auth(&self.config, self.address)?;
        let registry = schemas::connect(&self.config).await?;
        schemas::check_compatible(project, &registry)?;
        if let Some(members) = self.members() {
            members.check_folders(project).await?;
        }
        // Kafka may refuse a topic. What it has made stays, so this comes after all that is only looked at.
        schemas::create_topics(&self.config, project).await?;
        schemas::push(project, registry).await?;
        if let Some(running) = self.running.take() {
            eprintln!("schemas or producers changed: restarting the roles");
            running.stop().await;
        }
        let listener = TcpListener::bind(self.address).await.context("cannot listen again")?;
        self.start(project, listener).await?;
        for line in self.lines_to_post(project)? {
            eprintln!("new, and ready to be posted:\n  {line}");
        }
        Ok(())
    }

    /// A line for the shell for each record type that can be posted and was not told of before.
    fn lines_to_post(&mut self, project: &Project) -> anyhow::Result<Vec<String>> {
        let contracts = super::roles::contracts(project)?;
        let base = format!("http://{}", self.address);
        let with_key = self.config.http.keys_file.is_some();
        let new = contracts.iter().filter(|contract| self.told.insert(contract.name.clone()));
        Ok(new.map(|contract| contract.curl(&base, with_key)).collect())
    }
}

async fn start_demo(
    config: &Config,
    arguments: &Dev,
    state: &Path,
    base: &str,
) -> anyhow::Result<Option<(Arc<demo::Progress>, JoinHandle<()>)>> {
    if arguments.no_demo {
        return Ok(None);
    }
    let Some(demo) = Demo::load(&config.project.dir, state)? else { return Ok(None) };
    let progress = Arc::clone(&demo.progress);
    let (client, speed) = (Client::new(base), arguments.demo_speed);
    let task = tokio::spawn(async move {
        if let Err(error) = demo.run(client, speed).await {
            warn!("the demo ended early: {error:#}");
        }
    });
    Ok(Some((progress, task)))
}

fn banner(config: &Config, base: &str, examples: &[String], is_posting: bool) {
    eprintln!("\nMillpond is up.\n");
    eprintln!("  HTTP      {base}          (docs of what it serves: curl {base}/)");
    eprintln!("  Kafka     {}", config.kafka.brokers);
    eprintln!("  Postgres  psql '{}'", config.postgres.url);
    eprintln!("\nTry, in another terminal:\n");
    for line in examples {
        eprintln!("  {line}");
    }
    if is_posting {
        eprintln!(
            "\nThe flights of the first days of January 2013 are being posted through the API, as the airlines would have."
        );
    }
    eprintln!("\nCtrl-C stops everything; the data stays.\n");
}

/// Three lines that show the point: write, read your own write, see how it is doing.
fn examples(base: &str, project: &Project, to_post: Vec<String>) -> Vec<String> {
    if !project.consumers.iter().any(|c| c.name == "flights") {
        let new = "millpond producer new orders --from sample.json     # a file with one JSON object".to_owned();
        let post = to_post.into_iter().next().unwrap_or(new);
        return vec![post, format!("curl {base}/v1/views"), "millpond status".to_owned()];
    }
    vec![
        format!(
            "curl -i {base}/v1/commands/ScheduleFlight -H 'content-type: application/json' -d '{{\"flight_id\":\"MP1-JFK-20130101-0900\",\
             \"carrier\":\"MP\",\"flight_number\":1,\"origin\":\"JFK\",\"destination\":\"BOS\",\
             \"scheduled_at\":\"2013-01-01T14:00:00Z\",\"distance_miles\":187}}'"
        ),
        format!(
            "curl -i '{base}/v1/views/flights?flight_id=eq.MP1-JFK-20130101-0900' -H 'Millpond-Min-Position: <the \
             Millpond-Position of that answer>'"
        ),
        format!("curl '{base}/v1/views/punctuality?order=delayed.desc&limit=5'"),
    ]
}
