//! `docker compose up` is the same as `make dev`: read from the file, compared with what `millpond dev` uses.

use std::collections::BTreeMap;

use millpond::dev::{kafka, postgres};

const FILE: &str = include_str!("../../docker-compose.yml");

/// Values by path, `services.kafka.image`; the items of a list are several values of one path.
type Values = BTreeMap<String, Vec<String>>;

#[test]
fn compose_kafka_has_the_settings_of_dev() {
    let file = parse(FILE);
    for (name, value) in kafka::settings() {
        let variable = format!("services.kafka.environment.KAFKA_{}", name.to_uppercase().replace('.', "_"));
        assert_eq!(one(&file, &variable), value, "{name}");
    }
    // What is in the file and not in dev's is only what containers need.
    let own = ["LISTENERS", "ADVERTISED_LISTENERS", "LISTENER_SECURITY_PROTOCOL_MAP", "INTER_BROKER_LISTENER_NAME"];
    let own = own.into_iter().chain(["CONTROLLER_QUORUM_VOTERS", "LOG_DIRS", "HEAP_OPTS"]).count();
    let variables = file.keys().filter(|path| path.starts_with("services.kafka.environment.")).count();
    assert_eq!(variables, kafka::settings().len() + own);
}

#[test]
fn compose_kafka_has_the_version_and_heap_of_dev() {
    let file = parse(FILE);
    assert_eq!(one(&file, "services.kafka.image"), format!("apache/kafka:{}", kafka::VERSION));
    let heap = format!("-Xms64m -Xmx{}m", kafka::Options::default().heap_mib);
    assert_eq!(one(&file, "services.kafka.environment.KAFKA_HEAP_OPTS"), heap);
}

#[test]
fn compose_postgres_has_the_settings_of_dev() {
    let file = parse(FILE);
    let expected: Vec<String> = std::iter::once("postgres".to_owned())
        .chain(postgres::settings().into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]))
        .collect();
    assert_eq!(file["services.postgres.command"], expected);
    let arguments = postgres::INITDB_ARGS.join(" ").replace("en_US.UTF-8", "C.UTF-8");
    assert_eq!(one(&file, "services.postgres.environment.POSTGRES_INITDB_ARGS"), arguments);
    assert_eq!(one(&file, "services.postgres.environment.POSTGRES_USER"), postgres::USER);
    assert_eq!(one(&file, "services.postgres.environment.POSTGRES_DB"), postgres::USER);
}

#[test]
fn compose_ports_are_open_to_this_machine_only() {
    let file = parse(FILE);
    let ports: Vec<&String> =
        file.iter().filter(|(path, _)| path.ends_with(".ports")).flat_map(|(_, ports)| ports).collect();
    assert_eq!(ports.len(), 3);
    assert!(ports.iter().all(|port| port.starts_with("127.0.0.1:")), "{ports:?}");
}

fn one<'a>(file: &'a Values, path: &str) -> &'a str {
    match file.get(path).map(Vec::as_slice) {
        Some([value]) => value,
        other => panic!("one value expected at {path}, found {other:?}"),
    }
}

/// The part of YAML that the file keeps to: maps by two blanks of indentation, lists of scalars, and scalars on one line.
/// Anything else is an error, so that nothing is compared that was read wrongly.
fn parse(text: &str) -> Values {
    let mut values = Values::new();
    let mut keys: Vec<&str> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let content = line.trim_start_matches(' ');
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - content.len();
        assert!(indent % 2 == 0 && !content.contains('\t'), "line {}: indentation: {line}", at + 1);
        if let Some(item) = content.strip_prefix("- ") {
            assert_eq!(keys.len(), indent / 2, "line {}: a list belongs to the key above it", at + 1);
            values.entry(keys.join(".")).or_default().push(scalar(item, at));
            continue;
        }
        assert!(indent / 2 <= keys.len(), "line {}: indented too deep", at + 1);
        keys.truncate(indent / 2);
        let (key, value) = content.split_once(':').unwrap_or_else(|| panic!("line {}: no key: {line}", at + 1));
        keys.push(key);
        match value.trim() {
            "" => {}
            list if list.starts_with('[') => {
                let items = list.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).expect("a list on one line");
                values.entry(keys.join(".")).or_default().extend(items.split(", ").map(|item| scalar(item, at)));
            }
            value => {
                let path = keys.join(".");
                assert!(values.insert(path, vec![scalar(value, at)]).is_none(), "line {}: twice: {key}", at + 1);
            }
        }
    }
    values
}

fn scalar(text: &str, at: usize) -> String {
    if let Some(quoted) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        assert!(!quoted.contains(['"', '\\', '$']), "line {}: an escape: {text}", at + 1);
        return quoted.to_owned();
    }
    let special = text.starts_with(['&', '*', '!', '|', '>', '\'', '"', '%', '@', '{', '[', '-', '?']);
    assert!(!special && !text.contains(" #") && !text.contains(": "), "line {}: not a plain scalar: {text}", at + 1);
    text.to_owned()
}
