//! What makes rows depend on the order of the log: each kind of it is rebuilt, and the rows are the same.

use std::path::PathBuf;

use sqlx::AssertSqlSafe;

use super::{event, lines, live};
use crate::cluster::{Cluster, Process, Project, SOON};
use crate::faults::foreign::Foreigner;
use crate::harness::eventually_async;

const PROJECTIONS: [(&str, &str); 5] =
    [("steps", "steps"), ("latest", "latest"), ("newest", "newest"), ("sums", "sums"), ("noted", "noted")];

/// One topic with two types; consumers that live by the order in which these stand in it.
fn shop(dir: PathBuf, unique: &str) -> Project {
    let project = Project::empty(dir, unique);
    let of = |name: &str, more: &str| {
        format!(
            r#"{{"type": "record", "name": "{name}", "fields": [{{"name": "account", "type": "string"}},
                {{"name": "amount", "type": "long"}},
                {{"name": "at", "type": {{"type": "long", "logicalType": "timestamp-millis"}}}}{more}]}}"#
        )
    };
    project.write("schemas/Bought/v1.avsc", &of("Bought", ""));
    project.write("schemas/Returned/v1.avsc", &of("Returned", ""));
    project.write("later.avsc", &of("Bought", r#", {"name": "note", "type": ["null", "string"], "default": null}"#));
    let events = ["Bought", "Returned"].map(|name| format!("[events.{name}]\ntopic = \"TOPIC\"\nkey = \"account\"\n"));
    project.write("producers/shop/producer.toml", &format!("{}[topics.\"TOPIC\"]\npartitions = 2\n", events.concat()));

    // Order between types, and tombstones.
    project.write("consumers/steps/consumer.toml", "topics = [\"TOPIC\"]\norder = \"key\"\n[tables.steps]\n");
    project
        .write("consumers/steps/tables.sql", "create table steps (account text primary key, steps text not null);\n");
    let steps = |relation: &str, letter: &str| {
        format!(
            "insert into steps select account, '{letter}' || amount from {relation}\n\
             on conflict (account) do update set steps = steps.steps || excluded.steps;\n"
        )
    };
    let removal = "delete from steps s using tombstones t where t._key = s.account;\n";
    project.write("consumers/steps/apply.sql", &[&steps("bought", "b"), &steps("returned", "r"), removal].concat());
    project
        .write("consumers/latest/consumer.toml", "topics = [\"TOPIC\"]\ntypes = [\"Bought\"]\n[schemas]\nBought = 1\n");
    // Rows that come late.
    let merge = "merge = { amount = { last = \"at\" } }";
    project.write(
        "consumers/newest/consumer.toml",
        &format!("topics = [\"TOPIC\"]\n[tables.newest]\nkey = [\"account\"]\n{merge}\n"),
    );
    project.write("consumers/newest/newest.sql", "select account, amount, at from bought");
    // Parked keys.
    let merge = "merge = { payments = \"sum\", total = \"sum\" }";
    project.write(
        "consumers/sums/consumer.toml",
        &format!("topics = [\"TOPIC\"]\non_error = \"park_key\"\n[tables.sums]\nkey = [\"account\"]\n{merge}\n"),
    );
    let sums = format!(
        "select account, count(*) as payments, sum(amount / (amount < {})::integer)::bigint as total from bought \
         group by account",
        Project::TOO_MUCH
    );
    project.write("consumers/sums/sums.sql", &sums);
    project
}

async fn post(all: &Process, event: &str, account: &str, amount: i64, minute: u32, more: &str) {
    let body =
        format!(r#"{{"account": "{account}", "amount": {amount}, "at": "2013-01-01T00:{minute:02}:00Z"{more}}}"#);
    let answer = all.web.post(&format!("/v1/events/{event}"), &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
}

async fn rows(cluster: &Cluster, table: &str) -> Vec<String> {
    let sql = format!("select to_jsonb(t)::text from live.{table} t order by 1");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut cluster.postgres().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_the_same_whatever_in_the_log_they_depend_on() {
    let cluster = Cluster::of("equality", shop).await;
    let (all, foreigner) = (cluster.start("all", &[]), Foreigner::of(&cluster, 2));
    for n in 0..60 {
        let account = format!("a{}", n % 7);
        // Minutes go to and fro: most of what comes is late.
        post(&all, if n % 3 == 2 { "Returned" } else { "Bought" }, &account, n, (n as u32 * 17) % 60, "").await;
        if n % 20 == 13 {
            foreigner.bury(account.as_bytes()).await;
        }
    }
    post(&all, "Bought", "a1", Project::TOO_MUCH, 1, "").await;
    post(&all, "Bought", "a1", 7, 2, "").await;
    post(&all, "Bought", "a2", Project::TOO_MUCH + 1, 1, "").await;
    let parked = async || cluster.number("select count(*) from millpond.parked_keys").await == Some(2);
    eventually_async(SOON, parked).await;
    cluster.succeeds(&["dlq", "edit", "sums", "--key", "a1", "--field", "amount=10", "--class", "refused_by_postgres"]);
    let left = async || cluster.number("select count(*) from millpond.parked_keys").await == Some(1);
    eventually_async(SOON, left).await;
    all.stop();

    // The log goes on with another version of a schema; a consumer that reads what is new in it reads all of the log.
    let later = std::fs::read_to_string(cluster.project.dir.join("later.avsc")).unwrap();
    cluster.project.write("schemas/Bought/v2.avsc", &later);
    let noted = "topics = [\"TOPIC\"]\n[tables.noted]\nkey = [\"account\", \"amount\"]\n";
    cluster.project.write("consumers/noted/consumer.toml", noted);
    cluster
        .project
        .write("consumers/noted/noted.sql", "select account, amount, coalesce(note, 'none') as note from bought");
    cluster.push();
    let all = cluster.start("all", &[]);
    for n in 60..90 {
        post(&all, "Bought", &format!("a{}", n % 9), n, (n as u32 * 17) % 60, r#", "note": "later""#).await;
    }
    cluster.settled(&cluster.project.topic, PROJECTIONS.len()).await;
    let mut before = Vec::new();
    for (_, table) in PROJECTIONS {
        before.push(rows(&cluster, table).await);
    }
    let [steps, latest, newest, sums, noted] = before.as_slice() else { unreachable!() };
    assert!(steps.iter().any(|row| row.contains('r') && row.contains('b')), "{steps:?}");
    assert_eq!((latest.len(), newest.len(), sums.len()), (9, 9, 9), "{latest:?} {newest:?} {sums:?}");
    assert!(sums.iter().all(|row| !row.contains("1000000")), "{sums:?}");
    for note in ["none", "later"] {
        assert!(noted.iter().any(|row| row.contains(note)), "{noted:?}");
    }
    for ((name, table), before) in PROJECTIONS.iter().zip(&before) {
        let (ended_well, said) = lines(&cluster, &["rebuild", name, "--swap", "--max-changed", "0"]);
        assert!(ended_well);
        let compared = &event(&said, "diff")["diff"]["tables"][0]["same"];
        assert_eq!(compared.as_u64(), Some(before.len() as u64), "{said:?}");
        assert_eq!(live(&cluster, name).await, Some(2));
        assert_eq!(&rows(&cluster, table).await, before, "{name}");
    }
    all.stop();
}
