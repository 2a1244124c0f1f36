//! Projects of tests: the shipped one under other topic names, and small ones made on the spot.

use std::fs;
use std::path::{Path, PathBuf};

/// A project's folder and the topics that it has to itself.
pub struct Project {
    pub dir: PathBuf,
    /// Where its commands or events are posted to.
    pub topic: String,
    /// Where its handlers' events go.
    pub downstream: String,
}

impl Project {
    /// The shipped application; its topics are named after `unique`.
    pub fn flights(dir: PathBuf, unique: &str) -> Self {
        let project = Self { dir, topic: format!("{unique}.commands.v1"), downstream: format!("{unique}.events.v1") };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["schemas", "producers", "consumers"] {
            project.copy(&root.join(folder), folder);
        }
        project
    }

    /// Payments on two partitions, and what they come to per account: whatever is applied twice is counted twice. An
    /// amount from [`Self::TOO_MUCH`] on cannot be applied, and is set aside.
    pub fn sums(dir: PathBuf, unique: &str) -> Self {
        let project = Self::shop(dir, unique, 2);
        let manifest = "topics = [\"TOPIC\"]\n[tables.sums]\nkey = [\"account\"]\n\
                        merge = { payments = \"sum\", total = \"sum\" }\n";
        project.write("consumers/sums/consumer.toml", manifest);
        project.bound(Self::TOO_MUCH);
        project
    }

    /// Payments on so many partitions, and no consumer.
    pub fn shop(dir: PathBuf, unique: &str, partitions: u32) -> Self {
        let project = Self::empty(dir, unique);
        let schema = r#"{"type": "record", "name": "Paid", "fields": [
            {"name": "account", "type": "string"}, {"name": "amount", "type": "long"}]}"#;
        project.write("schemas/Paid/v1.avsc", schema);
        let contract = "[events.Paid]\ntopic = \"TOPIC\"\nkey = \"account\"\n[topics.\"TOPIC\"]\n";
        project.write("producers/shop/producer.toml", &format!("{contract}partitions = {partitions}\n"));
        project
    }

    pub const TOO_MUCH: i64 = 1_000_000;

    /// What an amount of [`Self::sums`] must stay below: another bound is another version.
    pub fn bound(&self, bound: i64) {
        let select = format!(
            "select account, count(*) as payments, sum(amount / (amount < {bound})::integer)::bigint as total from paid \
             group by account"
        );
        self.write("consumers/sums/sums.sql", &select);
    }

    /// A project with nothing in it but one topic's name.
    pub fn empty(dir: PathBuf, unique: &str) -> Self {
        fs::create_dir_all(&dir).unwrap();
        Self { dir, topic: format!("{unique}.events.v1"), downstream: format!("{unique}.downstream.v1") }
    }

    /// Writes a file; `TOPIC` in it becomes the project's topic.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().expect("below the project")).unwrap();
        fs::write(path, text.replace("TOPIC", &self.topic)).unwrap();
    }

    fn copy(&self, from: &Path, to: &str) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let below = format!("{to}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.copy(&entry.path(), &below);
            } else {
                let text = fs::read_to_string(entry.path()).unwrap();
                let text = text.replace("flights.commands.v1", &self.topic);
                self.write(&below, &text.replace("flights.events.v1", &self.downstream));
            }
        }
    }
}
