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
    /// What the last look could not read, and why.
    unreadable: Unreadable,
    /// Those of them that were told.
    unreadable_told: BTreeSet<PathBuf>,
}

type Folder = (&'static str, String);
type Files = BTreeMap<PathBuf, Stamp>;
type Snapshot = BTreeMap<Folder, Files>;
type Unreadable = BTreeMap<PathBuf, io::Error>;

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
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let Look { found, unreadable, .. } = Look::at(&root, &Snapshot::new());
        Self { root, told: found.clone(), seen: found, unreadable, unreadable_told: BTreeSet::new() }
    }

    /// Looks, and names the folders that changed since they were last named and have come to rest since the last look.
    /// Blocks for as long as reading the changed files takes. What cannot be read is as if it were not there.
    pub fn changes(&mut self) -> Vec<Changed> {
        let Look { found: now, unreadable, .. } = Look::at(&self.root, &self.seen);
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
        self.unreadable = unreadable;
        changed
    }

    /// What the last look could not read, with the reason; each is told once for as long as it lasts.
    pub fn newly_unreadable(&mut self) -> Vec<String> {
        self.unreadable_told.retain(|path| self.unreadable.contains_key(path));
        let new = self.unreadable.iter().filter(|(path, _)| self.unreadable_told.insert((*path).clone()));
        new.map(|(path, error)| format!("{}: {error}", path.display())).collect()
    }
}

/// One look at a project. An entry that cannot be read does not keep the others from being seen.
struct Look<'a> {
    before: &'a Snapshot,
    found: Snapshot,
    unreadable: Unreadable,
}

impl<'a> Look<'a> {
    fn at(root: &Path, before: &'a Snapshot) -> Self {
        let mut look = Self { before, found: Snapshot::new(), unreadable: Unreadable::new() };
        for kind in WATCHED {
            for (name, path) in look.entries(&root.join(kind)) {
                if path.is_dir() {
                    let folder = (kind, name);
                    let mut files = Files::new();
                    look.read(&path, &folder, &mut files, DEEPEST);
                    look.found.insert(folder, files);
                }
            }
        }
        look
    }

    fn read(&mut self, dir: &Path, folder: &Folder, files: &mut Files, deeper: usize) {
        for (_, path) in self.entries(dir) {
            let Some(found) = self.readable(&path, fs::metadata(&path)) else { continue };
            if found.is_dir() {
                if deeper > 0 {
                    self.read(&path, folder, files, deeper - 1);
                }
                continue;
            }
            // A pipe would be waited at for whoever writes to it.
            if !found.is_file() {
                continue;
            }
            let known = self.before.get(folder).and_then(|files| files.get(&path));
            let stamp = self.readable(&path, stamp(&path, &found, known));
            files.extend(stamp.map(|stamp| (path, stamp)));
        }
    }

    /// The entries of a folder that may not be there, without hidden files and what editors keep beside those being
    /// edited.
    fn entries(&mut self, dir: &Path) -> Vec<(String, PathBuf)> {
        let listed = fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let entries = self.readable(dir, listed).unwrap_or_default();
        let named = entries.into_iter().map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()));
        named.filter(|(name, _)| !name.starts_with(['.', '#']) && !name.ends_with('~')).collect()
    }

    /// A file may go between the listing and the look at it: the next look finds it gone.
    fn readable<T>(&mut self, path: &Path, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.unreadable.insert(path.to_owned(), error);
                }
                None
            }
        }
    }
}

/// Reads the file only when its time or size is not what it was.
fn stamp(path: &Path, found: &fs::Metadata, known: Option<&Stamp>) -> io::Result<Stamp> {
    let (modified, size) = (found.modified()?, found.len());
    let content = match known.filter(|known| known.modified == modified && known.size == size) {
        Some(known) => known.content,
        None => Sha256::digest(fs::read(path)?).into(),
    };
    Ok(Stamp { modified, size, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> (tempfile::TempDir, Watch) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "consumers/a/a.sql", "select 1");
        let watch = Watch::new(dir.path());
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
        assert_eq!(watch.changes(), []);
        write(dir.path(), "consumers/a/a.sql", "select 2");
        write(dir.path(), "schemas/Ordered/v1.avsc", "{}");
        assert_eq!(watch.changes(), [], "still being written, for all that one look can tell");
        let expected = [changed("consumers", "a", true), changed("schemas", "Ordered", true)];
        assert_eq!(watch.changes(), expected);
        assert_eq!(watch.changes(), []);
        fs::remove_dir_all(dir.path().join("consumers")).unwrap();
        assert_eq!(watch.changes(), []);
        assert_eq!(watch.changes(), [changed("consumers", "a", false)]);
    }

    #[test]
    fn changes_of_files_saved_unchanged_and_of_editors_files_are_none() {
        let (dir, mut watch) = project();
        write(dir.path(), "consumers/a/a.sql", "select 1");
        write(dir.path(), "consumers/a/.a.sql.swp", "x");
        write(dir.path(), "consumers/a/a.sql~", "x");
        assert_eq!(watch.changes(), []);
        assert_eq!(watch.changes(), []);
    }

    #[test]
    fn changes_taken_back_before_they_rest_are_none() {
        let (dir, mut watch) = project();
        write(dir.path(), "consumers/a/new.sql", "select 1");
        assert_eq!(watch.changes(), []);
        fs::remove_file(dir.path().join("consumers/a/new.sql")).unwrap();
        assert_eq!(watch.changes(), []);
        assert_eq!(watch.changes(), []);
    }

    #[test]
    fn entries_that_cannot_be_read_are_named_once_and_hide_no_others() {
        use std::os::unix::{fs::symlink, net::UnixListener};

        let (dir, mut watch) = project();
        let in_a_circle = dir.path().join("consumers/a/loop");
        symlink("loop", &in_a_circle).unwrap();
        // Like a pipe, it is no file, and nobody's fault.
        let _socket = UnixListener::bind(dir.path().join("consumers/a/socket")).unwrap();
        write(dir.path(), "consumers/a/a.sql", "select 2");
        watch.changes();
        assert_eq!(watch.changes(), [changed("consumers", "a", true)]);
        let told = watch.newly_unreadable();
        assert!(matches!(told.as_slice(), [one] if one.starts_with(in_a_circle.to_str().unwrap())), "{told:?}");
        watch.changes();
        assert_eq!(watch.newly_unreadable(), Vec::<String>::new());
        fs::remove_file(&in_a_circle).unwrap();
        watch.changes();
        assert_eq!(watch.newly_unreadable(), Vec::<String>::new());
        symlink("loop", &in_a_circle).unwrap();
        watch.changes();
        assert_eq!(watch.newly_unreadable().len(), 1, "it came back");
    }
}
