//! Each way to write a consumer, and what a version shows of itself.

use std::collections::BTreeSet;

use millpond::projection::{Relation, compile};
use sqlx::{AssertSqlSafe, Row as _};

use super::lab::{Lab, Record, connect, relation, spec, unique};

fn schedule() -> Relation {
    relation(
        "schedule_flight",
        "ScheduleFlight",
        &["flight_id"],
        &[("flight_id", "text"), ("carrier", "text"), ("scheduled_at", "timestamptz")],
    )
}

fn departure() -> Relation {
    let columns =
        [("flight_id", "text"), ("carrier", "text"), ("delay_minutes", "integer"), ("scheduled_at", "timestamptz")];
    relation("record_departure", "RecordDeparture", &["flight_id"], &columns)
}

fn record(relation: &'static str, key: &str, offset: i64, fields: &[&str]) -> Record {
    Record { relation, key: key.into(), partition: 0, offset, fields: fields.iter().map(|f| (*f).to_owned()).collect() }
}

#[tokio::test]
async fn merge_of_the_readme_counts_departures_per_carrier_and_day() {
    let files = [
        (
            "consumer.toml",
            "topics = [\"flights.commands.v1\"]\n[tables.punctuality]\nkey = [\"carrier\", \"day\"]\n\
             merge = { departures = \"sum\", delayed = \"sum\" }\n",
        ),
        (
            "punctuality.sql",
            "select carrier, (scheduled_at at time zone 'America/New_York')::date as day,\n\
             count(*) as departures, count(*) filter (where delay_minutes >= 15) as delayed\n\
             from record_departure group by 1, 2;\n",
        ),
    ];
    let mut lab = Lab::new(&files, &[schedule(), departure()]).await;
    let info = lab.compiled.tables();
    let shown: Vec<String> =
        info[0].columns.iter().map(|c| format!("{} {} {}", c.name, c.pg_type, c.nullable)).collect();
    assert_eq!(shown, ["carrier text false", "day date false", "departures bigint false", "delayed bigint false"]);
    assert_eq!(lab.compiled.relations().iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["record_departure"]);
    let at = |key: &str, delay: &str, at: &str| record("record_departure", key, 0, &["'x'", "'UA'", delay, at]);
    lab.apply(&[at("1", "20", "'2013-01-01 04:59Z'"), at("2", "3", "'2013-01-01 05:00Z'")]).await;
    lab.apply(&[at("3", "15", "'2013-01-01 05:00Z'")]).await;
    assert_eq!(lab.lines("punctuality").await, ["UA 2012-12-31 1 1", "UA 2013-01-01 2 1"]);
    assert!(lab.compiled.apply_sql(1, 1, &BTreeSet::new()).is_empty(), "a batch without records runs nothing");
    let error = lab.try_apply(&[record("record_departure", "4", 0, &["'x'", "null", "1", "now()"])]).await.unwrap_err();
    assert_eq!(error.as_database_error().and_then(|e| e.code()).as_deref(), Some("23502"));
    lab.drop_version().await;
}

#[tokio::test]
async fn latest_record_per_key_is_kept_without_sql() {
    let mut lab = Lab::new(&[("consumer.toml", "topics = [\"t\"]\n")], &[schedule()]).await;
    let table = lab.compiled.tables()[0].name.clone();
    assert!(table.starts_with("lab_"), "named like the consumer: {table}");
    let put = |key: &str, carrier: &str| record("schedule_flight", key, 0, &[&format!("'{key}'"), carrier, "null"]);
    lab.apply(&[put("a", "'UA'"), put("b", "'AA'"), put("a", "'DL'"), record("tombstones", "b", 0, &[])]).await;
    assert_eq!(lab.lines(&table).await, ["a DL null"]);
    lab.apply(&[record("tombstones", "a", 0, &[]), put("b", "'B6'")]).await;
    assert_eq!(lab.lines(&table).await, ["b B6 null"]);
    lab.drop_version().await;
    let pairs = relation("leg", "Leg", &["from", "to"], &[("from", "text"), ("to", "text"), ("miles", "integer")]);
    let mut lab = Lab::new(&[("consumer.toml", "topics = [\"t\"]\n[tables.legs]\n")], &[pairs]).await;
    lab.apply(&[record("leg", "EWR-IAH", 0, &["'EWR'", "'IAH'", "1400"])]).await;
    assert_eq!(lab.lines("legs").await, ["EWR-IAH EWR IAH 1400"]);
    lab.apply(&[record("tombstones", "EWR-IAH", 0, &[])]).await;
    assert_eq!(lab.lines("legs").await, Vec::<String>::new());
    lab.drop_version().await;
}

#[tokio::test]
async fn several_types_without_sql_have_a_table_each() {
    let sent_to = |mut relation: Relation, topic: &str| {
        relation.topics = vec![topic.to_owned()];
        relation
    };
    let types = [sent_to(schedule(), "t"), sent_to(departure(), "t"), sent_to(relation("leg", "Leg", &[], &[]), "u")];
    for manifest in [
        "topics = [\"t\"]\n",
        "topics = [\"t\"]\ntypes = [\"ScheduleFlight\", \"RecordDeparture\"]\n",
        "topics = [\"t\"]\n[tables.schedule_flight]\nindexes = [[\"carrier\"]]\n",
    ] {
        let mut lab = Lab::new(&[("consumer.toml", manifest)], &types).await;
        let tables: Vec<String> = lab.compiled.tables().into_iter().map(|table| table.name).collect();
        assert_eq!(tables, ["record_departure", "schedule_flight"], "{manifest}");
        let put = |key: &str| record("_of_schedule_flight", key, 0, &[&format!("'{key}'"), "'UA'", "null"]);
        let departed = |key: &str| record("_of_record_departure", key, 0, &[&format!("'{key}'"), "'UA'", "7", "null"]);
        lab.apply(&[put("a"), put("b"), departed("a"), departed("b"), departed("a")]).await;
        lab.apply(&[record("tombstones", "b", 0, &[]), put("c")]).await;
        assert_eq!(lab.lines("schedule_flight").await, ["a UA null", "c UA null"]);
        assert_eq!(lab.lines("record_departure").await, ["a UA 7 null"]);
        lab.drop_version().await;
    }
}

#[tokio::test]
async fn apply_by_key_sees_each_key_once_per_round() {
    let files = [
        ("consumer.toml", "topics = [\"t\"]\n[tables.steps]\n"),
        (
            "tables.sql",
            "create table steps (id text, steps text not null, primary key (id));\ncreate index on steps (steps);\n",
        ),
        (
            "apply.sql",
            "insert into steps select flight_id, 's' from schedule_flight on conflict (id) do update set steps = steps.steps || 's';\n\
             update steps s set steps = s.steps || 'd' from record_departure r where r.flight_id = s.id;\n\
             delete from steps s using tombstones t where t._key = s.id;\n",
        ),
    ];
    let mut lab = Lab::new(&files, &[schedule(), departure()]).await;
    assert!(lab.compiled.needs_rounds());
    let s = |key: &str| record("schedule_flight", key, 0, &[&format!("'{key}'"), "null", "null"]);
    let d = |key: &str| record("record_departure", key, 0, &[&format!("'{key}'"), "null", "null", "null"]);
    lab.apply(&[s("a"), d("b"), d("a"), s("b"), s("a"), d("a"), d("b"), s("c"), record("tombstones", "c", 0, &[])])
        .await;
    assert_eq!(lab.lines("steps").await, ["a sdsd", "b sd"]);
    let sql = lab.compiled.apply_sql(1, 2, &BTreeSet::from(["tombstones"]));
    assert!(
        sql.contains("pg_advisory_xact_lock") && !sql.contains("insert") && sql.matches("delete").count() == 2,
        "{sql}"
    );
    lab.drop_version().await;
}

#[tokio::test]
async fn apply_at_once_and_keyed_takes_no_lock() {
    let files = [
        ("consumer.toml", "topics = [\"t\"]\norder = \"none\"\nwrites = \"keyed\"\n"),
        ("tables.sql", "create table seen (id text primary key, n bigint default 0 check (n >= 0))"),
        (
            "apply.sql",
            "with c as (select flight_id, count(*) n from schedule_flight group by 1)\n\
             insert into seen select flight_id, n from c on conflict (id) do update set n = seen.n + excluded.n",
        ),
    ];
    let mut lab = Lab::new(&files, &[schedule()]).await;
    let s = |key: &str| record("schedule_flight", key, 0, &[&format!("'{key}'"), "null", "null"]);
    lab.apply(&[s("a"), s("b"), s("a")]).await;
    lab.apply(&[s("a")]).await;
    assert_eq!(lab.lines("seen").await, ["a 3", "b 1"]);
    assert!(!lab.compiled.apply_sql(1, 1, &BTreeSet::from(["schedule_flight"])).contains("lock"));
    lab.drop_version().await;
}

#[tokio::test]
async fn join_that_multiplies_rows_ends_the_same_under_any_cut() {
    let files = [
        ("consumer.toml", "topics = [\"t\"]\n[tables.f]\nkey = [\"id\"]\nmerge = { n = \"sum\" }\n"),
        (
            "f.sql",
            "select s.flight_id as id, a.name, array[a.name] as names, 1 as n from schedule_flight s join airlines a using (carrier)",
        ),
        ("reference/airlines.csv", "carrier,name\nUA,United\nUA,\"Union, Air\"\nAA,American\n"),
    ];
    let mut lab = Lab::new(&files, &[schedule()]).await;
    let s = |key: &str, carrier: &str| record("schedule_flight", key, 0, &[&format!("'{key}'"), carrier, "null"]);
    let batch = [s("a", "'AA'"), s("a", "'UA'"), s("b", "'UA'"), s("b", "'AA'")];
    lab.apply(&batch).await;
    let together = lab.lines("f").await;
    assert_eq!(together, ["a United {United} 3", "b American {American} 3"]);
    lab.next_version().await;
    for one in &batch {
        lab.apply(std::slice::from_ref(one)).await;
    }
    assert_eq!(lab.lines("f").await, together);
    lab.drop_version().await;
}

#[tokio::test]
async fn tables_sql_decides_the_types_that_merges_keep() {
    let files = [
        (
            "consumer.toml",
            "topics = [\"t\"]\n[tables.f]\nkey = [\"carrier\"]\nmerge = { n = \"sum\", worst = \"max\" }\nindexes = [[\"n\"]]\n",
        ),
        ("f.sql", "select carrier, 1 as n, delay_minutes as worst from record_departure"),
        ("tables.sql", "create table f (worst numeric(6,1), n numeric, carrier text not null, primary key (carrier))"),
    ];
    let mut lab = Lab::new(&files, &[departure()]).await;
    let types: Vec<String> = lab.compiled.tables()[0].columns.iter().map(|c| c.pg_type.clone()).collect();
    assert_eq!(types, ["text", "numeric", "numeric(6,1)"]);
    lab.apply(&[record("record_departure", "a", 0, &["'a'", "'UA'", "7", "null"])]).await;
    assert_eq!(lab.lines("f").await, ["UA 1 7.0"]);
    lab.drop_version().await;
}

#[tokio::test]
async fn handler_has_tables_and_nothing_staged() {
    let toml = "topics = [\"t\"]\nhandler = \"rust\"\n[tables.flights]\nkey = [\"id\"]\n\
                [tables.flights.columns]\nid = \"text\"\nzeta = \"numeric(4,1)\"\nat = \"timestamptz\"\n";
    let mut lab = Lab::new(&[("consumer.toml", toml)], &[schedule()]).await;
    assert!(lab.compiled.is_handler() && lab.compiled.relations().is_empty());
    let columns = lab.compiled.tables()[0].columns.iter().map(|c| c.pg_type.clone()).collect::<Vec<_>>();
    assert_eq!(columns, ["text", "numeric(4,1)", "timestamp with time zone"]);
    lab.drop_version().await;
}

#[tokio::test]
async fn live_views_show_the_version_without_the_engines_columns() {
    let files = [
        (
            "consumer.toml",
            "topics = [\"t\"]\n[tables.f]\nkey = [\"id\"]\n[tables.g]\nkey = [\"id\"]\ngrants = [\"pg_monitor\"]\n",
        ),
        (
            "f.sql",
            "select flight_id as id, carrier from schedule_flight; select flight_id as id, delay_minutes from record_departure",
        ),
        ("g.sql", "select flight_id as id from schedule_flight"),
    ];
    let mut lab = Lab::new(&files, &[schedule(), departure()]).await;
    millpond::store::migrate(&mut lab.conn).await.expect("the platform's tables");
    let name = lab.compiled.schema_name(0).trim_start_matches("p_").trim_end_matches("_v0").to_owned();
    for version in [1, 1] {
        let sql = format!("begin; {}; commit", lab.compiled.live_views_sql(version).join("; "));
        lab.run(&sql).await;
    }
    let sql = format!(
        "select string_agg(table_name || ':' || column_name, ' ' order by table_name, ordinal_position)
         from information_schema.columns where table_schema = 'live' and table_name like '{name}%'"
    );
    let found: String = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut lab.conn).await.unwrap().get(0);
    assert_eq!(found.replace(&name, "N"), "N_f:id N_f:carrier N_f:delay_minutes N_g:id");
    lab.apply(&[record("schedule_flight", "a", 0, &["'a'", "'UA'", "null"])]).await;
    let refused = lab.try_run(&format!("update live.{name}_f set carrier = 'AA'")).await.unwrap_err();
    let code = refused.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    assert_eq!(code.as_deref(), Some("25006"), "{refused}");
    lab.run(&format!("drop view live.{name}_f, live.{name}_g")).await;
    lab.drop_version().await;
}

#[tokio::test]
async fn types_named_like_a_relation_keep_their_meaning() {
    let relation = relation("text", "Text", &["id"], &[("id", "text"), ("date", "timestamptz")]);
    let files = [
        ("consumer.toml", "topics = [\"t\"]\n[tables.date]\nkey = [\"id\"]\n"),
        ("date.sql", "select id, date::date as day, _offset::text as at from text"),
    ];
    let mut lab = Lab::new(&files, &[relation]).await;
    lab.apply(&[record("text", "a", 7, &["'a'", "'2013-01-02'"])]).await;
    assert_eq!(lab.lines("date").await, ["a 2013-01-02 7"]);
    lab.drop_version().await;
}

#[tokio::test]
async fn hash_follows_what_decides_the_rows_and_nothing_else() {
    let mut conn = connect().await;
    let name = unique("hash");
    let relations = [schedule()];
    let hash = async |conn: &mut _, toml: &str, sql: &str, relations: &[Relation]| {
        let spec = spec(&name, &[("consumer.toml", toml), ("f.sql", sql)]).unwrap();
        compile(&spec, relations, conn).await.unwrap().hash().to_owned()
    };
    let toml = "topics = [\"t\"]\n[tables.f]\nkey = [\"id\"]\n";
    let sql = "select flight_id as id, carrier from schedule_flight";
    let first = hash(&mut conn, toml, sql, &relations).await;
    assert_eq!(
        first,
        hash(&mut conn, toml, "-- why\nselect flight_id AS id,\n carrier from schedule_flight;", &relations).await
    );
    let calmer = format!("on_error = \"halt\"\n{toml}grants = [\"pg_monitor\"]\n[batch]\nmax_records = 7\n");
    assert_eq!(first, hash(&mut conn, &calmer, sql, &relations).await);
    let other = "select flight_id as id, lower(carrier) as carrier from schedule_flight";
    assert_ne!(first, hash(&mut conn, toml, other, &relations).await);
    let column = |relation: &mut Relation, name: &str| {
        let at = relation.columns.iter().position(|column| column.name == name).expect("it has the column");
        relation.columns.swap_remove(at)
    };
    let mut redefined = schedule();
    let mut carrier = column(&mut redefined, "carrier");
    carrier.definition = "2".into();
    redefined.columns.push(carrier);
    assert_ne!(first, hash(&mut conn, toml, sql, &[redefined]).await);
    let mut unread = schedule();
    column(&mut unread, "scheduled_at");
    unread.columns.extend(departure().columns.into_iter().filter(|column| column.name == "delay_minutes"));
    assert_eq!(first, hash(&mut conn, toml, sql, std::slice::from_ref(&unread)).await, "fields that no SELECT reads");
    let whole = "select *, flight_id as id from schedule_flight";
    let before = hash(&mut conn, toml, whole, &relations).await;
    assert_ne!(before, hash(&mut conn, toml, whole, &[unread]).await);
    let max = format!("{toml}merge = {{ carrier = \"max\" }}\n");
    assert_ne!(first, hash(&mut conn, &max, sql, &relations).await);
    let windows = ["\"168h\"", "\"8d\"", "\"0\""].map(|window| format!("dedupe_window = {window}\n{toml}"));
    let mut hashes = vec![first.clone()];
    for window in &windows {
        hashes.push(hash(&mut conn, window, sql, &relations).await);
    }
    assert_eq!(hashes[0], hashes[1], "the default, written in hours");
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 3);
}

#[tokio::test]
async fn order_of_records_matters_to_first_last_removals_and_what_authors_write() {
    let merge = |rules: &str| format!("topics = [\"t\"]\n[tables.f]\nkey = [\"flight_id\"]\nmerge = {{ {rules} }}\n");
    let cases = [
        (
            "n = \"sum\", lo = \"min\", hi = \"max\"",
            "select flight_id, 1 as n, delay_minutes as lo, delay_minutes as hi from record_departure",
            true,
        ),
        (
            "v = { last = \"at\" }",
            "select flight_id, delay_minutes as v, scheduled_at as at from record_departure",
            true,
        ),
        ("v = \"first\"", "select flight_id, delay_minutes as v from record_departure", false),
        ("n = \"sum\"", "select flight_id, 1 as n, delay_minutes as v from record_departure", false),
        ("n = \"sum\"", "select flight_id, 1 as n, delay_minutes > 9 as _delete from record_departure", false),
    ];
    for (rules, sql, commutes) in cases {
        let toml = merge(rules);
        let lab = Lab::new(&[("consumer.toml", toml.as_str()), ("f.sql", sql)], &[departure()]).await;
        assert_eq!(lab.compiled.commutes(), commutes, "{rules}: {sql}");
    }
    let latest =
        Lab::new(&[("consumer.toml", "topics = [\"t\"]\ntypes = [\"RecordDeparture\"]\n")], &[departure()]).await;
    assert!(!latest.compiled.commutes(), "without SQL the last record of a key stays");
}
