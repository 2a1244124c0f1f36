//! Which Java runs Kafka: the first of the usual places that is new enough.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dev::{Error, sorted_glob};

/// Kafka 4 needs this major version, or a later one.
const OLDEST: u32 = 17;

/// A `java` of version 17 or later.
pub fn find() -> Result<PathBuf, Error> {
    let home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("java")).find(|java| java.is_file());
    let usual = [
        "/usr/lib/jvm/*/bin/java",
        "/opt/homebrew/opt/openjdk*/bin/java",
        "/usr/local/opt/openjdk*/bin/java",
        "/Library/Java/JavaVirtualMachines/*/Contents/Home/bin/java",
    ];
    home.into_iter()
        .chain(on_path)
        .chain(usual.iter().flat_map(|pattern| sorted_glob(pattern)))
        .find(|java| major(java).is_some_and(|major| major >= OLDEST))
        .ok_or_else(|| Error::Missing {
            what: format!("a Java runtime, version {OLDEST} or later,"),
            hint: "run .ci/bootstrap in a clone, install one (apt install openjdk-17-jre-headless, brew install openjdk), \
                   or name a Kafka that runs elsewhere with --kafka"
                .into(),
        })
}

/// The major version, from the `release` file beside it (free) or from the program itself (a twentieth of a second).
fn major(java: &Path) -> Option<u32> {
    let real = java.canonicalize().ok()?;
    let release = real.parent()?.parent()?.join("release");
    let told = std::fs::read_to_string(release).ok().and_then(|text| parse(&text));
    told.or_else(|| {
        let out = Command::new(java).arg("-version").output().ok().filter(|out| out.status.success())?;
        parse(&String::from_utf8_lossy(&out.stderr))
    })
}

/// The first quoted version: `JAVA_VERSION="17.0.15"` and `openjdk version "17.0.15"` alike; `1.8` is 1.
fn parse(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.starts_with("JAVA_VERSION=") || line.contains(" version \""))?;
    let version = line.split('"').nth(1)?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_of_release_file_and_of_version_output_gives_major() {
        assert_eq!(parse("IMPLEMENTOR=\"x\"\nJAVA_VERSION=\"17.0.15\"\n"), Some(17));
        assert_eq!(parse("openjdk version \"25\" 2025-09-16\n"), Some(25));
        assert_eq!(parse("java version \"1.8.0_1\"\n"), Some(1));
        assert_eq!(parse("The operation couldn't be completed"), None);
    }
}
