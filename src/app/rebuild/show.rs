//! What people and programs see of a rebuild: a bar and sentences on a terminal, lines of JSON elsewhere.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::{json, value::RawValue};

use crate::{
    cli::{args::DiffFormat, say::say},
    store::{
        builds::{Build, Place},
        diff::{Diff, Sample, TableDiff},
        swap::Swapped,
    },
};

fn es(count: usize) -> &'static str {
    if count == 1 { "" } else { "es" }
}

/// How a rebuild speaks.
#[derive(Debug, Clone, Copy)]
pub struct Voice {
    json: bool,
}

impl Voice {
    /// In JSON if that is asked for, or where nobody is at a terminal.
    pub fn new(json: bool) -> Self {
        Self { json: json || !std::io::stdout().is_terminal() }
    }

    pub fn is_json(self) -> bool {
        self.json
    }

    fn event(self, event: &serde_json::Value, text: &str) {
        if self.json { say!("{event}") } else { say!("{text}") }
    }

    pub fn say(self, text: &str) {
        self.event(&json!({ "event": "note", "text": text }), text);
    }

    pub fn begun(self, name: &str, build: Build, partitions: usize) {
        let Build { version, live, resumed } = build;
        let how = if resumed { "goes on with" } else { "builds" };
        self.event(
            &json!({ "event": "begun", "consumer": name, "version": version, "live": live, "resumed": resumed, "partitions": partitions }),
            &format!("{name}: {how} version {version} from the log, on {partitions} partitions; people read version {live} meanwhile"),
        );
    }

    pub fn makes_indexes(self, name: &str, count: usize) {
        self.event(
            &json!({ "event": "makes_indexes", "consumer": name, "indexes": count }),
            &format!(
                "{name}: makes {count} index{}, which waits for transactions that are open in this database now",
                es(count)
            ),
        );
    }

    pub fn made_indexes(self, name: &str, count: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        self.event(
            &json!({ "event": "made_indexes", "consumer": name, "indexes": count, "seconds": seconds }),
            &format!("{name}: {count} index{} made in {seconds:.1} s", es(count)),
        );
    }

    pub fn replayed(self, name: &str, candidate: &impl Serialize, text: impl FnOnce() -> String) {
        self.rows(&Replayed { event: "replayed", consumer: name, candidate }, text);
    }

    pub fn diff(self, diff: &Diff) {
        self.rows(&Compared { event: "diff", rows: diff.rows(), diff }, || text(diff));
    }

    /// Says what has rows in it, as Postgres writes them: a `Value` in between would make doubles of their numbers.
    fn rows(self, event: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            say!("{}", serde_json::to_string(event).expect("invariant: names are texts"));
        } else {
            say!("{}", text());
        }
    }

    /// Asks on a terminal; nobody elsewhere.
    pub async fn ask(self, name: &str) -> anyhow::Result<bool> {
        if self.json || !std::io::stdin().is_terminal() {
            return Ok(false);
        }
        print!("make it the live version of {name}? [y/N] ");
        std::io::stdout().flush()?;
        // Beside the runtime, so that Ctrl-C is heard meanwhile.
        let answer = tokio::task::spawn_blocking(|| std::io::stdin().lines().next().transpose()).await??;
        Ok(answer.is_some_and(|answer| matches!(answer.trim(), "y" | "Y" | "yes")))
    }

    pub fn follows(self, name: &str) {
        self.event(
            &json!({ "event": "following", "consumer": name }),
            &format!("it goes on following the log: `millpond swap {name}` makes it live, `millpond diff {name}` compares again; Ctrl-C leaves it"),
        );
    }

    pub fn ended(self, name: &str, version: i32) {
        self.event(
            &json!({ "event": "ended", "consumer": name, "version": version }),
            &format!("version {version} of {name} is not being built any more"),
        );
    }

    /// Whether another process applies what is live now, and after how long.
    pub fn taken_over(self, name: &str, version: i32, after: Option<Duration>) {
        let event = json!({ "event": "taken_over", "consumer": name, "version": version,
                            "after_ms": after.map(|after| after.as_secs_f64() * 1e3) });
        let text = match after {
            Some(after) => {
                format!(
                    "{name}: another process applies version {version} since {:.1} s after the swap; until then this one did",
                    after.as_secs_f64()
                )
            }
            None => format!(
                "{name}: no process with the role consume has taken version {version} over, and this one ends: start one, or people \
                 read what does not change any more"
            ),
        };
        self.event(&event, &text);
    }

    pub fn swapped(self, name: &str, swapped: &Swapped, took: Duration, hours: f64) {
        let Swapped { from, to, pause, sent_before } = swapped;
        let pause = pause.as_secs_f64() * 1e3;
        self.event(
            &json!({ "event": "swapped", "consumer": name, "from": from, "to": to, "pause_ms": pause,
                     "took_ms": took.as_secs_f64() * 1e3, "sent_before": sent_before }),
            &format!(
                "{name}: people read version {to} now; nothing was applied for {pause:.1} ms, and no read had to wait. Version \
                 {from} is kept up to date for {hours} h: `millpond rollback {name}` goes back to it"
            ),
        );
    }
}

#[derive(Serialize)]
struct Compared<'a> {
    event: &'static str,
    /// That differ.
    rows: i64,
    diff: &'a Diff,
}

#[derive(Serialize)]
struct Replayed<'a, C> {
    event: &'static str,
    consumer: &'a str,
    candidate: &'a C,
}

/// The bar of a rebuild.
pub struct Bar<'a> {
    voice: &'a Voice,
    label: String,
    terminal: bool,
    begun: Instant,
    /// Offsets that were passed when it began, and now.
    first: Option<i64>,
    done: i64,
    said: Option<Instant>,
}

/// Between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(2);

impl<'a> Bar<'a> {
    pub fn new(voice: &'a Voice, name: &str, version: i32) -> Self {
        let terminal = std::io::stderr().is_terminal() && !voice.json;
        Self {
            voice,
            label: format!("{name} v{version}"),
            terminal,
            begun: Instant::now(),
            first: None,
            done: 0,
            said: None,
        }
    }

    /// `makes_room`: the live projection that goes first.
    pub fn show(&mut self, places: &[Place], makes_room: Option<&str>) {
        let done: i64 = places.iter().map(|place| place.next_offset).sum();
        let known = !places.is_empty() && places.iter().all(|place| place.end().is_some());
        let total: i64 = places.iter().map(|place| place.end().unwrap_or_default().max(place.next_offset)).sum();
        self.first.get_or_insert(done);
        self.done = done;
        let rate = self.rate();
        let left = (known && rate > 0.0).then(|| (total - done) as f64 / rate);
        if self.terminal {
            if !known || total == 0 {
                return;
            }
            let percent = done as f64 * 100.0 / total as f64;
            let room = makes_room.map_or_else(String::new, |name| format!(", makes room for {name}"));
            let left = left.map_or_else(String::new, |left| format!(", {left:.0} s left"));
            let furthest = places.iter().max_by_key(|place| place.end().unwrap_or_default() - place.next_offset);
            let behind = furthest.map_or_else(String::new, |place| format!(", {} at {}", place.at, place.next_offset));
            eprint!("\r\x1b[2K{}: {percent:.1} % of {total}, {rate:.0}/s{left}{behind}{room}", self.label);
            let _ = std::io::stderr().flush();
        } else if self.voice.json && self.said.is_none_or(|said| said.elapsed() > LINES) {
            self.said = Some(Instant::now());
            let partitions: Vec<_> = places
                .iter()
                .map(
                    |place| json!({ "partition": place.at.to_string(), "next": place.next_offset, "end": place.end() }),
                )
                .collect();
            say!(
                "{}",
                json!({ "event": "progress", "done": done, "total": known.then_some(total), "per_second": rate.round(),
                               "seconds_left": left.map(f64::round), "makes_room_for": makes_room, "partitions": partitions })
            );
        }
    }

    /// Records a second since it began.
    fn rate(&self) -> f64 {
        (self.done - self.first.unwrap_or(self.done)) as f64 / self.begun.elapsed().as_secs_f64().max(0.001)
    }

    /// Says that it is done; how fast it was, in records a second, if it did most of it.
    pub fn end(&self) -> Option<f64> {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        self.voice.event(
            &json!({ "event": "caught_up", "seconds": seconds }),
            &format!("at the end of the log after {seconds:.1} s"),
        );
        let read = self.done - self.first.unwrap_or(self.done);
        (read > 0 && read * 2 >= self.done).then(|| self.rate())
    }
}

/// Prints a diff by itself.
pub fn print(diff: &Diff, format: DiffFormat) -> anyhow::Result<()> {
    match format {
        DiffFormat::Text => say!("{}", text(diff)),
        DiffFormat::Json => say!("{}", serde_json::to_string_pretty(diff)?),
        DiffFormat::Csv => {
            say!("table,kind,key,old,new");
            let cell = |value: Option<&RawValue>| {
                value.map_or_else(String::new, |value| format!("\"{}\"", value.get().replace('"', "\"\"")))
            };
            for table in &diff.tables {
                for sample in &table.samples {
                    let Sample { kind, key, old, new } = sample;
                    let (key, old, new) = (cell(Some(key)), cell(old.as_deref()), cell(new.as_deref()));
                    say!("{},{kind},{key},{old},{new}", table.table);
                }
            }
        }
    }
    Ok(())
}

pub(super) fn text(diff: &Diff) -> String {
    let Diff { projection, old_version, new_version, position, held_ms, aligned, touched, .. } = diff;
    let mut text = format!("{projection}: version {new_version} against version {old_version}, ");
    let _ = if *aligned {
        write!(text, "both at {position} (held for {held_ms} ms)")
    } else {
        write!(
            text,
            "the former at {position}, the latter where it stands: what only one of them has applied yet differs, too"
        )
    };
    if *touched {
        text.push_str("; only rows that version ");
        let _ = write!(text, "{new_version} has");
    }
    for (version, topics) in [(new_version, &diff.only_new_topics), (old_version, &diff.only_old_topics)] {
        if !topics.is_empty() {
            let _ = write!(text, "; only version {version} reads {}", topics.join(", "));
        }
    }
    for table in &diff.tables {
        table_text(table, &mut text);
    }
    text
}

/// The values of a row, each as it is written.
fn members(row: &RawValue) -> BTreeMap<String, Box<RawValue>> {
    serde_json::from_str(row.get()).unwrap_or_default()
}

fn table_text(table: &TableDiff, text: &mut String) {
    let TableDiff { same, added, removed, changed, columns, only_new, only_old, samples, not_compared, .. } = table;
    let name = &table.table;
    if let Some(why) = not_compared {
        let _ = write!(text, "\n  {name}: not compared: {why}");
        return;
    }
    let removed =
        removed.map_or_else(|| "removed ones not looked for".to_owned(), |removed| format!("{removed} removed"));
    let _ = write!(text, "\n  {name}: {added} rows added, {removed}, {changed} changed, {same} the same");
    for (column, rows) in columns {
        let _ = write!(text, "\n    {column} differs in {rows}");
    }
    for (what, names) in [("only the new version has", only_new), ("the new version does not have", only_old)] {
        if !names.is_empty() {
            let _ = write!(text, "\n    {what} {}", names.join(", "));
        }
    }
    for Sample { kind, key, old, new } in samples {
        let _ = write!(text, "\n    {kind:8} {key}");
        match (old, new) {
            (Some(old), Some(new)) => {
                let (old, new) = (members(old), members(new));
                for (name, value) in &old {
                    let now = new.get(name).map_or("null", |now| now.get());
                    if value.get() != now {
                        let _ = write!(text, "  {name}: {value} -> {now}");
                    }
                }
            }
            (Some(row), None) | (None, Some(row)) => {
                let _ = write!(text, "  {row}");
            }
            (None, None) => {}
        }
    }
}
