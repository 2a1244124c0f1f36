//! A crate of a user's own: written by `millpond new --rust`, built, run, and asked.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use millpond::dev::Folder;

use crate::cluster::Process;
use crate::harness::{brokers, database, own_folder, unique};

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// Writes a project and builds it with what this build has compiled already.
fn build(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crate_dir = dir.join("greetings-app");
    let mut new = Command::new(env!("CARGO_BIN_EXE_millpond"));
    run(new.args(["new", "--rust", "--millpond"]).arg(root).arg(&crate_dir));
    // The same versions as ours, so that nothing is downloaded or compiled anew.
    std::fs::copy(root.join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    let manifest = crate_dir.join("Cargo.toml");
    let ours = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let profile = ours.split_once("[profile.dev.package").map(|(_, rest)| rest.lines().take(2).collect::<Vec<_>>());
    let mut text = std::fs::read_to_string(&manifest).unwrap();
    if let Some(lines) = profile {
        text.push_str(&format!("\n[profile.dev.package{}\n", lines.join("\n")));
    }
    std::fs::write(&manifest, text).unwrap();
    let target = Path::new(env!("CARGO_BIN_EXE_millpond")).ancestors().nth(2).unwrap().to_owned();
    let mut cargo = Command::new(env!("CARGO"));
    run(cargo.args(["build", "--offline"]).current_dir(&crate_dir).env("CARGO_TARGET_DIR", &target));
    target.join("debug").join("greetings-app")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crate_of_ones_own_is_written_built_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let binary = build(dir.path());
    let project = dir.path().join("greetings-app");
    // Other tests share the brokers: this project's topics and consumer get names of their own.
    let topic = unique("greeter.commands").replace('_', "-");
    for file in ["producers/greeter/producer.toml", "consumers/greetings/consumer.toml"] {
        let path = project.join(file);
        let text = std::fs::read_to_string(&path).unwrap().replace("greeter.commands.v1", &topic);
        std::fs::write(&path, text).unwrap();
    }
    let database = database();
    let kafka = brokers();
    let settings = [format!("kafka.brokers={kafka}"), format!("postgres.url={}", database.url)];
    let arguments = |command: &[&str]| {
        let mut all: Vec<String> = command.iter().map(|c| (*c).to_owned()).collect();
        all.extend(settings.iter().flat_map(|s| ["--set".to_owned(), s.clone()]));
        all
    };
    run(Command::new(&binary).args(["producer", "test"]).current_dir(&project));
    run(Command::new(&binary).args(arguments(&["schema", "push"])).current_dir(&project));
    let folder = Arc::new(Folder::open(&own_folder("greetings")).unwrap());
    let listen = ["--listen", "127.0.0.1:0", "--set", "log.format=json", "--project"].map(str::to_owned);
    let listen = listen.into_iter().chain([project.display().to_string()]);
    let words = [binary.into_os_string()].into_iter();
    let words = words.chain(arguments(&["all"]).into_iter().chain(listen).map(OsString::from)).collect();
    let process = Process::start_program(&folder, "greetings-app", words, true);

    let json = [("content-type", "application/json")];
    let posted = process.web.post("/v1/commands/Greet", &json, r#"{"name":"Ada"}"#).await;
    assert_eq!(posted.status, 202, "{}", posted.text);
    let read = [("millpond-min-position", posted.position()), ("prefer", "wait=10")];
    let rows = process.web.get("/v1/views/greetings?name=eq.Ada", &read).await;
    assert_eq!(rows.text, r#"[{"name":"Ada","times":1}]"#, "{}", rows.status);

    let refused = process.web.post("/v1/commands/Greet", &json, r#"{"name":" "}"#).await;
    let read = [("millpond-min-position", refused.position()), ("prefer", "wait=10")];
    let answer = process.web.get("/v1/views/greetings", &read).await;
    assert_eq!(answer.header("millpond-outcome"), Some("refused"));
    process.stop();
}
