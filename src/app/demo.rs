//! The demo of `dev`: real departures from New York, posted through the HTTP API as airlines' systems would have.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Client;

/// Commands in the order in which they were given, below the project's folder.
const DATA: &str = "data/flights/commands.ndjson.gz";
/// The file that remembers how many lines were posted.
pub const MEMORY: &str = "demo-posted";
/// How often what is due is posted.
const TICK: Duration = Duration::from_millis(250);
/// The order in which types of one tick are posted: that of a flight's life, for a tick can span hours of its day.
const ORDER: [&str; 4] = ["ScheduleFlight", "RecordDeparture", "CancelFlight", "RecordArrival"];

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    record_type: String,
    at: DateTime<Utc>,
    body: Box<RawValue>,
}

/// What the demo has done, for the live line.
#[derive(Default)]
pub struct Progress {
    pub posted: AtomicU64,
    pub ended: AtomicBool,
}

/// The demo, if the project has its data.
pub struct Demo {
    lines: Vec<Line>,
    /// How many of them had been posted before.
    posted: usize,
    /// Where it is remembered how many lines were posted, so that a second start does not post them again.
    memory: PathBuf,
    pub progress: Arc<Progress>,
}

impl Demo {
    /// Reads the data; none when the project is not the flights one.
    pub fn load(project: &Path, state: &Path) -> anyhow::Result<Option<Self>> {
        let path = project.join(DATA);
        if !path.exists() {
            return Ok(None);
        }
        let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let lines = BufReader::new(GzDecoder::new(file))
            .lines()
            .map(|line| Ok(serde_json::from_str(&line?)?))
            .collect::<anyhow::Result<Vec<Line>>>()
            .with_context(|| format!("cannot read {}", path.display()))?;
        let memory = state.join(MEMORY);
        let posted = remembered(&memory).min(lines.len());
        let progress =
            Progress { posted: AtomicU64::new(posted as u64), ended: AtomicBool::new(posted == lines.len()) };
        Ok(Some(Self { lines, posted, memory, progress: Arc::new(progress) }))
    }

    /// Posts what is due, `speed` days a minute, until the data ends.
    pub async fn run(self, client: Client, speed: f64) -> anyhow::Result<()> {
        let mut next = self.posted;
        let Some(first) = self.lines.get(next).map(|l| l.at) else { return Ok(()) };
        let start = Instant::now();
        while next < self.lines.len() {
            tokio::time::sleep(TICK).await;
            let passed = start.elapsed().as_secs_f64() * speed * 1440.0;
            let now = first + chrono::Duration::milliseconds((passed * 1000.0) as i64);
            // What is due and was given in the same tick goes out together.
            let due = self.lines[next..].iter().take_while(|l| l.at <= now).count().min(2000);
            if due == 0 {
                continue;
            }
            for record_type in ORDER {
                self.post(&client, record_type, &self.lines[next..next + due]).await?;
            }
            next += due;
            self.remember(next);
            self.progress.posted.store(next as u64, Ordering::Relaxed);
        }
        self.progress.ended.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn post(&self, client: &Client, record_type: &str, lines: &[Line]) -> anyhow::Result<()> {
        let bodies: Vec<&str> = lines.iter().filter(|l| l.record_type == record_type).map(|l| l.body.get()).collect();
        if bodies.is_empty() {
            return Ok(());
        }
        let body = bodies.join("\n").into_bytes();
        let path = format!("/v1/commands/{record_type}");
        loop {
            let sent = client.post(&path, &[("content-type", "application/x-ndjson")], body.clone()).await;
            let answer = match sent {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, "the demo cannot post; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let unwritten = String::from_utf8_lossy(&answer.body).contains("\"not_written\"");
            match answer.status.as_u16() {
                202 => return Ok(()),
                429 => {}
                503 if unwritten => {}
                status => {
                    bail!("the demo's {record_type} was answered {status}: {}", String::from_utf8_lossy(&answer.body))
                }
            }
            let wait = answer.headers.get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(1);
            tokio::time::sleep(Duration::from_secs(wait)).await;
        }
    }

    fn remember(&self, posted: usize) {
        if let Err(error) = fs::write(&self.memory, posted.to_string()) {
            tracing::warn!(%error, "cannot remember how far the demo is; the next start posts it again");
        }
    }
}

fn remembered(memory: &Path) -> usize {
    fs::read_to_string(memory).ok().and_then(|t| t.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write as _;

    use super::*;

    #[test]
    fn demo_that_was_posted_to_its_end_has_ended_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join(DATA);
        fs::create_dir_all(data.parent().unwrap()).unwrap();
        let mut file = GzEncoder::new(fs::File::create(data).unwrap(), Compression::fast());
        for _ in 0..2 {
            writeln!(file, r#"{{"type": "CancelFlight", "at": "2013-01-01T14:00:00Z", "body": {{}}}}"#).unwrap();
        }
        file.finish().unwrap();
        for (memory, posted, ended) in [("", 0, false), ("1", 1, false), ("2", 2, true), ("3", 2, true)] {
            fs::write(dir.path().join(MEMORY), memory).unwrap();
            let progress = Demo::load(dir.path(), dir.path()).unwrap().unwrap().progress;
            assert_eq!(progress.posted.load(Ordering::Relaxed), posted);
            assert_eq!(progress.ended.load(Ordering::Relaxed), ended, "{memory:?} were posted");
        }
    }
}
