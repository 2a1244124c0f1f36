//! The order of compiling: files to statements, statements to what they use, plans to types, types to DDL.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use super::{
    apply::{self, ApplyStatement},
    compiled::{Compiled, Program},
    declared,
    fingerprint::fingerprint,
    input::Input,
    judge::{judge, text_as_date},
    plan::{self, TablePlan},
    reads,
    relation::Relation,
    scratch::{Functions, Scratch},
    select::{self, Scope},
    statements::SqlStatement,
    tables::{self, SCHEMA, Table},
    types, upsert,
    uses::Uses,
};
use crate::{
    domain::ident,
    spec::{ConsumerSpec, Order, Source, SpecFault, TableSpec, Writes},
};

/// Why a consumer was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder is at fault.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<SpecFault>),
    /// Postgres could not be asked.
    #[error("postgres could not check the consumer's sql")]
    Postgres(#[from] sqlx::Error),
}

impl From<Vec<SpecFault>> for Error {
    fn from(faults: Vec<SpecFault>) -> Self {
        Self::Faults(faults)
    }
}

/// Compiles a consumer. `relations` are the record types that its topics may carry; `conn` lends a transaction in which
/// Postgres checks the SQL and which is rolled back.
///
/// # Errors
/// [`Error::Faults`] with everything that is wrong with the folder; [`Error::Postgres`] when the server fails.
pub async fn compile(spec: &ConsumerSpec, relations: &[Relation], conn: &mut PgConnection) -> Result<Compiled, Error> {
    let input = Input::read(spec, relations)?;
    let mut scratch = Scratch::begin(conn).await?;
    let mut compiler = Compiler { input, scratch: &mut scratch, functions: Functions::new(), faults: Vec::new() };
    let compiled = compiler.compile().await;
    let mut faults = compiler.faults;
    scratch.rollback().await?;
    let compiled = compiled?;
    faults.sort_by(|a, b| (&a.path, a.line, &a.message).cmp(&(&b.path, b.line, &b.message)));
    faults.dedup();
    match compiled {
        Some(compiled) if faults.is_empty() => Ok(compiled),
        _ => Err(Error::Faults(faults)),
    }
}

struct Compiler<'a, 's, 'c> {
    input: Input<'a>,
    scratch: &'s mut Scratch<'c>,
    functions: Functions,
    faults: Vec<SpecFault>,
}

impl Compiler<'_, '_, '_> {
    /// None, or faults, when something is wrong.
    async fn compile(&mut self) -> Result<Option<Compiled>, sqlx::Error> {
        self.judge_all().await?;
        self.check_roles().await?;
        let rounds = matches!(self.input.spec.source, Source::Apply { order: Order::Key, .. });
        if !self.stage(rounds).await? {
            return Ok(None);
        }
        let (program, tables) = match &self.input.spec.source {
            Source::Merge(_) | Source::Latest => self.merge().await?,
            Source::Apply { order, writes, .. } => {
                let (rounds, shared) = (*order == Order::Key, *writes == Writes::Shared);
                let tables = self.declared_tables().await?;
                (Program::Apply { statements: self.apply().await?, rounds, shared }, tables)
            }
            Source::Rust => (Program::Handler, self.handler_tables().await?),
        };
        if !self.faults.is_empty() {
            return Ok(None);
        }
        let relations = self.read_relations(&program);
        let tables_sql = self.input.tables_sql.iter().map(|statement| statement.text.clone()).collect();
        let (consumer, references) = (self.input.spec.name.clone(), self.input.references.clone());
        let latest = self.input.spec.source == Source::Latest;
        let mut compiled =
            Compiled { consumer, program, relations, tables, references, tables_sql, hash: String::new(), latest };
        compiled.hash = fingerprint(&self.input, &compiled);
        Ok(Some(compiled))
    }

    /// The relations that the program reads, with the columns that it reads; for a handler none.
    fn read_relations(&self, program: &Program) -> Vec<Relation> {
        let relations = &self.input.relations;
        match program {
            Program::Merge(plans) => {
                let contributions = || plans.iter().flat_map(|plan| &plan.contributions);
                let of = |relation: &Relation| {
                    let statements: Vec<&SqlStatement> =
                        contributions().filter(|c| c.relation == relation.name).map(|c| &c.statement).collect();
                    (!statements.is_empty()).then(|| reads::read_of(relation, statements))
                };
                relations.iter().filter_map(of).collect()
            }
            Program::Apply { statements, .. } => {
                let read = apply::read_by(statements, relations);
                read.iter().map(|relation| reads::read_of(relation, &self.input.apply)).collect()
            }
            Program::Handler => Vec::new(),
        }
    }

    async fn judge_all(&mut self) -> Result<(), sqlx::Error> {
        let merges = self.input.merges.iter().flat_map(|(.., statements)| statements);
        let statements: Vec<&SqlStatement> = merges.chain(&self.input.apply).chain(&self.input.tables_sql).collect();
        let uses: Vec<Uses> = statements.iter().map(|statement| Uses::of_statement(&statement.ast)).collect();
        let called: BTreeSet<String> = uses.iter().flat_map(|uses| &uses.calls).map(|call| call.name.clone()).collect();
        self.functions = self.scratch.functions(&called).await?;
        for (statement, uses) in statements.into_iter().zip(&uses) {
            self.faults.extend(judge(statement, uses, &self.functions, &self.input.names));
        }
        Ok(())
    }

    /// Refuses a sound statement in which text becomes a date, for it might say `today`.
    async fn check_clock(&mut self, statement: &SqlStatement) -> Result<(), sqlx::Error> {
        for name in self.scratch.clock_reading_types(&statement.text).await? {
            self.faults.push(statement.fault(text_as_date(&name)));
        }
        Ok(())
    }

    async fn check_roles(&mut self) -> Result<(), sqlx::Error> {
        let roles: BTreeSet<String> =
            self.input.spec.tables.values().flat_map(|table| table.grants.iter().cloned()).collect();
        if roles.is_empty() {
            return Ok(());
        }
        for role in self.scratch.missing_roles(&roles).await? {
            let message = format!(
                "`grants` names the role `{role}`, which Postgres does not have; run: create role {}",
                ident(&role)
            );
            self.faults.push(SpecFault::new(self.input.spec.manifest_path(), None, message));
        }
        Ok(())
    }

    /// Makes relations, reference data and declared tables in the scratch schema.
    async fn stage(&mut self, rounds: bool) -> Result<bool, sqlx::Error> {
        let mut sound = true;
        let manifest = self.input.spec.manifest_path();
        for relation in &self.input.relations {
            for sql in relation.staging_sql(rounds) {
                if let Err(refusal) = self.scratch.run(&sql).await? {
                    let message =
                        format!("record type `{}` cannot be a relation: {}", relation.record_type, refusal.message);
                    self.faults.push(SpecFault::new(&manifest, None, message));
                    sound = false;
                }
            }
        }
        for reference in &self.input.references {
            for sql in reference.create_sql(&self.scratch.schema.clone()) {
                if let Err(refusal) = self.scratch.run(&sql).await? {
                    self.faults.push(SpecFault::new(&reference.path, None, refusal.message));
                    sound = false;
                    break;
                }
            }
        }
        self.scratch.enter_creation().await?;
        for statement in &self.input.tables_sql {
            if let Err(refusal) = self.scratch.run(&statement.text).await? {
                self.faults.push(types::refused(statement, &refusal));
                sound = false;
            }
        }
        self.scratch.leave_creation().await?;
        Ok(sound)
    }

    async fn merge(&mut self) -> Result<(Program, Vec<Table>), sqlx::Error> {
        let (mut plans, mut tables) = (Vec::new(), Vec::new());
        for (name, table, statements) in self.input.merges.clone() {
            let Some(mut plan) = self.plan(&name, &table, &statements) else { continue };
            let before = self.faults.len();
            let declared = self.declared_columns(&name).await?;
            types::resolve(&mut plan, declared.as_deref(), self.scratch, &mut self.faults).await?;
            if self.faults.len() > before {
                continue;
            }
            for statement in &statements {
                self.check_clock(statement).await?;
            }
            let made = tables::derived(&plan, &table, declared.is_some());
            if declared.is_some() {
                self.check_declared_key(&name, &table).await?;
            }
            self.try_table(&plan, &table, &made).await?;
            plans.push(plan);
            tables.push(made);
        }
        for stray in self.input.tables_sql.iter().filter_map(|statement| self.undeclared(statement)).collect::<Vec<_>>()
        {
            self.faults.push(stray);
        }
        Ok((Program::Merge(plans), tables))
    }

    /// A table of `tables.sql` that no SELECT fills.
    fn undeclared(&self, statement: &SqlStatement) -> Option<SpecFault> {
        let sqlparser::ast::Statement::CreateTable(create) = &statement.ast else { return None };
        let name = super::uses::last_part(&create.name)?;
        let filled = self.input.merges.iter().any(|(table, ..)| *table == name);
        (!filled).then(|| {
            statement
                .fault(format!("table `{name}` has no `{name}.sql` that fills it; add the file or remove the table"))
        })
    }

    fn plan(&mut self, name: &str, table: &TableSpec, statements: &[SqlStatement]) -> Option<TablePlan> {
        let tables: Vec<String> = self.input.names.tables.iter().cloned().collect();
        let scope = Scope {
            relations: &self.input.relations,
            references: &self.input.references,
            functions: &self.functions,
            tables: &tables,
        };
        let (mut contributions, mut sound) = (Vec::new(), true);
        for statement in statements {
            match select::read(statement, &scope) {
                Ok(contribution) => contributions.push(contribution),
                Err(found) => {
                    self.faults.extend(found);
                    sound = false;
                }
            }
        }
        if !sound {
            return None;
        }
        if contributions.is_empty() {
            let message = format!("`{name}.sql` has no SELECT; write one that names the key and the columns");
            self.faults.push(SpecFault::new(self.input.spec.folder.join(format!("{name}.sql")), None, message));
            return None;
        }
        match plan::plan(name, table, contributions, self.input.spec, &self.input.relations) {
            Ok(plan) => Some(plan),
            Err(found) => {
                self.faults.extend(found);
                None
            }
        }
    }

    async fn declared_columns(&mut self, table: &str) -> Result<Option<Vec<super::scratch::Described>>, sqlx::Error> {
        let made = self.input.tables_sql.iter().any(|statement| match &statement.ast {
            sqlparser::ast::Statement::CreateTable(create) => {
                super::uses::last_part(&create.name).as_deref() == Some(table)
            }
            _ => false,
        });
        Ok(if made { Some(self.scratch.describe(table).await?) } else { None })
    }

    async fn check_declared_key(&mut self, name: &str, table: &TableSpec) -> Result<(), sqlx::Error> {
        let key = self.scratch.primary_key(name).await?;
        if key != table.key {
            let message = format!(
                "`tables.sql` gives `{name}` the primary key ({}), but its key is ({}); write the same in both",
                key.join(", "),
                table.key.join(", ")
            );
            self.faults.push(SpecFault::new(self.input.spec.manifest_path(), Some(table.line), message));
        }
        Ok(())
    }

    /// Makes the table, and lets Postgres plan what batches will run on it.
    async fn try_table(&mut self, plan: &TablePlan, table: &TableSpec, made: &Table) -> Result<(), sqlx::Error> {
        let schema = ident(&self.scratch.schema);
        let all: Vec<usize> = (0..plan.contributions.len()).collect();
        let each = all.iter().map(|i| vec![*i]).chain([all.clone()]);
        let merges =
            each.filter_map(|present| upsert::statement(plan, &present)).map(|sql| (format!("explain {sql}"), true));
        let ddl = made.ddl.iter().map(|ddl| (ddl.replace(SCHEMA, &schema), false));
        for (sql, merging) in ddl.chain(merges).collect::<Vec<_>>() {
            if let Err(refusal) = self.scratch.run(&sql).await? {
                let doing = if merging { "merge into" } else { "make" };
                let message = format!("postgres refuses to {doing} table `{}`: {}", plan.name, refusal.message);
                self.faults.push(SpecFault::new(self.input.spec.manifest_path(), Some(table.line), message));
                return Ok(());
            }
        }
        Ok(())
    }

    async fn apply(&mut self) -> Result<Vec<ApplyStatement>, sqlx::Error> {
        let mut statements = Vec::new();
        for statement in self.input.apply.clone() {
            let uses = Uses::of_statement(&statement.ast);
            let before = self.faults.len();
            let read = apply::read(&statement, &uses, &self.input.names, &mut self.faults);
            if self.faults.len() == before
                && let Err(refusal) = self.scratch.check(&statement.text).await?
            {
                self.faults.push(types::refused(&statement, &refusal));
            }
            if self.faults.len() == before {
                self.check_clock(&statement).await?;
            }
            statements.push(read);
        }
        if statements.is_empty() {
            let path = self.input.spec.folder.join("apply.sql");
            self.faults.push(SpecFault::new(
                path,
                None,
                "the file has no statement; write insert, update, delete or merge",
            ));
        }
        Ok(statements)
    }

    /// The tables of `tables.sql`, as Postgres made them.
    async fn declared_tables(&mut self) -> Result<Vec<Table>, sqlx::Error> {
        let manifest = self.input.spec.manifest_path();
        let declared = declared::read(&self.input.tables_sql, &self.input.spec.source).unwrap_or_default();
        if declared.is_empty() && self.input.spec.tables.is_empty() {
            self.faults.push(SpecFault::new(
                &manifest,
                None,
                "there are no tables; make them in `tables.sql` with a primary key each",
            ));
        }
        for (name, table) in
            self.input.spec.tables.iter().filter(|(name, table)| !declared.contains(*name) && table.columns.is_empty())
        {
            let message =
                format!("table `{name}` is not made in `tables.sql`; add `create table {name} (…, primary key (…))`");
            self.faults.push(SpecFault::new(&manifest, Some(table.line), message));
        }
        let mut tables = Vec::new();
        for name in declared {
            let spec = self.input.spec.tables.get(&name).cloned().unwrap_or_default();
            let columns = self.scratch.describe(&name).await?;
            let key = self.scratch.primary_key(&name).await?;
            if key.is_empty() || !(spec.key.is_empty() || spec.key == key) {
                let message = format!(
                    "table `{name}` needs a primary key in `tables.sql`, the same as its `key`, for readers page by it"
                );
                self.faults.push(SpecFault::new(&manifest, (spec.line > 0).then_some(spec.line), message));
            }
            for column in spec.merge.keys() {
                let message =
                    format!("`{column}` has a merge rule, but `{name}` is not written by merging; remove `merge`");
                self.faults.push(SpecFault::new(&manifest, Some(spec.line), message));
            }
            let columns = columns
                .into_iter()
                .map(|c| crate::domain::ColumnInfo { name: c.name, pg_type: c.pg_type, nullable: !c.not_null })
                .collect();
            let info = crate::domain::TableInfo { name: name.clone(), key, columns };
            let indexes = tables::indexes(&name, &spec);
            tables.push(Table { info, grants: spec.grants, ddl: Vec::new(), indexes });
        }
        Ok(tables)
    }

    /// The tables of a Rust handler: of `tables.sql`, or with their columns in `consumer.toml`.
    async fn handler_tables(&mut self) -> Result<Vec<Table>, sqlx::Error> {
        let mut made = self.declared_tables().await?;
        let listed: BTreeMap<String, TableSpec> = self
            .input
            .spec
            .tables
            .iter()
            .filter(|(_, table)| !table.columns.is_empty())
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect();
        for (name, spec) in listed {
            let before = self.faults.len();
            let mut table = tables::listed(&name, &spec, self.input.spec, &mut self.faults);
            if self.faults.len() > before {
                continue;
            }
            let schema = ident(&self.scratch.schema);
            for ddl in table.ddl.iter().map(|ddl| ddl.replace(SCHEMA, &schema)) {
                if let Err(refusal) = self.scratch.run(&ddl).await? {
                    let message = format!("postgres refuses to make table `{name}`: {}", refusal.message);
                    self.faults.push(SpecFault::new(self.input.spec.manifest_path(), Some(spec.line), message));
                }
            }
            if self.faults.len() == before {
                for (column, described) in table.info.columns.iter_mut().zip(self.scratch.describe(&name).await?) {
                    column.pg_type = described.pg_type;
                }
                made.push(table);
            }
        }
        Ok(made)
    }
}
