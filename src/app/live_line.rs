//! The line of `millpond dev` that shows what is posted and applied as it happens.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::task::JoinHandle;

use super::demo;
use crate::{
    config::Config,
    store::{
        self, PgConnection,
        status::{self, ProjectionStatus},
    },
};

/// How long Postgres may take to answer: changed folders wait meanwhile, and would for ever at one that is frozen.
const ANSWER: Duration = Duration::from_secs(5);

/// `posted · applied · age`, renewed in place on a terminal, every ten seconds elsewhere.
pub struct LiveLine {
    url: String,
    /// Where the folders of the consumers are.
    consumers: PathBuf,
    connection: Option<PgConnection>,
    demo: Option<(Arc<demo::Progress>, JoinHandle<()>)>,
    terminal: bool,
    shown: u32,
    end_said: bool,
}

impl LiveLine {
    pub fn new(config: &Config, demo: Option<(Arc<demo::Progress>, JoinHandle<()>)>) -> Self {
        Self {
            url: config.postgres.url.clone(),
            consumers: config.project.dir.join("consumers"),
            connection: None,
            demo,
            terminal: std::io::stderr().is_terminal(),
            shown: 0,
            end_said: false,
        }
    }

    /// Makes room for other text.
    pub fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }

    pub async fn show(&mut self) {
        let Some(text) = self.text().await else { return };
        if self.terminal {
            eprint!("\r\x1b[2K{text}");
            let _ = std::io::stderr().flush();
        } else if self.shown.is_multiple_of(10) {
            eprintln!("{text}");
        }
        self.shown += 1;
        if let Some((progress, _)) = &self.demo
            && progress.ended.load(Ordering::Relaxed)
            && !self.end_said
        {
            self.end_said = true;
            self.clear();
            eprintln!("All flights of the slice are posted; Millpond goes on. To start over: make dev ARGS=--reset");
        }
    }

    async fn text(&mut self) -> Option<String> {
        if self.connection.is_none() {
            self.connection = store::connect(&self.url, "millpond dev").await.ok();
        }
        let asked = tokio::time::timeout(ANSWER, status::projections(self.connection.as_mut()?)).await;
        let Ok(Ok(projections)) = asked else {
            self.connection = None;
            return None;
        };
        let applied: Vec<String> = projections
            .iter()
            .map(|p| format!("{} {}", p.projection, p.partitions.iter().map(|p| p.next_offset).sum::<i64>()))
            .collect();
        let age = age(&projections, |name| self.consumers.join(name).is_dir());
        let age = age.map(|seconds| format!(" · age {seconds:.1} s")).unwrap_or_default();
        let posted = match &self.demo {
            Some((progress, _)) => format!("posted {} · ", progress.posted.load(Ordering::Relaxed)),
            None => String::new(),
        };
        Some(format!("{posted}applied {}{age}", applied.join(", ")))
    }
}

/// How many seconds the tables are behind at most. Those that nobody keeps up do not count: of consumers that are paused
/// or have no folder any more.
fn age(projections: &[ProjectionStatus], has_folder: impl Fn(&str) -> bool) -> Option<f64> {
    let kept_up = projections.iter().filter(|p| !p.paused && has_folder(&p.projection));
    kept_up.flat_map(|p| &p.partitions).filter_map(|p| p.age_seconds).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::status::PartitionStatus;

    fn projection(name: &str, paused: bool, age: f64) -> ProjectionStatus {
        let partition = PartitionStatus {
            topic: "orders".into(),
            partition: 0,
            next_offset: 1,
            end_offset: Some(1),
            state: "active".into(),
            halt_code: None,
            halt_reason: None,
            owned: true,
            seen_seconds: Some(age),
            age_seconds: Some(age),
            last_error: None,
            last_error_seconds: None,
        };
        ProjectionStatus {
            projection: name.into(),
            version: Some(1),
            paused,
            dead_letters: 0,
            parked_keys: 0,
            parked_records: 0,
            outbox: 0,
            outbox_seconds: None,
            partitions: vec![partition],
        }
    }

    #[test]
    fn age_of_paused_consumers_and_of_those_without_a_folder_does_not_count() {
        let (paused, gone) = (projection("paused", true, 600.0), projection("gone", false, 900.0));
        let has_folder = |name: &str| name != "gone";
        assert_eq!(age(&[paused.clone(), gone.clone()], has_folder), None);
        let kept_up = [projection("slow", false, 3.0), projection("quick", false, 0.5)];
        let all: Vec<_> = kept_up.into_iter().chain([paused, gone]).collect();
        assert_eq!(age(&all, has_folder), Some(3.0));
    }
}
