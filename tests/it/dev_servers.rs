//! `millpond dev`'s servers: found again, out of each other's way, and never left behind.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use millpond::dev::kafka::probe;
use millpond::dev::process::Identity;
use millpond::dev::{Error, Folder, Progress, Servers};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use crate::harness::{self, eventually};

/// Far more than it takes, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);
const FOLDER: &str = "MILLPOND_IT_FOLDER";

/// Not a test: the process that [`servers_of_a_killed_parent_end_and_their_data_is_found_again`] kills.
#[test]
#[ignore = "the process that another test kills"]
fn helper_that_holds_servers() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut servers = Servers::start(&harness::own_options(Path::new(&folder)), &Progress::lines()).unwrap();
    let (kafka, postgres) = (servers.kafka().unwrap().pid(), servers.postgres().unwrap().pid());
    // Past the capture of the test runner, which holds standard output back until the test ends.
    writeln!(std::io::stderr(), "pids {kafka} {postgres}").unwrap();
    std::io::stdin().lines().count();
}

#[tokio::test]
async fn servers_of_a_killed_parent_end_and_their_data_is_found_again() {
    let folder = harness::own_folder("killed");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["dev_servers::helper_that_holds_servers", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, &folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stderr.take().unwrap()).lines().map(Result::unwrap);
    let pids =
        lines.find_map(|line| line.strip_prefix("pids ").map(str::to_owned)).expect("the helper tells its children");
    let children: Vec<Identity> =
        pids.split(' ').map(|pid| Identity::of(pid.parse().unwrap()).expect("the child runs")).collect();

    let locked = Folder::open(&folder).unwrap_err();
    assert!(matches!(locked, Error::Locked { .. }), "{locked}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually(SOON, || children.iter().all(|child| !child.runs()));

    let servers = Servers::start(&harness::own_options(&folder), &Progress::lines()).unwrap();
    let (brokers, url) = (servers.brokers(), servers.postgres_url());
    create_topic(&brokers, "kept").await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("create table kept (id int)").await.unwrap();
    drop(connection);
    servers.stop().unwrap();

    // Somebody else takes the port of one; the other keeps its own, and both find their data.
    let taken = TcpListener::bind(brokers.parse::<SocketAddr>().unwrap()).unwrap();
    let servers = Servers::start(&harness::own_options(&folder), &Progress::lines()).unwrap();
    assert_ne!(servers.brokers(), brokers);
    assert_eq!(servers.postgres_url(), url);
    assert!(topics(&servers.brokers()).contains(&"kept".to_owned()));
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("select id from kept").await.unwrap();
    drop(taken);
}

#[tokio::test]
async fn postgres_killed_restarts_on_its_port_with_what_was_committed() {
    let mut options = harness::own_options(&harness::own_folder("postgres"));
    options.kafka = Some("unused:9092".into());
    let mut servers = Servers::start(&options, &Progress::lines()).unwrap();
    let url = servers.postgres_url();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("create table kept as select 1 as id").await.unwrap();

    let postgres = servers.postgres().unwrap();
    postgres.kill_9().unwrap();
    connection.execute("select 1").await.unwrap_err();
    postgres.check().unwrap_err();
    postgres.restart().unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    assert_eq!(connection.fetch_one("select id from kept").await.unwrap().get::<i32, _>(0), 1);

    let postgres = servers.postgres().unwrap();
    postgres.pause().unwrap();
    let frozen = tokio::time::timeout(Duration::from_millis(300), connection.execute("select 1")).await;
    assert!(frozen.is_err(), "a frozen server answered");
    postgres.cont().unwrap();
    PgConnection::connect(&url).await.unwrap().execute("select 1").await.unwrap();
    servers.check().unwrap();
}

/// As root where user namespaces are refused; an ordinary user never comes there, and the test has nothing to say.
#[tokio::test]
async fn postgres_of_root_without_namespaces_runs_as_its_account_elsewhere() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = harness::own_folder("account");
    let mut options = harness::own_options(&folder);
    options.kafka = Some("unused:9092".into());
    options.postgres_options.no_namespace = true;
    let mut servers = Servers::start(&options, &Progress::lines()).unwrap();
    let pid = servers.postgres().unwrap().pid();
    let data = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert!(!data.starts_with(&folder), "{data:?}");
    let url = servers.postgres_url();
    PgConnection::connect(&url).await.unwrap().execute("create table kept (id int)").await.unwrap();
    servers.stop().unwrap();

    // Data that was begun there is continued there, and --reset finds it too.
    options.postgres_options.no_namespace = false;
    let servers = Servers::start(&options, &Progress::lines()).unwrap();
    PgConnection::connect(&url).await.unwrap().execute("select id from kept").await.unwrap();
    servers.stop().unwrap();
    millpond::dev::PostgresServer::delete_data(&Folder::open(&folder).unwrap()).unwrap();
    assert!(!data.exists());
}

#[tokio::test]
async fn postgres_with_settings_of_the_file_is_durable_and_in_utc() {
    let mut connection = PgConnection::connect(&harness::database().url).await.unwrap();
    for (name, expected) in
        [("fsync", "on"), ("synchronous_commit", "on"), ("timezone", "UTC"), ("data_checksums", "on")]
    {
        let row = sqlx::query("select current_setting($1)").bind(name).fetch_one(&mut connection).await.unwrap();
        assert_eq!(row.get::<&str, _>(0), expected, "{name}");
    }
    // By bytes, on every machine; letters beyond ASCII are letters all the same.
    let row = connection.fetch_one("select 'B' < 'a', upper('\u{e9}'), count(*) from millpond.fences").await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (true, "\u{c9}", 0_i64));
}

#[tokio::test]
async fn kafka_killed_restarts_on_its_port_with_its_topics() {
    let mut options = harness::own_options(&harness::own_folder("kafka"));
    options.postgres = Some("postgres://unused".into());
    let mut servers = Servers::start(&options, &Progress::lines()).unwrap();
    let brokers = servers.brokers();
    create_topic(&brokers, "kept").await;

    let kafka = servers.kafka().unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, brokers.rsplit_once(':').unwrap().1.parse().unwrap()));
    kafka.pause().unwrap();
    assert!(probe::ask(address, Duration::from_millis(300)).is_err(), "a frozen node answered");
    kafka.cont().unwrap();
    eventually(SOON, || probe::ask(address, Duration::from_secs(1)).is_ok());

    kafka.kill_9().unwrap();
    assert!(probe::ask(address, Duration::from_secs(1)).is_err(), "a killed node answered");
    kafka.restart().unwrap();
    assert_eq!(servers.brokers(), brokers);
    assert!(topics(&brokers).contains(&"kept".to_owned()));
}

/// An earlier start, or this one, has kept what Java reads of the jars; a node that starts with it does so in half the time.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn kafka_starts_with_the_classes_that_are_kept() {
    let mut options = harness::own_options(&harness::own_folder("classes"));
    options.postgres = Some("postgres://unused".into());
    let mut servers = Servers::start(&options, &Progress::lines()).unwrap();
    let pid = servers.kafka().unwrap().pid();
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let archive = line.split('\0').find_map(|word| word.strip_prefix("-XX:SharedArchiveFile=")).expect("it is named");
    // Java takes no notice of one that does not fit: it is in use when it is mapped.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(maps.contains(archive), "{archive} is not in use:\n{line}");
}

fn client(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

async fn create_topic(brokers: &str, name: &str) {
    let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
    let created = client(brokers).create_topics([&topic], &AdminOptions::new()).await.unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

fn topics(brokers: &str) -> Vec<String> {
    let metadata = client(brokers).inner().fetch_metadata(None, SOON).unwrap();
    metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
}
