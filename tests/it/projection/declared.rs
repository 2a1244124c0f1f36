//! What `tables.sql` may not say, because the rows would depend on the cut into batches.

use super::{
    lab::faults,
    refusals::{merging, relations},
};

/// Faults of a consumer whose table is declared.
async fn declaring(table: &str, tables: &str, sql: &str) -> Vec<String> {
    let toml = format!("topics = [\"t\"]\n[tables.f]\n{table}\n");
    faults(&[("consumer.toml", toml.as_str()), ("tables.sql", tables), ("f.sql", sql)], &relations()).await
}

#[tokio::test]
async fn constraints_that_a_batch_would_hide_are_refused_with_line_and_what_to_write() {
    let cases = [
        ("delay integer not null", "`delay` is `not null`, but Postgres judges only the row that a batch leaves"),
        ("delay integer not null", "put the condition into the SELECT's `where`, or write `apply.sql`"),
        ("delay integer check (delay > 0)", "`delay` has a check (delay > 0)"),
        ("delay integer constraint positive check (delay > 0)", "`delay` has a check (delay > 0)"),
        ("delay integer unique", "`delay` is unique, but rows of different keys come in no order"),
        ("delay integer references f", "`delay` has a foreign key"),
        ("delay integer default 5", "`delay` has a default"),
        ("delay integer default 5", "coalesce(delay, 5)"),
        ("delay integer generated always as (length(flight_id)) stored", "`delay` is computed by Postgres"),
        ("delay integer, check (delay > 0)", "the table has a check (delay > 0)"),
        ("delay integer, constraint c check (delay > 0 or flight_id = '')", "the table has a check"),
        ("delay integer, unique (delay)", "(delay) is unique"),
        ("delay integer, constraint c unique (delay, flight_id)", "(delay, flight_id) is unique"),
        ("delay integer, foreign key (delay) references f (delay)", "the table has a foreign key"),
        ("delay integer, exclude (delay with =)", "not valid SQL"),
        ("delay public.whole", "`delay` is of type `public.whole`, which is not one of Postgres' own"),
        ("delay information_schema.cardinal_number", "not one of Postgres' own"),
        ("delay text collate \"C\"", "`delay` has a collation"),
    ];
    for (column, reason) in cases {
        let tables = format!("create table f (\n  flight_id text primary key,\n  {column}\n)");
        let found = declaring("key = [\"flight_id\"]", &tables, "select flight_id, delay from departure").await;
        let wanted = "consumers/probe/tables.sql:3: ";
        let said = found.iter().any(|fault| fault.contains(reason) && fault.starts_with(wanted));
        assert!(said, "{column}\nwanted {reason}\nfound {found:#?}");
    }
    let table = "create table f (flight_id text not null, delay integer null, primary key (flight_id));\n";
    let indexes = [
        ("create unique index on f (delay)", "the index is unique"),
        ("create index on f ((1 / delay))", "the index computes"),
        ("create index on f (flight_id) where 1 / delay > 1", "the index asks whether 1 / delay > 1"),
    ];
    for (index, reason) in indexes {
        let tables = format!("{table}{index}");
        let found = declaring("key = [\"flight_id\"]", &tables, "select flight_id, delay from departure").await;
        let said =
            found.iter().any(|fault| fault.contains(reason) && fault.starts_with("consumers/probe/tables.sql:2: "));
        assert!(said, "{index}\nwanted {reason}\nfound {found:#?}");
    }
    let sound = format!(
        "{table}create index on f using hash (delay); create index n on f (flight_id desc, delay) include (delay)"
    );
    let found = declaring("key = [\"flight_id\"]", &sound, "select flight_id, delay from departure").await;
    assert_eq!(found, Vec::<String>::new());
    let handler = [
        ("consumer.toml", "topics = [\"t\"]\nhandler = \"rust\"\n"),
        ("tables.sql", "create table f (id text primary key, n int not null, m int default 1)"),
    ];
    let found = faults(&handler, &relations()).await;
    assert!(found.iter().any(|fault| fault.contains("let the handler reject such records")), "{found:#?}");
    assert!(found.iter().any(|fault| fault.contains("a handler writes every column")), "{found:#?}");
}

#[tokio::test]
async fn declared_types_that_would_change_what_merges_are_refused() {
    let cases = [
        ("carrier text", "carrier varchar(3)", "", "cut off what is longer"),
        ("carrier text", "carrier char(3)", "", "cut off what is longer"),
        ("flight_id text", "flight_id varchar(9)", "", "two keys could become one"),
        ("sum(delay)", "delay integer", "merge = { delay = \"sum\" }", "declare bigint"),
        ("sum(delay::bigint)", "delay bigint", "merge = { delay = \"sum\" }", "a sum of one batch could exceed"),
        ("max(cost)", "cost integer", "merge = { cost = \"max\" }", "convert it once per batch"),
        ("carrier text", "carrier date", "", "is of type date but expression is of type text"),
        ("carrier text", "carrier integer", "", "is of type integer but expression is of type text"),
        ("carrier collate \"C\"", "carrier text", "", "`carrier` has the collation C"),
    ];
    for (selected, declared, merge, reason) in cases {
        let name = declared.split(' ').next().unwrap();
        let tables = match name {
            "flight_id" => format!("create table f ({declared} primary key)"),
            _ => format!("create table f (flight_id text primary key, {declared})"),
        };
        let (expression, grouped) = match selected.split_once(' ') {
            Some((column, "text")) => (column, ""),
            _ if selected.contains("collate") => (selected, ""),
            _ => (selected, " group by flight_id"),
        };
        let sql = match name {
            "flight_id" => "select flight_id from departure".to_owned(),
            _ => format!("select flight_id, {expression} as {name} from departure{grouped}"),
        };
        let found = declaring(&format!("key = [\"flight_id\"]\n{merge}"), &tables, &sql).await;
        assert!(found.iter().any(|fault| fault.contains(reason)), "{declared}\nwanted {reason}\nfound {found:#?}");
    }
    let wider =
        "create table f (flight_id text primary key, delay bigint, seen_at date, cost numeric(9,2), carrier varchar)";
    let sql = "select flight_id, delay, seen_at, cost, carrier from departure";
    assert_eq!(declaring("key = [\"flight_id\"]", wider, sql).await, Vec::<String>::new());
}

#[tokio::test]
async fn collation_of_what_a_select_gives_is_refused() {
    let sql = "select flight_id, carrier collate \"C\" as carrier from departure";
    let found = merging("key = [\"flight_id\"]", sql).await;
    assert!(found.iter().any(|fault| fault.contains("`carrier` has the collation C")), "{found:#?}");
}
