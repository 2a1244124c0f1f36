//! Which Postgres is installed: Debian, RPM, Alpine, Homebrew and the Mac app all put its programs somewhere else.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dev::{Error, children, sorted_glob};

/// The oldest major version that will do.
const OLDEST: u32 = 15;
/// Newest first within each; `postgres` itself is seldom on the path.
const USUAL: [&str; 7] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/bin",
];

/// A folder with `postgres` and `initdb` of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The folder.
    pub bin: PathBuf,
    /// The major version.
    pub major: u32,
}

impl Install {
    /// The install to use: the one that matches existing data, else the newest; `named` is looked at before the usual places.
    pub fn find(named: Option<&Path>, data: &Path) -> Result<Self, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = named
            .map(Path::to_owned)
            .into_iter()
            .chain(USUAL.iter().flat_map(|pattern| sorted_glob(pattern)))
            .chain(std::env::split_paths(&path));
        let mut found: Vec<Self> = folders.filter_map(|bin| Self::at(&bin)).collect();
        found.retain(|install| install.major >= OLDEST);
        let Ok(version) = std::fs::read_to_string(data.join("PG_VERSION")) else {
            // The first of the highest: a named one wins over an equal one.
            found.sort_by_key(|install| (named != Some(install.bin.as_path()), std::cmp::Reverse(install.major)));
            return found.into_iter().next().ok_or_else(missing);
        };
        let version = version.trim();
        if found.is_empty() {
            return Err(missing());
        }
        let installed = found.iter().map(|install| install.major.to_string()).collect::<Vec<_>>();
        found.into_iter().find(|install| install.major.to_string() == version).ok_or_else(|| Error::DataVersion {
            path: data.to_owned(),
            found: version.to_owned(),
            installed: installed.join(", "),
        })
    }

    fn at(bin: &Path) -> Option<Self> {
        let postgres = bin.join("postgres");
        if !postgres.is_file() || !bin.join("initdb").is_file() {
            return None;
        }
        let mut version = Command::new(postgres);
        version.arg("--version");
        let said = children::run(version, "postgres --version").ok()?;
        Some(Self { bin: bin.to_owned(), major: major(&said)? })
    }
}

fn missing() -> Error {
    Error::Missing {
        what: format!("Postgres {OLDEST} or later (initdb and postgres)"),
        hint: "run .ci/bootstrap in a clone, install it (apt install postgresql, brew install postgresql@17), \
               or name one that runs elsewhere with --postgres"
            .into(),
    }
}

/// `postgres (PostgreSQL) 15.14 (Debian …)`, `… 18beta1`.
fn major(said: &str) -> Option<u32> {
    let version = said.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_of_version_output_is_read() {
        assert_eq!(major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("something else"), None);
    }

    #[test]
    fn find_with_data_of_another_version_says_which_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("PG_VERSION"), "9\n").unwrap();
        let error = Install::find(None, dir.path()).unwrap_err().to_string();
        assert!(error.contains("is Postgres 9's"), "{error}");
    }
}
