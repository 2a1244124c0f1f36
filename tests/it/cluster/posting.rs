//! Clients that post: a flight's commands one after another, many flights at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{Answer, FlightCommand, Web};

/// Clients at once; each has its own flights.
const CLIENTS: usize = 8;
/// How long a broker may get no processor, on a machine that does much else.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// How fast a load goes.
pub enum Pace {
    /// As fast as answers come.
    Free,
    /// So many commands in a second, until [`Load::release`] lets the rest go.
    PerSecond(u32),
    /// As far as [`Load::release`] lets it.
    Released,
}

/// Commands being posted, each of which has to be answered 202.
pub struct Load {
    clients: Vec<JoinHandle<()>>,
    allowed: Arc<Semaphore>,
    posted: Arc<AtomicUsize>,
}

impl Load {
    /// Begins to post.
    pub fn start(web: &Web, commands: Vec<FlightCommand>, pace: Pace) -> Self {
        let allowed = Arc::new(Semaphore::new(0));
        let posted = Arc::new(AtomicUsize::new(0));
        let total = commands.len();
        let clients = shares(commands)
            .into_iter()
            .map(|share| {
                let (web, allowed, posted) = (web.clone(), allowed.clone(), posted.clone());
                tokio::spawn(async move {
                    for command in share {
                        allowed.acquire().await.unwrap().forget();
                        let answer = insist(&web, &command).await;
                        assert_eq!(answer.status, 202, "{}", answer.text);
                        posted.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        match pace {
            Pace::Free => allowed.add_permits(total),
            Pace::PerSecond(commands) => drop(tokio::spawn(release_evenly(allowed.clone(), commands))),
            Pace::Released => {}
        }
        Self { clients, allowed, posted }
    }

    /// Lets so many more commands be posted.
    pub fn release(&self, commands: usize) {
        self.allowed.add_permits(commands);
    }

    /// Answered 202 so far.
    pub fn posted(&self) -> usize {
        self.posted.load(Ordering::Relaxed)
    }

    /// Waits for the end; how many were posted.
    pub async fn finish(self) -> usize {
        for client in self.clients {
            client.await.unwrap();
        }
        self.posted.load(Ordering::Relaxed)
    }
}

/// Posts one command, again as long as it is for certain not written: a broker that gets no processor for a while is none.
async fn insist(web: &Web, command: &FlightCommand) -> Answer {
    let deadline = Instant::now() + WRITTEN_WITHIN;
    loop {
        let answer = post(web, command).await.unwrap();
        let not_written = answer.status == 503 && answer.json()["outcome"] == "not_written";
        if !not_written || Instant::now() > deadline {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Posts one command under its own id.
pub async fn post(web: &Web, command: &FlightCommand) -> Result<Answer, String> {
    let id = command.id();
    let headers = [("content-type", "application/json"), ("idempotency-key", id.as_str())];
    web.try_post(&command.path(), &headers, &command.body).await
}

/// A share per client: all of a flight's commands in one, in their order.
pub fn shares(commands: Vec<FlightCommand>) -> Vec<Vec<FlightCommand>> {
    let mut shares = vec![Vec::new(); CLIENTS];
    for command in commands {
        let sum: usize = command.flight_id.bytes().map(usize::from).sum();
        shares[sum % CLIENTS].push(command);
    }
    shares
}

/// Until the test ends.
async fn release_evenly(allowed: Arc<Semaphore>, per_second: u32) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    loop {
        ticks.tick().await;
        allowed.add_permits(1);
    }
}
