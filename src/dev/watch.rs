//! Which of a project's folders changed since it was last asked.
//!
//! By looking, not by being told: a look at a hundred small files costs a millisecond or two, and works on every file
//! system, mounts of containers and network drives included. Must not know what is in the files: it names folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

/// How often to look. A change is told at the second look that finds it the same, so within twice this time: what an editor
/// or a checkout is still writing is not told half-done.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// The folders of a project whose sub-folders are watched.
pub const WATCHED: [&str; 3] = ["consumers", "producers", "schemas"];
/// Deeper than any project's; an end for links that lead in a circle.
const DEEPEST: usize = 6;

/// A folder `<kind>/<name>` that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Changed {
    /// One of [`WATCHED`].
    pub kind: &'static str,
    /// The folder's name.
    pub name: String,
    /// Whether it is there; `false` when it has been removed.
    pub exists: bool,
}

/// A watch over one project.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    /// What was told last.
    told: Snapshot,
    /// What the last look found.
    seen: Snapshot,
}

type Folder = (&'static str, String);
type Snapshot = BTreeMap<Folder, BTreeMap<PathBuf, Stamp>>;

#[derive(Debug, Clone)]
struct Stamp {
    modified: SystemTime,
    size: u64,
    content: [u8; 32],
}

impl PartialEq for Stamp {
    /// The content decides: a file that is saved unchanged, or checked out again, has not changed.
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

impl Watch {
    /// Begins to watch the project in `root`, from what is there now.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        let now = look(&root, &Snapshot::new())?;
        Ok(Self { root, told: now.clone(), seen: now })
    }

    /// Looks, and names the folders that changed since they were last named and have come to rest since the last look.
    /// Blocks for as long as reading the changed files takes.
    pub fn changes(&mut self) -> io::Result<Vec<Changed>> {
        let now = look(&self.root, &self.seen)?;
        let folders: BTreeSet<Folder> = now.keys().chain(self.told.keys()).cloned().collect();
        let mut changed = Vec::new();
        for folder in folders {
            let found = now.get(&folder);
            if found != self.seen.get(&folder) || found == self.told.get(&folder) {
                continue;
            }
            changed.push(Changed { kind: folder.0, name: folder.1.clone(), exists: found.is_some() });
            match found {
                Some(files) => self.told.insert(folder, files.clone()),
                None => self.told.remove(&folder),
            };
        }
        self.seen = now;
        Ok(changed)
    }
}

fn look(root: &Path, before: &Snapshot) -> io::Result<Snapshot> {
    let mut snapshot = Snapshot::new();
    for kind in WATCHED {
        for (name, path) in entries(&root.join(kind))? {
            if path.is_dir() {
                let folder = (kind, name);
                let mut files = BTreeMap::new();
                read(&path, before.get(&folder), &mut files, DEEPEST)?;
                snapshot.insert(folder, files);
            }
        }
    }
    Ok(snapshot)
}

fn read(
    dir: &Path,
    before: Option<&BTreeMap<PathBuf, Stamp>>,
    files: &mut BTreeMap<PathBuf, Stamp>,
    deeper: usize,
) -> io::Result<()> {
    for (_, path) in entries(dir)? {
        // A file may go between the listing and the look at it: the next look finds it gone.
        let Some(found) = present(fs::metadata(&path))? else { continue };
        if found.is_dir() {
            if deeper > 0 {
                read(&path, before, files, deeper - 1)?;
            }
            continue;
        }
        let (modified, size) = (found.modified()?, found.len());
        let known = before.and_then(|files| files.get(&path)).filter(|s| s.modified == modified && s.size == size);
        let content = match known {
            Some(stamp) => stamp.content,
            None => match present(fs::read(&path))? {
                Some(bytes) => Sha256::digest(bytes).into(),
                None => continue,
            },
        };
        files.insert(path, Stamp { modified, size, content });
    }
    Ok(())
}

/// The entries of a folder that may not be there, without hidden files and what editors keep beside those being edited.
fn entries(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let Some(entries) = present(fs::read_dir(dir))? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(['.', '#']) && !name.ends_with('~') {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> (tempfile::TempDir, Watch) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "consumers/a/a.sql", "select 1");
        let watch = Watch::new(dir.path()).unwrap();
        (dir, watch)
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn changed(kind: &'static str, name: &str, exists: bool) -> Changed {
        Changed { kind, name: name.into(), exists }
    }

    #[test]
    fn changes_of_edited_added_and_removed_folders_are_told_once_they_rest() {
        let (dir, mut watch) = project();
        assert_eq!(watch.changes().unwrap(), []);
        write(dir.path(), "consumers/a/a.sql", "select 2");
        write(dir.path(), "schemas/Ordered/v1.avsc", "{}");
        assert_eq!(watch.changes().unwrap(), [], "still being written, for all that one look can tell");
        let expected = [changed("consumers", "a", true), changed("schemas", "Ordered", true)];
        assert_eq!(watch.changes().unwrap(), expected);
        assert_eq!(watch.changes().unwrap(), []);
        fs::remove_dir_all(dir.path().join("consumers")).unwrap();
        assert_eq!(watch.changes().unwrap(), []);
        assert_eq!(watch.changes().unwrap(), [changed("consumers", "a", false)]);
    }

    #[test]
    fn changes_of_files_saved_unchanged_and_of_editors_files_are_none() {
        let (dir, mut watch) = project();
        write(dir.path(), "consumers/a/a.sql", "select 1");
        write(dir.path(), "consumers/a/.a.sql.swp", "x");
        write(dir.path(), "consumers/a/a.sql~", "x");
        assert_eq!(watch.changes().unwrap(), []);
        assert_eq!(watch.changes().unwrap(), []);
    }

    #[test]
    fn changes_taken_back_before_they_rest_are_none() {
        let (dir, mut watch) = project();
        write(dir.path(), "consumers/a/new.sql", "select 1");
        assert_eq!(watch.changes().unwrap(), []);
        fs::remove_file(dir.path().join("consumers/a/new.sql")).unwrap();
        assert_eq!(watch.changes().unwrap(), []);
        assert_eq!(watch.changes().unwrap(), []);
    }
}
