//! Clients that read lists, each at the position of a write that was acknowledged before.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::history::{Read, View};
use super::{DEADLINE, Shared};
use crate::harness::Answer;
use crate::random::Random;
use crate::values;

/// Readers of lists, and one of lanes.
const READERS: u64 = 3;
const READER_PERIOD: Duration = Duration::from_millis(120);

impl Shared {
    pub(super) fn spawn_readers(self: Arc<Self>, clients: &mut JoinSet<()>) {
        for reader in 0..=READERS {
            let view = if reader == READERS { View::Lanes } else { View::Chains };
            clients.spawn(Arc::clone(&self).reader(view, Random::new(self.seed ^ (reader << 40))));
        }
    }

    async fn reader(self: Arc<Self>, view: View, mut random: Random) {
        let mut ticks = tokio::time::interval(READER_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let last = if view == View::Chains { &self.last } else { &self.last_of_lanes };
        while !self.stopped() {
            ticks.tick().await;
            let wanted = last.borrow().clone();
            let Some(web) = self.choose(&self.serve, 0).filter(|_| !wanted.is_empty()) else { continue };
            let (key, path) = match view {
                View::Chains => {
                    let key = values::key(random.below(values::KEYS));
                    let path = format!("/v1/views/chains?key=eq.{key}");
                    (key, path)
                }
                View::Lanes => {
                    let lane = values::lane(random.below(values::LANES));
                    let path = format!("/v1/views/lanes?lane=eq.{lane}");
                    (lane, path)
                }
            };
            let invoked = self.history.now();
            let headers = [("millpond-min-position", wanted.as_str()), ("prefer", "wait=5")];
            let begun = Instant::now();
            let answer = tokio::time::timeout(DEADLINE, web.try_get(&path, &headers)).await;
            let unread = self.unread(view, key, wanted.clone(), invoked);
            self.history.read(match answer {
                Ok(Ok(answer)) => shown(unread, &answer),
                _ => unread,
            });
            // A server that is away is not asked in a busy loop.
            tokio::time::sleep_until(begun + READER_PERIOD / 2).await;
        }
    }

    fn unread(&self, view: View, key: String, wanted: String, invoked: u64) -> Read {
        let (completed, text) = (self.history.now(), String::new);
        Read {
            view,
            key,
            wanted,
            invoked,
            completed,
            status: 0,
            code: text(),
            position: text(),
            length: 0,
            chain: text(),
        }
    }
}

fn shown(unread: Read, answer: &Answer) -> Read {
    #[derive(Default, Deserialize)]
    struct Row {
        length: i64,
        chain: String,
    }
    #[derive(Default, Deserialize)]
    struct Problem {
        code: String,
    }
    let status = answer.status;
    if status != 200 {
        let Problem { code } = serde_json::from_str(&answer.text).unwrap_or_default();
        return Read { status, code, ..unread };
    }
    let rows: Vec<Row> = serde_json::from_str(&answer.text).unwrap_or_default();
    let Row { length, chain } = rows.into_iter().next().unwrap_or_default();
    let position = answer.header("millpond-position").unwrap_or_default().to_owned();
    Read { status, length, chain, position, ..unread }
}
