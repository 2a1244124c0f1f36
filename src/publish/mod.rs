//! ROLE publish: the relay from the outbox to Kafka.
//!
//! Downstream events leave in the order in which they were committed per source partition, over all versions of the
//! projection, with ids that stay. Who reads committed records sees each once: records leave in transactions, together
//! with markers of how far the outbox has left (`in_transactions`). Where the cluster cannot do that they leave at least
//! once (`one_by_one`), which is said. One relay at a time (a session lock in Postgres) does this; the others stand by.

mod evidence;
mod in_transactions;
pub mod markers;
mod one_by_one;
mod record;
mod trials;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use self::trials::Trials;
use crate::{
    kafka::{self, Publisher},
    store::{
        self,
        outbox::{self, OutboxRow},
        relay::{self, Delivery},
    },
    telemetry::metrics::publish as metrics,
};

/// Pause after a failure, of what it holds up; and how often a standby asks for the lead.
const RETRY: Duration = Duration::from_secs(1);
/// How often the rows that wait are counted.
const COUNT: Duration = Duration::from_secs(5);
/// How often the log says again what it has said last.
const AGAIN: Duration = Duration::from_secs(30);

/// What the relay is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database with the outbox.
    pub url: String,
    pub kafka: kafka::Options,
    pub transactions: Transactions,
}

/// Whether downstream events leave in transactions, and so once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transactions {
    /// If the cluster lets us.
    Auto,
    /// Or not at all.
    Required,
    /// They leave at least once.
    Off,
}

/// Why a relay does not lead any more.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{0}")]
    Kafka(String),
}

/// Relays until told to stop; then ends what is under way.
pub async fn run(options: Options, publisher: Arc<Publisher>, stop: watch::Receiver<bool>) {
    tokio::select! {
        () = relay_until(&options, &publisher, stop) => {}
        () = count(&options.url) => {}
    }
}

async fn relay_until(options: &Options, publisher: &Publisher, mut stop: watch::Receiver<bool>) {
    let mut trials = Trials::default();
    let mut said: Option<(String, Instant)> = None;
    while !*stop.borrow() {
        let relayed = lead(options, publisher, &mut trials, &mut stop).await;
        metrics::LEADING.set(0);
        metrics::EXACTLY_ONCE.set(0);
        if let Err(error) = relayed {
            let text = error.to_string();
            if said.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() > AGAIN) {
                warn!(%error, "the relay of downstream events was interrupted; trying again");
                said = Some((text, Instant::now()));
            }
        }
        pause(&mut stop, RETRY).await;
    }
}

/// Ends early when the relay is told to stop.
async fn pause(stop: &mut watch::Receiver<bool>, duration: Duration) {
    let _ = tokio::time::timeout(duration, stop.wait_for(|stop| *stop)).await;
}

/// Leads until an error, or until Kafka takes no records from here; waits for the lead as long as another process has it.
async fn lead(
    options: &Options,
    publisher: &Publisher,
    trials: &mut Trials,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Interrupted> {
    // Without Kafka it would only keep others from relaying.
    tokio::select! {
        () = publisher.wait_ready() => {}
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    }
    let mut connection = outbox::connect(&options.url).await?;
    while !store::bounded(outbox::try_lead(&mut connection)).await? {
        pause(stop, RETRY).await;
        if *stop.borrow() {
            return Ok(());
        }
    }
    metrics::LEADING.set(1);
    let why = match options.transactions {
        Transactions::Off => "publish.transactions is off".to_owned(),
        Transactions::Auto | Transactions::Required => {
            match in_transactions::relay(options, &mut connection, publisher, trials, stop).await? {
                None => return Ok(()),
                Some(refusal) => refusal,
            }
        }
    };
    if options.transactions == Transactions::Off {
        info!("relaying downstream events at least once, for publish.transactions is off");
    } else {
        warn!(
            why,
            "the cluster does not let the relay use transactions: downstream events leave at least once, and a crash may \
             repeat some; give its account the rights that docs/operating.md names, or set publish.transactions = \"off\""
        );
    }
    store::bounded(relay::note(&mut connection, &Delivery::AtLeastOnce(why))).await?;
    Ok(one_by_one::relay(&mut connection, publisher, stop).await?)
}

/// Counts the rows that wait, whatever the relay waits for: while it has no Kafka, or a transaction comes to no end, is when
/// they grow. Never ends.
async fn count(url: &str) {
    let mut connection = None;
    loop {
        tokio::time::sleep(COUNT).await;
        let counted = store::bounded(async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => outbox::connect(url).await?,
            };
            let waiting = outbox::depth(&mut open).await?;
            connection = Some(open);
            Ok::<_, store::Error>(waiting)
        });
        match counted.await {
            Ok(waiting) => metrics::PENDING.set(waiting),
            Err(error) => tracing::debug!(%error, "cannot count the outbox"),
        }
    }
}

/// A topic may be younger than the publisher, as that of a consumer whose folder was just taken in.
async fn know_topics<'a>(publisher: &Publisher, rows: impl IntoIterator<Item = &'a OutboxRow>) {
    let topics: BTreeSet<&str> = rows.into_iter().map(|row| row.target_topic.as_str()).collect();
    for topic in topics {
        // Whether it is there is told by the attempt to send.
        let _ = publisher.partitions_of(topic).await;
    }
}
