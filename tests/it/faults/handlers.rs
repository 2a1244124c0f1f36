//! Handlers that take longer than anything else may.

use serde_json::json;

use super::crash::{TIRESOME, consume, deadly, total_is};
use crate::cluster::{Cluster, SOON};
use crate::harness::eventually_async;

#[tokio::test(flavor = "multi_thread")]
async fn handler_slower_than_a_transaction_may_be_is_told_of_and_its_batch_is_applied_once() {
    let cluster = Cluster::of("tiresome", deadly).await;
    let ingest = cluster.start("ingest", &[]);
    let lines: Vec<String> =
        [1, TIRESOME, 2].map(|amount| json!({"account": "a", "amount": amount}).to_string()).to_vec();
    let answer =
        ingest.web.post("/v1/events/Paid", &[("content-type", "application/x-ndjson")], &lines.join("\n")).await;
    assert_eq!(answer.status, 202, "{}", answer.text);

    let consume = consume(&cluster);
    let told = "select count(*) from millpond.ends where last_error like 'the handler has been at work for % s on %'";
    eventually_async(SOON, async || cluster.number(told).await == Some(1)).await;
    total_is(&cluster, 1 + TIRESOME + 2).await;
    let overdue = consume.web.get("/metrics", &[]).await.text;
    let overdue = overdue.lines().find(|line| line.starts_with("millpond_consumer_handler_overdue_total{"));
    assert!(overdue.is_some_and(|line| line.ends_with(" 2")), "{overdue:?}");
    assert!(consume.log().contains("the handler is still at work on a batch"));

    // Nobody took it for dead meanwhile, and nothing was begun twice.
    assert_eq!(cluster.number("select max(epoch) from millpond.fences").await, Some(1), "{}", consume.log());
    assert!(!consume.log().contains("batch not applied"), "{}", consume.log());
    assert_eq!(cluster.number("select count(*) from millpond.dead_letters").await, Some(0));
    consume.stop();
}
