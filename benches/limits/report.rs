//! What is printed at the end: figures with their spread, ratios with their targets, memory.

use crate::stats::Series;

/// Everything measured so far.
pub struct Report {
    began: std::time::Instant,
    figures: Vec<(String, String)>,
    ratios: Vec<Ratio>,
    memory: Vec<(String, f64, f64)>,
}

struct Ratio {
    name: String,
    series: Series,
    target: Option<f64>,
}

impl Report {
    pub fn new() -> Self {
        Self { began: std::time::Instant::now(), figures: Vec::new(), ratios: Vec::new(), memory: Vec::new() }
    }

    /// A rate per second; `more` is printed behind it.
    pub fn rate(&mut self, name: &str, series: &Series, unit: &str, more: &str) {
        let spread = format!("{}–{}", thousands(series.min()), thousands(series.max()));
        let text = format!("{:>9} {unit} ({spread}) {more}", thousands(series.median()));
        eprintln!("  {name}: {text}");
        self.figures.push((name.to_owned(), text));
    }

    /// How Millpond compares with a limit; with a target, whether that is enough.
    pub fn ratio(&mut self, name: &str, millpond: &Series, limit: &Series, target: Option<f64>) {
        self.ratios.push(Ratio { name: name.to_owned(), series: millpond.over(limit), target });
    }

    /// Resident memory of a process in MiB: after its start, and at most.
    pub fn memory(&mut self, name: &str, idle: f64, peak: f64) {
        self.memory.push((name.to_owned(), idle, peak));
    }

    pub fn print(&self) {
        println!(
            "\nMillpond {} beside the limits of this machine ({} CPUs), medians (least–most)\n",
            env!("CARGO_PKG_VERSION"),
            cpus()
        );
        let width = self.figures.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
        for (name, text) in &self.figures {
            println!("  {name:width$}  {text}");
        }
        let width = self.ratios.iter().map(|ratio| ratio.name.chars().count()).max().unwrap_or_default();
        println!("\nratios within a repetition");
        for Ratio { name, series, target } in &self.ratios {
            let median = series.median();
            let verdict = match target {
                Some(target) if median >= *target => format!("wanted {target:.2}: met"),
                Some(target) => format!("wanted {target:.2}: MISSED"),
                None => String::new(),
            };
            println!("  {name:width$}  {median:.2} ({:.2}–{:.2})  {verdict}", series.min(), series.max());
        }
        println!("\nresident memory of Millpond's process, MiB");
        for (name, idle, peak) in &self.memory {
            println!("  {name:32}  idle {idle:6.1}   peak {peak:6.1}");
        }
        println!("\n{:.0} s in all", self.began.elapsed().as_secs_f64());
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// `422,310`.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
