//! Values that a later record of the same batch overwrites: under any cut they are judged as if each stood alone.

use millpond::projection::Relation;

use super::lab::{Lab, Record, relation};

fn readings() -> [Relation; 2] {
    let columns = [("sensor", "text"), ("site", "text"), ("value", "integer"), ("cost", "numeric"), ("note", "text")];
    [relation("reading", "Reading", &["sensor"], &columns), relation("remark", "Remark", &["sensor"], &columns)]
}

fn record(relation: &'static str, offset: i64, fields: [&str; 5]) -> Record {
    let key = fields[0].trim_matches('\'').to_owned();
    Record { relation, key, partition: 0, offset, fields: fields.map(str::to_owned).to_vec() }
}

/// What becomes of the records under a cut into batches of `size`: those refused, as the engine would find them by
/// halving a refused batch, and the rows.
async fn applied(lab: &mut Lab, records: &[Record], size: usize) -> (Vec<i64>, Vec<String>) {
    lab.next_version().await;
    let mut refused = Vec::new();
    for batch in records.chunks(size) {
        let mut open = vec![batch];
        while let Some(part) = open.pop() {
            if lab.try_apply(part).await.is_ok() {
                continue;
            }
            if let [one] = part {
                refused.push(one.offset);
                continue;
            }
            let (first, second) = part.split_at(part.len() / 2);
            open.extend([second, first]);
        }
    }
    (refused, lab.lines("f").await)
}

async fn same_under_any_cut(files: &[(&str, &str)], records: &[Record]) -> (Vec<i64>, Vec<String>) {
    let mut lab = Lab::new(files, &readings()).await;
    let alone = applied(&mut lab, records, 1).await;
    for size in 2..=records.len() {
        assert_eq!(applied(&mut lab, records, size).await, alone, "batches of {size}");
    }
    lab.drop_version().await;
    alone
}

const BY_SENSOR: &str = "topics = [\"t\"]\n[tables.f]\nkey = [\"sensor\"]\n";

fn reading(offset: i64, sensor: &str, site: &str, value: &str, cost: &str, note: &str) -> Record {
    record("reading", offset, [sensor, site, value, cost, note])
}

#[tokio::test]
async fn value_beyond_the_declared_precision_is_refused_also_where_it_is_overwritten() {
    let files = [
        ("consumer.toml", BY_SENSOR),
        ("tables.sql", "create table f (sensor text primary key, cost numeric(5,2), value smallint)"),
        ("f.sql", "select sensor, cost, value from reading"),
    ];
    let of = |offset, value, cost| reading(offset, "'a'", "null", value, cost, "null");
    let records =
        [of(0, "1", "1.005"), of(1, "1", "1000"), of(2, "70000", "1"), of(3, "2", "999.99"), of(4, "3", "null")];
    let (refused, rows) = same_under_any_cut(&files, &records).await;
    assert_eq!((refused, rows), (vec![1, 2], vec!["a null 3".to_owned()]));
}

#[tokio::test]
async fn record_without_its_whole_key_is_refused_whatever_else_the_batch_holds() {
    let toml = "topics = [\"t\"]\n[tables.f]\nkey = [\"sensor\", \"site\"]\nmerge = { value = \"max\" }\n";
    let removal = "select _key as sensor, null::text as site, true as _delete from tombstones";
    for sql in [
        "select sensor, site, value, note = 'gone' as _delete from reading".to_owned(),
        "select sensor, site, note, note = 'gone' as _delete from reading".to_owned(),
        format!("select sensor, site, value from reading; {removal}"),
    ] {
        let toml = if sql.contains("value") { toml } else { &toml.replace("merge = { value = \"max\" }\n", "") };
        let files = [("consumer.toml", toml), ("f.sql", sql.as_str())];
        let mut tombstone = record("tombstones", 3, ["'a'"; 5]);
        tombstone.fields.clear();
        let of = |offset, site, note| reading(offset, "'a'", site, "1", "1", note);
        let mut records = vec![of(0, "null", "'n'"), of(1, "null", "'gone'"), of(2, "'s'", "'n'")];
        let mut refusals = vec![0, 1];
        if sql.contains("tombstones") {
            records.push(tombstone);
            refusals.push(3);
        }
        let (refused, rows) = same_under_any_cut(&files, &records).await;
        assert_eq!((refused, rows.len()), (refusals, 1), "{sql}");
    }
}

#[tokio::test]
async fn sum_of_a_declared_table_begins_at_zero_under_any_cut() {
    let files = [
        ("consumer.toml", "topics = [\"t\"]\n[tables.f]\nkey = [\"sensor\"]\nmerge = { value = \"sum\" }\n"),
        ("tables.sql", "create table f (sensor text primary key, note text, value numeric)"),
        ("f.sql", "select sensor, value from reading; select sensor, note from remark"),
    ];
    let remark = record("remark", 0, ["'b'", "null", "1", "null", "'n'"]);
    let records = [remark, reading(1, "'a'", "null", "1", "null", "null")];
    let (refused, rows) = same_under_any_cut(&files, &records).await;
    assert_eq!((refused.len(), rows), (0, vec!["a 1 null".to_owned(), "b 0 n".to_owned()]));
}

#[tokio::test]
async fn constraint_under_apply_by_key_judges_each_record() {
    let files = [
        ("consumer.toml", "topics = [\"t\"]\n[tables.f]\n"),
        ("tables.sql", "create table f (sensor text primary key, value integer not null check (value > 0))"),
        (
            "apply.sql",
            "insert into f select sensor, value from reading on conflict (sensor) do update set value = excluded.value",
        ),
    ];
    let of = |offset, sensor, value| reading(offset, sensor, "null", value, "null", "null");
    let records = [of(0, "'a'", "-1"), of(1, "'b'", "1"), of(2, "'a'", "2"), of(3, "'b'", "null"), of(4, "'b'", "3")];
    let (refused, rows) = same_under_any_cut(&files, &records).await;
    assert_eq!((refused, rows), (vec![0, 3], vec!["a 2".to_owned(), "b 3".to_owned()]));
}

/// Why such constraints are refused in `tables.sql`.
#[tokio::test]
async fn constraint_made_by_hand_judges_only_what_a_batch_leaves() {
    let files = [("consumer.toml", BY_SENSOR), ("f.sql", "select sensor, value from reading")];
    let records = ["-1", "null", "1"].map(|value| reading(0, "'a'", "null", value, "null", "null"));
    let constraints =
        ["add check (value > 0)", "alter value set not null", "add unique (value)", "add exclude (value with =)"];
    let mut lab = Lab::new(&files, &readings()).await;
    for constraint in constraints {
        lab.next_version().await;
        let table = format!("{}.f", lab.compiled.schema_name(lab.version));
        lab.run(&format!("alter table {table} {constraint}")).await;
        if constraint.contains("=") || constraint.contains("unique") {
            lab.apply(&[reading(0, "'b'", "null", "-1", "null", "null")]).await;
        }
        lab.apply(&records).await;
        lab.run(&format!("delete from {table} where sensor = 'a'")).await;
        let alone = lab.try_apply(&records[..1]).await.is_ok() && lab.try_apply(&records[1..2]).await.is_ok();
        assert!(!alone, "{constraint} takes each record by itself");
    }
    lab.drop_version().await;
}
