//! What is told of age and lag while a server is away: an alert must not sleep, and nobody be sent to the wrong place.

use serde_json::json;

use crate::cluster::{Cluster, Process, Project, SOON};
use crate::harness::eventually_async;

async fn pay(ingest: &Process, payments: usize) {
    for _ in 0..payments {
        let body = json!({"account": "a", "amount": 1}).to_string();
        let answer = ingest.web.post("/v1/events/Paid", &[("content-type", "application/json")], &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
}

/// The sum of a metric of the consumer over its labels.
async fn metric(consume: &Process, name: &str) -> f64 {
    let text = consume.web.get("/metrics", &[]).await.text;
    let start = format!("{name}{{consumer=\"sums\"");
    let values = text.lines().filter(|line| line.starts_with(&start)).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().unwrap()).sum()
}

fn said(cluster: &Cluster) -> String {
    String::from_utf8(cluster.run(&["status"]).stdout).unwrap()
}

const AGE: &str = "millpond_consumer_freshness_seconds";
const LAG: &str = "millpond_consumer_lag_messages";

#[tokio::test(flavor = "multi_thread")]
async fn age_and_lag_grow_while_postgres_is_away_and_fall_when_it_is_back() {
    let mut cluster = Cluster::of("age", Project::sums).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    pay(&ingest, 1).await;
    cluster.settled(&cluster.project.topic, 1).await;
    eventually_async(SOON, async || metric(&consume, AGE).await > 0.0).await;
    cluster.servers.postgres().stop().unwrap();
    pay(&ingest, 5).await;
    eventually_async(SOON, async || metric(&consume, LAG).await == 5.0).await;
    eventually_async(SOON, async || metric(&consume, AGE).await > 6.0).await;
    cluster.servers.postgres().restart().unwrap();
    eventually_async(SOON, async || metric(&consume, LAG).await == 0.0).await;
    eventually_async(SOON, async || metric(&consume, AGE).await < 3.0).await;
    consume.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_keeps_a_consumer_that_runs_without_kafka() {
    let mut cluster = Cluster::of("unheard", Project::sums).await;
    let (ingest, consume) = (cluster.start("ingest", &[]), cluster.start("consume", &[]));
    pay(&ingest, 1).await;
    cluster.settled(&cluster.project.topic, 1).await;
    // Its ends have been told of once; `not running` is not it.
    eventually_async(SOON, async || said(&cluster).contains(" 1 running ")).await;
    cluster.servers.kafka().kill_9().unwrap();
    eventually_async(SOON, async || {
        let said = said(&cluster);
        said.contains("not running") && said.contains("no end of a partition can be had from Kafka")
    })
    .await;
    assert!(said(&cluster).contains("millpond doctor"), "{}", said(&cluster));
    eventually_async(SOON, async || metric(&consume, AGE).await > 11.0).await;
    cluster.servers.kafka().restart().unwrap();
    // A broker that was killed recovers its logs first, and the member joins its group anew.
    eventually_async(SOON * 3, async || cluster.run(&["status"]).status.success()).await;
    consume.stop();
}
