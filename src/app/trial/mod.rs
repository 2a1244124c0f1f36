//! `consumer test` and `consumer show`: consumers tried on records, in a database that is thrown away.
//!
//! Owns the form of cases, the plans by which the three laws are tried, and what is printed. Must not apply anything
//! by itself: every batch goes through the engine's own worker, fence included, so that what holds here holds live.

mod case;
mod codec;
mod expected;
mod lab;
mod laws;
mod plan;
mod server;
mod sheet;
mod show;

use std::{io::Write, process::ExitCode, time::Instant};

use anyhow::bail;

use self::{
    case::Case,
    codec::Codec,
    expected::Expected,
    lab::{FIRST, Lab, REBUILT},
    laws::Verdict,
    plan::Plan,
    server::Postgres,
    sheet::Outcome,
};
use super::{Project, roles};
use crate::{
    cli::say::say,
    config::Config,
    consume::{Handlers, WriterSchemas},
    spec::{ConsumerSpec, SpecFault},
    store::scratch::ScratchDatabase,
};

/// What `consumer test` is asked to do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// All consumers without it.
    pub consumer: Option<String>,
    /// Write what comes out as what is expected, where the laws hold.
    pub accept: bool,
}

/// Cases by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    pub passed: usize,
    pub failed: usize,
}

/// `millpond consumer test`
pub async fn test(config: &Config, options: &Options, handlers: &Handlers) -> anyhow::Result<ExitCode> {
    let project = Project::load(&config.project.dir)?;
    with_postgres(config, async |scratch| {
        let report = run_cases(scratch, &project, handlers, options, &mut std::io::stdout()).await?;
        Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
    .await
}

/// `millpond consumer show`
pub async fn show(
    config: &Config,
    name: &str,
    records: usize,
    limit: usize,
    handlers: &Handlers,
) -> anyhow::Result<ExitCode> {
    let project = Project::load(&config.project.dir)?;
    let spec = project.consumer(name)?;
    let read = show::read(config, spec, records).await?;
    if read.records.is_empty() {
        say!("{}", read.nothing());
        return Ok(ExitCode::SUCCESS);
    }
    with_postgres(config, async |scratch| {
        show::show(scratch, &project, spec, handlers, &read, limit, &mut std::io::stdout()).await?;
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// Gives `work` a scratch database and takes it away again, whatever becomes of `work`, Ctrl-C included.
async fn with_postgres(
    config: &Config,
    work: impl AsyncFnOnce(&mut ScratchDatabase) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let mut postgres = Postgres::open(config).await?;
    eprintln!("tried {}", postgres.described);
    let result = tokio::select! {
        result = work(&mut postgres.scratch) => result,
        stopped = roles::stop_signal() => stopped.and_then(|()| bail!("stopped")),
    };
    let closed = postgres.close().await;
    let code = result?;
    closed?;
    Ok(code)
}

/// Runs the cases of one consumer or of all, and says how each ended.
///
/// # Errors
/// When Postgres breaks off or `out` cannot be written; faults of consumers and cases are in the report.
pub async fn run_cases(
    scratch: &mut ScratchDatabase,
    project: &Project,
    handlers: &Handlers,
    options: &Options,
    out: &mut dyn Write,
) -> anyhow::Result<Report> {
    let consumers: Vec<&ConsumerSpec> = match &options.consumer {
        Some(name) => vec![project.consumer(name)?],
        None => project.consumers.iter().collect(),
    };
    if consumers.is_empty() {
        writeln!(out, "there are no consumers in {}; see `millpond consumer new`", project.dir.display())?;
    }
    let started = Instant::now();
    let codec = Codec::new(project)?;
    let mut report = Report::default();
    for spec in consumers {
        let mut run = ConsumerRun { project, spec, handlers, codec: &codec, accept: options.accept };
        run.cases(scratch, &mut report, out).await?;
    }
    let Report { passed, failed } = report;
    writeln!(out, "{passed} passed, {failed} failed ({:.1} s)", started.elapsed().as_secs_f64())?;
    Ok(report)
}

/// What to say of a case that passed.
struct Passed {
    note: String,
    /// Lines below it.
    more: String,
}

/// The cases of one consumer.
struct ConsumerRun<'a> {
    project: &'a Project,
    spec: &'a ConsumerSpec,
    handlers: &'a Handlers,
    codec: &'a Codec,
    accept: bool,
}

impl ConsumerRun<'_> {
    async fn cases(
        &mut self,
        scratch: &mut ScratchDatabase,
        report: &mut Report,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        writeln!(out, "{}", self.spec.name)?;
        let schemas = || WriterSchemas::Known(self.codec.schemas());
        let versions = [FIRST, REBUILT];
        let lab = Lab::new(scratch, self.project, self.spec, self.handlers, self.codec, schemas, &versions).await;
        let mut lab = match lab {
            Ok(lab) => lab,
            Err(error) => {
                report.failed += 1;
                writeln!(out, "  FAIL  it does not compile\n{}", indented(&format!("{error:#}"), 8))?;
                return Ok(());
            }
        };
        let folders = case::folders(self.spec)?;
        if folders.is_empty() {
            writeln!(out, "{}", self.how_to_begin())?;
        }
        for folder in folders {
            let name = case::name_of(&folder);
            let judged = match Case::load(self.project, self.spec, self.codec, &folder) {
                Ok(case) => self.case(&mut lab, &case).await?,
                Err(faults) => Err(faults_text(&faults)),
            };
            match judged {
                Ok(Passed { note, more }) => {
                    report.passed += 1;
                    writeln!(out, "  ok    {name} ({note})")?;
                    write!(out, "{more}")?;
                }
                Err(text) => {
                    report.failed += 1;
                    writeln!(out, "  FAIL  {name}\n{}", text.trim_end())?;
                }
            }
        }
        Ok(())
    }

    /// Tries one case. The inner error is why it failed.
    async fn case(&self, lab: &mut Lab<'_>, case: &Case) -> anyhow::Result<Result<Passed, String>> {
        let base = match lab.run(FIRST, case, &Plan::one_by_one(0..case.events.len())).await? {
            Ok(base) => base,
            Err(stopped) => return Ok(Err(indented(&format!("its records cannot be applied: {stopped}"), 6))),
        };
        let expected = expected::load(lab, case).await?;
        let differing = expected::compare(&expected, &base, 6);
        let mut text: String = differing.into_values().collect();
        match laws::check(lab, case, &base).await? {
            Verdict::Hold(_) if self.accept && expected.strays.is_empty() => {
                return accepted(case, &expected, &base).map(Ok);
            }
            Verdict::Hold(plans) if text.is_empty() => {
                let records = case.events.len();
                let note = format!("{records} record{}, {plans} ways", if records == 1 { "" } else { "s" });
                return Ok(Ok(Passed { note, more: String::new() }));
            }
            Verdict::Hold(_) => text.push_str("      --accept takes what came as what is expected\n"),
            Verdict::Broken(law) => {
                text.push_str(&law);
                if self.accept {
                    text.push_str("      nothing was written: what comes out depends on the batches\n");
                }
            }
        }
        Ok(Err(text))
    }

    fn how_to_begin(&self) -> String {
        let (name, folder) = (&self.spec.name, self.spec.folder.join("tests"));
        let topic = self.spec.topics.first().cloned().unwrap_or_default();
        format!(
            "  no cases yet. Make one of real records:\n    mkdir -p {0}/first\n    millpond topic cat {topic} --limit 5 \
             --format jsonl > {0}/first/{1}\n    millpond consumer test {name} --accept",
            folder.display(),
            case::EVENTS
        )
    }
}

/// Writes what came, and says what that changes.
fn accepted(case: &Case, expected: &Expected, base: &Outcome) -> anyhow::Result<Passed> {
    // What is written for the first time differs from nothing.
    let differing = expected::compare(expected, base, 8).into_iter().filter(|(name, _)| expected.has(name));
    let mut more: String = differing.map(|(_, text)| text).collect();
    let written = expected::accept(case, expected, base)?;
    for path in &written {
        let (name, path) = (case::name_of(path), path.display());
        let rows = base.sheets.get(&name).map_or(0, |sheet| sheet.rows.len());
        more += &match rows {
            0 if !case.folder.join(&name).exists() => format!("        removed {path}\n"),
            1 => format!("        wrote {path}: 1 row\n"),
            rows => format!("        wrote {path}: {rows} rows\n"),
        };
    }
    if !written.is_empty() {
        more += "        this is what came out, and is expected from now on: read it before you commit it\n";
    }
    let written: Vec<String> = written.iter().map(|path| case::name_of(path)).collect();
    let note =
        if written.is_empty() { "nothing to accept".to_owned() } else { format!("accepted: {}", written.join(", ")) };
    Ok(Passed { note, more })
}

fn faults_text(faults: &[SpecFault]) -> String {
    faults.iter().map(|fault| indented(&fault.to_string(), 6) + "\n").collect()
}

fn indented(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.lines().map(|line| format!("{pad}{line}")).collect::<Vec<_>>().join("\n")
}
