//! What a person sees while servers are fetched and started: a spinner on a terminal, plain lines elsewhere.
//!
//! Writes to standard error only, past the capture of test runners. Owns no text about what is done: callers name it.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Where steps are shown.
#[derive(Debug, Clone)]
pub struct Progress {
    mode: Mode,
}

#[derive(Debug, Clone)]
enum Mode {
    Spinner(MultiProgress),
    Lines,
    Silent,
}

/// One thing under way. Say how it ended with [`Step::done`]; a step that is dropped vanishes from a terminal.
#[derive(Debug)]
pub struct Step {
    label: String,
    since: Instant,
    bar: Option<ProgressBar>,
    lines: bool,
}

impl Progress {
    /// A spinner when standard error is a terminal, lines when it is a file or a pipe.
    #[must_use]
    pub fn for_terminal() -> Self {
        let mode = if std::io::stderr().is_terminal() { Mode::Spinner(MultiProgress::new()) } else { Mode::Lines };
        Self { mode }
    }

    /// Plain lines, one per thing begun or ended.
    #[must_use]
    pub fn lines() -> Self {
        Self { mode: Mode::Lines }
    }

    /// Nothing at all.
    #[must_use]
    pub fn silent() -> Self {
        Self { mode: Mode::Silent }
    }

    /// Begins a step: `kafka: starting`.
    #[must_use]
    pub fn step(&self, label: &str, doing: &str) -> Step {
        let bar = match &self.mode {
            Mode::Spinner(all) => {
                let bar = all.add(ProgressBar::new_spinner());
                let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})");
                bar.set_style(style.expect("invariant: the template is a constant"));
                bar.set_prefix(label.to_owned());
                bar.set_message(doing.to_owned());
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
            Mode::Lines | Mode::Silent => None,
        };
        let step =
            Step { label: label.to_owned(), since: Instant::now(), bar, lines: matches!(self.mode, Mode::Lines) };
        step.line(doing);
        step
    }

    /// Says something that stays: a warning, a place where data went.
    pub fn say(&self, text: &str) {
        match &self.mode {
            Mode::Spinner(all) => all.suspend(|| write_line(text)),
            Mode::Lines => write_line(text),
            Mode::Silent => {}
        }
    }
}

impl Step {
    /// Says what the step is at now. Shown in place on a terminal; elsewhere a line of its own, so call it rarely.
    pub fn now(&self, doing: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(doing.to_owned()),
            None => self.line(doing),
        }
    }

    /// Shows a figure that changes often: on a terminal only.
    pub fn tick(&self, doing: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(doing.to_owned());
        }
    }

    /// Ends the step with a line that stays.
    pub fn done(self, how: &str) {
        let text = format!("{} ({:.1} s)", how, self.since.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.suspend(|| write_line(&format!("{}: {text}", self.label))),
            None => self.line(&text),
        }
    }

    fn line(&self, text: &str) {
        if self.lines {
            write_line(&format!("{}: {text}", self.label));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `eprintln!` would be captured by the test runner, and panics when the terminal is gone.
fn write_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
