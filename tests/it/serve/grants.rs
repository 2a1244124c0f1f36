//! An account that can only read, with the grants that the documentation gives.

use super::*;
use crate::harness::unique;

/// The grants of docs/operating.md, for `reader`, given by whoever is asked to.
fn documented_grants(reader: &str) -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md")).unwrap();
    let section = page.split_once("### An account that only reads").expect("the section is there").1;
    let block = section.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
    block.replace("millpond_reader", reader).replace("for role millpond ", "for role current_user ")
}

/// The same database, as seen by another account.
fn url_for(url: &str, user: &str) -> String {
    let (_, address) = url.rsplit_once('@').expect("a URL with a user");
    format!("postgres://{user}:secret@{address}")
}

#[tokio::test]
async fn an_account_with_the_documented_grants_reads_versions_of_now_and_later() {
    let served = Served::flights().await;
    served.sql("insert into p_flights_v1.flights (flight_id) values ('a1')").await;
    let reader = unique("reader");
    served.sql(&format!("create role {reader} login password 'secret'")).await;
    let options = Options { database_url: url_for(&served.url, &reader), connections: 2, ..Options::default() };
    let state = ServeState::start(options).unwrap();
    let app = router(state.clone());
    let read = async || answer(&app, Request::get("/v1/views/flights").body(Body::empty()).unwrap()).await;
    let refused_for = async |grant: &str| {
        eventually_async(SOON, || async { read().await.text.contains(grant) }).await;
        read().await.is_problem(503, "MP6016");
    };

    refused_for("grant usage on schema millpond and grant select on all tables in schema millpond").await;
    served.sql(&format!("grant usage on schema millpond to {reader}")).await;
    refused_for("permission denied for table").await;
    served.sql(&format!("grant select on all tables in schema millpond to {reader}")).await;
    refused_for("grant usage on schema p_flights_v1 and grant select on all tables in schema p_flights_v1").await;
    served.sql(&documented_grants(&reader)).await;
    let version_read = async |marker: i32| {
        eventually_async(SOON, || async {
            let answer = read().await;
            answer.status == 200 && answer.json()[0]["marker"] == marker
        })
        .await;
    };
    version_read(1).await;
    served.version("flights", 2, &flights_table(2)).await;
    served.sql("insert into p_flights_v2.flights (flight_id) values ('a1')").await;
    served.live("flights", 2).await;
    version_read(2).await;
    for path in ["/v1/positions/flights.commands.v1/0@7", "/v1/views"] {
        assert_eq!(answer(&app, Request::get(path).body(Body::empty()).unwrap()).await.status, 200, "{path}");
    }
}
