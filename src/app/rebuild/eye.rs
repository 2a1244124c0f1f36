//! What looks at a version that is being built, also at one whose Postgres is away for a while.

use std::time::Duration;

use anyhow::bail;

use super::show::{Bar, Voice};
use crate::{
    config::Config,
    store::{
        self, Class, PgConnection,
        builds::{self, Place},
    },
};

/// How often it is looked how far the version is.
pub(super) const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Eye<'a> {
    config: &'a Config,
    name: &'a str,
    version: i32,
    connection: Option<PgConnection>,
}

impl<'a> Eye<'a> {
    pub fn new(config: &'a Config, name: &'a str, version: i32) -> Self {
        Self { config, name, version, connection: None }
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

    /// Shows how far the version is until it stands at the end of so many partitions; how fast it got there.
    pub async fn catch_up(&mut self, voice: &Voice, partitions: usize) -> anyhow::Result<f64> {
        let mut bar = Bar::new(voice, self.name, self.version);
        let there = |place: &Place| place.end().is_some_and(|end| place.next_offset >= end);
        loop {
            let Some(places) = self.places().await? else {
                bail!("version {} of {} is not being built any more", self.version, self.name);
            };
            bar.show(&places);
            if places.len() == partitions && places.iter().all(there) {
                return Ok(bar.end());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
