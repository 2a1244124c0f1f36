//! The text files of a folder, read once.

use std::path::{Path, PathBuf};

use super::SpecFault;

/// One text file of a folder, with its path for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    pub path: PathBuf,
    /// File name without its ending: `punctuality` of `punctuality.sql`.
    pub stem: String,
    pub text: String,
}

impl SourceFile {
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let path = path.into();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self { path, stem, text: text.into() }
    }
}

/// The files of `dir` that end in `.{ending}`, by name; none when there is no such folder. Hidden files are left out.
///
/// # Errors
/// A fault per file that cannot be read or is not UTF-8.
pub fn folder_files(dir: &Path, ending: &str) -> Result<Vec<SourceFile>, Vec<SpecFault>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(vec![SpecFault::new(dir, None, format!("the folder cannot be read: {error}"))]),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| {
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        !hidden && path.is_file() && path.extension().is_some_and(|found| found == ending)
    });
    paths.sort();
    let (mut files, mut faults) = (Vec::new(), Vec::new());
    for path in paths {
        match std::fs::read_to_string(&path) {
            Ok(text) => files.push(SourceFile::new(path, text)),
            Err(error) => faults.push(SpecFault::new(path, None, format!("the file cannot be read: {error}"))),
        }
    }
    if faults.is_empty() { Ok(files) } else { Err(faults) }
}
