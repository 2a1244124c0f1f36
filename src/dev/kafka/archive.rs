//! What Java has read out of Kafka's jars, kept per user in its own form (JEP 350): with it a node starts in half the time.
//!
//! Owns `<jars>.<java>.jsa` in the cache. It is made by a node that starts and stops, once for each Java and each list of jars,
//! from jars that were checked just before. Java itself looks whether it fits, and goes on without where it does not.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::jars::{Jars, beside, locked};
use super::{Kafka, KafkaServer, Options, Program};
use crate::dev::progress::Step;
use crate::dev::{Error, Folder, delete, doing};

/// The folder of the node that makes it, beside the jars.
const NEW: &str = "jsa.new";
/// Several times what a node takes on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What a node does with the archive.
#[derive(Debug, Clone)]
pub enum Archive {
    Without,
    /// Starts with it.
    With(PathBuf),
    /// Writes it when it ends in good order.
    Into(PathBuf),
}

impl Archive {
    /// The flag that says so.
    pub fn flag(&self) -> Option<OsString> {
        let (flag, path) = match self {
            Self::Without => return None,
            Self::With(path) => ("-XX:SharedArchiveFile=", path),
            Self::Into(path) => ("-XX:ArchiveClassesAtExit=", path),
        };
        let mut text = OsString::from(flag);
        text.push(path);
        Some(text)
    }
}

/// The archive of these jars for this Java, made now if there is none. Where it cannot be made a node starts without, and an
/// empty file keeps everybody from trying again.
pub fn ensure(java: &Path, jars: &Jars, step: &Step) -> Archive {
    let path = beside(&jars.folder, &format!("{}.jsa", fingerprint(java)));
    // It appears whole or not at all.
    if !path.exists() && make_once(java, jars, &path, step).is_err() {
        return Archive::Without;
    }
    if fs::metadata(&path).is_ok_and(|file| file.len() > 0) { Archive::With(path) } else { Archive::Without }
}

/// Makes it, or an empty file in its place. Several nodes at once: one makes it, and all have it.
fn make_once(java: &Path, jars: &Jars, path: &Path, step: &Step) -> Result<(), Error> {
    let lock = beside(&jars.folder, "jsa.lock");
    let _lock = locked(&lock, step, "waiting for another process that prepares the same")?;
    if path.exists() {
        return Ok(());
    }
    step.now("preparing quick starts, once");
    let made = make(java, jars, path);
    // What cannot be deleted now is, by who comes next.
    let _ = delete(&beside(&jars.folder, NEW));
    made.or_else(|_| fs::write(path, "").map_err(|e| doing("write", path, e)))
}

/// Tells one Java from another: where it is, and what it says of itself.
fn fingerprint(java: &Path) -> String {
    let real = java.canonicalize().unwrap_or_else(|_| java.to_owned());
    let release = real.parent().and_then(Path::parent).map(|home| home.join("release"));
    let release = release.and_then(|release| fs::read(release).ok()).unwrap_or_default();
    let digest = Sha256::new().chain_update(real.as_os_str().as_encoded_bytes()).chain_update(release).finalize();
    hex::encode(digest)[..12].to_owned()
}

/// Lets a node start and stop, and puts what it has written in its place, whole.
fn make(java: &Path, jars: &Jars, path: &Path) -> Result<(), Error> {
    let new = beside(&jars.folder, NEW);
    delete(&new)?;
    let folder = Arc::new(Folder::open(&new)?);
    let written = folder.path().join("archive");
    let program = Program {
        java: java.to_owned(),
        class_path: jars.class_path(),
        dir: folder.below("kafka")?,
        archive: Archive::Into(written.clone()),
    };
    let options = Options { heap_mib: 192, ready_within: READY_WITHIN, ..Options::default() };
    let mut node: KafkaServer = Kafka::launch(&folder, &program, &options, |_| {})?;
    node.stop()?;
    fs::rename(&written, path).map_err(|e| doing("rename", &written, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::Progress;

    #[test]
    fn java_that_could_not_make_one_is_not_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let (java, jars) = (Path::new("/no/java"), Jars { folder: dir.path().join("jars") });
        let step = Progress::silent().step("kafka", "starting");
        assert!(matches!(ensure(java, &jars, &step), Archive::Without));
        let kept = beside(&jars.folder, &format!("{}.jsa", fingerprint(java)));
        assert_eq!(fs::read(&kept).unwrap(), b"");
        fs::write(&kept, "classes").unwrap();
        assert!(matches!(ensure(java, &jars, &step), Archive::With(path) if path == kept));
    }
}
