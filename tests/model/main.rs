//! `make model`: the protocol without processes, servers or time. Fence, claim, bisect, parked keys, verdicts, dedupe and
//! relay are small state machines; a schedule from a seed decides who does what next, which message arrives late and who
//! dies; after each schedule a fold of the log says what has to be there.
//!
//! It finds in seconds what the rig on real servers (`tests/torture`) finds in hours, as long as the model is like the
//! code. What it tells is about the protocol: that the code is like it, the rig has to tell. To see that it finds anything,
//! every bug of `rules.rs` is planted, and has to be found. Without arguments, as `cargo test` calls it, it runs a short
//! form. It uses nothing of Millpond.

mod decide;
mod judge;
mod log;
mod member;
#[path = "../torture/random.rs"]
#[allow(dead_code, reason = "shared with the rig, which uses all of it")]
mod random;
mod relay;
mod rules;
mod schedule;
mod store;
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use self::rules::{BUGS, Bug};
use self::schedule::{Schedule, Witness};

/// Schedules of the protocol as it is meant to be: in the short form, and asked for by `make model`.
const SHORT: u64 = 3000;
const LONG: u64 = 50_000;
/// Schedules within which every planted bug has to be found.
const BOUND: u64 = 20_000;

const USAGE: &str = "make model ARGS=\"…\"
  --schedules 50000   schedules of the protocol as it is meant to be
  --seed 1            the first of their seeds
  --bug a             only this planted bug: prints the fewest steps that lead to it";

struct Order {
    schedules: u64,
    seed: u64,
    bug: Option<String>,
}

fn main() -> ExitCode {
    match read(std::env::args().skip(1)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(order)) if run(&order) => ExitCode::SUCCESS,
        Ok(Some(_)) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("model: {why}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the arguments; none for those of a test runner, which mean nothing here.
fn read(mut words: impl Iterator<Item = String>) -> Result<Option<Order>, String> {
    let mut order = Order { schedules: SHORT, seed: 1, bug: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text} is no whole number"));
        match word.as_str() {
            "long" => order.schedules = LONG,
            "--schedules" => order.schedules = number(value()?)?,
            "--seed" => order.seed = number(value()?)?,
            "--bug" => order.bug = Some(value()?),
            "--help" | "-h" => return Err("what can be asked for:".into()),
            _ => return Ok(None),
        }
    }
    Ok(Some(order))
}

/// Does what is asked for; whether all is well.
fn run(order: &Order) -> bool {
    if let Some(name) = &order.bug {
        return one(name);
    }
    println!("\nrunning {} tests", 1 + BUGS.len());
    let begun = Instant::now();
    let wrong = search(&[], order.seed, order.schedules);
    let seconds = begun.elapsed().as_secs_f64();
    let each_minute = order.schedules as f64 / seconds * 60.0;
    match &wrong {
        None => println!(
            "test model::protocol_over_{}_schedules ... ok ({seconds:.1} s, {each_minute:.0} a minute)",
            order.schedules
        ),
        Some(witness) => {
            println!("test model::protocol ... FAILED");
            tell(witness);
        }
    }
    let found = hunt().into_iter().zip(BUGS).filter(|(found, planted)| told(found.as_ref(), planted)).count();
    let failed = BUGS.len() - found + usize::from(wrong.is_some());
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        1 + BUGS.len() - failed,
        begun.elapsed().as_secs_f64()
    );
    failed == 0
}

/// The first of so many schedules that goes wrong, made short.
fn search(bugs: &'static [Bug], first: u64, count: u64) -> Option<Witness> {
    (first..first + count).find_map(|seed| {
        let schedule = Schedule::generate(seed, bugs);
        schedule.run().map(|_| schedule.shrink(seed))
    })
}

/// Plants each bug in turn, as many at once as there are processors; what finds it, and after how many seconds.
fn hunt() -> Vec<Option<(Witness, f64)>> {
    let next = AtomicUsize::new(0);
    let found: Vec<Mutex<Option<(Witness, f64)>>> = BUGS.iter().map(|_| Mutex::default()).collect();
    let hunter = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((bugs, ..)) = BUGS.get(at) else { return };
            let begun = Instant::now();
            let witness = search(bugs, 1, BOUND).map(|witness| (witness, begun.elapsed().as_secs_f64()));
            *found[at].lock().expect("no hunter panics") = witness;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(hunter);
        }
    });
    found.into_iter().map(|found| found.into_inner().expect("no hunter panics")).collect()
}

/// Tells what became of a planted bug; whether it was found.
fn told(found: Option<&(Witness, f64)>, (_, name, what): &(&[Bug], &str, &str)) -> bool {
    match found {
        Some((Witness { seed, steps, .. }, seconds)) => {
            println!("test model::planted_{name} ... ok (seed {seed}, {steps} steps, {seconds:.2} s: {what})");
            true
        }
        None => {
            println!("test model::planted_{name} ... FAILED\n    not found by {BOUND} schedules: {what}");
            false
        }
    }
}

fn one(name: &str) -> bool {
    let Some((bugs, _, what)) = BUGS.iter().find(|(_, known, _)| *known == name) else {
        let names: Vec<&str> = BUGS.iter().map(|(_, name, _)| *name).collect();
        eprintln!("model: there is no bug {name} to plant; there are {}", names.join(", "));
        return false;
    };
    println!("planted: {what}");
    let Some(witness) = search(bugs, 1, BOUND) else {
        println!("not found by {BOUND} schedules");
        return false;
    };
    tell(&witness);
    true
}

fn tell(witness: &Witness) {
    println!("seed {}, {} steps:", witness.seed, witness.steps);
    for line in &witness.trace {
        println!("  {line}");
    }
    println!("wrong: {}", witness.wrong);
}
