//! What a process takes while it is abused, and what it says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::arena::Arena;
use crate::watch;

/// Most resident memory since [`forget_peak`], in bytes.
pub fn peak(pid: i32) -> Option<u64> {
    Some(watch::memory(pid, "VmHWM:")? << 10)
}

/// Resident memory, in bytes.
pub fn resident(pid: i32) -> Option<u64> {
    Some(watch::resident(pid)? << 10)
}

/// Lets the most begin anew from what it is now. Where the system does not, the most stays what it was, and so does a bound
/// on what came on top.
pub fn forget_peak(pid: i32) {
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Where the logs of all processes ended at some time, to tell what was said since.
pub struct Mark(BTreeMap<PathBuf, usize>);

impl Mark {
    pub fn now(arena: &Arena) -> Self {
        Self(logs(arena).map(|(log, text)| (log, text.len())).collect())
    }

    /// The lines that came since, of all processes.
    pub fn since(&self, arena: &Arena) -> Vec<String> {
        let news = |(log, text): (PathBuf, String)| {
            let from = self.0.get(&log).copied().unwrap_or(0);
            text.get(from..).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        logs(arena).flat_map(news).collect()
    }
}

fn logs(arena: &Arena) -> impl Iterator<Item = (PathBuf, String)> {
    let logs = arena.slots.iter().flat_map(|slot| &slot.logs);
    logs.map(|log| (log.clone(), std::fs::read_to_string(log).unwrap_or_default()))
}
