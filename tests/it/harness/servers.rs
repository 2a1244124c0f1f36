//! The servers of a test run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use millpond::dev::postgres::PostgresServer;
use millpond::dev::{self, Folder, Options, Progress, Servers};

/// Away from the ports of a `millpond dev` on the same machine, and below those that systems give to clients.
const KAFKA_PORT: u16 = 19292;
const POSTGRES_PORT: u16 = 25451;

struct Shared {
    brokers: String,
    postgres_url: String,
    /// Only held: its children end with this process.
    _servers: Servers,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let mut options = own_options(&own_folder("shared"));
    options.kafka = std::env::var("MILLPOND_TEST_KAFKA").ok();
    options.postgres = std::env::var("MILLPOND_TEST_POSTGRES").ok();
    let servers = Servers::start(&options, &Progress::lines()).expect("the servers of the tests start");
    Shared { brokers: servers.brokers(), postgres_url: servers.postgres_url(), _servers: servers }
});

/// Bootstrap servers of the Kafka that all tests share: those in `MILLPOND_TEST_KAFKA`, else one started now.
pub fn brokers() -> String {
    SHARED.brokers.clone()
}

/// URL of the Postgres that all tests share: the one in `MILLPOND_TEST_POSTGRES`, else one started now. A test wants a
/// [`super::database`] of its own in it.
pub fn postgres_url() -> String {
    SHARED.postgres_url.clone()
}

/// Options for servers that a test may stop, kill and freeze as it likes, because they are its own.
pub fn own_options(folder: &Path) -> Options {
    // Each looks from another port on: two that start at once would both find the same one free, and one start anew.
    static ASKED: AtomicU16 = AtomicU16::new(0);
    let apart = 40 * (std::process::id() % 100) as u16 + 4 * (ASKED.fetch_add(1, Ordering::Relaxed) % 10);
    let kafka_options = dev::kafka::Options { port: KAFKA_PORT + apart, heap_mib: 192, ..Default::default() };
    let postgres_options = dev::postgres::Options { port: POSTGRES_PORT + apart, ..Default::default() };
    Options { kafka_options, postgres_options, ..Options::new(folder) }
}

/// A new folder for servers, below one that goes away when a later run finds this process gone.
pub fn own_folder(name: &str) -> PathBuf {
    static RUN: LazyLock<PathBuf> = LazyLock::new(run_folder);
    RUN.join(super::unique(name))
}

/// This run's folder; what runs before it left is removed, processes included.
fn run_folder() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
    fs::create_dir_all(&all).expect("the build folder can be written");
    // One run at a time looks and creates, or one would remove what another is about to lock.
    let gate = File::create(all.join("lock")).expect("the build folder can be written");
    gate.lock().expect("files can be locked");
    for run in folders(&all) {
        if File::open(run.join("lock")).is_ok_and(|lock| lock.try_lock().is_err()) {
            continue;
        }
        for servers in folders(&run) {
            // Opening ends what still runs there; a folder that cannot be had is left for the next run.
            if let Ok(folder) = Folder::open(&servers) {
                PostgresServer::delete_data(&folder).ok();
            }
        }
        fs::remove_dir_all(&run).ok();
    }
    let mine = all.join(std::process::id().to_string());
    fs::create_dir_all(&mine).expect("the build folder can be written");
    let lock = File::create(mine.join("lock")).expect("the build folder can be written");
    lock.lock().expect("files can be locked");
    std::mem::forget(lock); // held until the process ends
    mine
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
