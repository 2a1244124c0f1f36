//! Clients that others have written, on our topics and our registry. Run by `tests/clients/run`, which gets them first.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path, process::Command};

use serde_json::{Value, json};

use crate::cluster::{Cluster, FlightCommand, Load, Pace, Process, days};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kcat and packages for Python: run by `tests/clients/run`"]
async fn topics_are_what_other_clients_read_and_write() {
    let cluster = Cluster::flights("clients").await;
    let all = cluster.start("all", &[]);
    let (posted, written) = (days(&[1]), days(&[2]));
    Load::start(&all.web, posted.clone(), Pace::Free).finish().await;
    python(&cluster, &all, &["--posted", &file(&cluster, "posted", &posted)]);

    // What a service in Python writes is applied as if it had been posted.
    let topic = &cluster.project.topic;
    let both: Vec<FlightCommand> = posted.iter().chain(&written).cloned().collect();
    let (written, all_of_them) = (file(&cluster, "written", &written), file(&cluster, "both", &both));
    python(&cluster, &all, &["--write", &written, "--posted", &all_of_them]);
    cluster.settled(topic, 3).await;
    crate::cluster::Slice::days(&[1, 2]).equals(&cluster, &all.web).await;
    kcat(&cluster, both.len());
    // What no client of ours can write: a header whose name is not UTF-8. It holds up nobody.
    kcat_writes_unreadable_header(&cluster);
    cluster.settled(topic, 3).await;
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(3));
    let unnamed = |record: &Value| record["headers"].get("\u{fffd}").is_some();
    assert_eq!(cluster.cat(topic).iter().filter(|record| unnamed(record)).count(), 1);
    all.stop();
}

/// Commands as a file that the script reads; its path.
fn file(cluster: &Cluster, name: &str, commands: &[FlightCommand]) -> String {
    let line = |command: &FlightCommand| {
        let body: Value = serde_json::from_str(&command.body).unwrap();
        json!({"type": command.record_type, "body": body}).to_string()
    };
    cluster.project.write(name, &commands.iter().map(line).collect::<Vec<_>>().join("\n"));
    cluster.project.dir.join(name).display().to_string()
}

fn python(cluster: &Cluster, all: &Process, args: &[&str]) {
    let python = std::env::var_os("MILLPOND_CLIENTS_PYTHON").expect("run tests/clients/run");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/confluent.py");
    let mut command = Command::new(python);
    command.arg(script).args(["--brokers", &cluster.servers.brokers(), "--registry", &all.web.base]);
    let output = command.args(["--topic", &cluster.project.topic]).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    eprint!("{said}");
}

fn kcat_writes_unreadable_header(cluster: &Cluster) {
    let record = cluster.project.dir.join("unreadable");
    std::fs::write(&record, "not framed").unwrap();
    let mut command = Command::new("kcat");
    command.args(["-b", &cluster.servers.brokers(), "-t", &cluster.project.topic, "-p", "2", "-P", "-H"]);
    let output = command.arg(OsStr::from_bytes(b"\xff=x")).arg(&record).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Lists the topic and reads it to its end.
fn kcat(cluster: &Cluster, records: usize) {
    let run = |args: &[&str]| {
        let brokers = cluster.servers.brokers();
        let output = Command::new("kcat").args(["-b", &brokers]).args(args).output().expect("run tests/clients/run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let topic = cluster.project.topic.as_str();
    let listed = run(&["-L", "-t", topic]);
    assert!(listed.contains(&format!("topic \"{topic}\" with 6 partitions")), "{listed}");
    let read = run(&["-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%p %o %k %S\\n"]);
    assert_eq!(read.lines().count(), records);
    // The commands of a flight are on one partition, whoever wrote them.
    let mut partitions = std::collections::HashMap::new();
    for line in read.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(*partitions.entry(words[2]).or_insert(words[0]), words[0], "{line}");
    }
    eprintln!("kcat: {records} records read");
}
