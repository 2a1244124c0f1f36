//! As whom Postgres runs. It refuses root, and root is what a person in a container often is.
//!
//! An ordinary user runs it directly. Root runs it in a user namespace, where it is another user to itself while its files
//! stay root's: so the data can lie in a clone below root's own home, which no other account may enter. Where namespaces are
//! refused, it runs as the account `postgres`, with its data where that account can reach it.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};
use sha2::{Digest as _, Sha256};

use crate::dev::folder::create_private;
use crate::dev::{Error, children::os, doing};

/// Longest path of a Unix socket, in bytes, on the system with the shortest (macOS; Linux takes 107).
const LONGEST_SOCKET_PATH: usize = 103;

/// As whom, and in which folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What becomes the program: `unshare … --`, or nothing.
    pub wrapper: Vec<OsString>,
    /// User and group to become.
    pub ids: Option<(u32, u32)>,
    /// Folder for the data, owned by whoever runs it.
    pub home: PathBuf,
    /// Whether `home` lies outside the data folder, which is to be said aloud.
    pub elsewhere: bool,
}

impl Account {
    /// The account to run `dir`'s server as. `no_namespace` behaves as if namespaces were refused.
    pub fn choose(dir: &Path, no_namespace: bool) -> Result<Self, Error> {
        let direct = Self { wrapper: Vec::new(), ids: None, home: dir.to_owned(), elsewhere: false };
        if !geteuid().is_root() {
            return Ok(direct);
        }
        let elsewhere = home_elsewhere(dir);
        // Data that was begun elsewhere is continued there.
        if !no_namespace && !elsewhere.exists() {
            let wrapper = namespace();
            if works(&wrapper) {
                return Ok(Self { wrapper, ..direct });
            }
        }
        let user = account("postgres").ok_or_else(|| Error::Missing {
            what: "an account that Postgres can run as (it refuses root, and user namespaces are refused here)".into(),
            hint: "run millpond as an ordinary user, or create the account `postgres`".into(),
        })?;
        create_owned(&elsewhere, user)?;
        Ok(Self { wrapper: Vec::new(), ids: Some(user), home: elsewhere, elsewhere: true })
    }

    /// A command that runs as this account, in its folder.
    pub fn command(&self, program: &Path) -> Command {
        let mut words = self.wrapper.clone();
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&self.home).env("LC_ALL", "C");
        if let Some((user, group)) = self.ids {
            use std::os::unix::process::CommandExt as _;
            command.uid(user).gid(group);
        }
        command
    }

    /// Gives a file that this process wrote to the account.
    pub fn give(&self, path: &Path) -> Result<(), Error> {
        match self.ids {
            Some((user, group)) => chown(path, Some(user), Some(group)).map_err(|e| doing("give away", path, e)),
            None => Ok(()),
        }
    }

    /// A folder for the socket whose path is short enough: the server's own, else one below `/tmp`.
    pub fn socket_folder(&self) -> Result<PathBuf, Error> {
        if self.home.join(".s.PGSQL.65535").as_os_str().len() <= LONGEST_SOCKET_PATH {
            return Ok(self.home.clone());
        }
        let folder = short_socket_folder(&self.home);
        create_private(&folder)?;
        // Anybody may create a name there: one that is not ours is not used.
        let found = folder.symlink_metadata().map_err(|e| doing("look at", &folder, e))?;
        if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(doing("use, for it is not ours alone,", &folder, std::io::ErrorKind::PermissionDenied.into()));
        }
        Ok(folder)
    }
}

/// Where the data goes that must not lie in `dir`.
pub fn home_elsewhere(dir: &Path) -> PathBuf {
    Path::new("/var/lib/millpond-dev").join(digest(dir))
}

/// Where the socket goes when the path to `home` is too long for one.
pub fn short_socket_folder(home: &Path) -> PathBuf {
    PathBuf::from(format!("/tmp/millpond-{}-{}", geteuid(), digest(home)))
}

fn digest(path: &Path) -> String {
    hex::encode(Sha256::digest(path.as_os_str().as_encoded_bytes()))[..16].to_owned()
}

/// An account that exists: initdb wants to know its own name.
fn namespace() -> Vec<OsString> {
    let (user, group) = account("postgres").or_else(|| account("nobody")).unwrap_or((65534, 65534));
    let (user, group) = (format!("--map-user={user}"), format!("--map-group={group}"));
    os([&"unshare", &"--user", &user, &group, &"--"])
}

fn account(name: &str) -> Option<(u32, u32)> {
    let user = User::from_name(name).ok()??;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

fn works(wrapper: &[OsString]) -> bool {
    Command::new(&wrapper[0])
        .args(&wrapper[1..])
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn create_owned(home: &Path, (user, group): (u32, u32)) -> Result<(), Error> {
    let parent = home.parent().unwrap_or(home);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|e| doing("create the folder", parent, e))?;
    create_private(home)?;
    chown(home, Some(user), Some(group)).map_err(|e| doing("give away", home, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_folder_of_deep_home_is_short_and_private() {
        let deep = PathBuf::from(format!("/tmp/{}", "deep/".repeat(30)));
        let account = Account { wrapper: Vec::new(), ids: None, home: deep, elsewhere: false };
        let folder = account.socket_folder().unwrap();
        assert!(folder.join(".s.PGSQL.65535").as_os_str().len() <= LONGEST_SOCKET_PATH);
        assert_eq!(folder.symlink_metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn socket_folder_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let account = Account {
            wrapper: Vec::new(),
            ids: None,
            home: PathBuf::from(format!("/tmp/{}", "other/".repeat(30))),
            elsewhere: false,
        };
        let folder = account.socket_folder().unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(account.socket_folder().is_err());
        std::fs::remove_dir(folder).unwrap();
    }
}
