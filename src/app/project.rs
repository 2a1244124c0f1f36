//! The folders of an application, loaded and checked together.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::bail;

use crate::{
    consume::VERDICTS_TOPIC,
    domain::nearest,
    kafka::{TopicSpec, registry::RegistryOptions},
    projection::{LIVE_SCHEMA, live_view, split},
    publish::markers,
    schema::SchemaSet,
    spec::{
        ConsumerSpec,
        producer::{self, ProducerSpec},
    },
};

/// Everything that `schemas/`, `producers/` and `consumers/` declare.
#[derive(Debug)]
pub struct Project {
    pub dir: PathBuf,
    pub schemas: SchemaSet,
    pub producers: Vec<ProducerSpec>,
    pub consumers: Vec<ConsumerSpec>,
}

/// Partitions of the topics that belong to a consumer alone: their order matters per source, not their throughput.
const DLQ_PARTITIONS: u32 = 1;

impl Project {
    /// Loads all folders; all faults of all of them in one error.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let mut faults: Vec<String> = Vec::new();
        let schemas = match SchemaSet::load(&dir.join("schemas")) {
            Ok(schemas) => Some(schemas),
            Err(found) => {
                faults.extend(found.iter().map(ToString::to_string));
                None
            }
        };
        let producers = producer::load_all(&dir.join("producers")).unwrap_or_else(|found| {
            faults.extend(found.iter().map(ToString::to_string));
            Vec::new()
        });
        let mut consumers = Vec::new();
        for folder in folders(&dir.join("consumers"))? {
            match ConsumerSpec::load(&folder) {
                Ok(spec) => consumers.push(spec),
                Err(found) => faults.extend(found.iter().map(ToString::to_string)),
            }
        }
        faults.extend(view_clashes(&consumers));
        match schemas {
            Some(schemas) if faults.is_empty() => Ok(Self { dir: dir.to_owned(), schemas, producers, consumers }),
            _ => bail!("the project in {} has faults:\n  {}", dir.display(), faults.join("\n  ")),
        }
    }

    pub fn consumer(&self, name: &str) -> anyhow::Result<&ConsumerSpec> {
        let names = || self.consumers.iter().map(|c| c.name.as_str());
        match self.consumers.iter().find(|c| c.name == name) {
            Some(spec) => Ok(spec),
            None => match nearest(name, names()) {
                Some(near) => bail!("there is no consumer {name}; did you mean {near}?"),
                None => bail!("there is no consumer {name} in {}", self.dir.join("consumers").display()),
            },
        }
    }

    /// The fields that the Kafka key of each record type is made of.
    pub fn keys(&self) -> BTreeMap<String, Vec<String>> {
        let records = self.producers.iter().flat_map(|p| &p.records);
        records.map(|(name, record)| (name.clone(), record.key.clone())).collect()
    }

    /// The topics that each record type is sent to, by producers and by handlers.
    pub fn record_topics(&self) -> BTreeMap<String, Vec<String>> {
        let mut topics: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let posted = self.producers.iter().flat_map(|p| &p.records).map(|(name, record)| (name, &record.topic));
        for (name, topic) in posted.chain(self.consumers.iter().flat_map(|c| &c.emits)) {
            let known = topics.entry(name.clone()).or_default();
            if !known.contains(topic) {
                known.push(topic.clone());
            }
        }
        topics
    }

    /// The names of all topics that some folder declares or sends to.
    pub fn known_topics(&self) -> BTreeSet<String> {
        let sent_to = self.record_topics().into_values().flatten();
        self.topics().into_iter().map(|topic| topic.name).chain(sent_to).collect()
    }

    /// How many partitions the folders say that each topic has.
    pub fn declared_partitions(&self) -> BTreeMap<String, u32> {
        self.producers.iter().flat_map(|p| &p.topics).map(|(name, spec)| (name.clone(), spec.partitions)).collect()
    }

    /// Every topic that the folders declare, and those that Millpond needs for them.
    pub fn topics(&self) -> Vec<TopicSpec> {
        let mut topics = vec![RegistryOptions::default().topic_spec(), markers::topic_spec()];
        for (name, spec) in self.producers.iter().flat_map(|p| &p.topics) {
            let mut topic = TopicSpec::log(name, spec.partitions);
            topic.config.insert("retention.ms".to_owned(), spec.retention.as_retention_ms().to_string());
            topics.push(topic);
        }
        for consumer in &self.consumers {
            let mut topic = TopicSpec::log(format!("{}.dlq", consumer.name), DLQ_PARTITIONS);
            topic.config.insert("retention.ms".to_owned(), "-1".to_owned());
            topics.push(topic);
        }
        if !self.consumers.is_empty() {
            topics.push(TopicSpec::compacted(VERDICTS_TOPIC, DLQ_PARTITIONS));
        }
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics.dedup_by(|a, b| a.name == b.name);
        topics
    }
}

/// Consumers that would give two views in the schema `live` one name, as far as their folders name the tables.
pub fn view_clashes(consumers: &[ConsumerSpec]) -> Vec<String> {
    let mut taken: BTreeMap<String, (&str, String)> = BTreeMap::new();
    let mut faults = Vec::new();
    for consumer in consumers {
        let tables = tables_of(consumer);
        for table in &tables {
            let view = live_view(&consumer.name, table, tables.len());
            if let Some((other, its_table)) = taken.get(&view) {
                faults.push(format!(
                    "{}: the view `{LIVE_SCHEMA}.{view}` would be that of table `{table}` and, in consumer `{other}`, of \
                     table `{its_table}`; rename a table or a consumer",
                    consumer.manifest_path().display()
                ));
            } else {
                taken.insert(view, (&consumer.name, table.clone()));
            }
        }
    }
    faults
}

/// The tables that `consumer.toml` and `tables.sql` name; without any, the one of the consumer's own name.
fn tables_of(consumer: &ConsumerSpec) -> BTreeSet<String> {
    let mut tables: BTreeSet<String> = consumer.tables.keys().cloned().collect();
    let statements = consumer.tables_sql.as_ref().and_then(|file| split(file).ok()).unwrap_or_default();
    tables.extend(statements.iter().filter_map(|statement| statement.made_table()));
    if tables.is_empty() {
        tables.insert(consumer.name.clone());
    }
    tables
}

/// The folders below `dir`, by name; none when `dir` is not there. Hidden ones are not ours.
pub fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::SourceFile;

    fn consumer(name: &str, toml: &str, tables_sql: Option<&str>) -> ConsumerSpec {
        let tables = tables_sql.iter().map(|sql| SourceFile::new("tables.sql", *sql));
        let apply = tables_sql.iter().map(|_| SourceFile::new("apply.sql", "delete from b"));
        let sql = tables.chain(apply).collect();
        ConsumerSpec::from_files(&Path::new("consumers").join(name), toml, sql, Vec::new()).unwrap()
    }

    #[test]
    fn consumers_whose_views_would_have_one_name_are_refused_by_both_names() {
        let toml = "topics = [\"t\"]\n";
        let listed = format!("{toml}[tables.b]\nkey = [\"id\"]\n[tables.c]\nkey = [\"id\"]\n");
        let made = "create table b (id text primary key); create table c (id text primary key)";
        for a in [consumer("a", &listed, None), consumer("a", toml, Some(made))] {
            let clashes = view_clashes(&[a.clone(), consumer("a_b", toml, None)]);
            assert_eq!(
                clashes,
                [
                    "consumers/a_b/consumer.toml: the view `live.a_b` would be that of table `a_b` and, in consumer `a`, of \
                  table `b`; rename a table or a consumer"
                ]
            );
            assert_eq!(view_clashes(&[a, consumer("b", toml, None)]), Vec::<String>::new());
        }
    }
}
