//! The Kafka server's jars: fetched once through Maven, kept per user, checked against the committed list.
//!
//! Invariant: a jar is on the class path only if it is on the list and has the list's SHA-256. Maven 3 has no trusted
//! checksums of its own, so what it brought is checked here, and again at every start: the cache is older than the process.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};

use crate::dev::children::tail;
use crate::dev::folder::create_private;
use crate::dev::progress::Step;
use crate::dev::{Error, doing};

/// The version that `deploy/dev-servers/pom.xml` names.
pub const VERSION: &str = "4.4.0";
const POM: &str = include_str!("../../../deploy/dev-servers/pom.xml");
const LIST: &str = include_str!("../../../deploy/dev-servers/kafka-jars.sha256");

/// One line of the list.
struct Jar {
    sha256: &'static str,
    name: &'static str,
}

/// The checked jars.
pub struct Jars {
    /// Where they are.
    pub folder: PathBuf,
}

impl Jars {
    /// All of them, as Java wants them.
    pub fn class_path(&self) -> String {
        list().map(|jar| self.folder.join(jar.name).to_string_lossy().into_owned()).collect::<Vec<_>>().join(":")
    }
}

/// The checked jars, fetched if they are not there. `fallback` is used when the user has no cache folder.
pub fn fetched(fallback: &Path, step: &Step) -> Result<Jars, Error> {
    let cache = cache(fallback);
    create_private(&cache)?;
    // The list names the folder: clones of different versions share a cache without sharing jars.
    let folder = cache.join(format!("kafka-{VERSION}-{}", &hex::encode(Sha256::digest(LIST))[..12]));
    if !folder.is_dir() {
        fetch(&folder, step)?;
    }
    check(&folder)?;
    Ok(Jars { folder })
}

/// Where downloads outlive a clone: the user's cache folder.
fn cache(fallback: &Path) -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(named) = variable("MILLPOND_CACHE") {
        return named;
    }
    let per_user = variable("XDG_CACHE_HOME").or_else(|| {
        let home = variable("HOME")?;
        Some(if cfg!(target_os = "macos") { home.join("Library/Caches") } else { home.join(".cache") })
    });
    per_user.map_or_else(|| fallback.to_owned(), |path| path.join("millpond"))
}

fn list() -> impl Iterator<Item = Jar> {
    LIST.lines().filter_map(|line| line.split_once("  ")).map(|(sha256, name)| Jar { sha256, name })
}

/// Brings the jars into `folder`, which appears whole or not at all, also when two processes want it at once.
fn fetch(folder: &Path, step: &Step) -> Result<(), Error> {
    let _lock = locked(&beside(folder, "lock"), step, "waiting for another process that downloads the same")?;
    if folder.is_dir() {
        return Ok(());
    }
    let new = beside(folder, "new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(|e| doing("remove", &new, e))?;
    }
    create_private(&new)?;
    let pom = new.join("pom.xml");
    fs::write(&pom, POM).map_err(|e| doing("write", &pom, e))?;
    run_maven(&pom, &new, step)?;
    check(&new)?;
    fs::rename(&new, folder).map_err(|e| doing("rename", &new, e))
}

/// Locks a file until what it gives is dropped; says `waiting` while somebody else has it.
pub(super) fn locked(path: &Path, step: &Step, waiting: &str) -> Result<File, Error> {
    let lock = File::create(path).map_err(|e| doing("create", path, e))?;
    if lock.try_lock().is_err() {
        step.now(waiting);
        lock.lock().map_err(|e| doing("lock", path, e))?;
    }
    Ok(lock)
}

/// `<folder>.<what>`; the version in the folder's name has dots of its own.
pub(super) fn beside(folder: &Path, what: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

fn run_maven(pom: &Path, into: &Path, step: &Step) -> Result<(), Error> {
    step.now(&format!("downloading {VERSION} through Maven, 43 MB, once"));
    let mut output = Command::new("mvn");
    output
        // -C: a file whose checksum differs from the one beside it is an error, not a warning.
        .args(["--batch-mode", "-C", "-f"])
        .arg(pom)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", into.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut maven = output.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            what: "mvn (Maven 3)".into(),
            hint: "run .ci/bootstrap in a clone, install it (apt install maven, brew install maven), \
                   or name a Kafka that runs elsewhere with --kafka"
                .into(),
        },
        _ => doing("start", Path::new("mvn"), e),
    })?;
    let (total, mut here, mut said) = (list().count(), 0, String::new());
    let stdout = maven.stdout.take().expect("invariant: the output is piped");
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(|e| doing("read the output of", Path::new("mvn"), e))?;
        if line.contains("Downloaded from") {
            here += usize::from(list().any(|jar| line.contains(&format!("/{} ", jar.name))));
            step.tick(&format!("downloading {VERSION} through Maven: {here} of {total} jars"));
        } else if line.contains("ERROR") {
            said.push_str(&line);
            said.push('\n');
        }
    }
    let status = maven.wait().map_err(|e| doing("wait for", Path::new("mvn"), e))?;
    if status.success() { Ok(()) } else { Err(Error::Failed { program: "mvn".into(), status, said: tail(&said, 12) }) }
}

/// Whether every jar on the list is in `folder` as the list has it.
fn check(folder: &Path) -> Result<(), Error> {
    for jar in list() {
        let path = folder.join(jar.name);
        let bytes = fs::read(&path).map_err(|e| doing("read", &path, e))?;
        let found = hex::encode(Sha256::digest(&bytes));
        if found != jar.sha256 {
            return Err(Error::Checksum {
                file: jar.name.to_owned(),
                path: folder.to_owned(),
                found,
                expected: jar.sha256.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_names_the_version_of_the_pom() {
        assert!(POM.contains(&format!("<version>{VERSION}</version>")));
        assert!(list().any(|jar| jar.name == format!("kafka_2.13-{VERSION}.jar")));
        assert!(list().all(|jar| jar.sha256.len() == 64));
    }

    #[test]
    fn check_of_changed_jar_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = list().next().unwrap();
        fs::write(dir.path().join(first.name), "something else").unwrap();
        let error = check(dir.path()).unwrap_err().to_string();
        assert!(error.contains(first.name) && error.contains(first.sha256), "{error}");
    }
}
