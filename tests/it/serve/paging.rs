//! Pages, put together, are the one big answer, in whatever order and wherever the nulls stand.

use serde_json::Value;

use super::*;

/// 300 rows over few values: many equal ones and many nulls in each column.
async fn many() -> Served {
    let served = Served::flights().await;
    served
        .sql(
            "insert into p_flights_v1.flights (flight_id, carrier, delay, scheduled_at, share, late, amount, details)
             select 'f' || lpad((i * 7919 % 300)::text, 3, '0'),
                    (array['AA','UA',null,'B6'])[1 + i % 4],
                    case when i % 5 > 0 then i % 7 - 3 end,
                    case when i % 3 > 0 then timestamptz '2013-01-01' + (i % 11) * interval '1.000001 s' end,
                    (array[0.1, 'NaN', '-Infinity', null, 1e-300])[1 + i % 5]::float8,
                    (array[true, false, null])[1 + i % 3],
                    case when i % 4 > 0 then (i % 6) / 7.0 end,
                    case when i % 6 > 0 then to_jsonb(i % 4) end
               from generate_series(1, 300) i",
        )
        .await;
    served
}

async fn pages(served: &Served, query: &str, limit: u32) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut path = format!("/v1/views/flights?{query}&limit={limit}");
    for page in 0.. {
        assert!(page < 400, "{query}: pages without end");
        let answer = served.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        let found = answer.json();
        rows.extend(found.as_array().unwrap().iter().cloned());
        match answer.next() {
            Some(next) => {
                assert_eq!(found.as_array().unwrap().len(), limit as usize, "{path}");
                path = next;
            }
            None => break,
        }
    }
    rows
}

#[tokio::test]
async fn pages_in_any_order_are_the_whole() {
    let served = many().await;
    let columns = ["carrier", "delay", "scheduled_at", "share", "late", "amount", "details", "marker", "flight_id"];
    let directions = ["", ".asc", ".desc"];
    let nulls = ["", ".nullsfirst", ".nullslast"];
    // Every direction and placement for each column alone, then pairs and triples by a fixed rule that meets all mixes.
    let mut orders: Vec<String> = vec![String::new()];
    let term = |column: usize, n: usize| {
        format!("{}{}{}", columns[column % columns.len()], directions[n % 3], nulls[n / 3 % 3])
    };
    for column in 0..columns.len() {
        orders.extend((0..9).map(|n| term(column, n)));
    }
    for n in 0..27 {
        orders.push(format!("{},{}", term(n, n), term(n + 1 + n / 9, n * 5 + 2)));
        orders.push(format!("{},{},{}", term(n, n * 2), term(n + 2, n + 4), term(n + 5, n * 7 + 1)));
    }
    for (n, order) in orders.iter().enumerate() {
        let filter = ["", "&delay=not.is.null", "&or=(carrier.eq.UA,late.is.true,share.eq.NaN)"][n % 3];
        let query = if order.is_empty() {
            format!("select=flight_id{filter}")
        } else {
            format!("select=flight_id{filter}&order={order}")
        };
        let whole = served.get(&format!("/v1/views/flights?{query}&limit=1000")).await;
        assert_eq!(whole.next(), None);
        let whole = whole.json();
        let paged = pages(&served, &query, [17, 50, 299, 300][n % 4]).await;
        assert_eq!(&Value::from(paged), &whole, "{query}");
    }
}

#[tokio::test]
async fn a_page_goes_on_behind_rows_that_come_and_go() {
    let served = many().await;
    let first = served.get("/v1/views/flights?select=flight_id&order=flight_id&limit=10").await;
    served.sql("delete from p_flights_v1.flights where flight_id <= 'f009'; insert into p_flights_v1.flights (flight_id) values ('e')").await;
    let second = served.get(&first.next().unwrap()).await.json();
    assert_eq!(second[0]["flight_id"], "f010");
}

#[tokio::test]
async fn cursors_serve_their_own_query_and_version_only() {
    let served = many().await;
    let first = served.get("/v1/views/flights?carrier=eq.UA&order=delay.desc&limit=5").await;
    let next = first.next().unwrap();
    let after = next.split("after=").nth(1).unwrap();
    // What does not change which rows follow may change between pages.
    let path = format!("/v1/views/flights?carrier=eq.UA&order=delay.desc&limit=7&select=flight_id&after={after}");
    let csv = served.get_with(&path, &[("accept", "text/csv")]).await;
    assert_eq!(csv.status, 200, "{}", csv.text);
    for other in ["order=delay", "carrier=eq.UA&order=delay", "carrier=eq.AA&order=delay.desc", "carrier=eq.UA"] {
        served.get(&format!("/v1/views/flights?{other}&after={after}")).await.is_problem(400, "MP6005");
    }
    // Forged values are bound like any: refused when they are none of the column's.
    let forge = |json: String| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    };
    let shape = {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(after).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()[1].as_str().unwrap().to_owned()
    };
    for values in ["[\"1; drop table x\",\"a\"]", "[\"1\"]", "[\"1\",null]", "[\"1\",\"a\",\"b\"]", "[[\"1\"],\"a\"]"] {
        let forged = forge(format!("[1,\"{shape}\",{values}]"));
        let path = format!("/v1/views/flights?carrier=eq.UA&order=delay.desc&after={forged}");
        served.get(&path).await.is_problem(400, "MP6005");
    }
    served.version("flights", 2, &flights_table(2)).await;
    served.live("flights", 2).await;
    served.get(&next).await.is_problem(410, "MP6006");
}

#[tokio::test]
async fn links_keep_the_query_as_it_was_written() {
    let served = many().await;
    let first = served.get("/v1/views/flights/flights?delay=gt.-2&select=flight_id&limit=2").await;
    let next = first.next().unwrap();
    assert!(next.starts_with("/v1/views/flights/flights?delay=gt.-2&select=flight_id&limit=2&after="), "{next}");
    let second = served.get(&next).await.next().unwrap();
    assert_eq!(second.matches("after=").count(), 1, "{second}");
}
