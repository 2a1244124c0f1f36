//! The composition root: configuration and folders become running roles. Nothing imports it but `main`.

mod client;
mod consumers;
mod database;
mod demo;
mod dev;
mod dlq;
mod doctor;
mod explain;
mod folder;
mod live_line;
mod look;
mod open_files;
mod plan;
mod project;
mod rebuild;
mod roles;
mod running_dev;
mod scaffold;
mod schemas;
mod stopped;
pub mod trial;
mod wiring;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;

use self::{roles::Roles, running_dev::RunningDev};
use crate::{
    cli::say::say,
    cli::{
        Arguments, Command,
        args::{Common, Role},
    },
    config::{self, Config, Sources},
    consume::{Handlers, handler::Handler},
    planted,
    telemetry::logging,
};

pub use client::{Answer, Client};
pub use project::Project;

/// A Millpond of one's own: the engine, with handlers in Rust.
///
/// ```no_run
/// # use std::process::ExitCode;
/// fn main() -> ExitCode {
///     millpond::Application::new().main()
/// }
/// ```
#[derive(Default)]
pub struct Application {
    handlers: Handlers,
}

impl Application {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers the handler of the consumer whose folder has this name.
    #[must_use]
    pub fn handler(mut self, consumer: &str, handler: impl Handler) -> Self {
        self.handlers.insert(consumer.to_owned(), Arc::new(handler));
        self
    }

    /// Reads the command line and does what it says.
    pub fn main(self) -> ExitCode {
        self.main_from(std::env::args_os())
    }

    /// [`Self::main`] for a program that has a command line of its own: the first of the arguments is a name, the others are
    /// Millpond's.
    pub fn main_from(self, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
        let arguments = Arguments::parse_from(arguments);
        match self.run(arguments) {
            Ok(code) => code,
            Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("millpond: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn run(self, arguments: Arguments) -> anyhow::Result<ExitCode> {
        let Arguments { common, command } = arguments;
        if let Command::Config { reference: true } = command {
            print!("{}", config::keys::reference());
            return Ok(ExitCode::SUCCESS);
        }
        let config = configuration(&common, &command)?;
        logging::init(&config.log.format, &log_level(&config, &command));
        planted::announce().map_err(anyhow::Error::msg)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
        let result = runtime.block_on(self.dispatch(config, command));
        // Threads of librdkafka that do not end by themselves must not keep the process.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        result
    }

    async fn dispatch(self, config: Config, command: Command) -> anyhow::Result<ExitCode> {
        let handlers = Arc::new(self.handlers);
        let done = |()| ExitCode::SUCCESS;
        match command {
            Command::Dev(arguments) => dev::run(config, arguments, handlers).await.map(done),
            Command::All(_) => roles::run(config, Roles::ALL, handlers).await.map(done),
            Command::Ingest(_) => roles::run(config, Roles::INGEST, handlers).await.map(done),
            Command::Consume(_) => roles::run(config, Roles::CONSUME, handlers).await.map(done),
            Command::Serve(_) => roles::run(config, Roles::SERVE, handlers).await.map(done),
            Command::Publish(_) => roles::run(config, Roles::PUBLISH, handlers).await.map(done),
            Command::New { dir, rust, millpond } => scaffold::project(&dir, rust, millpond.as_deref()).map(done),
            Command::Config { .. } => {
                show(&config);
                Ok(ExitCode::SUCCESS)
            }
            Command::Doctor => doctor::run(&config).await,
            Command::Status { json } => look::status(&config, json).await,
            Command::Schema(command) => schemas::run(&config, command).await,
            Command::Producer(command) => scaffold::producer(&config, command),
            Command::Consumer(command) => consumers::command(&config, command, &handlers).await,
            Command::Rebuild(arguments) => rebuild::run(&config, arguments, handlers).await,
            Command::Plan { check, json } => plan::run(&config, check, json, handlers).await,
            Command::Diff { name, format, samples } => rebuild::diff(&config, &name, format, samples).await.map(done),
            Command::Swap { name, max_changed, keep } => {
                rebuild::swap(&config, &name, max_changed, &keep).await.map(done)
            }
            Command::Rollback { name, keep } => rebuild::rollback(&config, &name, &keep).await.map(done),
            Command::Replay(arguments) => rebuild::replay(&config, arguments, handlers).await,
            Command::Topic(command) => look::topic(&config, command).await.map(done),
            Command::Dlq(command) => dlq::run(&config, command).await.map(done),
            Command::Explain { code } => explain::explain(code.as_deref()),
        }
    }
}

/// Whoever read our output has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    error.chain().filter_map(kind).any(|kind| kind == std::io::ErrorKind::BrokenPipe)
}

/// Flags that are short for a key come after `--set`.
fn configuration(common: &Common, command: &Command) -> anyhow::Result<Config> {
    let mut flags = Vec::new();
    for set in &common.set {
        let (key, value) = set.split_once('=').with_context(|| format!("--set {set}: expected KEY=VALUE"))?;
        flags.push((key.trim().to_owned(), value.trim().to_owned()));
    }
    let mut short = |key: &str, value: Option<String>| flags.extend(value.map(|v| (key.to_owned(), v)));
    short("project.dir", common.project.as_ref().map(|p| p.display().to_string()));
    if let Command::All(role)
    | Command::Ingest(role)
    | Command::Consume(role)
    | Command::Serve(role)
    | Command::Publish(role) = command
    {
        let Role { listen, kafka, postgres, insecure } = role;
        short("http.listen", listen.clone());
        short("kafka.brokers", kafka.clone());
        short("postgres.url", postgres.clone());
        short("http.insecure", insecure.then(|| "true".to_owned()));
    }
    if let Command::Dev(dev) = command {
        short("http.listen", dev.listen.clone());
        short("http.insecure", dev.insecure.then(|| "true".to_owned()));
    }
    let mut sources = Sources { file: common.config.clone(), environment: environment(), flags, dev: Vec::new() };
    let config = resolve(config::load(&sources)?, common);
    // Roles too: one that is started beside a `dev` is meant for its servers, and none of the file's is touched by
    // mistake. What is said in the environment or by flags wins.
    let beside = !matches!(command, Command::Dev(_));
    match RunningDev::find(&config.project.dir.join(dev::STATE)).filter(|_| beside) {
        Some(running) => {
            sources.dev = running.settings();
            Ok(resolve(config::load(&sources)?, common))
        }
        None => Ok(config),
    }
}

/// A relative folder in a file is meant from that file; from a flag, from here.
fn resolve(mut config: Config, common: &Common) -> Config {
    if config.project.dir.is_relative() && common.project.is_none() {
        let base = common.config.as_ref().and_then(|f| f.parent()).map_or_else(PathBuf::new, PathBuf::from);
        config.project.dir = base.join(&config.project.dir);
    }
    config
}

/// `dev` says what matters itself; a person at a terminal has asked for no log unless `log.level` is set.
fn log_level(config: &Config, command: &Command) -> String {
    let set = config.settings.iter().any(|s| s.name == "log.level" && s.source != "default");
    let role = matches!(
        command,
        Command::All(_) | Command::Ingest(_) | Command::Consume(_) | Command::Serve(_) | Command::Publish(_)
    );
    if set || role { config.log.level.clone() } else { "warn,millpond::kafka=error".to_owned() }
}

/// Names and values that are not text cannot be ours.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

fn show(config: &Config) {
    let width = config.settings.iter().map(|s| s.name.len() + s.shown.len()).max().unwrap_or_default() + 5;
    for setting in &config.settings {
        let line = format!("{} = {}", setting.name, setting.shown);
        say!("{line:width$} # {}", setting.source);
    }
}
