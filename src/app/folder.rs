//! A consumer's folder in its project: what it reads, by which schemas, and what Postgres makes of its SQL.

use anyhow::Context as _;

use super::project::Project;
use crate::{
    consume::Input,
    projection::{self, Compiled, Relation, RelationColumn},
    schema::{Column, columns_of, definitions_of},
    spec::ConsumerSpec,
    store::PgConnection,
};

/// Compiles a consumer's folder; Postgres judges its SQL.
pub async fn compile(
    project: &Project,
    spec: &ConsumerSpec,
    connection: &mut PgConnection,
) -> anyhow::Result<Compiled> {
    projection::compile(spec, &relations(project, spec)?, connection).await.map_err(|error| match error {
        projection::Error::Faults(faults) => {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", faults.join("\n"))
        }
        other => anyhow::Error::new(other).context(format!("consumer {}", spec.name)),
    })
}

/// The record types that a consumer's topics may carry, as relations.
pub fn relations(project: &Project, spec: &ConsumerSpec) -> anyhow::Result<Vec<Relation>> {
    let keys = project.keys();
    let topics = project.record_topics();
    let mut relations = Vec::new();
    for record in project.schemas.iter() {
        let version = reader_version(record, spec)?;
        let columns = columns_of(&version.schema)?.into_iter().zip(definitions_of(&version.schema)?);
        let column = |(column, definition): (Column, String)| RelationColumn {
            sql_type: column.pg_type.sql(),
            name: column.name,
            nullable: column.nullable,
            definition,
        };
        relations.push(Relation {
            name: record.relation_name(),
            record_type: record.name.clone(),
            columns: columns.map(column).collect(),
            key_fields: keys.get(&record.name).cloned().unwrap_or_default(),
            topics: topics.get(&record.name).cloned().unwrap_or_default(),
        });
    }
    Ok(relations)
}

/// The version of a schema that a consumer reads with: the pinned one, or the newest.
fn reader_version<'a>(
    record: &'a crate::schema::RecordType,
    spec: &ConsumerSpec,
) -> anyhow::Result<&'a crate::schema::SchemaVersion> {
    let Some(pinned) = spec.schemas.get(&record.name) else { return Ok(record.latest()) };
    record.versions.iter().find(|v| v.version == *pinned).with_context(|| {
        format!("consumer {} pins {} to version {pinned}, which does not exist", spec.name, record.name)
    })
}

/// What a consumer decodes, and with which schema.
pub fn inputs(project: &Project, spec: &ConsumerSpec) -> anyhow::Result<Vec<Input>> {
    let wanted = |name: &String| spec.types.as_ref().is_none_or(|types| types.contains(name));
    let records = project.schemas.iter().filter(|record| wanted(&record.name));
    records
        .map(|record| {
            Ok(Input {
                record_type: record.name.clone(),
                full_name: record.subject.clone(),
                reader: reader_version(record, spec)?.schema.clone(),
            })
        })
        .collect()
}
