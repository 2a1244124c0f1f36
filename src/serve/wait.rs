//! Waiting until a projection has reached a position.
//!
//! One task per projection reads its fences every few milliseconds, only while somebody waits. Postgres' NOTIFY would
//! save those reads, at the price of a lock that all commits of the database take in turn: the write path is worth more.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use axum::http::HeaderMap;
use tokio::sync::{Semaphore, watch};

use super::{
    connections::{Connections, Lane, Sql},
    headers,
    problem::{BAD_POSITION, BUSY},
};
use crate::{
    domain::{Position, TopicPartition},
    http::Problem,
    telemetry::metrics::serve as metrics,
};

const POLL_INTERVAL: Duration = Duration::from_millis(4);
/// When the database does not answer, the fences are asked for less often.
const POLL_INTERVAL_AFTER_ERROR: Duration = Duration::from_millis(200);
/// Partitions that one position may name.
const MAX_ENTRIES: usize = 1000;

static FENCES: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "\
    select f.topic, f.partition, f.next_offset from millpond.fences f \
      join millpond.projections p on p.projection = f.projection and p.live_version = f.version \
     where f.projection = $1",
    )
});

/// What a request says about the position it needs.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub position: Position,
    pub topics: Vec<String>,
    pub partitions: Vec<i32>,
    /// Where the records begin whose outcomes are told.
    pub first: Vec<i64>,
    /// Everything below is waited for.
    pub next: Vec<i64>,
    /// How long to wait; the client's wish within the server's bound.
    pub wait: Duration,
    /// Whether `wait` was the client's wish.
    pub preferred: bool,
}

impl Wanted {
    /// From `Millpond-Min-Position` and `Prefer: wait=`; `None` without the former.
    pub fn from_headers(headers: &HeaderMap, default: Duration, max: Duration) -> Result<Option<Wanted>, Problem> {
        let mut position = Position::new();
        for value in headers.get_all(headers::MIN_POSITION) {
            let text = value.to_str().map_err(|_| BAD_POSITION.problem("Millpond-Min-Position is not text"))?;
            if !text.trim().is_empty() {
                position.merge(&parse(text).map_err(|problem| problem.with("header", "Millpond-Min-Position"))?);
            }
        }
        if position.is_empty() {
            return Ok(None);
        }
        let preferred = preferred_wait(headers);
        let wait = preferred.unwrap_or(default).min(max);
        Ok(Some(Wanted::new(position, wait, preferred.is_some())))
    }

    pub fn new(position: Position, wait: Duration, preferred: bool) -> Wanted {
        let (topics, partitions) =
            position.iter().map(|(at, _)| (at.topic.to_string(), at.partition)).unzip::<_, _, Vec<_>, Vec<_>>();
        let (first, next) = position.iter().map(|(_, span)| (span.first, span.next)).unzip();
        Wanted { position, topics, partitions, first, next, wait, preferred }
    }
}

/// A position from outside, with a bound on its partitions.
pub fn parse(text: &str) -> Result<Position, Problem> {
    let position: Position =
        text.parse().map_err(|error: crate::domain::PositionError| BAD_POSITION.problem(error.to_string()))?;
    let entries = position.iter().count();
    if entries > MAX_ENTRIES {
        let detail =
            format!("the position names {entries} partitions, and at most {MAX_ENTRIES} are looked up at once");
        return Err(BAD_POSITION.problem(detail));
    }
    Ok(position)
}

/// RFC 7240: `wait` is in seconds; what cannot be read as that is ignored, as preferences are.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all("prefer").iter().filter_map(|line| line.to_str().ok());
    let mut preferences = lines.flat_map(|line| line.split(','));
    preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let wait = name.trim().eq_ignore_ascii_case("wait");
        wait.then(|| value.trim().trim_matches('"').parse::<u32>().ok())
            .flatten()
            .map(|s| Duration::from_secs(s.into()))
    })
}

type Channels = Mutex<HashMap<Arc<str>, watch::Sender<Arc<Position>>>>;

/// Everybody who waits.
#[derive(Debug)]
pub struct Waits {
    connections: Arc<Connections>,
    places: Semaphore,
    channels: Arc<Channels>,
}

impl Waits {
    pub fn new(connections: Arc<Connections>, max_waiting: usize) -> Self {
        Self { connections, places: Semaphore::new(max_waiting), channels: Arc::default() }
    }

    /// Waits until the live version of `projection` covers `wanted`, at most until `deadline`; answers whether it does.
    pub async fn until(&self, projection: &Arc<str>, wanted: &Position, deadline: Instant) -> Result<bool, Problem> {
        let Ok(_place) = self.places.try_acquire() else {
            return Err(BUSY.problem("as many reads as allowed are waiting for a position").retry_after(1));
        };
        let _told = Told::new();
        let mut positions = self.subscribe(projection);
        let reached = tokio::time::timeout_at(deadline.into(), positions.wait_for(|now| now.covers(wanted))).await;
        Ok(matches!(reached, Ok(Ok(_))))
    }

    fn subscribe(&self, projection: &Arc<str>) -> watch::Receiver<Arc<Position>> {
        let mut channels = self.channels.lock().expect("invariant: not poisoned");
        if let Some(sender) = channels.get(projection) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Arc::default());
        channels.insert(projection.clone(), sender);
        tokio::spawn(watch_fences(self.connections.clone(), self.channels.clone(), projection.clone()));
        receiver
    }
}

/// Keeps the metrics right also when the client goes away.
struct Told(Instant);

impl Told {
    fn new() -> Self {
        metrics::WAITING.inc();
        Self(Instant::now())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        metrics::WAITING.dec();
        metrics::WAIT_SECONDS.observe(self.0.elapsed().as_secs_f64());
    }
}

/// Ends when nobody listens; looked at under the lock under which listeners come, so none is left behind.
async fn watch_fences(connections: Arc<Connections>, channels: Arc<Channels>, projection: Arc<str>) {
    loop {
        let read = connections.rows(Lane::Point, &FENCES, &[&&*projection]).await.map(|rows| {
            let mut position = Position::new();
            for row in rows {
                position.advance(TopicPartition::new(row.get::<_, &str>(0), row.get(1)), row.get(2));
            }
            Arc::new(position)
        });
        let pause = if read.is_ok() { POLL_INTERVAL } else { POLL_INTERVAL_AFTER_ERROR };
        {
            let mut channels = channels.lock().expect("invariant: not poisoned");
            let Some(sender) = channels.get(&projection).filter(|sender| sender.receiver_count() > 0) else {
                channels.remove(&projection);
                return;
            };
            if let Ok(position) = read {
                sender.send_replace(position);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn wait_is_bounded_and_unreadable_preferences_are_ignored() {
        let (default, max) = (Duration::from_secs(2), Duration::from_secs(10));
        for (prefer, seconds) in
            [("wait=3", 3), ("return=minimal, wait=\"1\"", 1), ("wait=99", 10), ("wait=x", 2), ("", 2)]
        {
            let headers = headers(&[("millpond-min-position", "a/0@1"), ("prefer", prefer)]);
            let wanted = Wanted::from_headers(&headers, default, max).unwrap().unwrap();
            assert_eq!(wanted.wait, Duration::from_secs(seconds), "{prefer}");
        }
    }

    #[test]
    fn min_positions_are_merged_and_faulty_ones_refused() {
        let second = Duration::from_secs(1);
        let both = headers(&[("millpond-min-position", "a/0@1"), ("millpond-min-position", "a/0@3,b/1@2")]);
        let wanted = Wanted::from_headers(&both, second, second).unwrap().unwrap();
        assert_eq!(wanted.position.to_string(), "a/0@0..3,b/1@2");
        assert_eq!((wanted.partitions, wanted.first, wanted.next), (vec![0, 1], vec![0, 1], vec![3, 2]));
        assert!(Wanted::from_headers(&headers(&[("millpond-min-position", "oops")]), second, second).is_err());
        assert!(Wanted::from_headers(&headers(&[("millpond-min-position", "")]), second, second).unwrap().is_none());
        assert!(Wanted::from_headers(&HeaderMap::new(), second, second).unwrap().is_none());
    }
}
