//! What `millpond dev` builds beside the live version when a folder changes: it takes that one's place by itself, once it is
//! as far, and what has changed in the rows is told.

use std::time::Duration;

use anyhow::bail;

use super::told_of_lock;
use crate::{
    app::wiring,
    config::Config,
    consume::Member,
    store::{
        self,
        builds::{self, Place},
        diff::{Diff, Scope, TableDiff},
        swap,
    },
};

/// How long the comparison may take to begin: what it says is nice to know, and the swap does not depend on it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who swaps.
const DEV: &str = "millpond dev";

/// What is said when a build begins.
pub fn begun(version: i32, live: i32) -> String {
    format!("version {version} is built from the log; version {live} goes on until it is as far")
}

/// A version at work.
pub struct Building {
    pub name: String,
    pub version: i32,
    live: i32,
    partitions: usize,
}

impl Building {
    pub fn of(name: &str, member: &Member, live: i32) -> Option<Self> {
        Some(Self { name: name.to_owned(), version: member.engine.version, live, partitions: member.followed? })
    }

    /// Makes it the live version if it is at the end of the log; what has changed.
    ///
    /// # Errors
    /// Why it cannot be: it has halted, a session holds a lock, something of somebody's depends on the old tables.
    pub async fn finish(&self, config: &Config) -> anyhow::Result<Option<String>> {
        let mut connection = wiring::database(config, "millpond swap").await?;
        let places = builds::places(&mut connection, &self.name, self.version).await?;
        if let Some((Place { at, .. }, why)) = places.iter().find_map(|place| Some((place, place.halted.as_ref()?))) {
            bail!("it has halted on {at}: {why}");
        }
        let there = |place: &Place| place.end().is_some_and(|end| place.next_offset >= end);
        if places.len() < self.partitions || !places.iter().all(there) {
            return Ok(None);
        }
        builds::note_loaded(&mut connection, &self.name, self.version).await?;
        let versions = (self.live, self.version);
        let comparing = store::diff::compare(&config.postgres.url, &self.name, versions, Scope::whole(0));
        let diff = tokio::time::timeout(PATIENCE, comparing).await.ok().and_then(Result::ok);
        // Nobody goes back to it: the folder that it was built of is in the editor, or in the version control.
        let swapped = swap::swap(&mut connection, &self.name, self.version, Duration::ZERO, DEV).await;
        swapped.map_err(|error| told_of_lock(&self.name, error))?;
        Ok(Some(format!("version {} is live{}", self.version, diff.map_or_else(String::new, |diff| told(&diff)))))
    }
}

/// In which rows it differs.
fn told(diff: &Diff) -> String {
    if diff.rows() == 0 && diff.tables.iter().all(|table| table.not_compared.is_none()) {
        return "; its rows are those of the version before".to_owned();
    }
    let table = |table: &TableDiff| {
        let TableDiff { table, added, removed, changed, columns, not_compared, .. } = table;
        if let Some(why) = not_compared {
            return format!("{table} is not compared: {why}");
        }
        let differs: Vec<String> = columns.iter().map(|(column, rows)| format!("{column} in {rows}")).collect();
        let differs = if differs.is_empty() { String::new() } else { format!(" ({})", differs.join(", ")) };
        format!("{table} has {added} rows more, {} less, {changed} others{differs}", removed.unwrap_or_default())
    };
    let tables: Vec<String> = diff.tables.iter().map(table).collect();
    format!("; {}", tables.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_differ_are_told_by_table_and_column() {
        let table = TableDiff {
            table: "sums".to_owned(),
            changed: 3,
            removed: Some(1),
            columns: vec![("total".to_owned(), 3)],
            ..TableDiff::default()
        };
        let mut diff = Diff {
            projection: "sums".to_owned(),
            old_version: 1,
            new_version: 2,
            position: String::new(),
            held_ms: 1,
            aligned: true,
            touched: false,
            only_new_topics: Vec::new(),
            only_old_topics: Vec::new(),
            tables: vec![table],
        };
        assert_eq!(told(&diff), "; sums has 0 rows more, 1 less, 3 others (total in 3)");
        diff.tables = vec![TableDiff::default()];
        assert_eq!(told(&diff), "; its rows are those of the version before");
    }
}
