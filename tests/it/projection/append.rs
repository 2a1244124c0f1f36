//! Which rows may go straight into their table.

use std::collections::BTreeSet;

use millpond::projection::Relation;

use super::lab::{Lab, relation};

fn paid() -> Relation {
    relation("paid", "Paid", &["account"], &[("account", "text"), ("amount", "bigint"), ("rate", "numeric(9,2)")])
}

/// The COPY for the table `t` of a consumer with this SQL, without what all of them begin with, and the staged fields.
async fn append(merge: &str, sql: &str, tables: &str) -> Option<(String, Vec<usize>)> {
    let manifest = format!("topics = [\"t\"]\n[tables.t]\n{merge}\n");
    let mut files = vec![("consumer.toml", manifest.as_str()), ("t.sql", sql)];
    if !tables.is_empty() {
        files.push(("tables.sql", tables));
    }
    let mut lab = Lab::new(&files, &[paid()]).await;
    let relation = lab.compiled.relations().iter().find(|relation| relation.name == "paid").unwrap().clone();
    let found = lab.compiled.append(lab.version, &relation, &BTreeSet::from(["paid"]));
    let schema = lab.compiled.schema_name(lab.version);
    lab.drop_version().await;
    found.map(|found| (found.statement.replace(&format!("copy \"{schema}\"."), ""), found.fields))
}

#[tokio::test]
async fn plain_copies_of_fields_are_appended() {
    let keyed = "key = [\"account\"]";
    let whole = append(keyed, "select account, amount, rate from paid", "").await;
    let copy = "\"t\" (\"account\", \"amount\", \"rate\") from stdin (format binary)".to_owned();
    assert_eq!(whole, Some((copy, vec![7, 8, 9])), "behind the seven columns of the engine");
    let event = "key = [\"id\"]\nmerge = { account = { last = \"at\" } }";
    let named = append(event, "select p._event_id as id, p._timestamp at, account from paid p", "").await.unwrap();
    assert_eq!(named.1, [4, 3, 7], "{}", named.0);
    let declared = "create table t (account text primary key, amount bigint)";
    assert_eq!(append(keyed, "select account, amount from paid", declared).await.unwrap().1, [7, 8]);
}

#[tokio::test]
async fn what_is_computed_or_merged_otherwise_is_not_appended() {
    let (keyed, plain) = ("key = [\"account\"]", "select account, amount from paid");
    for (merge, sql, tables) in [
        (keyed, "select account, amount + 1 as amount from paid", ""),
        (keyed, "select account, 'x' as amount from paid", ""),
        (keyed, "select account, amount from paid where amount > 0", ""),
        (keyed, "select account, amount from paid; select account, rate from paid", ""),
        (keyed, "select account, amount, amount < 0 as _delete from paid", ""),
        ("key = [\"account\"]\nmerge = { amount = \"sum\" }", plain, ""),
        (
            "key = [\"account\"]\nmerge = { amount = \"sum\" }",
            "select account, sum(amount) as amount from paid group by 1",
            "",
        ),
        // Equal keys look equal only once their trailing zeros are gone.
        ("key = [\"account\", \"rate\"]", "select account, rate from paid", ""),
        // Cast to and fro, it is text, and another one.
        ("key = [\"id\"]", "select _key::uuid::text as id, amount from paid", ""),
        // Another type than the staged one.
        (keyed, plain, "create table t (account text primary key, amount numeric)"),
    ] {
        assert_eq!(append(merge, sql, tables).await, None, "{merge}: {sql}; {tables}");
    }
}

#[tokio::test]
async fn latest_records_are_appended_but_beside_tombstones() {
    let mut lab = Lab::new(&[("consumer.toml", "topics = [\"t\"]\n")], &[paid()]).await;
    let relation = lab.compiled.relations().iter().find(|relation| relation.record_type == "Paid").unwrap().clone();
    let name = relation.name.as_str();
    let found = lab.compiled.append(lab.version, &relation, &BTreeSet::from([name])).unwrap();
    assert_eq!(found.fields, [1, 2, 3], "behind `_seq`");
    assert_eq!(lab.compiled.append(lab.version, &relation, &BTreeSet::from([name, "tombstones"])), None);
    lab.drop_version().await;
}
