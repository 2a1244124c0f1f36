//! Bearer keys: who may send which producer's records.
//!
//! The keys file holds hashes only, one line a key: `<name> <sha256 of the key in hex> <producer,producer|*>`; blank lines and
//! lines that begin with `#` are skipped. It is read again when it changes; a faulty new version leaves the keys that were
//! in force.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant, SystemTime},
};

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use tracing::{error, info};

use super::{
    client::Client,
    problem::{NO_KEY, NOT_ALLOWED, Problem, WRONG_KEY},
};

/// How often the keys file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest key that is hashed; a longer one is not one of ours.
const MAX_KEY_BYTES: usize = 512;

type Hash = [u8; 32];

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read keys file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("keys file {path} is faulty: {}", faults.join("; "))]
    Faults { path: PathBuf, faults: Vec<String> },
    #[error(
        "listener {listener} can be reached from other machines and there are no keys: \
         set a keys file, listen on 127.0.0.1, or pass --insecure"
    )]
    Unprotected { listener: SocketAddr },
}

/// Whether, and with which keys, clients must prove who they are.
#[derive(Debug)]
pub enum Auth {
    /// Anyone who reaches the listener may do anything.
    Open,
    /// A key from the file is required, on loopback too: a proxy on this machine comes from there.
    Keys(KeysFile),
}

/// Who sends a request.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Whom limits count by: the holder of the key, or the client's address where keys are not asked for.
    pub client: Arc<Client>,
    grant: Grant,
}

/// The producer folders that a key may send for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Grant {
    All,
    Producers(Arc<[String]>),
}

impl Principal {
    /// One that may send everything.
    pub fn unrestricted(client: Arc<Client>) -> Self {
        Self { client, grant: Grant::All }
    }

    /// Whether records of the producer folder may be sent.
    pub fn may_send(&self, producer: &str) -> bool {
        match &self.grant {
            Grant::All => true,
            Grant::Producers(producers) => producers.iter().any(|granted| granted == producer),
        }
    }

    /// The problem of a record type none of whose producer folders is granted.
    pub fn refuse(&self, record_type: &str, producers: &[&str]) -> Problem {
        NOT_ALLOWED.problem(format!(
            "key {:?} may not send {record_type:?}: the type belongs to producer {}",
            self.client.name,
            producers.join(", ")
        ))
    }
}

impl Auth {
    /// Decides for a process that listens on `listeners`; an address other than loopback needs keys, or `insecure`.
    pub fn new(listeners: &[SocketAddr], keys_file: Option<&Path>, insecure: bool) -> Result<Self, Error> {
        if let Some(path) = keys_file {
            return Ok(Self::Keys(KeysFile::open(path)?));
        }
        match listeners.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
            Some(listener) if !insecure => Err(Error::Unprotected { listener: *listener }),
            _ => Ok(Self::Open),
        }
    }

    /// Says who sends the request, or the 401 to answer. Where no keys are asked for, it is whoever opened the connection.
    pub fn authenticate(&self, headers: &HeaderMap, opened_by: Option<&Arc<Client>>) -> Result<Principal, Problem> {
        let Self::Keys(file) = self else {
            return Ok(Principal::unrestricted(opened_by.map_or_else(|| Client::new("anonymous"), Arc::clone)));
        };
        let key = bearer(headers).ok_or_else(|| NO_KEY.problem("send Authorization: Bearer <key>"))?;
        let known = if key.len() > MAX_KEY_BYTES { None } else { file.keys().find(&hash(key)) };
        known.ok_or_else(|| WRONG_KEY.problem("the bearer key is not in the keys file"))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii()).filter(|key| !key.is_empty())
}

fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

/// The hash of a key as the keys file wants it: SHA-256 in lower-case hex.
pub fn hash_key(key: &str) -> String {
    hex::encode(hash(key.trim().as_bytes()))
}

/// A new key of 244 random bits.
pub fn generate_key() -> String {
    format!("mpk_{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// The keys of one version of the file.
#[derive(Debug, Default)]
struct Keys(Vec<(Hash, Principal)>);

impl Keys {
    /// Compares with every key, always, in a time that does not depend on where they differ.
    fn find(&self, wanted: &Hash) -> Option<Principal> {
        let mut found = None;
        for (hash, principal) in &self.0 {
            let difference = hash.iter().zip(wanted).fold(0, |sum, (a, b)| sum | (a ^ b));
            if std::hint::black_box(difference) == 0 {
                found = Some(principal);
            }
        }
        found.cloned()
    }

    fn parse(text: &str) -> Result<Self, Vec<String>> {
        let (mut keys, mut faults) = (Vec::<(Hash, Principal)>::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((hash, _)) if keys.iter().any(|(known, _)| *known == hash) => {
                    faults.push(format!("line {}: the same key stands on a line before", index + 1));
                }
                Ok(entry) => keys.push(entry),
                Err(fault) => faults.push(format!("line {}: {fault}", index + 1)),
            }
        }
        if faults.is_empty() { Ok(Self(keys)) } else { Err(faults) }
    }
}

fn parse_line(line: &str) -> Result<(Hash, Principal), String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [name, hash, producers] = fields[..] else {
        return Err(format!("expected `<name> <sha256 hex> <producer,producer|*>`, found {} fields", fields.len()));
    };
    let mut bytes = Hash::default();
    // The text of the field stays out of the message: somebody may have put the key itself there.
    hex::decode_to_slice(hash, &mut bytes).map_err(|_| {
        format!("the hash of key {name:?} is not 64 hex digits: printf %s \"$KEY\" | sha256sum makes one")
    })?;
    let grant = match producers {
        "*" => Grant::All,
        list => Grant::Producers(list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()),
    };
    if matches!(&grant, Grant::Producers(none) if none.is_empty()) {
        return Err(format!("key {name:?} names no producer: list some, or * for all"));
    }
    Ok((bytes, Principal { client: Client::new(name), grant }))
}

/// A keys file and the keys it held when it was last read.
#[derive(Debug)]
pub struct KeysFile {
    path: PathBuf,
    keys: RwLock<Arc<Keys>>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    looked: Instant,
    stamp: Option<(SystemTime, u64)>,
}

impl KeysFile {
    /// Reads the file for the first time; any fault in it is an error.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let stamp = stamp(path);
        let keys = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            keys: RwLock::new(Arc::new(keys)),
            seen: Mutex::new(Seen { looked: Instant::now(), stamp }),
        })
    }

    fn keys(&self) -> Arc<Keys> {
        self.reload_if_due(Instant::now());
        Arc::clone(&self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Reads the file again if a second has passed since the last look and its time or size has changed.
    fn reload_if_due(&self, now: Instant) {
        // Whoever holds the lock is looking already; the others go on with the keys there are.
        let Ok(mut seen) = self.seen.try_lock() else { return };
        if now.duration_since(seen.looked) < LOOK_EVERY {
            return;
        }
        seen.looked = now;
        let stamp = stamp(&self.path);
        if stamp == seen.stamp {
            return;
        }
        seen.stamp = stamp;
        match read(&self.path) {
            Ok(keys) => {
                info!(keys = keys.0.len(), path = %self.path.display(), "keys file read again");
                *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(keys);
            }
            Err(error) => error!(%error, "the changed keys file is not used, the former keys stay in force"),
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Keys, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Keys::parse(&text).map_err(|faults| Error::Faults { path: path.to_owned(), faults })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn with_key(key: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")).unwrap());
        headers
    }

    fn line(name: &str, key: &str, producers: &str) -> String {
        format!("{name} {} {producers}\n", hash_key(key))
    }

    #[test]
    fn key_of_the_file_names_its_principal_and_its_producers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, format!("# keys\n\n{}{}", line("ops", "one", "*"), line("airline", "two", "flights,bags")))
            .unwrap();
        let auth = Auth::new(&["0.0.0.0:80".parse().unwrap()], Some(&path), false).unwrap();
        let airline = auth.authenticate(&with_key("two"), None).unwrap();
        assert_eq!(&*airline.client.name, "airline");
        assert!(airline.may_send("bags") && !airline.may_send("crew"));
        assert!(auth.authenticate(&with_key("one"), None).unwrap().may_send("crew"));
        assert_eq!(auth.authenticate(&with_key("three"), None).unwrap_err().code, WRONG_KEY.code);
        assert_eq!(auth.authenticate(&HeaderMap::new(), None).unwrap_err().code, NO_KEY.code);
    }

    #[test]
    fn changed_file_is_read_again_and_a_faulty_one_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, line("a", "one", "*")).unwrap();
        let file = KeysFile::open(&path).unwrap();
        let later = |n: u32| Instant::now() + LOOK_EVERY * n;
        fs::write(&path, line("a", "one", "*") + &line("b", "two", "*")).unwrap();
        file.reload_if_due(later(1));
        assert!(file.keys.read().unwrap().find(&hash(b"two")).is_some());
        fs::write(&path, "nonsense").unwrap();
        file.reload_if_due(later(3));
        assert!(file.keys.read().unwrap().find(&hash(b"two")).is_some());
    }

    #[test]
    fn faults_of_a_file_come_all_at_once_and_do_not_show_keys() {
        let text = format!("a b\nname secretkey *\n{}{}", line("x", "k", ","), line("y", "k", "*").repeat(2));
        let faults = Keys::parse(&text).unwrap_err();
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(!faults.join(" ").contains("secretkey"));
    }

    #[test]
    fn listener_beyond_loopback_needs_keys_or_the_word_insecure() {
        let public = ["127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap()];
        assert!(matches!(Auth::new(&public, None, false), Err(Error::Unprotected { .. })));
        assert!(matches!(Auth::new(&public, None, true), Ok(Auth::Open)));
        let local =
            ["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap(), "[::ffff:127.0.0.1]:1".parse().unwrap()];
        assert!(matches!(Auth::new(&local, None, false), Ok(Auth::Open)));
    }

    #[test]
    fn generated_keys_differ_and_hash_to_64_digits() {
        assert_ne!(generate_key(), generate_key());
        assert_eq!(hash_key(&generate_key()).len(), 64);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
            let _ = Keys::parse(&text);
        }
    }
}
