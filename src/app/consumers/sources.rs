//! The files that decide a version: kept with it in the database, so that any process can go on with a version whose folder
//! has changed since, or is not here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use uuid::Uuid;

use crate::{app::project::Project, spec::ConsumerSpec};

/// Files by their paths from the project's folder: all schemas and contracts, and what the consumer's folder declares. Of
/// another consumer that emits events its manifest names their topics, so it goes along.
pub fn collect(dir: &Path, spec: &ConsumerSpec) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for folder in below(&dir.join("schemas"))? {
        add(dir, &folder, &["avsc"], &mut files)?;
    }
    for folder in below(&dir.join("producers"))? {
        add(dir, &folder, &["toml"], &mut files)?;
    }
    for folder in below(&dir.join("consumers"))? {
        let own = folder == dir.join("consumers").join(&spec.name);
        if own || fs::read_to_string(folder.join("consumer.toml")).is_ok_and(|text| text.contains("[emits]")) {
            add(dir, &folder, &["toml", "sql"], &mut files)?;
            add(dir, &folder.join("reference"), &["csv"], &mut files)?;
        }
    }
    files.sort();
    Ok(files)
}

/// The names of the consumers that have a folder.
pub fn consumers(dir: &Path) -> anyhow::Result<Vec<String>> {
    let name = |folder: PathBuf| Some(folder.file_name()?.to_string_lossy().into_owned());
    Ok(below(&dir.join("consumers"))?.into_iter().filter_map(name).collect())
}

/// Folders below one, hidden ones left out; none when it is not there.
fn below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn add(dir: &Path, folder: &Path, endings: &[&str], files: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_file() && endings.contains(&ending) {
            let content = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            files.push((name, content));
        }
    }
    Ok(())
}

/// A project made of files that were kept. All of it is in memory: its folder is gone when this returns.
pub fn load(files: &[(String, Vec<u8>)]) -> anyhow::Result<Project> {
    let dir = std::env::temp_dir().join(format!("millpond-{}", Uuid::new_v4().simple()));
    let loaded = write(&dir, files).and_then(|()| Project::load(&dir));
    let _ = fs::remove_dir_all(&dir);
    loaded
}

fn write(dir: &Path, files: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    for (name, content) in files {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
