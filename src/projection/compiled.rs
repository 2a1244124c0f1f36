//! What a consumer folder became: every statement that makes, fills and shows a version.

use std::collections::BTreeSet;

use super::{
    apply::{self, ApplyStatement},
    names::{LIVE_SCHEMA, advisory_key, live_view},
    plan::TablePlan,
    reference::ReferenceTable,
    relation::{METADATA_NAMES, Relation, TOMBSTONES},
    session,
    tables::{SCHEMA, Table},
    upsert,
};
use crate::domain::{IndexInfo, TableInfo, ident, ident_list, literal, schema_name};

/// A compiled consumer. Independent of the version but where one is asked for.
#[derive(Debug, Clone)]
pub struct Compiled {
    pub(super) consumer: String,
    pub(super) program: Program,
    pub(super) relations: Vec<Relation>,
    pub(super) tables: Vec<Table>,
    pub(super) references: Vec<ReferenceTable>,
    /// `tables.sql`, statement by statement.
    pub(super) tables_sql: Vec<String>,
    pub(super) hash: String,
    /// Without SQL: only the last record of each key counts.
    pub(super) latest: bool,
}

/// What a batch runs.
#[derive(Debug, Clone)]
pub(super) enum Program {
    Merge(Vec<TablePlan>),
    Apply {
        statements: Vec<ApplyStatement>,
        rounds: bool,
        shared: bool,
    },
    /// A handler in Rust writes the rows; nothing is staged.
    Handler,
}

impl Compiled {
    /// The relations to stage, in the order of their names. Records of other types have no effect on the tables.
    pub fn relations(&self) -> &[Relation] {
        &self.relations
    }

    /// The tables that people read.
    pub fn tables(&self) -> Vec<TableInfo> {
        self.tables.iter().map(|table| table.info.clone()).collect()
    }

    /// The indexes that `consumer.toml` asks for, which decide nothing about the rows.
    pub fn indexes(&self) -> Vec<IndexInfo> {
        let mut indexes: Vec<IndexInfo> = self.tables.iter().flat_map(|table| &table.indexes).cloned().collect();
        // One that is asked for twice.
        indexes.sort_by(|a, b| a.name.cmp(&b.name));
        indexes.dedup();
        indexes
    }

    /// One of [`Self::tables`].
    pub fn table(&self, name: &str) -> Option<&TableInfo> {
        self.tables.iter().map(|table| &table.info).find(|info| info.name == name)
    }

    /// SHA-256 in hex over everything that decides what the rows are.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether records may be applied out of the order of their key and give the same rows: where every column merges by a
    /// rule for which order does not matter, and no row is removed. What an author's own statements do is not known.
    pub fn commutes(&self) -> bool {
        match &self.program {
            Program::Merge(plans) => plans.iter().all(TablePlan::commutes),
            Program::Apply { .. } | Program::Handler => false,
        }
    }

    /// Whether the batch's `_round` has to be filled in: the n-th occurrence of a key over all relations, from 0.
    pub fn needs_rounds(&self) -> bool {
        matches!(self.program, Program::Apply { rounds: true, .. })
    }

    /// Whether a handler in Rust writes the rows.
    pub fn is_handler(&self) -> bool {
        matches!(self.program, Program::Handler)
    }

    /// The schema of a version's tables.
    pub fn schema_name(&self, version: i32) -> String {
        schema_name(&self.consumer, version)
    }

    /// The statements that make a version's schema, tables, their indexes and reference data. Run in one transaction.
    pub fn create_sql(&self, version: i32) -> Vec<String> {
        let schema = self.schema_name(version);
        let mut sql = vec![format!("create schema {}", ident(&schema))];
        sql.extend(self.references.iter().flat_map(|reference| reference.create_sql(&schema)));
        if !self.tables_sql.is_empty() {
            sql.push(session::creation_path(&schema));
            sql.extend(self.tables_sql.iter().cloned());
            sql.push("set local search_path to default".to_owned());
        }
        let quoted = ident(&schema);
        sql.extend(self.tables.iter().flat_map(|table| &table.ddl).map(|ddl| ddl.replace(SCHEMA, &quoted)));
        sql.extend(self.indexes().iter().map(|index| index.create_sql(&schema, "")));
        sql
    }

    /// Whether the indexes of [`Self::indexes`] may be made when all rows are there: where the engine finds rows by their
    /// key alone. An author's own statements may look for them in any way.
    pub fn loads_without_indexes(&self) -> bool {
        matches!(self.program, Program::Merge(_)) && !self.indexes().is_empty()
    }

    /// [`Self::create_sql`] without these indexes.
    pub fn create_unindexed_sql(&self, version: i32) -> Vec<String> {
        let mut sql = self.create_sql(version);
        sql.truncate(sql.len() - self.indexes().len());
        sql
    }

    /// The statements that make a version the one people read: the consumer's views are dropped and made again over
    /// its tables. Run in one transaction, under a lock timeout.
    pub fn live_views_sql(&self, version: i32) -> Vec<String> {
        let schema = self.schema_name(version);
        let mark = literal(&format!("projection {}", self.consumer));
        let mut sql = vec![format!(
            "do $millpond$ declare name text; begin for name in select c.relname from pg_catalog.pg_class c \
             where c.relnamespace = '{LIVE_SCHEMA}'::regnamespace and c.relkind = 'v' \
             and pg_catalog.obj_description(c.oid, 'pg_class') = {mark} \
             loop execute pg_catalog.format('drop view {LIVE_SCHEMA}.%I', name); end loop; end $millpond$"
        )];
        for table in &self.tables {
            let view = self.live_view(table);
            let columns = ident_list(table.info.columns.iter().map(|column| &column.name));
            sql.push(format!(
                "create view {view} as select {columns} from {}.{}",
                ident(&schema),
                ident(&table.info.name)
            ));
            sql.push(format!("comment on view {view} is {mark}"));
            // A view over one table takes writes, unless a trigger stands in their place.
            sql.push(format!(
                "create trigger read_only instead of insert or update or delete on {view} for each row \
                 execute function millpond.refuse_write()"
            ));
        }
        sql
    }

    /// The statements that let people read those views; they may be run again. What was granted before stays.
    pub fn grants_sql(&self) -> Vec<String> {
        let of_table = |table: &Table| {
            let view = self.live_view(table);
            let grant = move |role: &String| {
                let role = ident(role);
                [format!("grant usage on schema {LIVE_SCHEMA} to {role}"), format!("grant select on {view} to {role}")]
            };
            table.grants.iter().flat_map(grant).collect::<Vec<_>>()
        };
        self.tables.iter().flat_map(of_table).collect()
    }

    /// The stable name of a table, for SQL.
    fn live_view(&self, table: &Table) -> String {
        let view = live_view(&self.consumer, &table.info.name, self.tables.len());
        format!("{LIVE_SCHEMA}.{}", ident(&view))
    }

    /// The statements that prepare a session to apply batches of a version; they may be run again on the same session.
    pub fn session_sql(&self, version: i32) -> Vec<String> {
        let mut sql = session::pin_sql(&self.schema_name(version));
        sql.extend(self.relations.iter().flat_map(|relation| relation.staging_sql(self.needs_rounds())));
        sql
    }

    /// The binary COPY into a relation's staging table; none when the relation is not staged. The columns are those of
    /// [`Self::staged_metadata`], then the record's fields in the order of [`Relation::columns`].
    pub fn copy_sql(&self, relation: &str) -> Option<String> {
        let relation = self.relations.iter().find(|known| known.name == relation)?;
        Some(relation.copy_sql(self.needs_rounds(), self.staged_metadata(relation)))
    }

    /// Those of `METADATA_COLUMNS` that a relation's rows are staged with, in their order. The others stay null, since
    /// nothing reads them: half of the bytes that a consumer without SQL would stage.
    pub fn staged_metadata(&self, relation: &Relation) -> &'static [&'static str] {
        match (self.latest, relation.key_fields.len()) {
            (false, _) => &METADATA_NAMES,
            (true, 1) => &["_seq"],
            (true, _) => &["_key", "_seq"],
        }
    }

    /// The staged column that is the key of the relation's table, where of a batch's rows of one key only the last
    /// counts: the others need not be staged.
    pub fn latest_by(&self, relation: &Relation) -> Option<usize> {
        if !self.latest || relation.name == TOMBSTONES {
            return None;
        }
        match relation.key_fields.as_slice() {
            [field] => {
                let at = relation.columns.iter().position(|column| column.name == *field)?;
                Some(self.staged_metadata(relation).len() + at)
            }
            _ => Some(0),
        }
    }

    /// The statements between a batch's fence and its COMMIT, as one text for the simple protocol, each ended by a
    /// semicolon; empty when the batch changes nothing. `rounds` is one more than the batch's greatest `_round` and
    /// matters only when [`Self::needs_rounds`]; `present` are the relations that have records in the batch.
    pub fn apply_sql(&self, version: i32, rounds: u32, present: &BTreeSet<&str>) -> String {
        let mut sql = match &self.program {
            Program::Handler => Vec::new(),
            Program::Merge(plans) => plans.iter().filter_map(|plan| self.merge_sql(plan, present)).collect(),
            Program::Apply { statements, rounds: in_rounds, .. } => {
                apply::text(statements, in_rounds.then_some(rounds), present)
            }
        };
        if let Program::Apply { shared: true, .. } = self.program
            && !sql.is_empty()
        {
            sql.insert(
                0,
                format!("select pg_catalog.pg_advisory_xact_lock({})", advisory_key(&self.consumer, version)),
            );
        }
        sql.iter().fold(String::new(), |text, statement| text + statement + ";\n")
    }

    fn merge_sql(&self, plan: &TablePlan, present: &BTreeSet<&str>) -> Option<String> {
        let of_present: Vec<usize> = (0..plan.contributions.len())
            .filter(|i| present.contains(plan.contributions[*i].relation.as_str()))
            .collect();
        upsert::statement(plan, &of_present)
    }
}
