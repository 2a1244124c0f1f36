//! A part of the log, tried in scratch tables.

use serde_json::Value;

use super::{lines, live, totals};
use crate::cluster::{Cluster, Project, SOON};
use crate::harness::eventually_async;

/// What came of the candidates of a replay.
fn candidates(said: &[Value]) -> Vec<Value> {
    said.iter().filter(|line| line["event"] == "replayed").map(|line| line["candidate"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_tries_folders_on_a_part_of_the_log_and_leaves_nothing_behind() {
    let cluster = Cluster::of("whatif", Project::sums).await;
    let all = cluster.start("all", &[]);
    let mut last = String::new();
    for n in 1..=20 {
        let body = format!(r#"{{"account": "a{}", "amount": {n}}}"#, n % 4);
        let answer = all.web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
        if n == 12 {
            last = answer.position().to_owned();
        }
    }
    eventually_async(SOON, async || totals(&cluster).await == 210).await;

    // The folder itself gives what the live version has.
    let (ended_well, said) = lines(&cluster, &["replay", "sums"]);
    assert!(ended_well);
    let own = &candidates(&said)[0];
    assert_eq!((&own["records"], &own["rows"]), (&20.into(), &serde_json::json!([["sums", 4]])), "{own}");
    assert_eq!((&own["diff"]["aligned"], &own["diff"]["touched"]), (&true.into(), &false.into()));
    let table = &own["diff"]["tables"][0];
    assert_eq!(
        (&table["same"], &table["changed"], &table["added"], &table["removed"]),
        (&4.into(), &0.into(), &0.into(), &0.into())
    );

    let plan = |args: &[&str]| {
        let output = cluster.run(&[&["plan", "--json"], args].concat());
        (output.status.success(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (sound, planned) = plan(&["--check"]);
    assert!(sound && planned[0]["step"] == "same", "{planned}");

    // Two candidates, on the records of one key and on those with great amounts.
    let select = "select account, count(*) as payments, sum(amount * 2)::bigint as total from paid group by account";
    cluster.project.write(
        "other/consumer.toml",
        "topics = [\"TOPIC\"]\n[tables.sums]\nkey = [\"account\"]\n\
                          merge = { payments = \"sum\", total = \"sum\" }\n",
    );
    cluster.project.write("other/sums.sql", select);
    let other = cluster.project.dir.join("other").display().to_string();
    let same = cluster.project.dir.join("consumers/sums").display().to_string();
    let both = ["replay", "sums", "--candidate", &same, "--candidate", &other, "--key", "a1"];
    let (ended_well, said) = lines(&cluster, &both);
    assert!(ended_well);
    let found = candidates(&said);
    let counts = |of: &Value| (of["diff"]["tables"][0]["same"].clone(), of["diff"]["tables"][0]["changed"].clone());
    assert_eq!((counts(&found[0]), counts(&found[1])), ((1.into(), 0.into()), (0.into(), 1.into())), "{found:?}");
    let (ended_well, said) = lines(&cluster, &["replay", "sums", "--where", "amount>=17", "--where", "account!=a3"]);
    assert!(ended_well);
    let version = candidates(&said)[0]["version"].as_i64().unwrap();
    let sum = |version: i64| format!("select coalesce(sum(total), 0)::int8 from p_sums_v{version}.sums");
    assert_eq!(cluster.number(&sum(version)).await, Some(17 + 18 + 20));

    // A part of the log, by a position; the rest of the other partition comes along.
    let (ended_well, said) = lines(&cluster, &["replay", "sums", "--until", &last]);
    assert!(ended_well);
    let part = &candidates(&said)[0];
    let wanted: i64 = last.rsplit('@').next().unwrap().parse().unwrap();
    let at = format!("{}@{wanted}", last.rsplit_once('@').unwrap().0);
    assert!(part["diff"]["position"].as_str().unwrap().split(',').any(|place| place == at), "{part}");
    assert_eq!(part["diff"]["aligned"], false);
    assert_eq!(
        part["diff"]["tables"][0]["removed"],
        Value::Null,
        "what would be gone is not known of a part of the log"
    );

    // Who is wrong is told so, and nothing of it stays.
    for (wrong, told) in [
        (["--where", "amuont=1"], "did you mean `amount`?"),
        (["--where", "amount"], "expected a field"),
        (["--where", "amount>>3"], "two operators follow each other"),
        (["--where", "amount>abc"], "`amount` is a number"),
        (["--until", "nosuch.topic/0@5"], "does not read a topic `nosuch.topic`"),
        (["--until", &format!("{}/7@5", cluster.project.topic)], "2 partitions, from 0 on"),
        (["--from", &format!("{}/1@999", cluster.project.topic)], "ends before"),
        (["--keep", "1e12"], "is no number of hours"),
        (["--from", "yesterday"], "expected start, end, an offset or a time"),
        (["--candidate", "nowhere"], "consumer.toml"),
    ] {
        let output = cluster.run(&["replay", "sums", wrong[0], wrong[1]]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(told), "{error}");
    }
    let versions = all.web.get("/v1/versions", &[]).await.json()["versions"].clone();
    let states: Vec<&str> = versions.as_array().unwrap().iter().map(|v| v["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["live", "scratch", "scratch", "scratch", "scratch", "scratch"], "{versions}");
    assert_eq!((&versions[0]["lag"], &versions[0]["partitions"].as_array().unwrap().len()), (&0.into(), &2));
    let scratch = "select count(*) from millpond.versions where state = 'scratch'";
    assert_eq!(cluster.number(scratch).await, Some(5));
    assert!(String::from_utf8_lossy(&cluster.run(&["status"]).stdout).contains("scratch of a replay"));

    // A changed folder is planned, with what it takes; a build makes that known, and a swap makes it the same.
    let whole = std::fs::read_to_string(cluster.project.dir.join("consumers/sums/sums.sql")).unwrap();
    cluster.project.write("consumers/sums/sums.sql", &whole.replace("sum(amount", "sum(2 * amount"));
    cluster.project.write("consumers/none/consumer.toml", "topics = [\"nowhere\"]\n");
    let (sound, planned) = plan(&["--check"]);
    let of = |name: &str| planned.as_array().unwrap().iter().find(|item| item["projection"] == name).unwrap().clone();
    assert!(
        !sound && of("none")["step"] == "refused" && of("none")["why"].as_str().unwrap().contains("nowhere"),
        "{planned}"
    );
    let sums = of("sums");
    assert_eq!((&sums["step"], &sums["records"]), (&"rebuilt".into(), &20.into()), "{planned}");
    assert_eq!(sums["changed"], serde_json::json!(["consumers/sums/sums.sql"]));
    assert_eq!(sums["next"], "millpond rebuild sums");
    assert!(plan(&[]).0, "without --check it only shows");
    std::fs::remove_dir_all(cluster.project.dir.join("consumers/none")).unwrap();
    cluster.project.write("consumers/sums/sums.sql", &whole);

    // Its time is over, or somebody says so.
    cluster.execute("update millpond.versions set kept_until = now() where state = 'scratch' and version = 2").await;
    eventually_async(SOON, async || cluster.number(scratch).await == Some(4)).await;
    cluster.succeeds(&["replay", "sums", "--drop"]);
    assert_eq!(cluster.number(scratch).await, Some(0));
    let schemas = "select count(*) from information_schema.schemata where schema_name like 'p_sums_v%'";
    assert_eq!(cluster.number(schemas).await, Some(1));
    assert_eq!((live(&cluster, "sums").await, totals(&cluster).await), (Some(1), 210));
    all.stop();
}
