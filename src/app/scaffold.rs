//! Folders written for people: a new project, a new producer, a new consumer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};

use super::{project::Project, roles};
use crate::{
    cli::args::Producer,
    cli::say::say,
    config::Config,
    domain::nearest,
    http::auth,
    schema::{Column, infer, relation_name},
    spec::producer::{self, RecordKind},
};

/// `millpond new DIR`
pub fn project(dir: &Path, rust: bool, millpond: Option<&Path>) -> anyhow::Result<()> {
    if dir.exists() && fs::read_dir(dir)?.next().is_some() {
        bail!("{} is not empty; choose a new folder", dir.display());
    }
    let name = dir.file_name().map_or("app".to_owned(), |n| n.to_string_lossy().into_owned());
    for folder in ["schemas", "producers", "consumers"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    write(dir, "millpond.toml", include_str!("templates/millpond.toml"))?;
    write(dir, "README.md", &include_str!("templates/README.md").replace("{name}", &name))?;
    write(dir, ".gitignore", "/.millpond\n/target\n")?;
    if rust {
        let source = match millpond {
            Some(path) => {
                let path = path.canonicalize().with_context(|| format!("--millpond {}", path.display()))?;
                format!("{{ path = {:?} }}", path.display().to_string())
            }
            None => "\"0.1\"".to_owned(),
        };
        let crate_name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-").to_lowercase();
        let manifest =
            include_str!("templates/Cargo.toml.txt").replace("{name}", &crate_name).replace("{millpond}", &source);
        write(dir, "Cargo.toml", &manifest)?;
        write(dir, "src/main.rs", include_str!("templates/main.rs.txt"))?;
        for (path, text) in [
            ("schemas/Greet/v1.avsc", include_str!("templates/greet.avsc")),
            ("producers/greeter/producer.toml", include_str!("templates/greeter.toml")),
            ("producers/greeter/examples/valid/greet.json", include_str!("templates/greet.json")),
            ("consumers/greetings/consumer.toml", include_str!("templates/greetings.toml")),
            ("consumers/greetings/handler.rs", include_str!("templates/handler.rs.txt")),
        ] {
            write(dir, path, text)?;
        }
    }
    say!("{} is ready. Next:\n\n  cd {}", dir.display(), dir.display());
    if rust {
        say!("  cargo run -- dev");
    } else {
        say!("  millpond producer new orders --from sample.json    # a file with one JSON object\n  millpond dev");
    }
    Ok(())
}

/// Writes a file that is not there yet; says so.
fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    if path.exists() {
        bail!("{} is there already; nothing is overwritten", path.display());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    say!("wrote {}", path.display());
    Ok(path)
}

/// `millpond producer new|test`
pub fn producer(config: &Config, command: Producer) -> anyhow::Result<ExitCode> {
    match command {
        Producer::New { name, from, record_type, topic, key, command } => {
            let new = NewProducer { name: &name, from: &from, record_type, topic, key, command };
            new.write(&config.project.dir)?;
            Ok(ExitCode::SUCCESS)
        }
        Producer::Key { client, producers } => {
            let key = auth::generate_key();
            let producers = if producers.is_empty() { "*".to_owned() } else { producers.join(",") };
            eprintln!(
                "the key, shown this once:\n\n  {key}\n\nthe line for the keys file (http.keys_file), which is read again when it changes:\n"
            );
            say!("{client} {} {producers}", auth::hash_key(&key));
            Ok(ExitCode::SUCCESS)
        }
        Producer::Test { name } => test_producers(&Project::load(&config.project.dir)?, name.as_deref()),
    }
}

struct NewProducer<'a> {
    name: &'a str,
    from: &'a Path,
    record_type: Option<String>,
    topic: Option<String>,
    key: Option<String>,
    command: bool,
}

impl NewProducer<'_> {
    fn write(&self, project: &Path) -> anyhow::Result<()> {
        let text = fs::read(self.from).with_context(|| format!("cannot read {}", self.from.display()))?;
        let record_type = self.record_type.clone().unwrap_or_else(|| pascal_case(self.name));
        let namespace = self.name.replace('-', "_");
        let schema = infer(&format!("{namespace}.{record_type}"), &text).map_err(|faults| {
            anyhow::anyhow!("{} cannot be a sample:\n  {}", self.from.display(), faults.join("\n  "))
        })?;
        let sample: serde_json::Value = serde_json::from_slice(&text)?;
        let sample = sample.get(0).cloned().unwrap_or(sample);
        let fields: Vec<String> = sample.as_object().into_iter().flat_map(|o| o.keys().cloned()).collect();
        let key = match &self.key {
            Some(key) if fields.contains(key) => key.clone(),
            Some(key) => bail!("--key {key}: the sample has no such field; it has {}", fields.join(", ")),
            None => fields.first().cloned().context("the sample has no fields")?,
        };
        let kind = if self.command { RecordKind::Command } else { RecordKind::Event };
        let topic = self.topic.clone().unwrap_or_else(|| format!("{}.{}.v1", namespace, kind.plural()));
        let contract = format!(
            "# What clients of {0} may send.\n\n[{1}.{record_type}]\ntopic = \"{topic}\"\n# Records with the same key stay in order.\n\
             key = \"{key}\"\n\n[topics.\"{topic}\"]\n# Cannot be changed later without a new topic: keys would move.\npartitions = 6\n",
            self.name,
            kind.plural()
        );
        let example = serde_json::json!({ "type": record_type, "body": sample });
        let mut without_key = example.clone();
        if let Some(body) = without_key["body"].as_object_mut() {
            body.remove(&key);
        }
        without_key["problem"] = serde_json::json!({ "pointer": format!("/{key}") });
        let schema_path = format!("schemas/{record_type}/v1.avsc");
        if project.join(&schema_path).exists() {
            bail!("{schema_path} is there already; choose another --type");
        }
        let manifest = format!("producers/{}/producer.toml", self.name);
        let (manifest_path, contract) = (project.join(&manifest), contract);
        if manifest_path.exists() {
            let before = fs::read_to_string(&manifest_path)?;
            // A topic that the folder declares already keeps its settings.
            let declared = before.contains(&format!("[topics.\"{topic}\"]"));
            let added = if declared { contract.split("\n[topics.").next().unwrap_or_default() } else { &contract };
            let added = added.split_once("\n\n").map_or(added, |(_, tables)| tables);
            fs::write(&manifest_path, format!("{}\n\n{}\n", before.trim_end(), added.trim_end()))?;
            say!("added {record_type} to {}", manifest_path.display());
        } else {
            write(project, &manifest, &contract)?;
        }
        write(project, &schema_path, &schema)?;
        let pretty = |v: &serde_json::Value| serde_json::to_string_pretty(v).map(|t| t + "\n");
        write(
            project,
            &format!("producers/{}/examples/valid/{}.json", self.name, relation_name(&record_type)),
            &pretty(&example)?,
        )?;
        write(
            project,
            &format!("producers/{}/examples/invalid/{}_without_{key}.json", self.name, relation_name(&record_type)),
            &pretty(&without_key)?,
        )?;
        say!(
            "\nRead the schema once: every field's type was guessed from one sample. Then: millpond producer test {}\nA running \
             `millpond dev` takes it in by itself, and prints a line to post it with.",
            self.name
        );
        Ok(())
    }
}

fn test_producers(project: &Project, name: Option<&str>) -> anyhow::Result<ExitCode> {
    let contracts = roles::contracts(project)?;
    let specs: Vec<_> = project.producers.iter().filter(|p| name.is_none_or(|n| p.name == n)).collect();
    if specs.is_empty() {
        bail!(
            "there is no producer{} in {}",
            name.map_or(String::new(), |n| format!(" {n}")),
            project.dir.join("producers").display()
        );
    }
    let (mut passed, mut failed) = (0, 0);
    for spec in specs {
        for report in contracts.run_examples(spec) {
            match &report.outcome {
                producer::Outcome::AsExpected => passed += 1,
                producer::Outcome::Otherwise(why) => {
                    failed += 1;
                    say!("FAIL {}: {why}", report.path.display());
                }
            }
        }
    }
    say!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `order-lines` becomes `OrderLines`.
fn pascal_case(name: &str) -> String {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .filter_map(|word| {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
        })
        .collect()
}

/// `millpond consumer new NAME --from TYPE`: a folder that works as it stands.
pub fn consumer(project: &Project, name: &str, record_type: &str) -> anyhow::Result<()> {
    let Some(record) = project.schemas.get(record_type) else {
        let topics = project.record_topics();
        let of_topic = |(_, topics): &(&String, &Vec<String>)| topics.iter().any(|topic| topic == record_type);
        let carried: Vec<&str> = topics.iter().filter(of_topic).map(|(name, _)| name.as_str()).collect();
        if !carried.is_empty() {
            bail!("{record_type} is a topic, and --from takes a record type; it carries {}", carried.join(", "));
        }
        let known: Vec<&str> = project.schemas.iter().map(|r| r.name.as_str()).collect();
        match nearest(record_type, known.iter().copied()) {
            Some(near) => bail!("there is no record type {record_type}; did you mean {near}?"),
            None => bail!("there is no record type {record_type}; there are {}", known.join(", ")),
        }
    };
    let declared = project.producers.iter().find_map(|p| p.records.get(record_type));
    let Some(declared) = declared else {
        bail!("no producer sends {record_type}, so its topic is not known; declare it in a producers/*/producer.toml")
    };
    let columns = crate::schema::columns_of(&record.latest().schema)?;
    let key = declared.key.join("\", \"");
    let toml = format!(
        "# {name}: one row per record of {1} and key ({2}), as it stands. Change the SELECT in {name}.sql, and the key here, to what you want to know.\n\
         topics = [\"{0}\"]\n\n[tables.{name}]\nkey = [\"{key}\"]\n\n# How columns of rows with the same key become one; the last value wins unless said otherwise:\n\
         # merge = {{ departures = \"sum\", worst = \"max\" }}\n# One of sum, min, max, and, or, first, last.\n",
        declared.topic,
        record_type,
        declared.key.join(" and "),
    );
    let width = columns.iter().map(|c| c.name.len()).max().unwrap_or_default() + 1;
    let list: Vec<String> =
        columns.iter().enumerate().map(|(i, c)| selected(c, i + 1 == columns.len(), width)).collect();
    let sql = format!(
        "-- Each record of {record_type} is a row of {relation}; besides its fields there are\n-- _key, _partition, _offset, _timestamp and _event_id.\nselect\n{list}\nfrom {relation};\n",
        relation = record.relation_name(),
        list = list.join("\n"),
    );
    let dir = project.dir.join("consumers").join(name);
    write(&dir, "consumer.toml", &toml)?;
    write(&dir, &format!("{name}.sql"), &sql)?;
    write(&dir, "README.md", &format!("# {name}\n\nWhat this projection answers, for whom.\n"))?;
    say!(
        "\nNext:\n  millpond consumer show {name}     # its rows on real events, without writing anything\n  millpond consumer test {name}     # its cases and the three laws"
    );
    Ok(())
}

fn selected(column: &Column, last: bool, width: usize) -> String {
    let comma = if last { "" } else { "," };
    let nullable = if column.nullable { ", may be null" } else { "" };
    format!("  {:width$} -- {}{nullable}", format!("{}{comma}", column.name), column.pg_type.sql())
}
