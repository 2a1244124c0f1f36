//! One real Postgres as a child.
//!
//! Owns `postgres/` in the data folder: the data, the password, the log. Tables are its clients' business. Durability is
//! never turned off here: what is tested against this server must hold on a real one.

mod account;
mod install;
pub mod probe;
pub mod standby;

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use self::account::Account;
use self::install::Install;
use self::probe::PidFile;
use super::children::{self, Child, Launch, os};
use super::process::Identity;
use super::progress::Step;
use super::server::{Kind, Server};
use super::{Error, Folder, Progress, doing, ports, settings};

const SETTINGS: &str = include_str!("../../../deploy/dev-servers/postgres.conf");
/// The user, who may do everything, and their database.
pub const USER: &str = "millpond";
/// How a new cluster is made: text sorts by bytes, the same on every machine, while letters are still told from digits.
pub const INITDB_ARGS: [&str; 5] = [
    "--encoding=UTF8",
    "--locale=C",
    if cfg!(target_os = "macos") { "--lc-ctype=en_US.UTF-8" } else { "--lc-ctype=C.UTF-8" },
    "--auth=scram-sha-256",
    "--data-checksums",
];

/// How the server is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// First port tried.
    pub port: u16,
    /// Folder of `initdb` and `postgres`, looked at before the usual ones.
    pub bin_dir: Option<PathBuf>,
    /// How long it may take to answer, recovery after a crash included.
    pub ready_within: Duration,
    /// Settings over those of `deploy/dev-servers/postgres.conf`.
    pub settings: Vec<(String, String)>,
    /// As root: behave as on a system that refuses user namespaces.
    pub no_namespace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 5432,
            bin_dir: None,
            ready_within: Duration::from_secs(60),
            settings: Vec::new(),
            no_namespace: false,
        }
    }
}

/// A running server.
pub type PostgresServer = Server<Postgres>;

/// What is Postgres' own about its process.
#[derive(Debug)]
pub struct Postgres {
    data: PathBuf,
    password: String,
}

/// The settings that every server started here has, port and folders aside.
#[must_use]
pub fn settings() -> Vec<(&'static str, &'static str)> {
    settings::parse(SETTINGS)
}

impl PostgresServer {
    /// Starts a server on the data in `folder`, made if it is new, and waits until it takes connections.
    pub fn start(folder: &Arc<Folder>, options: &Options, progress: &Progress) -> Result<Self, Error> {
        let step = progress.step("postgres", "starting");
        let dir = folder.below("postgres")?;
        let account = Account::choose(&dir, options.no_namespace)?;
        if account.elsewhere {
            progress.say(&format!(
                "postgres: cannot run as root on this system: it runs as the account `postgres`, with its data in {}",
                account.home.display()
            ));
        }
        let data = account.home.join("data");
        let install = Install::find(options.bin_dir.as_deref(), &data)?;
        let password = password(&dir)?;
        if !data.is_dir() {
            create(&install, &account, &data, &password, &step)?;
        }
        let server = Self::launch(folder, options.ready_within, || {
            let port = ports::choose("postgres", folder.port("postgres"), options.port, &[])?;
            step.now(&format!("starting {} on port {port}", install.major));
            let launch = launch(&install, &account, &dir, &data, options, port)?;
            Ok((Postgres { data: data.clone(), password: password.clone() }, launch, port))
        })?;
        folder.remember_port("postgres", server.port)?;
        step.done(&format!("{} at 127.0.0.1:{}", install.major, server.port));
        Ok(server)
    }

    /// The URL of the database, with the password in it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{USER}", self.kind.password, self.port)
    }

    /// Deletes all data in `folder`; for a stopped server only.
    pub fn delete_data(folder: &Folder) -> Result<(), Error> {
        let dir = folder.path().join("postgres");
        super::delete(&account::short_socket_folder(&dir))?;
        super::delete(&dir)?;
        super::delete(&account::home_elsewhere(&dir))
    }
}

impl Kind for Postgres {
    fn prepare(&self) -> Result<(), Error> {
        discard_stale_pid_file(&self.data)
    }

    /// *This* process says so in its pid file, and its port answers.
    fn is_ready(&self, child: &Child, address: SocketAddr) -> bool {
        let told = PidFile::read(&self.data);
        told.is_some_and(|told| told.pid == child.pid() && told.port == Some(address.port()) && told.ready)
            && probe::takes_connections(address, USER, Duration::from_secs(1)).unwrap_or(false)
    }

    /// The port went to somebody who was faster, or the memory of a killed predecessor is held by a backend that has not
    /// noticed yet.
    fn may_pass(&self, log: &Path, port: u16) -> bool {
        let said = super::log_tail(log);
        if said.contains("pre-existing shared memory block") {
            std::thread::sleep(Duration::from_millis(250));
            return true;
        }
        !ports::is_free(port)
    }
}

/// The password of [`USER`], made at the first start. A fixed one would let every account on the machine run programs as
/// the user who started this.
fn password(dir: &Path) -> Result<String, Error> {
    let path = dir.join("password");
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(doing("read", &path, e)),
    }
    let password = uuid::Uuid::new_v4().simple().to_string();
    write_secret(&path, &password)?;
    Ok(password)
}

fn write_secret(path: &Path, secret: &str) -> Result<(), Error> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(secret.as_bytes())).map_err(|e| doing("write", path, e))
}

/// Makes a cluster with the one user and their database; aside first, so that a folder that is there is whole.
fn create(install: &Install, account: &Account, data: &Path, password: &str, step: &Step) -> Result<(), Error> {
    step.now("creating a new database cluster");
    let new = cleared_name(data)?;
    let secret = account.home.join("password.initdb");
    write_secret(&secret, password)?;
    account.give(&secret)?;
    let mut initdb = account.command(&install.bin.join("initdb"));
    initdb.arg("-D").arg(&new).args(["-U", USER]).args(INITDB_ARGS).arg("--pwfile").arg(&secret);
    let made = children::run(initdb, "initdb");
    fs::remove_file(&secret).map_err(|e| doing("remove", &secret, e))?;
    made?;
    create_database(install, account, &new)?;
    fs::rename(&new, data).map_err(|e| doing("rename", &new, e))
}

/// The name under which `data` is made, with nothing there yet.
fn cleared_name(data: &Path) -> Result<PathBuf, Error> {
    let new = data.with_extension("new");
    super::delete(&new)?;
    Ok(new)
}

/// In single-user mode: no port, no client program.
fn create_database(install: &Install, account: &Account, data: &Path) -> Result<(), Error> {
    let mut command = account.command(&install.bin.join("postgres"));
    command.arg("--single").arg("-D").arg(data).arg("template1");
    let failed = |e| doing("run", &install.bin.join("postgres"), e);
    let mut single =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut stdin = single.stdin.take().expect("invariant: the input is piped");
    writeln!(stdin, "create database {USER};").map_err(failed)?;
    drop(stdin);
    let out = single.wait_with_output().map_err(failed)?;
    // Single-user mode ends well whatever became of the statement.
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() && !said.contains("ERROR") && !said.contains("FATAL") {
        Ok(())
    } else {
        let said = children::tail(&said, 12);
        Err(Error::Failed { program: "creating the database".into(), status: out.status, said })
    }
}

fn launch(
    install: &Install,
    account: &Account,
    dir: &Path,
    data: &Path,
    options: &Options,
    port: u16,
) -> Result<Launch, Error> {
    let mut args = os([&"-D", &data, &"-p", &port.to_string(), &"-k", &account.socket_folder()?]);
    args.extend(os([&"-c", &"listen_addresses=127.0.0.1"]));
    for (name, value) in settings() {
        args.extend(os([&"-c", &format!("{name}={value}")]));
    }
    for (name, value) in &options.settings {
        args.extend(os([&"-c", &format!("{name}={value}")]));
    }
    Ok(Launch {
        name: "postgres".into(),
        wrapper: account.wrapper.clone(),
        program: install.bin.join("postgres"),
        args,
        account: account.ids,
        locale: "C",
        cwd: account.home.clone(),
        log: dir.join("server.log"),
        // SIGTERM would wait for every client to leave.
        stop: Signal::SIGINT,
        stop_within: Duration::from_secs(20),
    })
}

/// Removes a pid file that names a process which is not a server on this data: after a crash or in a new container the pid
/// may be anybody's, and Postgres, which can only ask whether it is taken, would refuse to start.
fn discard_stale_pid_file(data: &Path) -> Result<(), Error> {
    let path = data.join("postmaster.pid");
    match PidFile::read(data) {
        Some(file) if Identity::of(file.pid).is_some() && !serves(file.pid, data) => {
            fs::remove_file(&path).map_err(|e| doing("remove", &path, e))
        }
        _ => Ok(()),
    }
}

/// Whether `pid` is a Postgres on `data`. It works in its data folder, which Linux tells; elsewhere its name must do.
fn serves(pid: i32, data: &Path) -> bool {
    if cfg!(target_os = "linux") {
        return fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    }
    let mut ps = std::process::Command::new("ps");
    ps.args(["-o", "comm=", "-p", &pid.to_string()]);
    children::run(ps, "ps").is_ok_and(|name| name.contains("postgres"))
}
