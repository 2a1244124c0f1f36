//! The shipped consumers' cases, and whether what judges them can say no.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use millpond::{
    app::{
        Project,
        trial::{Options, Report, run_cases},
    },
    consume::Handlers,
    handler::{Effects, Handler, HandlerError, Record, State, async_trait},
    store::scratch::ScratchDatabase,
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use crate::harness::postgres_url;

#[path = "../../consumers/flight_rules/handler.rs"]
mod flight_rules;

const SCHEMA: &str = r#"{"type":"record","name":"Paid","namespace":"shop","fields":[
    {"name":"account","type":"string"},{"name":"amount","type":"int"},
    {"name":"paid_at","type":{"type":"long","logicalType":"timestamp-millis"}}]}"#;
const PRODUCER: &str = "[events.Paid]\ntopic = \"shop.events.v1\"\nkey = \"account\"\n\n\
                        [topics.\"shop.events.v1\"]\npartitions = 3\n";

/// A project of one record type and one consumer, `accounts`.
struct Shop {
    dir: TempDir,
    handlers: Handlers,
}

impl Shop {
    fn new(files: &[(&str, &str)]) -> Self {
        let shop = Self { dir: tempfile::tempdir().unwrap(), handlers: Handlers::new() };
        shop.write("schemas/Paid/v1.avsc", SCHEMA);
        shop.write("producers/shop/producer.toml", PRODUCER);
        for (path, text) in files {
            shop.write(&format!("consumers/accounts/{path}"), text);
        }
        shop
    }

    /// A table of sums by SELECT.
    fn of_sums() -> Self {
        Self::new(&[
            (
                "consumer.toml",
                "topics = [\"shop.events.v1\"]\n[tables.accounts]\nkey = [\"account\"]\nmerge = { total = \"sum\", last_at = \"max\" }\n",
            ),
            (
                "accounts.sql",
                "select account, sum(amount) as total, max(paid_at) as last_at from paid group by account;\n",
            ),
        ])
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn case(&self, file: &str) -> PathBuf {
        self.dir.path().join("consumers/accounts/tests/case").join(file)
    }

    /// Events `(account, amount)` as the case's records.
    fn pay(&self, events: &[(&str, i32)]) {
        let line = |(account, amount): &(&str, i32)| {
            format!(
                r#"{{"type":"Paid","body":{{"account":"{account}","amount":{amount},"paid_at":"2013-01-01T10:15:00Z"}}}}"#
            )
        };
        let lines: Vec<String> = events.iter().map(line).collect();
        self.write("consumers/accounts/tests/case/events.jsonl", &lines.join("\n"));
    }

    async fn run(&self, accept: bool) -> (Report, String) {
        let options = Options { accept, ..Options::default() };
        let (report, text) = run(self.dir.path(), &self.handlers, &options).await;
        (report, text.replace(&format!("{}/", self.dir.path().display()), ""))
    }
}

async fn run(dir: &Path, handlers: &Handlers, options: &Options) -> (Report, String) {
    let project = Project::load(dir).unwrap();
    let mut scratch = ScratchDatabase::create(&postgres_url()).await.unwrap();
    let mut out = Vec::new();
    let report = run_cases(&mut scratch, &project, handlers, options, &mut out).await;
    scratch.drop().await.unwrap();
    (report.unwrap(), String::from_utf8(out).unwrap())
}

const FAILED: Report = Report { passed: 0, failed: 1 };
const PASSED: Report = Report { passed: 1, failed: 0 };

#[tokio::test]
async fn shipped_consumers_pass_their_cases_and_the_laws() {
    let handlers =
        Handlers::from([("flight_rules".to_owned(), Arc::new(flight_rules::FlightRules) as Arc<dyn Handler>)]);
    let (report, text) = run(Path::new(env!("CARGO_MANIFEST_DIR")), &handlers, &Options::default()).await;
    assert_eq!(report.failed, 0, "{text}");
    assert!(report.passed >= 32, "{text}");
}

#[tokio::test]
async fn result_that_depends_on_the_cut_is_caught_with_the_two_records_that_show_it() {
    let shop = Shop::new(&[
        ("consumer.toml", "topics = [\"shop.events.v1\"]\norder = \"none\"\n"),
        ("tables.sql", "create table accounts (account text primary key, total bigint not null);\n"),
        (
            "apply.sql",
            "insert into accounts select account, max(amount) from paid group by account
             on conflict (account) do update set total = accounts.total + excluded.total;\n",
        ),
    ]);
    shop.pay(&[("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5), ("a", 6)]);
    shop.write("consumers/accounts/tests/case/accounts.csv", "account,total\na,10\nb,7\nc,4\n");

    let (report, text) = shop.run(true).await;
    assert_eq!(report, FAILED, "{text}");
    assert!(text.contains("law 1 is broken"), "{text}");
    assert_eq!(text.matches("          line ").count(), 2, "{text}");
    assert_eq!(text.matches("        batch ").count(), 1, "{text}");
    assert!(text.contains("total one by one "), "{text}");
    assert!(text.contains("nothing was written"), "{text}");
}

#[tokio::test]
async fn wrong_row_is_shown_by_its_columns_and_accepted() {
    let shop = Shop::of_sums();
    shop.pay(&[("a", 1), ("b", 2), ("a", 3)]);
    let wrong = "total,account,last_at\n5,a,2013-01-01 11:15+01\n7,x,\n";
    shop.write("consumers/accounts/tests/case/accounts.csv", wrong);
    let (report, text) = shop.run(false).await;
    assert_eq!(report, FAILED, "{text}");
    for line in ["account=a: total expected 5, came 4\n", "missing: account=x (total=7)\n", "unexpected: account=b ("] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    assert!(!text.contains("last_at expected"), "one moment, written in two ways:\n{text}");

    let (report, text) = shop.run(true).await;
    assert_eq!(report, PASSED, "{text}");
    assert!(text.contains("accepted: accounts.csv"), "{text}");
    assert!(text.contains("account=a: total expected 5, came 4"), "what changes is said:\n{text}");
    assert!(text.contains("wrote consumers/accounts/tests/case/accounts.csv: 2 rows"), "{text}");
    let right = "total,account,last_at\n4,a,2013-01-01T10:15:00Z\n2,b,2013-01-01T10:15:00Z\n";
    assert_eq!(std::fs::read_to_string(shop.case("accounts.csv")).unwrap(), right);
    let (report, text) = shop.run(false).await;
    assert_eq!(report, PASSED, "{text}");
}

#[tokio::test]
async fn keys_are_parked_in_cases_as_they_are_live_under_every_cut() {
    let shop = Shop::new(&[
        (
            "consumer.toml",
            "topics = [\"shop.events.v1\"]\non_error = \"park_key\"\n[tables.accounts]\nkey = [\"account\"]\n\
             merge = { total = \"sum\" }\n",
        ),
        ("accounts.sql", "select account, 10 / amount as total from paid;\n"),
    ]);
    shop.pay(&[("a", 1), ("b", 2), ("a", 0), ("a", 5), ("b", 5), ("c", 0), ("c", 1)]);
    let (report, text) = shop.run(true).await;
    assert_eq!(report, PASSED, "{text}");
    assert_eq!(std::fs::read_to_string(shop.case("accounts.csv")).unwrap(), "account,total\na,10\nb,7\n");
    let dead = std::fs::read_to_string(shop.case("dead_letters.jsonl")).unwrap();
    let dead: Vec<serde_json::Value> = dead.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = dead.iter().map(|d| (d["line"].as_i64().unwrap(), d["class"].as_str().unwrap())).collect();
    assert_eq!(told, [(3, "refused_by_postgres"), (4, "waits"), (6, "refused_by_postgres"), (7, "waits")]);
}

#[tokio::test]
async fn case_without_rows_says_so_and_is_written() {
    let shop = Shop::of_sums();
    shop.pay(&[("a", 1)]);
    let (report, text) = shop.run(false).await;
    assert_eq!(report, FAILED);
    assert!(text.contains("accounts.csv is not there"), "{text}");
    let (report, text) = shop.run(true).await;
    assert_eq!(report, PASSED);
    let wrote = "        wrote consumers/accounts/tests/case/accounts.csv: 1 row\n        this is what came out, and is expected \
                 from now on: read it before you commit it\n";
    assert!(text.contains(wrote) && !text.contains("is not there"), "{text}");
    let (report, text) = shop.run(true).await;
    assert!(report == PASSED && text.contains("nothing to accept") && !text.contains("wrote"), "{text}");
    assert_eq!(shop.run(false).await.0, PASSED);
    shop.write("consumers/accounts/tests/case/events.jsonl", "\n");
    let (report, text) = shop.run(true).await;
    assert!(report == FAILED && text.contains("case/events.jsonl: has no records"), "{text}");
}

#[tokio::test]
async fn faults_of_a_case_name_file_line_and_pointer() {
    let shop = Shop::of_sums();
    let good = r#"{"type":"Paid","partition":1,"body":{"account":"a","amount":1,"paid_at":"2013-01-01T10:15:00Z"}}"#;
    let lines = [
        good,
        &good.replace("\"amount\":1", "\"amount\":\"many\""),
        "",
        &good.replace("Paid", "Payd"),
        &good.replace("\"partition\":1", "\"partition\":2"),
        "{\"type\":\"Paid\"}",
        &good.replace("body", "bdy"),
    ];
    shop.write("consumers/accounts/tests/case/events.jsonl", &lines.join("\n"));
    let (report, text) = shop.run(true).await;
    assert_eq!(report, FAILED);
    for fault in [
        "consumers/accounts/tests/case/events.jsonl:2: Paid: /amount: expected",
        "events.jsonl:4: there is no schemas/Payd; did you mean Paid?",
        "events.jsonl:5: key a is on partition 2, but on 1 in line 1",
        "events.jsonl:6: a `type` needs a `body`",
        "events.jsonl:7: not a record: unknown field `bdy`",
    ] {
        assert!(text.contains(fault), "{fault:?} in\n{text}");
    }
    shop.write("consumers/accounts/tests/case/events.jsonl", good);
    shop.write("consumers/accounts/tests/case/accounts.csv", "account,total,last_at\na,one,\n");
    shop.write("consumers/accounts/tests/case/acounts.csv", "");
    let (_, text) = shop.run(true).await;
    assert!(text.contains("accounts.csv:2: invalid input syntax for type bigint: \"one\" (column total"), "{text}");
    assert!(
        text.contains("acounts.csv: is not a file of a case") && text.contains("did you mean accounts.csv?"),
        "{text}"
    );
}

#[tokio::test]
async fn record_that_cannot_be_applied_is_told_with_its_line() {
    let shop = Shop::of_sums();
    shop.write(
        "consumers/accounts/accounts.sql",
        "select account, sum(100 / amount) as total, max(paid_at) as last_at from paid group by account;\n",
    );
    shop.pay(&[("a", 1), ("b", 0), ("a", 2)]);
    let (report, text) = shop.run(false).await;
    assert_eq!(report, FAILED);
    assert!(text.contains("dead_letters.jsonl"), "{text}");
    assert!(text.contains("unexpected: line=2 (class=refused_by_postgres, reason=division by zero"), "{text}");
    let (report, text) = shop.run(true).await;
    assert_eq!(report, PASSED, "{text}");
    assert!(text.contains("wrote consumers/accounts/tests/case/dead_letters.jsonl: 1 row"), "{text}");
    assert_eq!(shop.run(false).await.0, PASSED);
}

#[tokio::test]
async fn line_under_the_id_of_another_is_a_repeat_or_a_conflict() {
    let shop = Shop::of_sums();
    let paid = |amount: i32, more: &str| {
        format!(
            r#"{{"type":"Paid","body":{{"account":"a","amount":{amount},"paid_at":"2013-01-01T10:15:00Z"}}{more}}}"#
        )
    };
    let printed =
        |id: &str| format!(r#","headers":{{"mp-event-id":"{id}","mp-fingerprint":"00","mp-producer":"shop"}}"#);
    let lines = [
        paid(1, r#","event_id":"k""#),
        r#"{"event_id":"k","type":"Paid","body":{"paid_at":"2013-01-01T10:15:00Z","amount":1,"account":"a"}}"#.into(),
        paid(10, r#","event_id":"k""#),
        paid(100, ""),
        paid(100, ""),
        paid(1000, &printed("p")),
        paid(1000, &printed("p")),
        // Ids that were made for their records.
        paid(10_000, r#","headers":{"mp-event-id":"m"}"#),
        paid(10_000, r#","headers":{"mp-event-id":"m"}"#),
        // A week and a second after the first.
        paid(100_000, r#","event_id":"k","timestamp":"2000-01-08T00:00:02Z""#),
        paid(100_000, r#","event_id":"k""#),
    ];
    shop.write("consumers/accounts/tests/case/events.jsonl", &lines.join("\n"));
    shop.write("consumers/accounts/tests/case/accounts.csv", "account,total,last_at\na,121201,2013-01-01T10:15:00Z\n");
    let (report, text) = shop.run(true).await;
    assert_eq!(report, PASSED, "{text}");
    assert!(text.contains("accepted: dead_letters.jsonl"), "{text}");
    let dead = std::fs::read_to_string(shop.case("dead_letters.jsonl")).unwrap();
    assert!(dead.lines().count() == 1 && dead.contains("id_conflict") && dead.contains(r#""line":3"#), "{dead}");

    let manifest = std::fs::read_to_string(shop.dir.path().join("consumers/accounts/consumer.toml")).unwrap();
    shop.write("consumers/accounts/consumer.toml", &format!("dedupe_window = \"0\"\n{manifest}"));
    let (report, text) = shop.run(false).await;
    assert_eq!(report, FAILED);
    assert!(text.contains("total expected 121201, came 222212"), "{text}");
}

#[tokio::test]
async fn consumer_without_cases_says_how_to_begin() {
    let (report, text) = Shop::of_sums().run(false).await;
    assert_eq!(report, Report::default());
    assert!(text.contains("no cases yet") && text.contains("--accept"), "{text}");
}

#[tokio::test]
async fn faulty_sql_is_told_with_file_and_line() {
    let shop = Shop::of_sums();
    shop.write(
        "consumers/accounts/accounts.sql",
        "select account, max(paid_at) as last_at,\n  sum(amont) as total from paid group by account;\n",
    );
    let (report, text) = shop.run(false).await;
    assert_eq!(report, FAILED);
    assert!(text.contains("consumers/accounts/accounts.sql:2: "), "{text}");
}

/// Breaks the laws in a way of its own.
struct Careless {
    /// Emits once a batch instead of once a record.
    by_batch: bool,
    calls: AtomicU64,
}

#[async_trait]
impl Handler for Careless {
    fn revision(&self) -> u32 {
        1
    }

    async fn apply(&self, records: &[Record], _: &mut State<'_>, effects: &mut Effects) -> Result<(), HandlerError> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        for (at, record) in records.iter().enumerate() {
            let mut event: serde_json::Value = record.decode()?;
            if !self.by_batch {
                event["amount"] = calls.into();
            }
            if !self.by_batch || at == 0 {
                effects.emit(record, "Paid", record.key.as_deref().unwrap_or_default(), &event);
            }
        }
        Ok(())
    }
}

fn careless(by_batch: bool) -> Shop {
    let manifest = "topics = [\"shop.events.v1\"]\ntypes = [\"Paid\"]\nhandler = \"rust\"\n[emits]\nPaid = \"shop.events.v1\"\n\
                    [tables.accounts]\nkey = [\"account\"]\n[tables.accounts.columns]\naccount = \"text\"\n";
    let mut shop = Shop::new(&[("consumer.toml", manifest)]);
    shop.handlers.insert("accounts".to_owned(), Arc::new(Careless { by_batch, calls: AtomicU64::new(0) }));
    shop.pay(&[("a", 1), ("b", 2), ("a", 3)]);
    shop
}

#[tokio::test]
async fn events_that_depend_on_the_cut_are_caught() {
    let (report, text) = careless(true).run(false).await;
    assert_eq!(report, FAILED);
    assert!(text.contains("law 1 is broken") && text.contains("only one by one: line="), "{text}");
    assert_eq!(text.matches("          line ").count(), 2, "{text}");
}

#[tokio::test]
async fn events_that_depend_on_the_process_are_caught() {
    let (report, text) = careless(false).run(true).await;
    assert_eq!(report, FAILED);
    assert!(text.contains("law 1 is broken") && text.contains("nothing was written"), "{text}");
    assert_eq!(text.matches("          line ").count(), 1, "{text}");
}

#[tokio::test]
async fn several_types_without_sql_pass_their_case() {
    let shop = Shop::new(&[("consumer.toml", "topics = [\"shop.events.v1\"]\n")]);
    shop.write("schemas/Closed/v1.avsc", &SCHEMA.replace("\"Paid\"", "\"Closed\""));
    shop.write(
        "producers/shop/producer.toml",
        &format!("[events.Closed]\ntopic = \"shop.events.v1\"\nkey = \"account\"\n\n{PRODUCER}"),
    );
    // Of another topic, and none of this consumer's business.
    shop.write("schemas/Moved/v1.avsc", &SCHEMA.replace("\"Paid\"", "\"Moved\""));
    shop.write(
        "producers/elsewhere/producer.toml",
        &PRODUCER.replace("Paid", "Moved").replace("shop.events", "moved.events"),
    );
    let body = |amount: i32| format!(r#"{{"account":"a","amount":{amount},"paid_at":"2013-01-01T10:15:00Z"}}"#);
    let line = |record_type: &str, amount| format!(r#"{{"type":"{record_type}","body":{}}}"#, body(amount));
    let lines = [line("Paid", 1), line("Closed", 5), line("Paid", 2)];
    shop.write("consumers/accounts/tests/case/events.jsonl", &lines.join("\n"));
    for (table, amount) in [("paid", 2), ("closed", 5)] {
        let rows = format!("account,amount,paid_at\na,{amount},2013-01-01 10:15:00+00\n");
        shop.write(&format!("consumers/accounts/tests/case/{table}.csv"), &rows);
    }
    let (report, text) = shop.run(false).await;
    assert_eq!(report, PASSED, "{text}");
}

/// Writes one row, of a table and with fields that may not be there.
struct Misspelt {
    table: &'static str,
    row: serde_json::Value,
}

#[async_trait]
impl Handler for Misspelt {
    fn revision(&self) -> u32 {
        1
    }

    async fn apply(&self, _: &[Record], _: &mut State<'_>, effects: &mut Effects) -> Result<(), HandlerError> {
        effects.upsert(self.table, &self.row);
        Ok(())
    }
}

#[tokio::test]
async fn row_that_fits_no_declared_table_is_never_lost_without_a_word() {
    for (table, row, expected) in [
        (
            "acounts",
            json!({"account": "a"}),
            "a row of acounts, which consumer.toml does not declare (did you mean accounts?)",
        ),
        ("accounts", json!({"account": "a", "totl": 1}), "a row of accounts with totl, which is no column of it"),
        ("accounts", json!({}), "a row of accounts without account, which is of its key"),
        ("accounts", json!("a"), "wrote \"a\" as a row of accounts, which is no JSON object"),
    ] {
        let mut shop = careless(true);
        shop.handlers.insert("accounts".to_owned(), Arc::new(Misspelt { table, row }));
        let (report, text) = shop.run(true).await;
        assert_eq!(report, FAILED, "{text}");
        assert!(text.contains(expected) && text.contains("consumer restart accounts"), "{text}");
    }
}

#[tokio::test]
async fn databases_of_killed_runs_are_dropped_and_those_in_use_are_not() {
    let url = postgres_url();
    let mut used = ScratchDatabase::create(&url).await.unwrap();
    let name: String =
        sqlx::query_scalar("select current_database()::text").fetch_one(used.connection()).await.unwrap();
    let mut server = PgConnection::connect(&url).await.unwrap();
    // Nobody is in it, as after the end of a process.
    let left = format!("{}left", &name[..=name.rfind('_').unwrap()]);
    sqlx::query(sqlx::AssertSqlSafe(format!("create database {left}"))).execute(&mut server).await.unwrap();
    let other = ScratchDatabase::create(&url).await.unwrap();
    let count = "select count(*) from pg_database where datname = any($1)";
    let names = |names: &[&String]| names.iter().map(|name| (*name).clone()).collect::<Vec<_>>();
    let there: i64 = sqlx::query_scalar(count).bind(names(&[&name, &left])).fetch_one(&mut server).await.unwrap();
    assert_eq!(there, 1);
    other.drop().await.unwrap();
    let used_name = name.clone();
    used.drop().await.unwrap();
    let there: i64 = sqlx::query_scalar(count).bind(names(&[&used_name])).fetch_one(&mut server).await.unwrap();
    assert_eq!(there, 0);
}
