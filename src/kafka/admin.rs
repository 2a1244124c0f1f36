//! Topics: creating those that are declared, and saying where the cluster differs from what is declared.
//!
//! Never creates what is not declared, never changes what exists, never deletes except by name.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};

use super::{
    Error, Options,
    client::{self, Logging, PAUSE},
};

/// What one request may take; creating a topic waits for its leaders.
const LIMIT: Duration = Duration::from_secs(15);
const TIMESTAMP_TYPE: &str = "message.timestamp.type";

/// A topic as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: u32,
    /// Settings of the topic, as Kafka names them.
    pub config: BTreeMap<String, String>,
}

impl TopicSpec {
    /// A topic of commands or events. Its records carry the broker's time: windows of deduplication are measured in
    /// log time, which clients must not be able to set.
    pub fn log(name: impl Into<String>, partitions: u32) -> Self {
        let config = BTreeMap::from([(TIMESTAMP_TYPE.into(), "LogAppendTime".into())]);
        Self { name: name.into(), partitions, config }
    }

    /// A topic that keeps the last record of each key.
    pub fn compacted(name: impl Into<String>, partitions: u32) -> Self {
        let mut spec = Self::log(name, partitions);
        spec.config.insert("cleanup.policy".into(), "compact".into());
        spec
    }
}

/// What [`Admin::ensure_topics`] found or did for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ensured {
    pub topic: String,
    pub created: bool,
    /// Settings that differ from what is declared, each with what to run.
    pub warnings: Vec<String>,
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    pub name: String,
    pub partitions: usize,
    /// Replicas of the first partition.
    pub replicas: usize,
    /// Partitions without a leader now.
    pub leaderless: usize,
    /// Partitions of which not every replica is in sync now.
    pub lagging: usize,
}

/// A client for topics.
pub struct Admin {
    client: Arc<AdminClient<Logging>>,
    /// −1: the cluster's default.
    replication: i32,
}

impl Admin {
    pub fn connect(options: &Options) -> Result<Self, Error> {
        let client = client::create(&options.admin()?, Logging, "admin client")?;
        Ok(Self { client: Arc::new(client), replication: options.replication.map_or(-1, i32::from) })
    }

    /// Creates the topics that are missing, and compares the others. A different number of partitions is an error:
    /// it decides where a key's records go.
    pub async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<Vec<Ensured>, Error> {
        let mut ensured = Vec::with_capacity(specs.len());
        for spec in specs {
            let created = match self.describe(&spec.name).await? {
                None => self.create(spec).await?,
                Some(found) => {
                    compare_partitions(spec, found.partitions)?;
                    false
                }
            };
            let warnings = if created { Vec::new() } else { self.compare_config(spec).await? };
            ensured.push(Ensured { topic: spec.name.clone(), created, warnings });
        }
        Ok(ensured)
    }

    /// The topic, if it exists.
    pub async fn describe(&self, topic: &str) -> Result<Option<TopicDescription>, Error> {
        let topic = topic.to_owned();
        Ok(self.metadata(Some(topic)).await?.pop())
    }

    /// All topics, by name.
    pub async fn list(&self) -> Result<Vec<TopicDescription>, Error> {
        self.metadata(None).await
    }

    /// For each partition the first offset kept and the first not written yet.
    pub async fn watermarks(&self, topic: &str) -> Result<Vec<(i64, i64)>, Error> {
        let missing = || Error::no_topic(topic, []);
        let count = self.describe(topic).await?.ok_or_else(missing)?.partitions;
        let (client, topic) = (self.client.clone(), topic.to_owned());
        blocking(move || {
            let ends = |partition| client::watermarks(client.inner(), &topic, partition);
            (0..count as i32).map(ends).collect()
        })
        .await
    }

    /// Deletes a topic with all its records.
    pub async fn delete(&self, topic: &str) -> Result<(), Error> {
        let failed = || Error::request(format!("delete topic `{topic}`"));
        let results = self.client.delete_topics(&[topic], &request()).await.map_err(failed())?;
        match results.into_iter().next() {
            Some(Err((_, code))) => Err(failed()(KafkaError::AdminOp(code))),
            _ => Ok(()),
        }
    }

    /// Whether it was us who created it.
    async fn create(&self, spec: &TopicSpec) -> Result<bool, Error> {
        let failed = || Error::request(format!("create topic `{}`", spec.name));
        let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
        let mut topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(self.replication));
        topic.config = spec.config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let results = self.client.create_topics([&topic], &request()).await.map_err(failed())?;
        match results.into_iter().next() {
            // Another process of ours was faster.
            Some(Err((_, Code::TopicAlreadyExists))) => {
                self.settle(spec).await?;
                Ok(false)
            }
            Some(Err((_, code))) => Err(failed()(KafkaError::AdminOp(code))),
            _ => {
                self.settle(spec).await?;
                Ok(true)
            }
        }
    }

    /// Waits until a new topic has its leaders: the controller answers before they are elected.
    async fn settle(&self, spec: &TopicSpec) -> Result<(), Error> {
        let settled = async {
            loop {
                if let Some(found) = self.describe(&spec.name).await? {
                    compare_partitions(spec, found.partitions)?;
                    if found.leaderless == 0 {
                        return Ok(());
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let action = format!("elect leaders of the new topic `{}`", spec.name);
        let late = || Error::Timeout { action, seconds: LIMIT.as_secs() };
        tokio::time::timeout(LIMIT, settled).await.unwrap_or_else(|_| Err(late()))
    }

    async fn compare_config(&self, spec: &TopicSpec) -> Result<Vec<String>, Error> {
        let failed = || Error::request(format!("describe the settings of topic `{}`", spec.name));
        let resource = ResourceSpecifier::Topic(&spec.name);
        let results = self.client.describe_configs([&resource], &request()).await.map_err(failed())?;
        let found = match results.into_iter().next() {
            Some(Ok(found)) => found,
            Some(Err(code)) => return Err(failed()(KafkaError::AdminOp(code))),
            None => return Ok(Vec::new()),
        };
        let differs = |(key, wanted): (&String, &String)| {
            let is = found.get(key).and_then(|entry| entry.value.clone()).unwrap_or_else(|| "not set".into());
            let text = format!(
                "topic `{topic}` has {key}={is} where {wanted} is declared; change it with `kafka-configs.sh --alter \
                 --topic {topic} --add-config {key}={wanted}`",
                topic = spec.name
            );
            (is != *wanted).then_some(text)
        };
        Ok(spec.config.iter().filter_map(differs).collect())
    }

    async fn metadata(&self, topic: Option<String>) -> Result<Vec<TopicDescription>, Error> {
        let client = self.client.clone();
        blocking(move || {
            let action = topic.as_ref().map_or("list topics".into(), |topic| format!("describe topic `{topic}`"));
            let metadata = client.inner().fetch_metadata(topic.as_deref(), LIMIT).map_err(Error::request(action))?;
            let describe = |topic: &rdkafka::metadata::MetadataTopic| TopicDescription {
                name: topic.name().to_owned(),
                partitions: topic.partitions().len(),
                replicas: topic.partitions().first().map_or(0, |p| p.replicas().len()),
                leaderless: topic.partitions().iter().filter(|p| p.leader() < 0).count(),
                lagging: topic.partitions().iter().filter(|p| p.isr().len() < p.replicas().len()).count(),
            };
            let mut topics: Vec<_> = metadata.topics().iter().map(describe).filter(|t| t.partitions > 0).collect();
            topics.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(topics)
        })
        .await
    }
}

fn compare_partitions(spec: &TopicSpec, found: usize) -> Result<(), Error> {
    let wanted = spec.partitions as usize;
    let advice = match found.cmp(&wanted) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => {
            "declare what is there, or write to a new topic (.vN+1): with more partitions, keys would move and lose \
             their order"
        }
        std::cmp::Ordering::Greater => "declare what is there: kafka cannot take partitions away",
    };
    Err(Error::Partitions { topic: spec.name.clone(), found, wanted, advice })
}

fn request() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(LIMIT)).operation_timeout(Some(LIMIT))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.expect("invariant: requests to kafka do not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_number_of_partitions_is_an_error_that_says_what_to_do() {
        let spec = TopicSpec::log("orders.events.v1", 6);
        assert!(compare_partitions(&spec, 6).is_ok());
        let error = compare_partitions(&spec, 3).unwrap_err().to_string();
        assert!(
            error.contains("`orders.events.v1` has 3 partitions where 6") && error.contains("new topic"),
            "{error}"
        );
        assert!(compare_partitions(&spec, 12).unwrap_err().to_string().contains("cannot take partitions away"));
    }
}
