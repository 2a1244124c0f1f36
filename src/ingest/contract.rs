//! Contracts: what may be sent, with the schema compiled, ready for the hot path.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use prometheus::IntCounter;
use serde_json::value::RawValue;

use super::{
    admission::ClientRate,
    batch::check_record,
    problems::{NOT_REGISTERED, OTHER_KIND, UNKNOWN_TYPE},
};
use crate::{
    domain::near,
    http::{Principal, Problem},
    schema::{Fault, SchemaSet, encode::Encoder},
    spec::{
        SpecFault,
        producer::{self, ProducerSpec, RecordKind, RecordSpec, Report},
    },
    telemetry::metrics::ingest::ACCEPTED_RECORDS,
};

/// Names of other types that a 404 offers.
const NEAR_TYPES: usize = 3;
const NO_SCHEMA_ID: i64 = -1;

/// Everything that may be sent, by record type.
#[derive(Debug, Default)]
pub struct Contracts {
    types: BTreeMap<String, Arc<Contract>>,
}

/// One record type.
pub struct Contract {
    pub name: String,
    pub kind: RecordKind,
    pub topic: Arc<str>,
    /// Fields that make the key; the encoder captures them first.
    pub key: Vec<String>,
    /// Field that holds the event id; the encoder captures it after the key.
    pub event_id: Option<String>,
    /// The newest version of the schema, as it is registered.
    pub schema: String,
    /// A body that the contract's own examples call valid.
    pub example: Option<Box<RawValue>>,
    pub(super) encoder: Encoder,
    pub(super) accepted: IntCounter,
    senders: Vec<Sender>,
    schema_id: AtomicI64,
}

/// One producer folder's share in a type: the limits are its own.
pub(super) struct Sender {
    pub(super) max_bytes: usize,
    pub(super) producer: Arc<Producer>,
}

pub(super) struct Producer {
    pub(super) name: String,
    pub(super) rate: Option<ClientRate>,
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contract").field("name", &self.name).field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Contracts {
    /// Compiles what the folders declare, with the newest version of each schema.
    ///
    /// The faults are those of types without a schema, and of fields that schemas do not have or that cannot be keys.
    pub fn compile(specs: &[ProducerSpec], schemas: &SchemaSet) -> Result<Self, Vec<SpecFault>> {
        let mut faults = Vec::new();
        let mut types: BTreeMap<String, Contract> = BTreeMap::new();
        for spec in specs {
            let producer = Arc::new(Producer { name: spec.name.clone(), rate: spec.rate.map(ClientRate::new) });
            for (name, record) in &spec.records {
                let sender = Sender { max_bytes: record.max_bytes, producer: Arc::clone(&producer) };
                if let Some(contract) = types.get_mut(name) {
                    contract.senders.push(sender);
                    continue;
                }
                match Contract::new(spec, record, schemas, sender) {
                    Ok(contract) => drop(types.insert(name.clone(), contract)),
                    Err(message) => faults.push(SpecFault { path: spec.file(), line: record.line, message }),
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self { types: types.into_iter().map(|(name, contract)| (name, Arc::new(contract))).collect() })
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Contract>> {
        self.types.values()
    }

    pub fn get(&self, record_type: &str) -> Option<&Arc<Contract>> {
        self.types.get(record_type)
    }

    /// The types whose schema has no id yet.
    pub fn unregistered(&self) -> Vec<&str> {
        self.iter().filter(|contract| contract.schema_id().is_none()).map(|contract| contract.name.as_str()).collect()
    }

    /// Runs the examples of a folder as requests are run, without writing.
    pub fn run_examples(&self, spec: &ProducerSpec) -> Vec<Report> {
        producer::run_examples(spec, |record, body| match self.get(&record.name) {
            Some(contract) => check_record(contract, record.max_bytes, body),
            None => Err(vec![Fault::new("a record type with a schema", format!("{:?}", record.name))]),
        })
    }

    /// The contract of a type sent as `kind`, or the 404 that helps.
    pub(super) fn lookup(&self, kind: RecordKind, record_type: &str) -> Result<&Arc<Contract>, Problem> {
        match self.types.get(record_type) {
            Some(contract) if contract.kind == kind => Ok(contract),
            Some(contract) => {
                let path = format!("/v1/{}/{record_type}", contract.kind.plural());
                let article = if contract.kind == RecordKind::Event { "an event" } else { "a command" };
                Err(OTHER_KIND.problem(format!("{record_type} is {article}: send it to {path}")).with("use", path))
            }
            None => Err(self.unknown(kind, record_type)),
        }
    }

    fn unknown(&self, kind: RecordKind, record_type: &str) -> Problem {
        let shown: String = record_type.chars().take(80).collect();
        let mut near = near(&shown, self.iter().map(|contract| contract.name.as_str()));
        near.truncate(NEAR_TYPES);
        let advice = match near.first() {
            Some(first) => format!("did you mean {first}?"),
            None => format!("GET /v1/{} lists what there is", kind.plural()),
        };
        UNKNOWN_TYPE.problem(format!("no producer folder has the {kind} {shown:?}: {advice}")).with("near", near)
    }
}

impl Contract {
    fn new(spec: &ProducerSpec, record: &RecordSpec, schemas: &SchemaSet, sender: Sender) -> Result<Self, String> {
        let name = &record.name;
        let record_type = schemas.by_name(name).ok_or_else(|| {
            let near = schemas.nearest(name).map(|near| format!(": did you mean {near}?")).unwrap_or_default();
            format!("{name} has no schema: there is no schemas/{name}/v1.avsc{near}")
        })?;
        let schema = record_type.latest();
        let capture: Vec<String> = record.key.iter().chain(&record.event_id).cloned().collect();
        let encoder = Encoder::compile(&schema.schema, &capture).map_err(|error| format!("{name}: {error}"))?;
        let examples = producer::valid_examples(spec);
        let example = examples.into_iter().find(|example| example.record_type == *name);
        Ok(Self {
            name: name.clone(),
            kind: record.kind,
            topic: record.topic.as_str().into(),
            key: record.key.clone(),
            event_id: record.event_id.clone(),
            schema: schema.text.clone(),
            example: example.map(|example| example.body),
            encoder,
            accepted: ACCEPTED_RECORDS.with_label_values(&[name]),
            senders: vec![sender],
            schema_id: AtomicI64::new(NO_SCHEMA_ID),
        })
    }

    /// The id under which the registry has the schema.
    pub fn schema_id(&self) -> Option<u32> {
        u32::try_from(self.schema_id.load(Ordering::Relaxed)).ok()
    }

    /// Sets the id, once the registry is known to have exactly this schema; from then on records are taken.
    pub fn set_schema_id(&self, id: u32) {
        self.schema_id.store(i64::from(id), Ordering::Relaxed);
    }

    /// The producer folders that declare the type.
    pub fn producers(&self) -> impl Iterator<Item = &str> {
        self.senders.iter().map(|sender| sender.producer.name.as_str())
    }

    /// The folder under which the principal sends: the first, by name, that it is granted.
    pub(super) fn sender(&self, principal: &Principal) -> Result<&Sender, Problem> {
        let granted = self.senders.iter().find(|sender| principal.may_send(&sender.producer.name));
        granted.ok_or_else(|| principal.refuse(&self.name, &self.producers().collect::<Vec<_>>()))
    }

    /// The id, or the 503 of a schema that nobody has registered.
    pub(super) fn registered_id(&self) -> Result<u32, Problem> {
        self.schema_id().ok_or_else(|| {
            NOT_REGISTERED
                .problem(format!("the registry has no id for the schema of {}: run `millpond schema push`", self.name))
                .with("outcome", "not_written")
                .retry_after(5)
        })
    }
}
