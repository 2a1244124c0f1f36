//! The project's newest schemas without a registry: JSON to framed Avro and back, under ids of our own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    app::Project,
    consume::Emitter,
    kafka::registry::Registered,
    schema::{
        JsonDecoder,
        encode::{Captured, Encoder},
        framing,
    },
    spec::ConsumerSpec,
};

/// The newest version of a record type.
struct Type {
    id: u32,
    registered: Arc<Registered>,
    encoder: Encoder,
    decoder: JsonDecoder,
    /// Whether the contract says which fields the key is made of; they are captured.
    key_fields: usize,
}

/// All record types of a project, by name.
pub struct Codec {
    types: BTreeMap<String, Type>,
}

/// A document as a record's key and value.
pub struct Encoded {
    /// By the contract; none without one, or where a field of it is null.
    pub key: Option<String>,
    pub payload: Vec<u8>,
}

impl Codec {
    pub fn new(project: &Project) -> anyhow::Result<Self> {
        let keys = project.keys();
        let mut types = BTreeMap::new();
        for (id, record) in (1..).zip(project.schemas.iter()) {
            let latest = record.latest();
            let key = keys.get(&record.name).cloned().unwrap_or_default();
            let encoder = Encoder::compile(&latest.schema, &key).with_context(|| record.subject.clone())?;
            let decoder = JsonDecoder::compile(&latest.schema, &latest.schema)?;
            let registered = Arc::new(Registered {
                id,
                subject: record.subject.clone(),
                version: i32::try_from(latest.version)?,
                text: latest.text.clone(),
                schema_type: None,
                deleted: false,
            });
            let id = u32::try_from(id)?;
            types.insert(record.name.clone(), Type { id, registered, encoder, decoder, key_fields: key.len() });
        }
        Ok(Self { types })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(String::as_str)
    }

    pub fn knows(&self, record_type: &str) -> bool {
        self.types.contains_key(record_type)
    }

    /// What a decoder of records finds by their ids.
    pub fn schemas(&self) -> HashMap<i32, Arc<Registered>> {
        self.types.values().map(|t| (t.registered.id, Arc::clone(&t.registered))).collect()
    }

    /// How a consumer's events are encoded.
    pub fn emitters(&self, project: &Project, spec: &ConsumerSpec) -> anyhow::Result<HashMap<String, Emitter>> {
        let mut emitters = HashMap::new();
        for (name, topic) in &spec.emits {
            let missing =
                || format!("consumer {} emits {name}, but there is no schemas/{name}/v1.avsc: write it", spec.name);
            let record = project.schemas.get(name).with_context(missing)?;
            let known = self.types.get(&record.name).with_context(missing)?;
            let encoder = Encoder::compile(&record.latest().schema, &[])?;
            emitters.insert(name.clone(), Emitter { topic: topic.clone(), schema_id: known.id, encoder });
        }
        Ok(emitters)
    }

    /// # Errors
    /// What is wrong with the document, each with its JSON pointer.
    pub fn encode(&self, record_type: &str, json: &str) -> Result<Encoded, Vec<String>> {
        let Some(known) = self.types.get(record_type) else {
            return Err(vec![format!("there is no record type {record_type}")]);
        };
        let mut payload = Vec::with_capacity(json.len());
        framing::write_header(known.id, &mut payload);
        let mut captured = Captured::default();
        known
            .encoder
            .encode(json.as_bytes(), &mut payload, &mut captured)
            .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let parts: Option<Vec<&str>> = (0..known.key_fields).map(|at| captured.get(at)).collect();
        let key = parts.filter(|parts| !parts.is_empty()).map(|parts| parts.join("/"));
        Ok(Encoded { key, payload })
    }

    /// The JSON of what [`Self::encode`] or an emitter here has written.
    pub fn decode(&self, payload: &[u8]) -> anyhow::Result<Value> {
        let (id, body) = framing::split(payload)?;
        let known = self.types.values().find(|t| t.id == id).context("a schema id that is not of this codec")?;
        let mut json = Vec::new();
        known.decoder.append_json(body, &mut json).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        Ok(serde_json::from_slice(&json)?)
    }
}
