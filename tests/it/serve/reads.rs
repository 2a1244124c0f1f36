//! What a query finds, in which form, and what is refused.

use futures_util::future::join_all;
use serde_json::json;

use super::*;

async fn three_flights() -> Served {
    three_flights_with(|_| {}).await
}

async fn three_flights_with(change: impl FnOnce(&mut Options)) -> Served {
    let served = Served::flights_with(change).await;
    served
        .sql(
            r#"insert into p_flights_v1.flights
                 (flight_id, carrier, delay, scheduled_at, distance, share, amount, late, tags, details, day) values
               ('a1', 'UA', 5, '2013-01-01T10:15:00Z', 9007199254740993, 'NaN', 12.50, false, '{x,"y,z"}', '{"k": [1, null]}', '2013-01-01'),
               ('b2', 'AA', null, '2013-01-02T10:15:00.123456Z', 200, 'Infinity', 0.10, null, null, null, null),
               ('c3', 'UA', 45, null, 300, 0.1, 99999999.99, true, '{}', '"line\nbreak"', '2013-01-03')"#,
        )
        .await;
    served
}

async fn ids(served: &Served, query: &str) -> Vec<String> {
    let answer = served.get(&format!("/v1/views/flights?{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text);
    let rows = answer.json();
    rows.as_array().unwrap().iter().map(|row| row["flight_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn filters_find_what_postgres_would() {
    let served = three_flights().await;
    for (query, expected) in [
        ("", "a1 b2 c3"),
        ("flight_id=eq.b2", "b2"),
        ("flight_id=eq.zz", ""),
        ("flight_id=eq.a1&carrier=eq.AA", ""),
        ("carrier=eq.UA", "a1 c3"),
        ("carrier=neq.UA", "b2"),
        ("carrier=not.eq.UA", "b2"),
        // A longer value is not cut to the column's length.
        ("carrier=eq.UA      x", ""),
        ("delay=gt.5", "c3"),
        ("delay=gte.5&delay=lt.45", "a1"),
        ("delay=is.null", "b2"),
        ("delay=is.not_null", "a1 c3"),
        ("delay=not.is.null", "a1 c3"),
        ("late=is.true", "c3"),
        ("late=not.is.true", "a1 b2"),
        ("late=is.unknown", "b2"),
        ("carrier=in.(AA,DL)", "b2"),
        ("delay=in.(5,45)", "a1 c3"),
        ("delay=not.in.(5)", "c3"),
        ("carrier=in.()", ""),
        ("carrier=like.U*", "a1 c3"),
        ("carrier=ilike.u%25", "a1 c3"),
        ("carrier=not.ilike.u*", "b2"),
        ("scheduled_at=gte.2013-01-02T00:00:00Z", "b2"),
        ("scheduled_at=eq.2013-01-01T11:15:00%2B01:00", "a1"),
        ("distance=eq.9007199254740993", "a1"),
        ("share=eq.NaN", "a1"),
        ("share=gt.1", "a1 b2"),
        ("amount=eq.12.5", "a1"),
        // Nor is it rounded to the column's scale.
        ("amount=eq.12.501", ""),
        ("day=eq.2013-01-03", "c3"),
        ("tags=eq.{x,\"y,z\"}", "a1"),
        ("or=(delay.gt.40,carrier.eq.AA)", "b2 c3"),
        ("and=(carrier.eq.UA,or(delay.gt.40,delay.is.null))", "c3"),
        ("not.or=(delay.gt.40,carrier.eq.AA)", "a1"),
        ("order=delay", "a1 c3 b2"),
        ("order=delay.desc", "b2 c3 a1"),
        ("order=delay.desc.nullslast", "c3 a1 b2"),
        ("order=carrier,delay.desc", "b2 c3 a1"),
        ("order=details.desc.nullslast&limit=1", "a1"),
        ("limit=2", "a1 b2"),
        ("limit=0", ""),
    ] {
        let query = query.replace(' ', "%20").replace('"', "%22");
        assert_eq!(ids(&served, &query).await.join(" "), expected, "{query}");
    }
}

/// They are asked together, as the metric shows; each gets its own row, and the fault of one is not that of another.
#[tokio::test]
async fn point_reads_at_once_get_each_their_own_answer() {
    let served = Served::with(|_| {}).await;
    let ddl =
        "create table seats (flight_id text, row_number integer, taken boolean, primary key (flight_id, row_number))";
    served.version("seats", 1, ddl).await;
    served.live("seats", 1).await;
    served.sql("insert into p_seats_v1.seats select 'f' || i % 7, i, i % 2 = 0 from generate_series(0, 199) i").await;
    let shared = || {
        let histogram = &millpond::telemetry::metrics::serve::READS_PER_STATEMENT;
        histogram.get_sample_sum() - histogram.get_sample_count() as f64
    };
    // Every fifth has no row; of the others every third is found only if taken.
    let read = async |i: i32| {
        let flight = if i % 5 == 0 { "none".to_owned() } else { format!("f{}", i % 7) };
        let filter = if i % 3 == 0 { "&taken=is.true" } else { "" };
        let path = format!("/v1/views/seats?flight_id=eq.{flight}&row_number=eq.{i}{filter}");
        let answer = served.get(&path).await;
        let found = i % 5 != 0 && (i % 3 != 0 || i % 2 == 0);
        let row = json!({"flight_id": flight, "row_number": i, "taken": i % 2 == 0});
        assert_eq!(answer.json(), if found { json!([row]) } else { json!([]) }, "{path}");
        assert_eq!(answer.header("millpond-position"), Some("flights.commands.v1/0@100,flights.commands.v1/1@50"));
    };
    let before = shared();
    join_all((0..200).map(read)).await;
    assert!(shared() - before > 100.0, "reads were asked one by one");

    let faulty = async |i: i32| {
        let answer = served.get(&format!("/v1/views/seats?flight_id=eq.f{i}&row_number=eq.x")).await;
        assert_eq!(answer.is_problem(400, "MP6003")["parameter"], "row_number");
    };
    join_all((0..100).map(async |i| if i % 10 == 0 { faulty(i).await } else { read(i).await })).await;
}

#[tokio::test]
async fn json_shows_every_type_as_documented() {
    let served = three_flights().await;
    let answer = served.get("/v1/views/flights?flight_id=eq.a1").await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let expected = concat!(
        r#"[{"flight_id":"a1","carrier":"UA","delay":5,"scheduled_at":"2013-01-01T10:15:00Z","#,
        r#""distance":9007199254740993,"share":"NaN","amount":12.50,"late":false,"tags":["x","y,z"],"#,
        r#""details":{"k": [1, null]},"raw":null,"day":"2013-01-01","marker":1}]"#
    );
    assert_eq!(answer.text, expected);
    let all = served.get("/v1/views/flights?select=share").await;
    assert_eq!(all.json(), json!([{"share": "NaN"}, {"share": "Infinity"}, {"share": 0.1}]));
    let shown = served.get("/v1/views/flights/flights?select=id:flight_id,distance::text&limit=1").await;
    assert_eq!(shown.json(), json!([{"id": "a1", "distance": "9007199254740993"}]));
}

/// In every format and place, but not in texts that look like one, and not as `::text`; pages go on behind them.
#[tokio::test]
async fn instants_are_in_utc_with_z() {
    let served = Served::with(|_| {}).await;
    let ddl = "create table moments (at timestamptz primary key, day_at timestamptz(0), many timestamptz[], local timestamp, \
               said text)";
    served.version("moments", 1, ddl).await;
    served.live("moments", 1).await;
    served
        .sql(
            "insert into p_moments_v1.moments values
               ('2013-01-01T00:00:00+01:00', '2013-01-01', '{2013-01-01T00:00:00Z,infinity,null}', '2013-01-01', 'x+00:00'),
               ('2013-01-01T00:00:00.000001Z', 'infinity', '{{2013-01-01,2013-01-02}}', null, null),
               ('2013-06-01T00:00:00Z', null, null, null, null)",
        )
        .await;
    let first = json!({
        "at": "2012-12-31T23:00:00Z", "day_at": "2013-01-01T00:00:00Z",
        "many": ["2013-01-01T00:00:00Z", "infinity", null], "local": "2013-01-01T00:00:00", "said": "x+00:00"
    });
    let second = json!({
        "at": "2013-01-01T00:00:00.000001Z", "day_at": "infinity",
        "many": [["2013-01-01T00:00:00Z", "2013-01-02T00:00:00Z"]], "local": null, "said": null
    });
    let page = served.get("/v1/views/moments?limit=2").await;
    assert_eq!(page.json(), json!([first, second]));
    assert_eq!(served.get(&page.next().unwrap()).await.json()[0]["at"], "2013-06-01T00:00:00Z");
    assert_eq!(served.get("/v1/views/moments?at=eq.2012-12-31T23:00:00Z").await.json(), json!([first]));
    let csv = served.get_with("/v1/views/moments?limit=1", &[("accept", "text/csv")]).await;
    let row = "2012-12-31T23:00:00Z,2013-01-01T00:00:00Z,\
               \"[\"\"2013-01-01T00:00:00Z\"\",\"\"infinity\"\",null]\",2013-01-01T00:00:00,x+00:00\r\n";
    assert_eq!(csv.text.split_once("\r\n").unwrap().1, row);
    let text = served.get("/v1/views/moments?select=at::text&limit=1").await;
    assert_eq!(text.json(), json!([{"at": "2012-12-31 23:00:00+00"}]));
}

#[tokio::test]
async fn formats_follow_accept() {
    let served = three_flights().await;
    let path = "/v1/views/flights?select=flight_id,delay,details,tags,scheduled_at&limit=3";
    let csv = served.get_with(path, &[("accept", "text/csv")]).await;
    let expected = "flight_id,delay,details,tags,scheduled_at\r\n\
                    a1,5,\"{\"\"k\"\": [1, null]}\",\"[\"\"x\"\",\"\"y,z\"\"]\",2013-01-01T10:15:00Z\r\n\
                    b2,,,,2013-01-02T10:15:00.123456Z\r\n\
                    c3,45,\"line\nbreak\",[],\r\n";
    assert_eq!(csv.text, expected);
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    let none = served.get_with("/v1/views/flights?select=delay&flight_id=eq.zz", &[("accept", "text/csv")]).await;
    assert_eq!(none.text, "delay\r\n");

    let lines = served.get_with("/v1/views/flights?select=flight_id", &[("accept", "application/x-ndjson")]).await;
    assert_eq!(lines.text, "{\"flight_id\":\"a1\"}\n{\"flight_id\":\"b2\"}\n{\"flight_id\":\"c3\"}\n");

    let object = [("accept", "application/vnd.pgrst.object+json")];
    let one = served.get_with("/v1/views/flights?select=flight_id&flight_id=eq.b2", &object).await;
    assert_eq!((one.status, one.text.as_str()), (200, "{\"flight_id\":\"b2\"}"));
    let first = served.get_with("/v1/views/flights?select=flight_id&limit=1", &object).await;
    assert_eq!(first.text, "{\"flight_id\":\"a1\"}");
    for query in ["", "?flight_id=eq.zz", "?limit=2"] {
        served.get_with(&format!("/v1/views/flights{query}"), &object).await.is_problem(406, "MP6014");
    }
    served.get_with("/v1/views/flights", &[("accept", "image/png")]).await.is_problem(406, "MP6013");
}

#[tokio::test]
async fn faulty_queries_are_refused_with_what_was_expected() {
    let served = three_flights().await;
    for (query, status, code, words) in [
        ("carier=eq.UA", 400, "MP6002", "did you mean `carrier`?"),
        ("_offset=eq.0", 400, "MP6002", "no column `_offset`"),
        ("select=_offset", 400, "MP6002", "no column `_offset`"),
        ("order=ctid", 400, "MP6002", "no column `ctid`"),
        ("or=(a.eq.1)", 400, "MP6002", "parameter `or`"),
        ("delay=5", 400, "MP6001", "eq."),
        ("delay=eq.abc", 400, "MP6003", "parameter `delay`: `abc` cannot be read as integer"),
        ("delay=eq.99999999999", 400, "MP6003", "integer"),
        ("carrier=eq.UA&or=(delay.eq.1,distance.in.(1,x))", 400, "MP6003", "parameter `or`: the list `1,x`"),
        ("scheduled_at=gt.2013-01-01T00:00:00+01:00", 400, "MP6003", "%2B"),
        ("scheduled_at=gt.yesterdayish", 400, "MP6003", "timestamp with time zone"),
        ("day=eq.2013-02-30", 400, "MP6003", "date"),
        ("late=eq.maybe", 400, "MP6003", "boolean"),
        ("details=eq.{", 400, "MP6003", "jsonb"),
        ("delay=like.5*", 400, "MP6004", "like needs text"),
        ("delay=is.true", 400, "MP6004", "boolean"),
        ("tags=in.(a)", 400, "MP6004", "array"),
        ("raw=eq.{}", 400, "MP6004", "json"),
        ("order=raw", 400, "MP6004", "json"),
        ("carrier=like.a%5C", 400, "MP6001", "backslash"),
        ("offset=3", 400, "MP6001", "rel=\\\"next\\\""),
        ("limit=1001", 400, "MP6001", "at most 1000"),
        ("after=!!", 400, "MP6005", "damaged"),
        ("after=e30", 400, "MP6005", "damaged"),
    ] {
        let answer = served.get(&format!("/v1/views/flights?{query}")).await;
        answer.is_problem(status, code);
        assert!(answer.text.contains(words), "{query}: {}", answer.text);
    }
    let unknown = served.get("/v1/views/fligts").await;
    assert_eq!(unknown.is_problem(404, "MP6011")["hint"], "did you mean `flights`?");
    served.get("/v1/views/flights/other").await.is_problem(404, "MP6011");
    served.version("fares", 1, "create table fares (id integer primary key)").await;
    served.get("/v1/views/fares").await.is_problem(503, "MP6018");
    served.live("fares", 1).await;
    eventually_async(SOON, || async { served.get("/v1/views/fares").await.status == 200 }).await;
}

/// Whatever stands where a name or a value stands, the table is as before, and only what was asked for is found.
#[tokio::test]
async fn hostile_texts_stay_values() {
    let served = three_flights().await;
    let corpus = [
        "'; drop table p_flights_v1.flights; --",
        "' or '1'='1",
        "UA' or 1=1--",
        "$1",
        "$1::text",
        "\\'; select 1; --",
        "\"; drop table x; --",
        "UA%00",
        "1); delete from p_flights_v1.flights; --",
        "pg_sleep(10)",
        "(select 1)",
        "{\"a\":1}",
        "';;;",
        "/* */",
        "--",
        "\u{2019} or 1=1",
        "\u{ff07} or 1=1",
        "UA\u{202e}",
        "a\\",
        "*%_\\\\",
        "null",
        "true",
        "now()",
        "E'\\x27'",
        "U&'\\0027'",
        "$$x$$",
        "$tag$x$tag$",
        "::int",
        "t.carrier",
        "\"carrier\"",
        "%' or '%'='",
        "x) or (1=1",
        "1 union select 1",
        "(((((((((",
        ")))))",
        ",,,",
        "...",
        "\r\nSet-Cookie: a=b",
    ];
    for text in corpus {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for query in [
            format!("carrier=eq.{encoded}"),
            format!("carrier=neq.{encoded}"),
            format!("carrier=in.({encoded})"),
            format!("carrier=like.{encoded}"),
            format!("carrier=ilike.{encoded}"),
            format!("delay=gt.{encoded}"),
            format!("carrier={encoded}"),
            format!("{encoded}=eq.1"),
            format!("select={encoded}"),
            format!("select=x:{encoded}"),
            format!("select={encoded}:carrier"),
            format!("order={encoded}"),
            format!("or=(carrier.eq.{encoded})"),
            format!("or=({encoded})"),
            format!("limit={encoded}"),
            format!("after={encoded}"),
            format!("details=eq.{encoded}"),
            format!("scheduled_at=lt.{encoded}"),
            format!("tags=eq.{encoded}"),
            format!("select=%22{encoded}%22:carrier&limit=1"),
        ] {
            let answer = served.get(&format!("/v1/views/flights?{query}")).await;
            assert!(matches!(answer.status, 200 | 400), "{query}: {} {}", answer.status, answer.text);
            if answer.status == 200 && query.starts_with("carrier=eq.") {
                assert_eq!(answer.text, "[]", "{query}");
            }
        }
        let path = served.get(&format!("/v1/views/{encoded}")).await;
        assert!(matches!(path.status, 404 | 400), "{text}: {}", path.text);
        let path = served.get(&format!("/v1/positions/{encoded}")).await;
        assert_eq!(path.status, 400, "{text}: {}", path.text);
    }
    assert_eq!(ids(&served, "").await, ["a1", "b2", "c3"]);
}

#[tokio::test]
async fn a_slow_query_is_stopped_and_says_so() {
    let served = Served::with(|options| options.statement_timeout = Duration::from_millis(100)).await;
    served.version("flights", 1, &flights_table(1)).await;
    served.live("flights", 1).await;
    served
        .sql(
            "alter table p_flights_v1.flights rename to slow;
             create view p_flights_v1.flights as select slow.* from p_flights_v1.slow, pg_sleep(2);
             insert into p_flights_v1.slow (flight_id) values ('a')",
        )
        .await;
    let answer = served.get("/v1/views/flights?carrier=is.null").await;
    answer.is_problem(504, "MP6015");
}

#[tokio::test]
async fn a_read_by_key_does_not_stand_behind_a_scan() {
    // Far longer than the reads take, on a machine that does much else.
    let served = three_flights_with(|options| options.statement_timeout = SOON).await;
    let view = "create view slow as select flight_id, pg_sleep(30)::text as delay from flights";
    served.version("slow", 1, &format!("set search_path = p_flights_v1; {view} limit 1")).await;
    served
        .sql(
            r#"update millpond.versions set schema_name = 'p_flights_v1', tables = '[{"name": "slow", "key": ["flight_id"],
               "columns": [{"name": "flight_id", "type": "text", "nullable": false}]}]' where projection = 'slow'"#,
        )
        .await;
    served.live("slow", 1).await;
    let by_key = async {
        for _ in 0..50 {
            assert_eq!(ids(&served, "flight_id=eq.a1").await, ["a1"]);
        }
    };
    tokio::select! {
        biased;
        scan = served.get("/v1/views/slow?order=flight_id.desc") => panic!("the scan came first: {scan:?}"),
        () = by_key => {}
    }
}

#[tokio::test]
async fn sessions_cannot_write_and_come_back_when_they_are_ended() {
    let served = three_flights().await;
    let others = "from pg_stat_activity where application_name = 'millpond serve' and datname = current_database()";
    assert_eq!(ids(&served, "limit=1").await, ["a1"]);
    for _ in 0..5 {
        served.sql(&format!("select pg_terminate_backend(pid) {others}")).await;
        eventually_async(SOON, || async { served.get("/v1/views/flights").await.status == 200 }).await;
    }
    served.sql("alter table p_flights_v1.flights add column added integer").await;
    assert_eq!(ids(&served, "limit=1").await, ["a1"]);
}

#[tokio::test]
async fn without_a_database_reads_are_refused_for_now() {
    let state = ServeState::start(Options {
        database_url: "postgres://nobody@127.0.0.1:1/none".to_owned(),
        ..Options::default()
    })
    .unwrap();
    assert!(!state.health().ready);
    let request = Request::get("/v1/views/flights").body(Body::empty()).unwrap();
    let response = router(state).oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 503);
    assert!(response.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn listings_show_each_table_with_a_line_that_works() {
    let served = three_flights().await;
    served
        .version("fares", 1, "create table fares (id integer primary key); create table classes (id integer, sub integer, primary key (id, sub))")
        .await;
    served.live("fares", 1).await;
    eventually_async(SOON, || async { served.get("/v1/views/fares").await.status == 200 }).await;
    let views = served.get_with("/v1/views", &[("host", "example.com:8080")]).await.json();
    let urls: Vec<&str> = views["views"].as_array().unwrap().iter().map(|view| view["url"].as_str().unwrap()).collect();
    let base = "http://example.com:8080/v1/views";
    assert_eq!(urls, [format!("{base}/fares/classes"), format!("{base}/fares/fares"), format!("{base}/flights")]);
    let flights = &views["views"][2];
    assert_eq!(flights["key"], json!(["flight_id"]));
    assert_eq!(
        flights["columns"][3],
        json!({"name": "scheduled_at", "type": "timestamp with time zone", "nullable": true})
    );
    assert!(!flights.to_string().contains("_offset"));
    assert_eq!(flights["curl"], format!("curl '{base}/flights?limit=3'"));
    let several = served.get("/v1/views/fares").await.json();
    assert_eq!(several["views"].as_array().unwrap().len(), 2);

    let page = served.get_with("/", &[("accept", "text/html")]).await;
    assert!(page.text.starts_with("<!doctype html>") && page.text.contains("flights"));
    let plain = served.get_with("/", &[("accept", "text/plain"), ("host", "x';rm -rf")]).await;
    assert!(plain.text.contains("curl 'http://localhost/v1/views/flights?limit=3'"), "{}", plain.text);
    assert_eq!(served.get("/").await.json()["views"], served.get("/v1/views").await.json()["views"]);
}
