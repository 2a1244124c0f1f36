//! `millpond producer …`: contracts written from a sample, their examples run, and keys made.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{NewFile, write_all};
use crate::{
    app::{project::Project, roles},
    cli::args::Producer,
    cli::say::say,
    config::Config,
    http::auth,
    schema::{infer, relation_fault, relation_name},
    spec::{
        ProducerSpec, SpecFault,
        producer::{self, RecordKind, name_fault, record_name_fault},
    },
};

/// `millpond producer new|key|test`
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

/// What `millpond producer new` was told.
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
        if let Some(why) = name_fault(self.name) {
            bail!("producer name `{}` {why}", self.name);
        }
        let record_type = self.checked_type(project)?;
        let text = fs::read(self.from).with_context(|| format!("cannot read {}", self.from.display()))?;
        let schema = infer(&format!("{}.{record_type}", self.namespace()), &text).map_err(|faults| {
            anyhow::anyhow!("{} cannot be a sample:\n  {}", self.from.display(), faults.join("\n  "))
        })?;
        let sample: Value = serde_json::from_slice(&text)?;
        let sample = sample.get(0).cloned().unwrap_or(sample);
        let key = self.key_of(&sample)?;
        let mut files = vec![(format!("schemas/{record_type}/v1.avsc"), schema)];
        files.extend(self.examples(&record_type, &key, &sample)?);
        let contract = self.contract(project, &record_type, &key)?;
        write_all(project, &files)?;
        contract.write(project)?;
        say!(
            "\nRead the schema once: every field's type was guessed from one sample. Then: millpond producer test {}\nA running \
             `millpond dev` takes it in by itself, and prints a line to post it with.",
            self.name
        );
        Ok(())
    }

    /// The record type, which no folder has yet.
    fn checked_type(&self, project: &Path) -> anyhow::Result<String> {
        let record_type = self.record_type.clone().unwrap_or_else(|| pascal_case(self.name));
        if let Some(why) = record_name_fault(&record_type) {
            bail!("record type `{record_type}` {why}; choose another --type");
        }
        if let Some(why) = relation_fault(&relation_name(&record_type)) {
            bail!("record type `{record_type}`: {why}");
        }
        let schemas = project.join("schemas");
        let others = fs::read_dir(&schemas).into_iter().flatten().flatten();
        let mut others = others.filter_map(|entry| entry.file_name().into_string().ok());
        let same = |other: &String| {
            other.eq_ignore_ascii_case(&record_type) || relation_name(other) == relation_name(&record_type)
        };
        if let Some(other) = others.find(same) {
            bail!("{} is there already; choose another --type", schemas.join(other).display());
        }
        Ok(record_type)
    }

    fn namespace(&self) -> String {
        self.name.replace('-', "_")
    }

    fn kind(&self) -> RecordKind {
        if self.command { RecordKind::Command } else { RecordKind::Event }
    }

    fn key_of(&self, sample: &Value) -> anyhow::Result<String> {
        let fields: Vec<&String> = sample.as_object().into_iter().flat_map(|fields| fields.keys()).collect();
        match &self.key {
            Some(key) if fields.contains(&key) => Ok(key.clone()),
            Some(key) => {
                let fields: Vec<&str> = fields.iter().map(|field| field.as_str()).collect();
                bail!("--key {key}: the sample has no such field; it has {}", fields.join(", "))
            }
            None => fields.first().map(|field| (*field).clone()).context("the sample has no fields"),
        }
    }

    /// The sample, which is accepted, and the same without its key, which is not.
    fn examples(&self, record_type: &str, key: &str, sample: &Value) -> anyhow::Result<[NewFile; 2]> {
        let valid = json!({ "type": record_type, "body": sample });
        let mut invalid = valid.clone();
        if let Some(body) = invalid["body"].as_object_mut() {
            body.remove(key);
        }
        invalid["problem"] = json!({ "pointer": format!("/{key}") });
        let folder = format!("producers/{}/examples", self.name);
        let file = relation_name(record_type);
        let pretty = |value: &Value| serde_json::to_string_pretty(value).map(|text| text + "\n");
        Ok([
            (format!("{folder}/valid/{file}.json"), pretty(&valid)?),
            (format!("{folder}/invalid/{file}_without_{key}.json"), pretty(&invalid)?),
        ])
    }

    /// A contract with the type, or the one that is there with the type added; sound, as far as it goes.
    fn contract(&self, project: &Path, record_type: &str, key: &str) -> anyhow::Result<Contract> {
        let kind = self.kind().plural();
        let topic = self.topic.clone().unwrap_or_else(|| format!("{}.{kind}.v1", self.namespace()));
        let mut added = format!(
            "[{kind}.{record_type}]\ntopic = {topic:?}\n# Records with the same key stay in order.\nkey = \"{key}\"\n"
        );
        // A topic that a folder declares already keeps its settings.
        let others = producer::load_all(&project.join("producers")).unwrap_or_default();
        if !others.iter().any(|other| other.topics.contains_key(&topic)) {
            added += &format!(
                "\n[topics.{topic:?}]\n# Cannot be changed later without a new topic: keys would move.\npartitions = 6\n"
            );
        }
        let dir = PathBuf::from(format!("producers/{}", self.name));
        let manifest = dir.join(producer::FILE);
        let path = project.join(&manifest);
        let before = if path.exists() { Some(fs::read_to_string(&path)?) } else { None };
        let text = match &before {
            Some(before) => format!("{}\n\n{added}", before.trim_end()),
            None => format!("# What clients of {} may send.\n\n{added}", self.name),
        };
        ProducerSpec::parse(&dir, &text).map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(SpecFault::to_string).collect();
            anyhow::anyhow!("the contract would have faults; nothing is written:\n  {}", faults.join("\n  "))
        })?;
        Ok(Contract { path: manifest, text, adds: before.map(|_| record_type.to_owned()) })
    }
}

/// The text of a contract that is to be written.
struct Contract {
    /// Below the project.
    path: PathBuf,
    text: String,
    /// The type that the contract which is there gets.
    adds: Option<String>,
}

impl Contract {
    fn write(self, project: &Path) -> anyhow::Result<()> {
        let Some(record_type) = self.adds else {
            return write_all(project, &[(self.path.display().to_string(), self.text)]);
        };
        let path = project.join(self.path);
        fs::write(&path, self.text).with_context(|| format!("cannot write {}", path.display()))?;
        say!("added {record_type} to {}", path.display());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything below a folder, by path.
    fn written(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path.display().to_string()) }
            }
        }
        found.sort();
        found
    }

    fn new(project: &Path, name: &str, record_type: Option<&str>, topic: Option<&str>) -> anyhow::Result<()> {
        let from = project.join("sample.json");
        fs::write(&from, r#"{"order_id": "1", "pieces": 3}"#).unwrap();
        let (record_type, topic) = (record_type.map(str::to_owned), topic.map(str::to_owned));
        NewProducer { name, from: &from, record_type, topic, key: None, command: false }.write(project)
    }

    #[test]
    fn producer_whose_folder_would_be_refused_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        let project = root.path().join("project");
        fs::create_dir_all(project.join("schemas")).unwrap();
        for (name, record_type, topic, expected) in [
            ("../../escaped", None, None, "producer name `../../escaped` must be made of"),
            ("Orders", None, None, "producer name `Orders`"),
            ("a b", None, None, "producer name `a b`"),
            ("", None, None, "producer name ``"),
            ("orders", Some("../Order"), None, "record type `../Order` is not the simple name"),
            ("orders", Some("Tombstones"), None, "record type `Tombstones`: its relation would be `tombstones`"),
            ("tombstones", None, None, "record type `Tombstones`: "),
            ("orders", None, Some("a b"), "`a b` is not a topic name"),
            ("orders", None, Some("../x"), "`../x` is not a topic name"),
        ] {
            let refused = new(&project, name, record_type, topic).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
            let there = written(root.path());
            assert!(matches!(there.as_slice(), [only] if only.ends_with("sample.json")), "{name}: {there:?}");
        }
    }

    #[test]
    fn types_that_are_added_to_a_contract_keep_the_project_sound() {
        let root = tempfile::tempdir().unwrap();
        let project = root.path();
        new(project, "orders", None, None).unwrap();
        new(project, "orders", Some("OrderPaid"), None).unwrap();
        new(project, "billing", Some("Billed"), Some("orders.events.v1")).unwrap();
        let before = written(project);
        for record_type in ["OrderPaid", "ORDERPAID", "Order_Paid"] {
            let refused = new(project, "billing", Some(record_type), None).unwrap_err().to_string();
            assert!(refused.contains("OrderPaid is there already; choose another --type"), "{refused}");
        }
        assert_eq!(written(project), before);
        let specs = producer::load_all(&project.join("producers")).unwrap();
        assert_eq!(specs.iter().map(|spec| spec.topics.len()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(test_producers(&Project::load(project).unwrap(), None).unwrap(), ExitCode::SUCCESS);
    }
}
