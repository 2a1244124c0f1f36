//! What a version remembers of ids: how Postgres finds and forgets them among many, and how much room they take.

use millpond::store::seen;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::harness::database;

const SCHEMA: &str = "p_p_v1";
/// Partitions of the version, each with as many ids.
const PARTITIONS: i64 = 6;
const IDS: i64 = 60_000;
/// Ids of one batch, and rows that are removed by one statement.
const BATCH: usize = 5_000;

async fn execute(postgres: &mut PgConnection, sql: &str) {
    postgres.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
}

/// A version that remembers nothing yet. Its log is at the time that `ids` make it, in milliseconds.
async fn version(ids: i64) -> PgConnection {
    let mut postgres = PgConnection::connect(&database().url).await.unwrap();
    let sql = format!(
        "insert into millpond.projections values ('p');
         insert into millpond.versions values ('p', 1, 'hash', '{SCHEMA}', 'live', '{{t}}', '[]');
         insert into millpond.fences (projection, version, topic, partition, next_offset, log_time)
            select 'p', 1, 't', at, {ids}, {ids} from generate_series(0, {PARTITIONS} - 1) at;
         create schema {SCHEMA}"
    );
    execute(&mut postgres, &sql).await;
    execute(&mut postgres, &seen::create_sql(SCHEMA)).await;
    postgres
}

/// A million and more ids could be there: these are as many as make a walk through them stand out.
async fn filled() -> PgConnection {
    let mut postgres = version(IDS).await;
    let sql = format!(
        "insert into {SCHEMA}._seen (fence, \"offset\", log_time, event_id, fingerprint)
         select f.number, n, n, gen_random_uuid()::text, gen_random_uuid()
           from generate_series(1, {IDS}) n cross join millpond.fences f"
    );
    execute(&mut postgres, &sql).await;
    postgres
}

/// Every node of a plan that touches the table.
fn nodes<'p>(plan: &'p Value, found: &mut Vec<&'p Value>) {
    if plan["Relation Name"] == "_seen" {
        found.push(plan);
    }
    plan["Plans"].as_array().into_iter().flatten().for_each(|plan| nodes(plan, found));
}

/// Prepares, runs and rolls back; what was done to the table: kind of node, and rows of each loop with those that were
/// looked at in vain.
async fn looks(
    postgres: &mut PgConnection,
    types: &str,
    sql: &str,
    arguments: &str,
    settings: &str,
) -> Vec<(String, f64)> {
    let begin = format!("begin; {settings}; prepare looked ({types}) as {sql}");
    execute(postgres, &begin).await;
    let explain = format!("explain (analyze, format json) execute looked ({arguments})");
    let told: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut *postgres).await.unwrap();
    execute(postgres, "rollback; deallocate looked").await;
    let mut found = Vec::new();
    nodes(&told[0]["Plan"], &mut found);
    assert!(!found.is_empty(), "{told}");
    let number = |node: &Value, field: &str| node[field].as_f64().unwrap_or_default();
    let look = |node: &&Value| {
        let vain = number(node, "Rows Removed by Filter") + number(node, "Rows Removed by Index Recheck");
        let rows = (number(node, "Actual Rows") + vain) * number(node, "Actual Loops");
        (node["Node Type"].as_str().unwrap().to_owned(), rows)
    };
    found.iter().map(look).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_found_and_forgotten_by_index_however_many_there_are() {
    let mut postgres = filled().await;
    let some = format!(
        "select array_agg(event_id)::text from (select event_id from {SCHEMA}._seen where fence = 1
           order by \"offset\" % 7, event_id limit {BATCH}) s"
    );
    let some: String = sqlx::query_scalar(AssertSqlSafe(some)).fetch_one(&mut postgres).await.unwrap();
    // As it is found, and as autovacuum leaves it by and by.
    for analysed in [false, true] {
        if analysed {
            execute(&mut postgres, &format!("analyze {SCHEMA}._seen; analyze millpond.fences")).await;
        }
        for plan in ["custom", "generic"] {
            let case = format!("analysed: {analysed}, {plan} plan");
            let as_is = format!("set local plan_cache_mode = force_{plan}_plan");
            let by_index = format!("{as_is}; {}", seen::BY_INDEX);
            let ids = format!("1, '{some}'");
            let known = looks(&mut postgres, "int8, text[]", &seen::known_sql(SCHEMA), &ids, &as_is).await;
            for (node, rows) in &known {
                assert!(node.starts_with("Index"), "{case}: {known:?}");
                assert!(*rows <= BATCH as f64, "{case}: {known:?}");
            }
            // All of the partition is too old, and most of it stays for the next statement.
            let (types, sql) = ("text, int4, text, int4, int8, int8", seen::purge_sql(SCHEMA));
            let purge = looks(&mut postgres, types, &sql, &format!("'p', 1, 't', 2, 1, {BATCH}"), &by_index).await;
            for (node, rows) in &purge {
                let direct = ["Index Scan", "Index Only Scan", "Tid Scan", "ModifyTable"].contains(&node.as_str());
                assert!(direct && *rows <= BATCH as f64, "{case}: {purge:?}");
            }
            // Nothing is too old: nothing is looked at.
            let purge = looks(&mut postgres, types, &sql, &format!("'p', 1, 't', 2, {IDS}, {BATCH}"), &by_index).await;
            assert!(purge.iter().all(|(_, rows)| *rows == 0.0), "{case}: {purge:?}");
        }
    }
}

/// How much room ids take, and how long one batch takes beside so many: for the figures in docs/performance.md.
/// `cargo test --test it -- seen::room --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes a minute"]
async fn room() {
    const MILLION: i64 = 1_000_000;
    for (what, id) in
        [("UUIDs", "gen_random_uuid()::text"), ("key and index", "'2013-01-31/load-' || n / 500 || '/' || n % 500")]
    {
        let mut postgres = version(MILLION).await;
        // In batches of one partition each, as they are written.
        let sql = format!(
            "do $$ begin
               for batch in 0 .. {MILLION} / {BATCH} - 1 loop
                 insert into {SCHEMA}._seen (fence, \"offset\", log_time, event_id, fingerprint)
                 select 1 + batch % {PARTITIONS}, n, n, {id}, gen_random_uuid()
                   from generate_series(batch * {BATCH}, (batch + 1) * {BATCH} - 1) n;
                 commit;
               end loop;
             end $$"
        );
        let begun = std::time::Instant::now();
        execute(&mut postgres, &sql).await;
        let filled = begun.elapsed();
        let sizes = format!(
            "select pg_table_size('{SCHEMA}._seen'), pg_indexes_size('{SCHEMA}._seen'), count(*) from {SCHEMA}._seen"
        );
        let (table, indexes, rows): (i64, i64, i64) =
            sqlx::query_as(AssertSqlSafe(sizes)).fetch_one(&mut postgres).await.unwrap();
        let some =
            format!("array(select event_id from {SCHEMA}._seen where fence = 1 order by random() limit {BATCH})");
        let begun = std::time::Instant::now();
        let look = seen::known_sql(SCHEMA).replace("$1", "1").replace("$2::text[]", &some);
        execute(&mut postgres, &format!("create temp table looked as {look}")).await;
        eprintln!(
            "{what}: {rows} ids, {} MB in the table and {} MB in its indexes, {} bytes each; written in {filled:.1?}, {BATCH} \
             looked up in {:.0?}",
            table / MILLION,
            indexes / MILLION,
            (table + indexes) / rows,
            begun.elapsed()
        );
    }
}
