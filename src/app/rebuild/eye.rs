//! What looks at a version that is being built, also at one whose Postgres is away for a while.

use std::time::Duration;

use anyhow::bail;

use super::show::{Bar, Voice};
use crate::{
    config::Config,
    consume::Pace,
    store::{
        self, Class, PgConnection,
        builds::{self, Place},
    },
};

/// How often it is looked how far the version is.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// How old what a live projection applies may be before a build makes room for it: more than a batch, a claim or a rebalance
/// takes, and less than people wait for.
const BEHIND: f64 = 3.0;

pub(super) struct Eye<'a> {
    config: &'a Config,
    name: &'a str,
    version: i32,
    connection: Option<PgConnection>,
    /// So many looks in a row have found a live projection that is behind.
    seen_behind: u32,
}

impl<'a> Eye<'a> {
    pub fn new(config: &'a Config, name: &'a str, version: i32) -> Self {
        Self { config, name, version, connection: None, seen_behind: 0 }
    }

    /// Where the version stands; none when it is not being built any more.
    pub async fn places(&mut self) -> anyhow::Result<Option<Vec<Place>>> {
        let places = loop {
            match self.ask().await {
                Ok(places) => break places,
                Err(error) if error.class() == Class::Transient => {
                    self.connection = None;
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let halted = places.iter().flatten().find_map(|place| Some((place, place.halted.as_ref()?)));
        if let Some((Place { at, .. }, why)) = halted {
            bail!(
                "version {} of {} has halted on {at}: {why}. Commands in this are about the live version: mend the cause, and run \
                 `millpond rebuild {1}` again",
                self.version,
                self.name
            );
        }
        Ok(places)
    }

    async fn ask(&mut self) -> Result<Option<Vec<Place>>, store::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(store::connect(&self.config.postgres.url, "millpond rebuild").await?),
        };
        let looked = async {
            let places = builds::places(connection, self.name, self.version).await?;
            Ok(builds::is_open(connection, self.name, self.version).await?.then_some(places))
        };
        store::bounded(looked).await
    }

    /// Writes down how fast it was built, for `millpond plan`; it is no loss where that cannot be done.
    pub async fn note_rate(&mut self, per_second: f64) {
        let Some(connection) = &mut self.connection else { return };
        let noted = builds::note_rate(connection, self.name, self.version, per_second);
        if store::bounded(noted).await.is_err() {
            self.connection = None;
        }
    }

    /// Whether an operator has paused the projection.
    async fn is_paused(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let Ok(paused) = store::bounded(store::status::is_paused(connection, self.name)).await else {
            self.connection = None;
            return false;
        };
        paused
    }

    /// Has `pace` make room while a live projection is behind, seen twice: for a moment any of them is. Which one that is.
    async fn protect(&mut self, pace: &Pace) -> Option<String> {
        let connection = self.connection.as_mut()?;
        let Ok(found) = store::bounded(builds::furthest_behind(connection, BEHIND)).await else {
            self.connection = None;
            return None;
        };
        self.seen_behind = if found.is_some() { self.seen_behind + 1 } else { 0 };
        let is_certain = self.seen_behind > 1;
        pace.make_room(is_certain);
        found.filter(|_| is_certain)
    }

    /// Shows how far the version is until it stands at the end of so many partitions; how fast it got there, where it was
    /// enough to say so. `pace`: that of who builds it, where it is to make room for live projections.
    pub async fn catch_up(
        &mut self,
        voice: &Voice,
        partitions: usize,
        pace: Option<&Pace>,
    ) -> anyhow::Result<Option<f64>> {
        let mut bar = Bar::new(voice, self.name, self.version);
        let mut said_paused = false;
        let there = |place: &Place| place.end().is_some_and(|end| place.next_offset >= end);
        loop {
            let Some(places) = self.places().await? else {
                bail!("version {} of {} is not being built any more", self.version, self.name);
            };
            let makes_room = match pace {
                Some(pace) => self.protect(pace).await,
                None => None,
            };
            if self.is_paused().await {
                if !std::mem::replace(&mut said_paused, true) {
                    voice.say(&format!(
                        "{0} is paused, and so is what is built of it: `millpond consumer resume {0}` lets both go on",
                        self.name
                    ));
                }
            } else {
                said_paused = false;
            }
            bar.show(&places, makes_room.as_deref());
            if places.len() == partitions && places.iter().all(there) {
                if let Some(pace) = pace {
                    pace.make_room(false);
                }
                return Ok(bar.end());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
