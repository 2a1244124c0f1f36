//! The files in which a broker keeps a partition: what is in them, and how a loss of power leaves them.
//!
//! `kill -9` takes the process and leaves the page cache, so what was acknowledged is on disk all the same. A machine that
//! loses power has only what was flushed: the tail of the last segment is gone, and torn in the midst of a batch.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// A batch of records in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Where in the file it begins and ends.
    pub from: u64,
    pub to: u64,
    pub first: i64,
    pub last: i64,
}

/// The replica of a partition on one broker.
pub struct Replica {
    /// Its last segment that holds anything.
    pub segment: PathBuf,
    pub batches: Vec<Batch>,
}

/// Bytes of a batch up to and with the last of those that are looked at.
const HEAD: usize = 27;
/// Bytes before those that a batch's length counts.
const BEFORE: u64 = 12;

impl Replica {
    /// `data` is the folder that a broker keeps everything in.
    pub fn of(data: &Path, topic: &str, partition: i32) -> anyhow::Result<Self> {
        let folder = data.join(format!("{topic}-{partition}"));
        let mut segments = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") && fs::metadata(&path)?.len() > 0 {
                segments.push(path);
            }
        }
        segments.sort();
        let segment = segments.pop().with_context(|| format!("nothing was written to {}", folder.display()))?;
        let mut bytes = Vec::new();
        File::open(&segment)?.read_to_end(&mut bytes)?;
        Ok(Self { batches: batches(&bytes), segment })
    }

    /// The last offset in it.
    pub fn last(&self) -> i64 {
        self.batches.last().map_or(-1, |batch| batch.last)
    }

    /// Leaves so many bytes of the segment.
    pub fn cut(&self, left: u64) -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.segment)?;
        ensure!(left < file.metadata()?.len(), "there is nothing to cut behind byte {left}");
        Ok(file.set_len(left)?)
    }

    /// The batch that begins with an offset.
    pub fn batch_at(&self, first: i64) -> Option<Batch> {
        self.batches.iter().copied().find(|batch| batch.first == first)
    }
}

/// Whole batches, one after another.
fn batches(bytes: &[u8]) -> Vec<Batch> {
    let (mut batches, mut from) = (Vec::new(), 0);
    while let Some(head) = bytes.get(from..from + HEAD) {
        let number = |at: usize| i32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let first = i64::from_be_bytes(head[..8].try_into().expect("eight bytes"));
        let to = from as u64 + BEFORE + u64::from(number(8).unsigned_abs());
        if to > bytes.len() as u64 {
            break;
        }
        batches.push(Batch { from: from as u64, to, first, last: first + i64::from(number(23)) });
        from = to as usize;
    }
    batches
}
