//! Where a running `dev` is, so that `millpond status` and the like work in another terminal without any settings.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use serde::{Deserialize, Serialize};

use crate::dev::process::Identity;

/// Below `.millpond`; readable by its owner only, for the URL holds a password.
const FILE: &str = "running.json";

/// What a `dev` tells the commands beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunningDev {
    process: Identity,
    pub brokers: String,
    pub postgres_url: String,
}

impl RunningDev {
    /// Writes where this process' servers are.
    pub fn announce(state: &Path, brokers: &str, postgres_url: &str) -> anyhow::Result<()> {
        let own = i32::try_from(std::process::id())?;
        let Some(process) = Identity::of(own) else { return Ok(()) };
        let told = Self { process, brokers: brokers.to_owned(), postgres_url: postgres_url.to_owned() };
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(state.join(FILE))?;
        file.write_all(&serde_json::to_vec(&told)?)?;
        Ok(())
    }

    /// The `dev` that runs in this project now. What a killed one left behind does not count.
    pub fn find(state: &Path) -> Option<Self> {
        let told: Self = serde_json::from_slice(&fs::read(state.join(FILE)).ok()?).ok()?;
        told.process.runs().then_some(told)
    }

    /// The keys of the configuration that follow from it.
    pub fn settings(&self) -> Vec<(String, String)> {
        vec![("kafka.brokers".into(), self.brokers.clone()), ("postgres.url".into(), self.postgres_url.clone())]
    }
}
