//! A crate of a user's own: written by `millpond new --rust`, built, run, and asked.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use millpond::app::Client;

use crate::harness::{brokers, database, eventually_async, unique};

/// A role process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let _process = Process(
        Command::new(&binary)
            .args(arguments(&["all", "--listen", &listen]))
            .current_dir(&project)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let client = Client::new(&format!("http://{listen}"));
    let ready = || async { client.get("/readyz", &[]).await.is_ok_and(|a| a.status == 200) };
    eventually_async(Duration::from_secs(30), ready).await;

    let json = [("content-type", "application/json")];
    let posted = client.post("/v1/commands/Greet", &json, br#"{"name":"Ada"}"#.to_vec()).await.unwrap();
    assert_eq!(posted.status, 202, "{:?}", posted.body);
    let position = posted.headers["millpond-position"].to_str().unwrap().to_owned();
    let read = [("millpond-min-position", position.as_str()), ("prefer", "wait=10")];
    let rows = client.get("/v1/views/greetings?name=eq.Ada", &read).await.unwrap();
    assert_eq!(rows.body, r#"[{"name":"Ada","times":1}]"#, "{:?}", rows.status);

    let refused = client.post("/v1/commands/Greet", &json, br#"{"name":" "}"#.to_vec()).await.unwrap();
    let position = refused.headers["millpond-position"].to_str().unwrap();
    let read = [("millpond-min-position", position), ("prefer", "wait=10")];
    let answer = client.get("/v1/views/greetings", &read).await.unwrap();
    assert_eq!(answer.headers["millpond-outcome"], "refused");
}
