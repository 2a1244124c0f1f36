use proptest::prelude::*;

use super::*;
use crate::schema::Fault;

const GOOD: &str = r#"
[commands.ScheduleFlight]
topic = "flights.commands.v1"
key = "flight_id"
event_id = "command_id"
max_bytes = "64KiB"
[events.FlightSeen]
topic = "flights.events.v1"
key = ["carrier", "flight"]
[topics."flights.commands.v1"]
partitions = 6
[topics."flights.events.v1"]
partitions = 3
retention = "30d"
[limits]
rate = "10000/s"
"#;

fn parse(name: &str, text: &str) -> Result<ProducerSpec, Vec<SpecFault>> {
    ProducerSpec::parse(&Path::new("producers").join(name), text)
}

fn messages(name: &str, text: &str) -> Vec<(Option<u32>, String)> {
    parse(name, text).unwrap_err().into_iter().map(|fault| (fault.line, fault.message)).collect()
}

#[test]
fn contract_is_read_whole() {
    let spec = parse("flights", GOOD).unwrap();
    let schedule = &spec.records["ScheduleFlight"];
    assert_eq!(schedule.kind, RecordKind::Command);
    assert_eq!(schedule.key, ["flight_id"]);
    assert_eq!(schedule.event_id.as_deref(), Some("command_id"));
    assert_eq!(schedule.max_bytes, 65_536);
    let seen = &spec.records["FlightSeen"];
    assert_eq!((seen.key.join("/").as_str(), seen.max_bytes), ("carrier/flight", DEFAULT_MAX_RECORD_BYTES));
    assert_eq!(spec.topics["flights.commands.v1"].retention, Retention::Forever);
    assert_eq!(spec.topics["flights.events.v1"].retention.as_retention_ms(), 2_592_000_000);
    assert_eq!(spec.rate.unwrap().records.get(), 10_000);
    assert_eq!(cross_check(&[spec]), []);
}

#[test]
fn faults_of_a_contract_come_all_at_once_with_lines() {
    let text = r#"
[comands.X]
topic = "t"
[commands.ScheduleFlight]
topc = "flights.commands.v1"
key = []
max_bytes = "64 bytes"
[topics."a b"]
partitions = 0
[limits]
rate = "fast"
"#;
    let found = messages("flights", text);
    let has = |line: u32, part: &str| found.iter().any(|(at, text)| *at == Some(line) && text.contains(part));
    assert!(has(2, "did you mean `commands`?"), "{found:?}");
    assert!(has(5, "did you mean `topic`?"), "{found:?}");
    assert!(has(4, "has no topic"), "{found:?}");
    assert!(has(6, "`key` is empty"), "{found:?}");
    assert!(has(7, "must be a size"), "{found:?}");
    assert!(has(8, "not a topic name"), "{found:?}");
    assert!(has(9, "at least 1"), "{found:?}");
    assert!(has(11, "`rate` must be"), "{found:?}");
    assert_eq!(found.len(), 8, "{found:?}");
}

#[test]
fn text_that_is_not_toml_is_a_fault_with_its_line() {
    let found = messages("flights", "[commands.A]\ntopic = \n");
    assert_eq!(found[0].0, Some(2), "{found:?}");
}

#[test]
fn folder_name_and_empty_contract_are_checked() {
    assert!(messages("My Flights", GOOD)[0].1.contains("folder name"));
    assert!(messages("flights", "")[0].1.contains("nothing may be sent"));
}

#[test]
fn type_in_two_folders_must_mean_the_same() {
    let one = parse("one", GOOD).unwrap();
    let same = parse("two", GOOD).unwrap();
    assert_eq!(cross_check(&[one.clone(), same]), []);
    let other = parse(
        "two",
        &GOOD.replace("key = \"flight_id\"", "key = \"tail\"").replace("partitions = 6", "partitions = 7"),
    );
    let found = cross_check(&[one, other.unwrap()]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|fault| fault.message.contains("another key in producer one")), "{found:?}");
}

#[test]
fn topic_that_nobody_declares_is_a_fault() {
    let spec = parse("flights", "[events.A]\ntopic = \"t\"\nkey = \"id\"\n").unwrap();
    let found = cross_check(&[spec]);
    assert!(found[0].message.contains("which no producer declares"), "{found:?}");
}

#[test]
fn folders_are_read_in_order_and_hidden_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "a", ".hidden"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert_eq!(load_all(&dir.path().join("nowhere")).unwrap(), []);
    assert_eq!(load_all(dir.path()).unwrap_err().len(), 2, "two folders lack their file");
    for name in ["b", "a"] {
        fs::write(dir.path().join(name).join(FILE), GOOD).unwrap();
    }
    let names: Vec<String> = load_all(dir.path()).unwrap().into_iter().map(|spec| spec.name).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn examples_are_judged_by_pointer_and_text() {
    let dir = tempfile::tempdir().unwrap();
    let producer = dir.path().join("flights");
    for folder in ["examples/valid", "examples/invalid"] {
        fs::create_dir_all(producer.join(folder)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(producer.join("examples").join(name), text).unwrap();
    write("valid/a.json", r#"{"type": "ScheduleFlight", "body": {"ok": 1}}"#);
    write("valid/b.json", r#"{"type": "Unknown", "body": {}}"#);
    write(
        "invalid/a.json",
        r#"{"type": "ScheduleFlight", "body": {}, "problem": {"pointer": "/ok", "expected": "int"}}"#,
    );
    write("invalid/b.json", r#"{"type": "ScheduleFlight", "body": {}, "problem": {"pointer": "/other"}}"#);
    write("invalid/c.json", r#"{"type": "ScheduleFlight", "body": {"ok": 1}, "problem": {"pointer": "/ok"}}"#);
    write("invalid/d.json", r#"{"type": "ScheduleFlight", "body": {}}"#);
    let spec = ProducerSpec::parse(&producer, GOOD).unwrap();
    let reports = run_examples(&spec, |_, body| {
        if body == br#"{"ok": 1}"# {
            return Ok(());
        }
        Err(vec![Fault { pointer: "/ok".into(), expected: "an int".into(), got: "nothing".into(), hint: None }])
    });
    let names: Vec<(String, bool)> = reports
        .iter()
        .map(|report| {
            let name = report.path.strip_prefix(producer.join("examples")).unwrap();
            (name.display().to_string(), report.outcome == Outcome::AsExpected)
        })
        .collect();
    let expected = [
        ("invalid/a.json", true),
        ("invalid/b.json", false),
        ("invalid/c.json", false),
        ("invalid/d.json", false),
        ("valid/a.json", true),
        ("valid/b.json", false),
    ];
    assert_eq!(names, expected.map(|(name, fits)| (name.to_owned(), fits)));
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,300}") {
        let _ = parse("flights", &text);
    }

    #[test]
    fn no_shape_makes_the_reader_panic(key in "[a-z_]{1,10}", value in "(1|\"x\"|\\[\\]|\\{\\}|true|1979-05-27|\"\"|1.5)") {
        for table in ["", "[commands.A]\n", "[topics.a]\n", "[limits]\n"] {
            let _ = parse("flights", &format!("{table}{key} = {value}\n"));
            for known in ["topic", "key", "max_bytes", "partitions", "retention", "rate", "commands", "event_id"] {
                let _ = parse("flights", &format!("{table}{known} = {value}\n"));
            }
        }
    }
}
