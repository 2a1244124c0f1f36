//! Position and age, reads of one's own writes, swaps under reads, and records that did not make it.

use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;

use super::*;

const POINT: &str = "/v1/views/flights?flight_id=eq.a1";

async fn one_flight() -> Served {
    let served = Served::flights().await;
    served.sql("insert into p_flights_v1.flights (flight_id) values ('a1')").await;
    served
}

async fn ends(served: &Served, first: i64, second: i64) {
    served
        .sql(&format!(
            "insert into millpond.ends (projection, version, topic, partition, end_offset, observed_at)
             select 'flights', 1, '{TOPIC}', p, e, now() - interval '2 s' from (values (0, {first}), (1, {second})) v(p, e)
             on conflict (projection, version, topic, partition) do update set end_offset = excluded.end_offset, observed_at = excluded.observed_at"
        ))
        .await;
}

#[tokio::test]
async fn every_answer_tells_position_and_age() {
    let served = one_flight().await;
    for path in [POINT, "/v1/views/flights", "/v1/views/flights?carrier=is.null"] {
        let answer = served.get(path).await;
        assert_eq!(answer.header("millpond-position"), Some("flights.commands.v1/0@100,flights.commands.v1/1@50"));
        // Where the partitions end is not known yet, so neither is how far behind this is.
        assert_eq!(answer.header("millpond-age"), Some("unknown"));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert!(answer.header("vary").unwrap().contains("Millpond-Min-Position"));
    }
    // Ends are read a few times a second. Caught up, the age counts from when they were looked at; behind, from the last
    // record of partition 0; and the oldest partition counts.
    for (first, second, expected) in [(100, 50, 2.0..20.0), (101, 50, 30.0..50.0), (101, 51, 60.0..80.0)] {
        ends(&served, first, second).await;
        eventually_async(SOON, || async {
            let answer = served.get(POINT).await;
            answer.header("millpond-age").unwrap().parse::<f64>().is_ok_and(|age| expected.contains(&age))
        })
        .await;
    }
}

#[tokio::test]
async fn an_unchanged_projection_answers_not_modified() {
    let served = one_flight().await;
    let first = served.get(POINT).await;
    let tag = first.header("etag").unwrap().to_owned();
    assert!(tag.starts_with("W/\""));
    for known in [tag.clone(), format!("\"x\", {tag}"), tag.trim_start_matches("W/").to_owned(), "*".to_owned()] {
        let again = served.get_with(POINT, &[("if-none-match", &known)]).await;
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{known}");
        assert_eq!(again.header("etag"), Some(&*tag));
        assert!(again.header("millpond-position").is_some() && again.header("millpond-age").is_some());
    }
    let other_form = served.get_with(POINT, &[("if-none-match", &tag), ("accept", "text/csv")]).await;
    assert_eq!(other_form.status, 200);
    let other_query = served.get_with("/v1/views/flights", &[("if-none-match", &tag)]).await;
    assert_eq!(other_query.status, 200);
    served.fence(0, 101).await;
    assert_eq!(served.get_with(POINT, &[("if-none-match", &tag)]).await.status, 200);
}

#[tokio::test]
async fn a_read_waits_for_its_position() {
    let served = one_flight().await;
    let reached = served.get_with(POINT, &[("millpond-min-position", "flights.commands.v1/0@100")]).await;
    assert_eq!(reached.status, 200);

    let headers = [("millpond-min-position", "flights.commands.v1/0@102"), ("prefer", "wait=8")];
    let began = Instant::now();
    let write = async {
        served.sql("update p_flights_v1.flights set delay = 1").await;
        served.fence(0, 101).await;
        served.sql("begin; update p_flights_v1.flights set delay = 2; update millpond.fences set next_offset = 102 where partition = 0; commit").await;
    };
    let (read, ()) = tokio::join!(served.get_with(POINT, &headers), write);
    assert_eq!((read.status, &read.json()[0]["delay"]), (200, &json!(2)));
    assert_eq!(read.header("preference-applied"), Some("wait=8"));
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_position_that_is_not_reached_is_refused_with_the_current_one() {
    let served = one_flight().await;
    let headers = [("millpond-min-position", "flights.commands.v1/1@51"), ("prefer", "wait=0")];
    let answer = served.get_with(POINT, &headers).await;
    let problem = answer.is_problem(412, "MP6009");
    assert_eq!(problem["position"], "flights.commands.v1/0@100,flights.commands.v1/1@50");
    assert_eq!(problem["outcomes"][0]["outcome"], "waiting");
    assert_eq!(problem["outcomes"][0]["lag"], 1);
    assert_eq!(answer.header("millpond-position"), Some("flights.commands.v1/0@100,flights.commands.v1/1@50"));

    served.sql("update millpond.fences set state = 'halted', halt_code = 'MP4007', halt_reason = 'too many dead letters' where partition = 1").await;
    let halted = served.get_with(POINT, &headers).await.is_problem(412, "MP6009");
    assert!(halted["detail"].as_str().unwrap().contains("it has halted: MP4007 too many dead letters"), "{halted}");
    assert_eq!(halted["outcomes"][0]["next"], "millpond consumer restart flights");

    for (position, code) in [("other.topic/0@1", "MP6008"), ("oops", "MP6007"), ("flights.commands.v1/0@-1", "MP6007")]
    {
        served.get_with(POINT, &[("millpond-min-position", position)]).await.is_problem(400, code);
    }
}

#[tokio::test]
async fn waiting_is_bounded_in_number() {
    let served = Served::with(|options| options.max_waiting = 1).await;
    served.version("flights", 1, &flights_table(1)).await;
    served.live("flights", 1).await;
    let headers = [("millpond-min-position", "flights.commands.v1/0@101"), ("prefer", "wait=1")];
    let (one, two) = tokio::join!(served.get_with(POINT, &headers), served.get_with(POINT, &headers));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [412, 503]);
}

#[tokio::test]
async fn a_dead_letter_is_never_a_silent_success() {
    let served = one_flight().await;
    served
        .sql(&format!(
            "insert into millpond.dead_letters (projection, version, topic, partition, \"offset\", recorded_at, reason_class, reason)
             values ('flights', 1, '{TOPIC}', 0, 98, now(), 'decode', 'field `delay`: not a number');
             insert into millpond.refusals (projection, version, topic, partition, \"offset\", code, reason)
             values ('flights', 1, '{TOPIC}', 1, 48, 'already_departed', 'flight a1 has departed – too late')"
        ))
        .await;
    for query in ["", "&select=flight_id"] {
        let headers = [("millpond-min-position", "flights.commands.v1/0@99"), ("if-none-match", "*")];
        let answer = served.get_with(&format!("{POINT}{query}"), &headers).await;
        let problem = answer.is_problem(409, "MP6010");
        assert_eq!(problem["outcomes"][0]["reason"], "field `delay`: not a number");
        assert_eq!(problem["outcomes"][0]["next"], "millpond dlq show flights flights.commands.v1/0/98");
        assert_eq!(problem["positions"], "/v1/positions/flights.commands.v1/0@99");
    }
    // The records around it are not it.
    for next in [98, 100] {
        let min = format!("flights.commands.v1/0@{next}");
        assert_eq!(served.get_with(POINT, &[("millpond-min-position", &min)]).await.status, 200);
    }
    let refused = served.get_with(POINT, &[("millpond-min-position", "flights.commands.v1/1@49")]).await;
    assert_eq!((refused.status, refused.header("millpond-outcome")), (200, Some("refused")));
    assert_eq!(refused.header("millpond-outcome-reason"), Some("already_departed: flight a1 has departed ? too late"));

    let position = "flights.commands.v1/0@99,flights.commands.v1/1@49,flights.commands.v1/2@1,other/0@3";
    let told = served.get(&format!("/v1/positions/{position}")).await.json();
    assert_eq!(told["outcome"], "dead_lettered");
    assert_eq!(told["unread_topics"], json!(["other"]));
    let entries = told["projections"][0]["entries"].as_array().unwrap();
    let outcomes: Vec<&str> = entries.iter().map(|entry| entry["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["dead_lettered", "refused", "waiting"]);
    assert_eq!(entries[1]["code"], "already_departed");
    assert_eq!(entries[2]["lag"], 1);
    assert_eq!((entries[0].get("dead_letters"), entries[1].get("refusals")), (None, None), "one record each: {told}");
    let applied = served.get("/v1/positions/flights.commands.v1%2F0%4050").await.json();
    assert_eq!(applied["outcome"], "applied");
    // The start of a partition covers no record, on a partition that has begun and on one that has not.
    for start in ["flights.commands.v1/0@0", "flights.commands.v1%2F4@0"] {
        let told = served.get(&format!("/v1/positions/{start}")).await.json();
        let entry = &told["projections"][0]["entries"][0];
        assert_eq!((&told["outcome"], &entry["outcome"]), (&json!("applied"), &json!("applied")), "{told}");
        assert_eq!((entry.get("offset"), entry.get("lag")), (None, None), "{told}");
    }
    served.get("/v1/positions/other/0@3").await.is_problem(404, "MP6012");
    served.get("/v1/positions/oops").await.is_problem(400, "MP6007");
}

/// Each record of a bulk write is looked at, not the last alone.
#[tokio::test]
async fn a_dead_letter_amid_a_bulk_write_is_never_a_silent_success() {
    let served = one_flight().await;
    served
        .sql(&format!(
            "insert into millpond.dead_letters (projection, version, topic, partition, \"offset\", recorded_at, reason_class, reason)
             select 'flights', 1, '{TOPIC}', 0, o, now(), 'decode', 'not a number' from generate_series(20, 60) o where o <> 40;
             insert into millpond.refusals (projection, version, topic, partition, \"offset\", code, reason)
             values ('flights', 1, '{TOPIC}', 1, 10, 'already_departed', 'too late')"
        ))
        .await;
    let min = |span: &'static str| [("millpond-min-position", span)];
    let problem = served.get_with(POINT, &min("flights.commands.v1/0@58..90")).await.is_problem(409, "MP6010");
    let offsets: Vec<i64> =
        problem["outcomes"].as_array().unwrap().iter().map(|o| o["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, [58, 59, 60]);
    let many = served.get_with(POINT, &min("flights.commands.v1/0@0..90")).await.is_problem(409, "MP6010");
    assert_eq!(many["outcomes"].as_array().unwrap().len(), 20);
    for beside in ["flights.commands.v1/0@40..41", "flights.commands.v1/0@61..90", "flights.commands.v1/0@0..20"] {
        assert_eq!(served.get_with(POINT, &[("millpond-min-position", beside)]).await.status, 200, "{beside}");
    }
    let refused = served.get_with(POINT, &min("flights.commands.v1/1@0..30")).await;
    assert_eq!((refused.status, refused.header("millpond-outcome")), (200, Some("refused")));

    let told = served.get("/v1/positions/flights.commands.v1/0@59..90,flights.commands.v1/1@0..30").await.json();
    let entries = told["projections"][0]["entries"].as_array().unwrap();
    assert_eq!((&entries[0]["outcome"], &entries[0]["offset"]), (&json!("dead_lettered"), &json!(59)), "{told}");
    assert_eq!(entries[0]["dead_letters"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&entries[1]["outcome"], &entries[1]["refusals"][0]["offset"]),
        (&json!("refused"), &json!(10)),
        "{told}"
    );
}

/// Each answer is of one version: its rows, its position, its cursor. None fails while versions are swapped and dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_reads_are_not_seen() {
    let served = Served::flights().await;
    let fill = |version: i32| {
        format!("insert into p_flights_v{version}.flights (flight_id, delay) select 'f' || i, i from generate_series(1, 20) i;
                 update millpond.fences set next_offset = {version} * 1000 where version = {version} and partition = 0")
    };
    served.sql(&fill(1)).await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let swap = async {
        for version in 2..=20 {
            served.version("flights", version, &flights_table(version)).await;
            served.sql(&fill(version)).await;
            served.live("flights", version).await;
            // A read that begins after the swap is of the new version, whether or not the old one's tables are there.
            let after = served.get("/v1/views/flights?flight_id=eq.f7").await;
            assert_eq!(after.json()[0]["marker"], version, "{after:?}");
            if version % 2 == 0 {
                served.sql(&format!("drop schema p_flights_v{} cascade", version - 1)).await;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let read = async |path: &str, rows: usize| {
        let mut highest = 0;
        let mut answers = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let answer = served.get(path).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let found = answer.json();
            assert_eq!(found.as_array().unwrap().len(), rows);
            let marker = found[0]["marker"].as_i64().unwrap();
            assert!(found.as_array().unwrap().iter().all(|row| row["marker"] == marker), "{found}");
            let position = format!("flights.commands.v1/0@{},", marker * 1000);
            assert!(answer.header("millpond-position").unwrap().starts_with(&position), "{marker} {answer:?}");
            assert!(marker >= highest, "a read went back from version {highest} to {marker}");
            highest = marker;
            answers += 1;
        }
        assert!(answers > 0);
    };
    let points = join_all((0..5).map(|_| read("/v1/views/flights?flight_id=eq.f7", 1)));
    tokio::join!(swap, read("/v1/views/flights?delay=gt.0", 20), points);
}
