//! SIGTERM under load: what was accepted is in the log, the process ends in time, and nothing of it is left.

use std::collections::HashSet;
use std::time::Duration;

use millpond::dev::process;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, FlightCommand, SOON, Web, days, post, shares};

/// `http.drain` of the process, 5 s for transactions in flight, and a machine that does much else.
const IN_TIME: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_keeps_every_202_and_ends_in_time() {
    let cluster = Cluster::flights("sigterm").await;
    let mut all = cluster.start("all", &["http.drain=5s"]);
    let mut clients = JoinSet::new();
    for share in shares(days(&[1, 2, 3])) {
        clients.spawn(post_until_refused(all.web.clone(), share));
    }
    crate::harness::eventually_async(SOON, async || cluster.applied().await > Some(100)).await;
    let below = process::descendants(all.pid()).unwrap();
    assert!(below.is_empty(), "{below:?}");
    all.terminate();
    let (took, well) = all.ended(IN_TIME);
    assert!(well, "{}", all.log());
    assert!(!all.runs());
    eprintln!("ended after {took:.2?}");

    let mut accepted = Vec::new();
    while let Some(client) = clients.join_next().await {
        accepted.extend(client.unwrap());
    }
    let log: HashSet<String> = cluster
        .cat(&cluster.project.topic)
        .iter()
        .map(|record| record["headers"]["mp-event-id"].as_str().unwrap().to_owned())
        .collect();
    let lost: Vec<&String> = accepted.iter().filter(|id| !log.contains(*id)).collect();
    assert!(lost.is_empty(), "accepted and not in the log: {lost:?}");
    assert!(!accepted.is_empty());
    // It said goodbye: fences are released, and the next one need not wait for a session to time out.
    let released = cluster.number("select count(*) from millpond.fences where owner is not null").await;
    assert_eq!(released, Some(0));
}

/// The ids of what was accepted before the first answer that was not a 202, or no answer.
async fn post_until_refused(web: Web, share: Vec<FlightCommand>) -> Vec<String> {
    let mut accepted = Vec::new();
    for command in share {
        match post(&web, &command).await {
            Ok(answer) if answer.status == 202 => accepted.push(command.id()),
            Ok(answer) => {
                assert!(matches!(answer.status, 503 | 504), "{answer:?}");
                break;
            }
            // The listener is closed.
            Err(_) => break,
        }
    }
    accepted
}
