//! Roles that are started alone, on a database in which nothing is yet.

use futures_util::future::join_all;
use millpond::store;

use crate::cluster::{Cluster, SOON};
use crate::harness::{empty_database, eventually_async, unique};

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_migrate_an_empty_database_at_once_all_succeed() {
    for _ in 0..5 {
        let database = empty_database();
        let migrate = async || {
            let mut connection = store::connect(&database.url, "test").await?;
            store::migrate(&mut connection).await?;
            store::has_tables(&mut connection).await
        };
        for migrated in join_all((0..8).map(|_| migrate())).await {
            assert!(migrated.unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_alone_on_an_empty_database_makes_the_tables_and_answers() {
    let cluster = Cluster::flights("alone").await;
    let serve = cluster.start("serve", &[]);
    let answer = serve.web.get("/v1/views", &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(cluster.number("select count(*) from millpond.projections").await, Some(0));
    serve.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_that_may_only_read_says_what_to_run_until_somebody_has() {
    let cluster = Cluster::flights("reader").await;
    let reader = unique("reader");
    cluster.execute(&format!("create role {reader} login password 'secret'")).await;
    let (_, address) = cluster.database.rsplit_once('@').unwrap();
    let url = format!("postgres.url=postgres://{reader}:secret@{address}");
    let serve = cluster.start_early("serve", &[&url]);
    let readiness = async || serve.web.get("/readyz", &[]).await;
    let says = async |what: &str| readiness().await.text.contains(what);
    eventually_async(SOON, async || says("no tables of Millpond yet").await).await;
    let answer = readiness().await;
    assert_eq!(answer.status, 503);
    let reason = answer.json()["checks"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("start `millpond consume` or `millpond publish`"), "{reason}");
    assert!(reason.contains("permission denied for database"), "{reason}");
    assert_eq!(serve.log().matches("no tables of Millpond yet").count(), 1, "{}", serve.log());

    let publish = cluster.start("publish", &[]);
    let grants = format!(
        "grant usage on schema millpond to {reader}; grant select on all tables in schema millpond to {reader}"
    );
    cluster.execute(&grants).await;
    eventually_async(SOON, async || readiness().await.status == 200).await;
    assert!(serve.log().contains("the tables of Millpond are there now"), "{}", serve.log());
    publish.stop();
    serve.stop();
}
