//! Layers become one value per key; every fault is collected before any is reported.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use figment::{
    Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Value},
};

use super::{
    Config, Consume, Http, Ingest, Kafka, Log, Postgres, Project, Publish, Serve,
    keys::{self, KEYS, Key, Kind},
    units,
};
use crate::domain::nearest;

/// The prefix of environment variables; two underscores stand for a dot.
const PREFIX: &str = "MILLPOND__";

/// The source of values that a running `dev` gives.
pub const DEV: &str = "millpond dev, running here";

/// Where values may come from.
#[derive(Debug, Default, Clone)]
pub struct Sources {
    /// `--config`; without it `millpond.toml` in the current folder, if it is there.
    pub file: Option<PathBuf>,
    /// Environment variables, all of them; those without our prefix are ignored.
    pub environment: Vec<(String, String)>,
    /// Where the servers of a `dev` are that runs in this project; above the file, below the environment.
    pub dev: Vec<(String, String)>,
    /// `--set key=value` and the flags that are short for it.
    pub flags: Vec<(String, String)>,
}

/// One key as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    /// As printed: secrets are redacted.
    pub shown: String,
    pub source: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the configuration has {} fault{}:", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|fault| writeln!(f, "  {fault}"))
    }
}

impl std::error::Error for Faults {}

/// Reads all layers.
pub fn load(sources: &Sources) -> Result<Config, Faults> {
    let mut faults = Vec::new();
    let mut values = Values::defaults();
    match &sources.file {
        Some(file) if !file.exists() => faults.push(format!("--config {}: there is no such file", file.display())),
        Some(file) => values.file(file, &mut faults),
        None if Path::new("millpond.toml").exists() => values.file(Path::new("millpond.toml"), &mut faults),
        None => {}
    }
    for (name, value) in &sources.dev {
        values.set(name, value.clone(), DEV.to_owned(), &mut faults);
    }
    for (variable, value) in &sources.environment {
        if let Some(meant) = one_underscore(variable) {
            faults.push(format!("environment {variable} is not read: two underscores stand for a dot; write {meant}"));
        } else if let Some(name) = variable.strip_prefix(PREFIX) {
            let name = name.to_lowercase().replace("__", ".");
            values.set(&name, value.clone(), format!("environment {variable}"), &mut faults);
        }
    }
    for (name, value) in &sources.flags {
        values.set(name, value.clone(), "flag".to_owned(), &mut faults);
    }
    let config = values.typed(&mut faults);
    match config {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(Faults(faults)),
    }
}

/// The variable that is meant by one with single underscores, if that names a key.
fn one_underscore(variable: &str) -> Option<String> {
    let rest = variable.strip_prefix("MILLPOND_").filter(|rest| !rest.starts_with('_'))?;
    let name = rest.to_lowercase().replacen('_', ".", 1);
    keys::find(&name).map(|key| keys::variable(key.name))
}

/// Text and source per key.
struct Values(BTreeMap<String, (String, String)>);

impl Values {
    fn defaults() -> Self {
        let defaults = KEYS.iter().filter(|k| k.kind != Kind::Passthrough);
        Self(defaults.map(|k| (k.name.to_owned(), (k.default.to_owned(), "default".to_owned()))).collect())
    }

    fn set(&mut self, name: &str, value: String, source: String, faults: &mut Vec<String>) {
        if let Some(instead) = keys::not_yet(name) {
            faults.push(format!("{source}: {name} is not enforced yet; {instead}"));
            return;
        }
        if keys::find(name).is_none() {
            let known = KEYS.iter().map(|k| k.name);
            let hint = nearest(name, known).map_or(String::new(), |near| format!("; did you mean {near}?"));
            faults.push(format!("{source}: there is no key {name}{hint}"));
            return;
        }
        self.0.insert(name.to_owned(), (value, source));
    }

    fn file(&mut self, path: &Path, faults: &mut Vec<String>) {
        let data = Toml::file_exact(path);
        match data.data() {
            Err(error) => faults.push(format!("{}: {error}", path.display())),
            Ok(mut profiles) => {
                let top = profiles.remove(&Profile::Default).unwrap_or_default();
                self.dict("", top, &format!("file {}", path.display()), faults);
            }
        }
    }

    fn dict(&mut self, prefix: &str, dict: Dict, source: &str, faults: &mut Vec<String>) {
        for (name, value) in dict {
            let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                Value::Dict(_, inner) => self.dict(&name, inner, source, faults),
                value => match scalar(&value) {
                    Some(text) => self.set(&name, text, source.to_owned(), faults),
                    None => faults.push(format!("{source}: {name} is a list; expected one value")),
                },
            }
        }
    }

    /// Checks every value against its key.
    fn typed(&self, faults: &mut Vec<String>) -> Option<Config> {
        for (name, (value, source)) in &self.0 {
            if let Some(key) = keys::find(name)
                && let Some(expected) = mismatch(key, value)
            {
                let shown = if key.secret { "what was given" } else { value };
                faults.push(format!("{source}: {name}: expected {expected}, got `{shown}`"));
            }
        }
        let text = |name: &str| self.0.get(name).map(|(value, _)| value.clone()).unwrap_or_default();
        let optional = |name: &str| Some(text(name)).filter(|t| !t.is_empty());
        let config = Config {
            project: Project { dir: text("project.dir").into() },
            kafka: Kafka {
                brokers: text("kafka.brokers"),
                client_id: text("kafka.client_id"),
                replication: text("kafka.replication").parse().ok().filter(|n| *n > 0),
                client: self.below("kafka.client."),
            },
            postgres: Postgres { url: text("postgres.url") },
            http: Http {
                listen: text("http.listen").parse().ok()?,
                keys_file: optional("http.keys_file").map(PathBuf::from),
                insecure: text("http.insecure") == "true",
                max_connections: text("http.max_connections").parse().ok()?,
                max_connections_per_client: text("http.max_connections_per_client").parse().ok()?,
                max_requests: text("http.max_requests").parse().ok()?,
                head_timeout: units::duration(&text("http.head_timeout"))?,
                idle_timeout: units::duration(&text("http.idle_timeout"))?,
                write_timeout: units::duration(&text("http.write_timeout"))?,
                max_head: units::bytes(&text("http.max_head"))?,
                http2_streams: text("http.http2_streams").parse().ok()?,
                http2_resets: text("http.http2_resets").parse().ok()?,
                http2_ping: units::duration(&text("http.http2_ping"))?,
                drain: units::duration(&text("http.drain"))?,
            },
            ingest: Ingest {
                max_body: units::bytes(&text("ingest.max_body"))?,
                max_record: units::bytes(&text("ingest.max_record"))?,
                in_flight: units::bytes(&text("ingest.in_flight"))?,
                request_memory: units::bytes(&text("ingest.request_memory"))?,
                window: units::bytes(&text("ingest.window"))?,
                turn_timeout: units::duration(&text("ingest.turn_timeout"))?,
                max_strict: units::bytes(&text("ingest.max_strict"))?,
                max_ratio: text("ingest.max_ratio").parse().ok()?,
                body_patience: units::duration(&text("ingest.body_patience"))?,
                body_rate: units::bytes(&text("ingest.body_rate"))?,
                linger: units::duration(&text("ingest.linger"))?,
            },
            consume: Consume {
                connections: text("consume.connections").parse().ok()?,
                max_records: text("consume.max_records").parse().ok()?,
                max_bytes: units::bytes(&text("consume.max_bytes"))?,
                max_age: units::duration(&text("consume.max_age"))?,
            },
            publish: Publish { transactions: text("publish.transactions") },
            serve: Serve {
                connections: text("serve.connections").parse().ok()?,
                statement_timeout: units::duration(&text("serve.statement_timeout"))?,
                max_wait: units::duration(&text("serve.max_wait"))?,
                default_limit: text("serve.default_limit").parse().ok()?,
                max_limit: text("serve.max_limit").parse().ok()?,
            },
            log: Log { format: text("log.format"), level: text("log.level") },
            settings: self.settings(),
        };
        contradictions(&config, faults);
        Some(config)
    }

    fn below(&self, prefix: &str) -> BTreeMap<String, String> {
        let below = self.0.iter().filter_map(|(name, (value, _))| Some((name.strip_prefix(prefix)?, value)));
        below.map(|(name, value)| (name.to_owned(), value.clone())).collect()
    }

    fn settings(&self) -> Vec<Setting> {
        let shown = |name: &str, value: &str| match keys::find(name) {
            Some(key) if key.secret => redact_url(value),
            Some(Key { kind: Kind::Passthrough, .. }) if is_secret(name) => "<redacted>".to_owned(),
            _ => value.to_owned(),
        };
        self.0
            .iter()
            .map(|(name, (value, source))| Setting {
                name: name.clone(),
                shown: shown(name, value),
                source: source.clone(),
            })
            .collect()
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, value) => Some(value.to_string()),
        Value::Num(_, number) => Some(match number.to_i128() {
            Some(whole) => whole.to_string(),
            None => number.to_f64().map(|f| f.to_string()).unwrap_or_default(),
        }),
        _ => None,
    }
}

/// What a key expects, if the value is not that.
fn mismatch(key: &Key, value: &str) -> Option<String> {
    let (fits, expected) = match key.kind {
        Kind::Text => (!value.is_empty(), "text".to_owned()),
        Kind::OptionalText | Kind::Passthrough => (true, String::new()),
        Kind::Address => (value.parse::<SocketAddr>().is_ok(), "an address and port such as 127.0.0.1:8080".to_owned()),
        Kind::Duration => (units::duration(value).is_some(), "a duration such as 20ms, 10s or 2min".to_owned()),
        Kind::Bytes => (units::bytes(value).is_some(), "a size such as 512KiB or 4MiB".to_owned()),
        Kind::Count => {
            let least = u32::from(key.name != "kafka.replication");
            (value.parse::<u32>().is_ok_and(|n| n >= least), format!("a whole number from {least}"))
        }
        Kind::Bool => (matches!(value, "true" | "false"), "true or false".to_owned()),
        Kind::Word(words) => (words.contains(&value), format!("one of {}", words.join(", "))),
    };
    (!fits).then_some(expected)
}

fn contradictions(config: &Config, faults: &mut Vec<String>) {
    let http = &config.http;
    if !http.listen.ip().is_loopback() && http.keys_file.is_none() && !http.insecure {
        faults.push(format!(
            "http.listen {} can be reached from other machines: set http.keys_file, or http.insecure = true to allow \
             it without keys",
            http.listen
        ));
    }
    if config.serve.default_limit > config.serve.max_limit {
        faults.push("serve.default_limit is above serve.max_limit".to_owned());
    }
    if config.ingest.window > config.ingest.in_flight {
        faults.push(
            "ingest.window is above ingest.in_flight: clients would be refused instead of taking turns".to_owned(),
        );
    }
    if config.ingest.max_record > config.ingest.in_flight {
        faults.push("ingest.max_record is above ingest.in_flight: such a record could never be sent".to_owned());
    }
}

fn is_secret(name: &str) -> bool {
    ["password", "secret", "key.pem", "jaas", "token", "credentials"].iter().any(|word| name.contains(word))
}

/// Keeps host and database, drops the password.
fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "<redacted>".to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{scheme}://{user}:<redacted>@{host}"),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(flags: &[(&str, &str)]) -> Result<Config, Faults> {
        let flags = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load(&Sources { flags, ..Sources::default() })
    }

    #[test]
    fn defaults_are_in_force_without_any_source() {
        let config = with(&[]).unwrap();
        assert_eq!(config.consume.max_records, 5000);
        assert!(config.settings.iter().all(|s| s.source == "default"));
    }

    #[test]
    fn every_fault_is_reported_at_once_with_its_place() {
        let faults = with(&[("http.lsiten", "x"), ("http.drain", "soon"), ("log.format", "xml")]).unwrap_err().0;
        assert_eq!(
            faults,
            [
                "flag: there is no key http.lsiten; did you mean http.listen?",
                "flag: http.drain: expected a duration such as 20ms, 10s or 2min, got `soon`",
                "flag: log.format: expected one of auto, text, json, got `xml`",
            ]
        );
    }

    #[test]
    fn later_layers_win_and_say_where_a_value_came_from() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        std::fs::write(
            &file,
            "[http]\nlisten = \"127.0.0.1:1\"\nmax_connections = 7\n[kafka.client]\n\"sasl.password\" = \"hush\"\n",
        )
        .unwrap();
        let config = load(&Sources {
            file: Some(file),
            dev: Vec::new(),
            environment: vec![("MILLPOND__HTTP__LISTEN".into(), "127.0.0.1:2".into()), ("HOME".into(), "/".into())],
            flags: vec![("postgres.url".into(), "postgres://u:pw@h/d".into())],
        })
        .unwrap();
        assert_eq!(config.http.listen.port(), 2);
        assert_eq!(config.http.max_connections, 7);
        assert_eq!(config.kafka.client["sasl.password"], "hush");
        let printed = format!("{:?}{config:?}", config.settings);
        assert!(!printed.contains("hush") && !printed.contains(":pw@"), "{printed}");
    }

    #[test]
    fn an_open_listener_without_keys_is_refused() {
        let faults = with(&[("http.listen", "0.0.0.0:8080")]).unwrap_err().0;
        assert!(faults[0].contains("http.keys_file"), "{faults:?}");
        assert!(with(&[("http.listen", "0.0.0.0:8080"), ("http.insecure", "true")]).is_ok());
    }
}
