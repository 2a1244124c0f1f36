//! The files that decide a version: kept with it in the database, so that any process can go on with a version whose folder
//! has changed since, or is not here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use uuid::Uuid;

use crate::{
    app::project::{Project, folders},
    spec::{ConsumerSpec, SourceFile, folder_files},
};

/// Files by their paths from the project's folder: all schemas and contracts, and what the consumer's folder declares. Of
/// another consumer that emits events its manifest names their topics, so it goes along.
pub fn collect(dir: &Path, spec: &ConsumerSpec) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for folder in folders(&dir.join("schemas"))? {
        add(&folder, &below(dir, &folder), "avsc", &mut files)?;
    }
    for folder in folders(&dir.join("producers"))? {
        add(&folder, &below(dir, &folder), "toml", &mut files)?;
    }
    let own = Path::new("consumers").join(&spec.name);
    // Also one that is elsewhere, to be tried in its place.
    add_consumer(&spec.folder, &own, &mut files)?;
    for folder in folders(&dir.join("consumers"))? {
        let emits = || fs::read_to_string(folder.join("consumer.toml")).is_ok_and(|text| text.contains("[emits]"));
        if below(dir, &folder) != own && emits() {
            add_consumer(&folder, &below(dir, &folder), &mut files)?;
        }
    }
    files.sort();
    Ok(files)
}

/// The names of the consumers that have a folder.
pub fn consumers(dir: &Path) -> anyhow::Result<Vec<String>> {
    let name = |folder: PathBuf| Some(folder.file_name()?.to_string_lossy().into_owned());
    Ok(folders(&dir.join("consumers"))?.into_iter().filter_map(name).collect())
}

fn below(dir: &Path, folder: &Path) -> PathBuf {
    folder.strip_prefix(dir).unwrap_or(folder).to_owned()
}

fn add_consumer(folder: &Path, name: &Path, files: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    add(folder, name, "toml", files)?;
    add(folder, name, "sql", files)?;
    add(&folder.join("reference"), &name.join("reference"), "csv", files)
}

/// The files of a folder, as `name` calls it.
fn add(folder: &Path, name: &Path, ending: &str, files: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let found = folder_files(folder, ending).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", faults.join("\n"))
    })?;
    let named = |file: &SourceFile| name.join(file.path.file_name().unwrap_or_default()).to_string_lossy().into_owned();
    files.extend(found.into_iter().map(|file| (named(&file), file.text.into_bytes())));
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
