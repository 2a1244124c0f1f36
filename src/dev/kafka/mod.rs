//! One real Kafka node (KRaft, broker and controller in one process) as a child; several make a [`cluster`].
//!
//! Owns `kafka/` in the data folder. Topics and records there are its clients' business.

mod archive;
pub mod cluster;
mod jars;
mod java;
pub mod probe;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::Signal;

use self::archive::Archive;
use super::children::{self, Child, Launch, os};
use super::server::{Kind, Server};
use super::{Error, Folder, Progress, doing, ports, settings};

pub use cluster::{KafkaCluster, Place};
pub use jars::VERSION;

const SETTINGS: &str = include_str!("../../../deploy/dev-servers/kafka.properties");
const LOG4J: &str = include_str!("../../../deploy/dev-servers/kafka-log4j2.properties");
/// Java cannot open a path with letters beyond ASCII when the locale has none.
const LOCALE: &str = "C.UTF-8";

/// How the node is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// First port tried for clients; the controller gets one after it.
    pub port: u16,
    /// Java heap in MiB. 192 suffices for tests; the process takes about 100 more.
    pub heap_mib: usize,
    /// How long it may take to answer.
    pub ready_within: Duration,
    /// Settings over those of `deploy/dev-servers/kafka.properties`.
    pub settings: Vec<(String, String)>,
    /// Where it stands among several; without it the node is a cluster by itself, on ports of its own choice.
    pub place: Option<Place>,
}

impl Default for Options {
    fn default() -> Self {
        Self { port: 9092, heap_mib: 256, ready_within: Duration::from_secs(90), settings: Vec::new(), place: None }
    }
}

/// A running node.
pub type KafkaServer = Server<Kafka>;

/// What is Kafka's own about its process.
#[derive(Debug)]
pub struct Kafka {
    cluster: String,
    controller: u16,
    log: PathBuf,
}

/// The settings that every node started here has, ports and folders aside.
#[must_use]
pub fn settings() -> Vec<(&'static str, &'static str)> {
    settings::parse(SETTINGS)
}

impl KafkaServer {
    /// Starts a node on the data in `folder`, formatted if it is new, and waits until it serves.
    pub fn start(folder: &Arc<Folder>, options: &Options, progress: &Progress) -> Result<Self, Error> {
        let step = progress.step("kafka", "starting");
        let java = java::find()?;
        let dir = folder.below("kafka")?;
        let jars = jars::fetched(&folder.path().join("cache"), &step)?;
        let archive = archive::ensure(&java, &jars, &step);
        let program = Program { java, class_path: jars.class_path(), dir, archive };
        let server = Kafka::launch(folder, &program, options, |what| step.now(what))?;
        folder.remember_port("kafka", server.port)?;
        folder.remember_port("kafka-controller", server.kind.controller)?;
        step.done(&format!("{VERSION} at {}", server.bootstrap()));
        Ok(server)
    }

    /// Bootstrap servers for a client's configuration.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many brokers of its cluster this one knows to serve; none while it does not answer.
    #[must_use]
    pub fn brokers_seen(&self) -> usize {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        probe::ask(address, Duration::from_secs(1)).map_or(0, |told| told.brokers)
    }

    /// Deletes all topics and records in `folder`; for a stopped node only.
    pub fn delete_data(folder: &Folder) -> Result<(), Error> {
        super::delete(&folder.path().join("kafka"))
    }
}

impl Kafka {
    /// Starts a node and waits until it serves; `tell` hears what is done.
    fn launch(
        folder: &Arc<Folder>,
        program: &Program,
        options: &Options,
        tell: impl Fn(&str),
    ) -> Result<KafkaServer, Error> {
        program.prepare()?;
        Server::launch(folder, options.ready_within, || {
            let (client, controller) = match &options.place {
                Some(place) => (place.client, place.controller()),
                None => choose_ports(folder, options)?,
            };
            program.write_settings(options, client, controller)?;
            let cluster = program.cluster_id(options, &tell)?;
            tell(&format!("starting {VERSION} on port {client}"));
            Ok((Self { cluster, controller, log: log(&program.dir) }, program.launch(options), client))
        })
    }
}

impl Kind for Kafka {
    fn prepare(&self) -> Result<(), Error> {
        Ok(())
    }

    /// A broker of *this* cluster answers: a stranger on the port is none.
    fn is_ready(&self, _child: &Child, address: SocketAddr) -> bool {
        probe::ask(address, Duration::from_secs(1)).is_ok_and(|told| told.id == self.cluster && told.brokers > 0)
    }

    /// One of its ports is taken: somebody was faster between the look and the bind.
    fn may_pass(&self, _log: &Path, port: u16) -> bool {
        ![port, self.controller].into_iter().all(ports::is_free)
    }
}

/// Ports of a node that stands alone: for clients and for its controller.
fn choose_ports(folder: &Folder, options: &Options) -> Result<(u16, u16), Error> {
    let client = ports::choose("kafka", folder.port("kafka"), options.port, &[])?;
    let remembered = folder.port("kafka-controller");
    Ok((client, ports::choose("kafka's controller", remembered, options.port + 1, &[client])?))
}

/// The Java program and its folder, which is its working directory: so no path has to be written into a properties file,
/// where commas, backslashes and letters beyond Latin-1 mean something else.
struct Program {
    java: PathBuf,
    class_path: String,
    dir: PathBuf,
    archive: Archive,
}

impl Program {
    fn prepare(&self) -> Result<(), Error> {
        // Native libraries are unpacked there at every start, and left behind by a killed node.
        let tmp = self.dir.join("tmp");
        super::delete(&tmp)?;
        super::folder::create_private(&tmp)?;
        self.write("log4j2.properties", LOG4J)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(|e| doing("write", &path, e))
    }

    fn write_settings(&self, options: &Options, client: u16, controller: u16) -> Result<(), Error> {
        let mut text: String = settings().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        for (name, value) in &options.settings {
            text.push_str(&format!("{name}={value}\n"));
        }
        match &options.place {
            Some(place) => text.push_str(&place.settings()),
            None => text.push_str(&format!(
                "listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{client}\n\
                 controller.quorum.voters=1@127.0.0.1:{controller}\n"
            )),
        }
        self.write("server.properties", &format!("{text}log.dirs=data\n"))?;
        self.write("format.properties", &format!("{text}log.dirs=data.new\n"))
    }

    /// The id of the cluster whose data is in the folder, formatted now if there is none.
    fn cluster_id(&self, options: &Options, tell: impl Fn(&str)) -> Result<String, Error> {
        let data = self.dir.join("data");
        let meta = data.join("meta.properties");
        if let Ok(text) = fs::read_to_string(&meta) {
            return settings::parse(&text)
                .into_iter()
                .find(|(name, _)| *name == "cluster.id")
                .map(|(_, id)| id.trim().to_owned())
                .ok_or_else(|| doing("find cluster.id in", &meta, std::io::ErrorKind::InvalidData.into()));
        }
        tell("formatting a new data folder");
        let id = options.place.as_ref().map_or_else(new_cluster_id, |place| place.cluster.clone());
        // Formatted aside and renamed: a folder that is there is whole.
        let new = self.dir.join("data.new");
        super::delete(&new)?;
        let mut format = Command::new(&self.java);
        if let Archive::With(_) = &self.archive {
            format.args(self.archive.flag());
        }
        format
            .args(["-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx128m"])
            .args(self.common_flags())
            .args(["kafka.tools.StorageTool", "format", "-t", &id, "-c", "format.properties"])
            .env("LC_ALL", LOCALE)
            .current_dir(&self.dir);
        children::run(format, "formatting Kafka's data folder")?;
        fs::rename(&new, &data).map_err(|e| doing("rename", &new, e))?;
        Ok(id)
    }

    fn common_flags(&self) -> [&str; 5] {
        [
            "-Djava.io.tmpdir=tmp",
            "-Dlog4j2.configurationFile=log4j2.properties",
            // No /tmp/hsperfdata_… behind our back.
            "-XX:+PerfDisableSharedMem",
            "-cp",
            &self.class_path,
        ]
    }

    fn launch(&self, options: &Options) -> Launch {
        let heap = format!("-Xmx{}m", options.heap_mib);
        // One collector thread: the heap is small, and the machine's cores are wanted elsewhere.
        let mut args = os([&"-Xms64m", &heap, &"-XX:+UseSerialGC", &"-XX:+ExitOnOutOfMemoryError"]);
        if options.place.is_some() {
            // Several of them warm up side by side: the second compiler would take their cores for a minute.
            args.push("-XX:TieredStopAtLevel=1".into());
        }
        args.extend(self.archive.flag());
        args.extend(self.common_flags().map(Into::into));
        args.extend(os([&"kafka.Kafka", &"server.properties"]));
        Launch {
            name: "kafka".into(),
            wrapper: Vec::new(),
            program: self.java.clone(),
            args,
            account: None,
            locale: LOCALE,
            cwd: self.dir.clone(),
            log: log(&self.dir),
            stop: Signal::SIGTERM,
            stop_within: Duration::from_secs(20),
        }
    }
}

fn log(dir: &Path) -> PathBuf {
    dir.join("server.log")
}

/// Sixteen random bytes as Kafka writes them; never with a dash in front, which its tools would take for an option.
fn new_cluster_id() -> String {
    loop {
        let id = URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes());
        if !id.starts_with('-') {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_file_hold_no_port_and_no_folder() {
        let names: Vec<&str> = settings().iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"auto.create.topics.enable"));
        assert!(!names.iter().any(|name| ["listeners", "log.dirs", "controller.quorum.voters"].contains(name)));
    }
}
