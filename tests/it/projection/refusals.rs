//! What cannot be made to hold is refused, with the file, the line, the reason and the next step.

use millpond::projection::Relation;

use super::lab::{faults, relation};

pub fn relations() -> Vec<Relation> {
    let columns = [
        ("flight_id", "text"),
        ("carrier", "text"),
        ("delay", "integer"),
        ("cost", "numeric"),
        ("weight", "double precision"),
        ("tail", "uuid"),
        ("seen_at", "timestamptz"),
        ("tags", "text[]"),
    ];
    let mut other = relation("arrival", "Arrival", &["flight_id"], &columns);
    other.topics = vec!["u".into()];
    let mut depart = relation("departure", "Departure", &["flight_id"], &columns);
    depart.topics = vec!["t".into()];
    vec![depart, other]
}

/// Faults of a consumer with one merging table.
pub async fn merging(table: &str, sql: &str) -> Vec<String> {
    let toml = format!("topics = [\"t\", \"u\"]\n[tables.f]\n{table}\n");
    let files =
        [("consumer.toml", toml.as_str()), ("f.sql", sql), ("reference/airlines.csv", "carrier,name\nUA,United\n")];
    faults(&files, &relations()).await
}

#[tokio::test]
async fn selects_that_depend_on_the_cut_are_refused_with_the_reason() {
    let by_carrier = "key = [\"carrier\"]\nmerge = { n = \"sum\" }";
    let cases = [
        ("select carrier, 1 as n from departure order by 1", "`order by` has no meaning"),
        ("select carrier, 1 as n from departure limit 5", "`limit` and `offset` would count"),
        ("select distinct carrier, 1 as n from departure", "`distinct` sees one batch only"),
        ("select carrier, count(*) as n from departure group by 1 having count(*) > 1", "`having` would judge"),
        ("select carrier, row_number() over () as n from departure", "window functions see one batch only"),
        ("select carrier, 1 as n from departure union select carrier, 2 from arrival", "a set operation"),
        (
            "select d.carrier, 1 as n from departure d join arrival a using (flight_id)",
            "joins the input relations `departure` and `arrival`",
        ),
        ("select carrier, 1 as n from departure where exists (select from arrival)", "in a subquery"),
        ("select x.carrier, 1 as n from (select * from departure) x", "no input relation stands in FROM itself"),
        ("select carrier, 1 as n from departure right join airlines using (carrier)", "an outer join that keeps rows"),
        ("select carrier, 1 as n from airlines left join departure using (carrier)", "an outer join that keeps rows"),
        ("select carrier, n from f", "no input relation stands in FROM"),
        ("select carrier, (select sum(n) from f) as n from departure", "reads the table `f`"),
        ("select carrier, count(distinct tail) as n from departure group by 1", "with `distinct` cannot be merged"),
        ("select carrier, avg(delay) as n from departure group by 1", "keep a sum and a count"),
        ("select carrier, string_agg(tail::text, ',') as n from departure group by 1", "`string_agg` cannot be merged"),
        ("select carrier, sum(delay) + 1 as n from departure group by 1", "computes with an aggregate"),
        ("select carrier, sum(cost)::bigint as n from departure group by 1", "rounds a sum"),
        ("select carrier, 1 as n from departure group by 1", "would add it once per batch"),
        ("select carrier, count(*) as n from departure group by cube (1)", "grouping sets, cube, rollup"),
        ("select carrier, _seq as n from departure", "`_seq` counts records of one batch"),
        ("select d.carrier, length(d::text) as n from departure d", "`d` as a whole row"),
        ("select carrier, ctid::text::int as n from departure", "`ctid` tells where"),
        ("select carrier, 1 as n from departure tablesample system (10)", "`tablesample` gives other rows"),
        ("select carrier, weight as n from departure", "sums double precision"),
        ("select carrier, tags as n from departure", "has no sum"),
        ("select carrier, delay as n from departure where (select count(delay)) > 0", "aggregate"),
        ("select max(carrier) as carrier, count(*) as n from departure", "key column `carrier` is an aggregate"),
        ("select 1 as n from departure", "key column `carrier` is not selected"),
        ("select carrier, delay + 1 from departure", "has no name; add one with `as`"),
        ("select carrier, delay as _n from departure", "begins with `_`"),
        ("select carrier, 1 as n, delay as n from departure", "is named twice"),
        ("insert into f values ('UA', 1)", "only SELECTs belong"),
        ("with x as (delete from f returning 1) select carrier, 1 as n from departure", "a statement inside"),
        ("select carrier, 1 as n into x from departure", "`select into`"),
        ("select carrier, 1 as n from departure; create table x ()", "only SELECTs belong"),
        ("set role postgres", "only SELECTs belong"),
    ];
    for (sql, reason) in cases {
        let found = merging(by_carrier, sql).await;
        assert!(found.iter().any(|fault| fault.contains(reason)), "{sql}\nwanted {reason}\nfound {found:#?}");
    }
}

#[tokio::test]
async fn clocks_chance_and_the_session_are_refused() {
    let cases = [
        ("now()", "`now` reads the clock"),
        ("current_date", "`current_date` reads the clock"),
        ("current_timestamp", "`current_timestamp` reads the clock"),
        ("localtime", "`localtime` reads the clock"),
        ("clock_timestamp()", "`clock_timestamp` reads the clock"),
        ("statement_timestamp()", "reads the clock"),
        ("timeofday()", "reads the clock"),
        ("age(seen_at)", "`age` of one time reads the clock"),
        ("'today'::date", "'today' reads the clock"),
        ("seen_at > 'now'", "'now' reads the clock"),
        ("random()", "`random` is volatile"),
        ("gen_random_uuid()", "`gen_random_uuid` is volatile"),
        ("nextval('x')", "`nextval` counts batches"),
        ("pg_catalog.random()", "`random` is volatile"),
        ("pg_sleep(1)", "`pg_sleep` reads or changes the server"),
        ("pg_backend_pid()", "reads or changes the server"),
        ("set_config('a.b', 'c', false)", "`set_config` is volatile"),
        ("current_setting('timezone')", "`current_setting` depends on the server"),
        ("current_user", "`current_user` depends on the session"),
        ("version()", "`version` depends on the server"),
        ("txid_current()", "`txid_current` depends on the server"),
        ("public.f(1)", "`public.f` is not one of Postgres' own"),
        ("'x'::regclass", "type `regclass` reads the server's catalogue"),
        ("query_to_xml('select 1', true, true, '')", "`query_to_xml` is volatile"),
        ("(select relname from pg_class limit 1)", "`pg_class` is not an input relation"),
        ("(select relname from pg_catalog.pg_class limit 1)", "names a schema"),
    ];
    for (expression, reason) in cases {
        let found =
            merging("key = [\"flight_id\"]", &format!("select flight_id, {expression} as x from departure")).await;
        assert!(found.iter().any(|fault| fault.contains(reason)), "{expression}\nwanted {reason}\nfound {found:#?}");
    }
    let hidden = "select flight_id, x.a, (select count(*) from pg_stat_activity) as n from departure
                  cross join lateral (with pg_stat_activity as (select 1 as a) select a from pg_stat_activity) x";
    let found = merging("key = [\"flight_id\"]", hidden).await;
    assert!(found.iter().any(|fault| fault.contains("`pg_stat_activity` is not an input relation")), "{found:#?}");
    let sound = "select flight_id, age(seen_at, seen_at) as a, date_trunc('day', seen_at) as b, to_char(seen_at, 'YYYY') as c,
                 seen_at::date as d, coalesce(carrier, 'now'::text) as e, to_jsonb(tags) as f, extract(hour from seen_at) as g,
                 upper(carrier) || '-' || delay as h, cost::numeric(10,2) as i, md5(carrier) as j from departure";
    assert_eq!(merging("key = [\"flight_id\"]", sound).await, Vec::<String>::new());
}

#[tokio::test]
async fn computed_text_read_as_a_date_is_refused() {
    let cases = [
        ("carrier::date", "text is read as `date`"),
        ("date('today'::text || '')", "text is read as `date`"),
        ("('tod' || 'ay')::date", "text is read as `date`"),
        ("cast(carrier as varchar(9))::timestamptz", "text is read as `timestamp with time zone`"),
        ("timestamptz(carrier)", "text is read as `timestamp with time zone`"),
        ("'now'::text::timetz", "text is read as `time with time zone`"),
        ("tags::date[]", "text is read as `date`"),
        ("carrier::date[]", "text is read as `date[]`"),
        ("carrier::daterange", "text is read as `daterange`"),
        ("(select d from jsonb_to_record(to_jsonb(carrier)) as x(a int, d time))", "text is read as `time without"),
        ("(jsonb_populate_record(null::f, to_jsonb(carrier))).x", "name the fields"),
        ("to_char(seen_at - carrier::timestamptz, 'SS')", "text is read as `timestamp with time zone`"),
    ];
    for (expression, reason) in cases {
        let sql = format!("select flight_id, {expression} as x from departure");
        let found = merging("key = [\"flight_id\"]", &sql).await;
        assert!(found.iter().any(|fault| fault.contains(reason)), "{expression}\nwanted {reason}\nfound {found:#?}");
    }
    let files = [
        ("consumer.toml", "topics = [\"t\"]\n"),
        ("tables.sql", "create table f (id text primary key, d date)"),
        (
            "apply.sql",
            "merge into f using departure r on id = flight_id when not matched then insert values (flight_id, carrier::date)",
        ),
    ];
    let found = faults(&files, &relations()).await;
    assert!(found.iter().any(|fault| fault.contains("text is read as `date`")), "{found:#?}");
    let sound = "select flight_id, to_date(carrier, 'YYYY') as a, to_timestamp(carrier, 'YYYY-MM-DD') as b, '2013-01-01'::date as c,
                 seen_at::date as d, date(seen_at) as e, seen_at::text as f, carrier::interval as g, timestamp '2013-01-01' as h,
                 (select n from jsonb_to_record(to_jsonb(carrier)) as x(n int)) as i, 'epoch'::timestamptz as j -- as far as here
                 from departure -- and here";
    assert_eq!(merging("key = [\"flight_id\"]", sound).await, Vec::<String>::new());
}

#[tokio::test]
async fn merges_that_cannot_hold_are_refused_with_the_reason() {
    let cases = [
        (
            "key = [\"carrier\"]",
            "select carrier, delay from departure",
            "`delay` merges by \"last\", but the key (carrier) does not hold the key of `departure`",
        ),
        (
            "key = [\"carrier\"]",
            "select carrier, delay from departure",
            "merge = { delay = { last = \"updated_at\" } }",
        ),
        (
            "key = [\"carrier\"]",
            "select carrier, count(*) as n from departure group by 1",
            "`n` is a count, but has no merge rule; write merge = { n = \"sum\" }",
        ),
        (
            "key = [\"carrier\"]\nmerge = { n = \"max\" }",
            "select carrier, count(*) as n from departure group by 1",
            "but merges by \"max\"",
        ),
        (
            "key = [\"flight_id\"]\nmerge = { d = \"first\" }",
            "select flight_id, delay as d from departure group by 1, 2",
            "`group by` gives up the order",
        ),
        (
            "key = [\"flight_id\"]",
            "select flight_id, delay from departure; select flight_id, delay from arrival",
            "from several topics (t, u)",
        ),
        (
            "key = [\"flight_id\"]",
            "select upper(flight_id) as flight_id, delay from departure",
            "does not hold the key",
        ),
        (
            "key = [\"carrier\"]\nmerge = { n = \"sum\" }",
            "select carrier, 1 as n, delay > 3 as _delete from departure",
            "`_delete` removes rows in the order",
        ),
        ("key = [\"flight_id\"]", "select flight_id, delay as _delete from departure", "`_delete` has to be a boolean"),
        (
            "key = [\"flight_id\"]",
            "select _key as flight_id, true as _delete from tombstones; select flight_id, delay from departure",
            "from several topics",
        ),
        (
            "key = [\"carrier\"]\nmerge = { delay = { last = \"seen_at\" } }",
            "select carrier, delay from departure; select carrier, seen_at from arrival",
            "each SELECT that names one has to name the other",
        ),
        (
            "key = [\"carrier\"]\nmerge = { delay = { last = \"seen_at\" }, seen_at = \"min\" }",
            "select carrier, delay, seen_at from departure",
            "then has to merge by \"max\"",
        ),
        (
            "key = [\"carrier\"]\nmerge = { delay = { last = \"sen_at\" } }",
            "select carrier, delay, seen_at from departure",
            "did you mean `seen_at`?",
        ),
        (
            "key = [\"carrier\"]\nmerge = { dely = \"sum\" }",
            "select carrier, 1 as delay from departure",
            "`dely` merges, but no SELECT",
        ),
        (
            "key = [\"carrier\"]\nmerge = { tail = \"min\" }",
            "select carrier, tail from departure",
            "function min(uuid) does not exist",
        ),
        (
            "key = [\"carrier\"]\nmerge = { delay = \"and\" }",
            "select carrier, delay from departure",
            "select a condition",
        ),
        (
            "key = [\"flight_id\"]",
            "select flight_id, delay as x from departure; select flight_id, carrier as x from departure",
            "cast one of them",
        ),
        (
            "key = [\"j\"]\nmerge = { n = \"sum\" }",
            "select to_jsonb(carrier) as j, 1 as n from departure",
            "cast it to text",
        ),
        ("merge = { n = \"sum\" }", "select carrier, 1 as n from departure", "table `f` has no key"),
        (
            "key = [\"carrier\"]\nmerge = { n = \"sum\" }\nindexes = [[\"m\"]]",
            "select carrier, 1 as n from departure",
            "an index names `m`",
        ),
        (
            "key = [\"carrier\"]\nmerge = { n = \"sum\" }\ngrants = [\"nobody here\"]",
            "select carrier, 1 as n from departure",
            "create role \"nobody here\"",
        ),
    ];
    for (table, sql, reason) in cases {
        let found = merging(table, sql).await;
        assert!(found.iter().any(|fault| fault.contains(reason)), "{table}\n{sql}\nwanted {reason}\nfound {found:#?}");
    }
}

#[tokio::test]
async fn faults_of_sql_carry_the_line_and_come_all_at_once() {
    let sql = "-- departures\nselect flight_id, delay\nfrom departure;\n\nselect flight_id,\n  carier,\n  now() as x\nfrom departure;\nselect flight_id from departur";
    let found = merging("key = [\"flight_id\"]", sql).await;
    assert_eq!(
        found,
        [
            "consumers/probe/f.sql:5: `now` reads the clock, and a rebuild would read another time; use a field of the record or `_timestamp`",
            "consumers/probe/f.sql:9: `departur` is not an input relation, a reference table or a table of this consumer; did you mean `departure`?",
            "consumers/probe/f.sql:9: no input relation stands in FROM itself; read one of arrival, departure or tombstones, not inside a subquery (name expressions with `cross join lateral (select …) x`)",
        ]
    );
    let found = merging("key = [\"flight_id\"]", "select flight_id,\n  carier\nfrom departure").await;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("consumers/probe/f.sql:2: column \"carier\" does not exist"), "{found:#?}");
}

#[tokio::test]
async fn missing_key_column_is_told_and_nothing_that_follows_from_it() {
    let sql = "select flight_id, delay as worst, delay < 0 as _delete from departure;\nselect flight_id, carrier from arrival";
    let found = merging("key = [\"flight\"]\nmerge = { worst = \"last\" }", sql).await;
    assert_eq!(
        found,
        [
            "consumers/probe/f.sql:1: key column `flight` is not selected; did you mean `flight_id`?",
            "consumers/probe/f.sql:2: key column `flight` is not selected; did you mean `flight_id`?",
        ]
    );
    let found =
        merging("key = [\"carrier\", \"day\"]", "select carrier, count(*) as n, tail from departure group by 1, 3")
            .await;
    assert_eq!(found, ["consumers/probe/f.sql:1: key column `day` is not selected; every SELECT names the whole key"]);
}

#[tokio::test]
async fn manifest_faults_come_all_at_once_with_the_nearest_key() {
    let toml = "topcis = [\"t\"]\non_error = \"park\"\ndedupe = \"1h\"\ndedupe_window = \"a while\"\n[batch]\nmax_bytes = \"lots\"\n\
                [tables.f]\nkey = [\"a\"]\nmerge = { n = \"summ\", m = \"avg\", a = \"sum\" }\n[tables.g]\nkey = [\"a\"]\n";
    let found = faults(&[("consumer.toml", toml), ("f.sql", "select 1 as a")], &relations()).await;
    for reason in [
        "consumer.toml:1: `topcis` is not a known key; did you mean `topics`?",
        "`topics` is missing",
        "`on_error` is \"park\"; write",
        "`dedupe` is not enforced yet",
        "`dedupe_window` must be a duration",
        "`batch.max_bytes` must be a size",
        "did you mean \"sum\"?",
        "keep a sum and a count",
        "`a` is a key column and cannot merge",
    ] {
        assert!(found.iter().any(|fault| fault.contains(reason)), "wanted {reason}\nfound {found:#?}");
    }
    let sound = "topics = [\"t\"]\n[tables.f]\nkey = [\"a\"]\n[tables.g]\nkey = [\"a\"]\n";
    let found = faults(&[("consumer.toml", sound), ("f.sql", "select 1 as a"), ("gg.sql", "")], &relations()).await;
    assert!(
        found.iter().any(|fault| fault.contains("consumer.toml has no [tables.gg]; did you mean `g.sql`?")),
        "{found:#?}"
    );
    assert!(found.iter().any(|fault| fault.contains("table `g` has no `g.sql`")), "{found:#?}");
}

#[tokio::test]
async fn apply_files_may_only_change_their_own_tables() {
    let tables = "create table f (id text primary key, n int)";
    let cases = [
        (tables, "insert into departure select * from departure", "`departure` is written, but is not a table"),
        (tables, "update f set n = n + 1", "reads no input relation"),
        (tables, "select * from departure", "the statement changes nothing"),
        (tables, "create table x (a int)", "`create` does not belong in `apply.sql`"),
        (tables, "commit", "`commit` does not belong"),
        (tables, "set search_path = public", "`set` does not belong"),
        (tables, "truncate f", "`truncate` does not belong"),
        (tables, "copy f from stdin", "`copy` does not belong"),
        (tables, "delete from public.f using departure d where d.flight_id = id", "names a schema"),
        (tables, "insert into f select flight_id, random() * 3 from departure", "`random` is volatile"),
        (tables, "insert into f select flight_id, _round from departure", "`_round` is the engine's own"),
        (tables, "insert into f select flight_id, 1 from departure union table pg_class", "write `select * from x`"),
        (tables, "insert into f\nselect flight_id, nope from departure", "apply.sql:2: column \"nope\" does not exist"),
        (
            "create table f (id text, n int)",
            "delete from f using departure d where d.flight_id = id",
            "needs a primary key",
        ),
        ("create table f (id serial primary key)", "delete from f using departure", "counts inserts"),
        (
            "create table f (id int generated always as identity primary key)",
            "delete from f using departure",
            "counts inserts",
        ),
        (
            "create table f (id text primary key, at timestamptz default now())",
            "delete from f using departure",
            "`now` reads the clock",
        ),
        ("create table f (id text primary key references f)", "delete from f using departure", "foreign key"),
        ("create table f (id text primary key, n int unique)", "delete from f using departure", "`n` is unique, but"),
        (
            "create table f (id text primary key, n int, unique (n, id))",
            "delete from f using departure",
            "(n, id) is unique",
        ),
        (
            "create table f (id text primary key, n int); create unique index on f (n)",
            "delete from f using departure",
            "the index is unique",
        ),
        (
            "create table f (id text primary key deferrable)",
            "delete from f using departure",
            "write `primary key` alone",
        ),
        (
            "create table f (id text primary key, n public.d[])",
            "delete from f using departure",
            "not one of Postgres' own",
        ),
        (tables, "insert into f select flight_id, delay::public.d from departure", "type `public.d` is not one of"),
        ("create temp table f (id text primary key)", "delete from f using departure", "write a plain `create table"),
        ("create table s.f (id text primary key)", "delete from f using departure", "names a schema"),
        ("create view f as select 1", "delete from f using departure", "`create view` does not belong in `tables.sql`"),
    ];
    for (tables, sql, reason) in cases {
        let files = [("consumer.toml", "topics = [\"t\"]\n"), ("tables.sql", tables), ("apply.sql", sql)];
        let found = faults(&files, &relations()).await;
        assert!(found.iter().any(|fault| fault.contains(reason)), "{tables}\n{sql}\nwanted {reason}\nfound {found:#?}");
    }
}
