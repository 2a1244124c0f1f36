//! The line of `millpond dev` that shows what is posted and applied as it happens.

use std::{
    io::{IsTerminal, Write},
    sync::{Arc, atomic::Ordering},
};

use tokio::task::JoinHandle;

use super::demo;
use crate::store::{self, PgConnection, status};

/// `posted · applied · age`, renewed in place on a terminal, every ten seconds elsewhere.
pub struct LiveLine {
    url: String,
    connection: Option<PgConnection>,
    demo: Option<(Arc<demo::Progress>, JoinHandle<()>)>,
    terminal: bool,
    shown: u32,
    end_said: bool,
}

impl LiveLine {
    pub fn new(url: String, demo: Option<(Arc<demo::Progress>, JoinHandle<()>)>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { url, connection: None, demo, terminal, shown: 0, end_said: false }
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
        let projections = match status::projections(self.connection.as_mut()?).await {
            Ok(projections) => projections,
            Err(_) => {
                self.connection = None;
                return None;
            }
        };
        let applied: Vec<String> = projections
            .iter()
            .map(|p| format!("{} {}", p.projection, p.partitions.iter().map(|p| p.next_offset).sum::<i64>()))
            .collect();
        let ages = projections.iter().flat_map(|p| &p.partitions).filter_map(|p| p.age_seconds);
        let age = ages.fold(0.0, f64::max);
        let posted = match &self.demo {
            Some((progress, _)) => format!("posted {} · ", progress.posted.load(Ordering::Relaxed)),
            None => String::new(),
        };
        Some(format!("{posted}applied {} · age {age:.1} s", applied.join(", ")))
    }
}
