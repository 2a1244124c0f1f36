//! The difference between two tables of the same name and key.

use std::collections::HashSet;

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};

use super::{Error, Sample, Scope, TableDiff, not_compared};
use crate::domain::{TableInfo, ident, schema_name};

/// Counts what differs, and shows some of it.
pub(super) async fn compare(
    reader: &mut PgConnection,
    projection: &str,
    (old, before): (i32, &TableInfo),
    (new, after): (i32, &TableInfo),
    scope: Scope,
) -> Result<TableDiff, Error> {
    let table = &after.name;
    if before.key != after.key || after.key.is_empty() {
        return Ok(not_compared(table, "its key is not the same in both versions"));
    }
    let has = |info: &TableInfo, name: &str| info.columns.iter().any(|column| column.name == name);
    let only = |a: &TableInfo, b: &TableInfo| {
        a.columns.iter().map(|c| c.name.clone()).filter(|name| !has(b, name)).collect::<Vec<_>>()
    };
    let type_of = |info: &TableInfo, name: &str| {
        info.columns.iter().find(|column| column.name == name).map(|column| column.pg_type.clone())
    };
    if let Some(key) = after.key.iter().find(|key| type_of(before, key) != type_of(after, key)) {
        return Ok(not_compared(table, &format!("`{key}` of its key has another type in each")));
    }
    // What has no equality, or another type in each, is compared as text.
    let without = without_equality(reader, &relation(projection, new, table)).await?;
    let as_text = |name: &str| type_of(before, name) != type_of(after, name) || without.contains(name);
    let values: Vec<(&str, bool)> = after
        .columns
        .iter()
        .map(|column| (column.name.as_str(), as_text(&column.name)))
        .filter(|(name, _)| has(before, name) && !after.key.iter().any(|key| key == name))
        .collect();
    let joined = Joined::new(projection, (old, new), table, &after.key, &values, scope.touched);
    let row = sqlx::query(AssertSqlSafe(joined.count())).fetch_one(&mut *reader).await?;
    let mut columns = Vec::new();
    for (index, (name, _)) in values.iter().enumerate() {
        columns.push(((*name).to_owned(), row.try_get::<i64, _>(4 + index)?));
    }
    columns.retain(|(_, changed)| *changed > 0);
    let mut found = TableDiff {
        table: table.clone(),
        same: row.try_get(0)?,
        added: row.try_get(1)?,
        removed: (!scope.touched).then(|| row.try_get(2)).transpose()?,
        changed: row.try_get(3)?,
        columns,
        only_new: only(after, before),
        only_old: only(before, after),
        ..TableDiff::default()
    };
    for kind in ["added", "removed", "changed"] {
        let rows = sqlx::query(AssertSqlSafe(joined.sample(kind, scope.samples))).fetch_all(&mut *reader).await?;
        for row in rows {
            found.samples.push(sample(kind, &row)?);
        }
    }
    Ok(found)
}

fn relation(projection: &str, version: i32, table: &str) -> String {
    format!("{}.{}", ident(&schema_name(projection, version)), ident(table))
}

/// The columns of a table whose types, or those of their elements, have no order: `=` is missing there, or is about something
/// else than the values (that of `box` compares areas).
async fn without_equality(reader: &mut PgConnection, relation: &str) -> Result<HashSet<String>, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "with recursive types(name, type) as (
             select attname::text, atttypid from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped
             union
             select s.name, case t.typtype when 'd' then t.typbasetype when 'b' then t.typelem else r.rngsubtype end
               from types s join pg_type t on t.oid = s.type left join pg_range r on t.oid in (r.rngtypid, r.rngmultitypid)
              where t.typtype in ('d', 'r', 'm') or t.typcategory = 'A')
         select distinct s.name from types s join pg_type t on t.oid = s.type
          where t.typtype not in ('d', 'r', 'm', 'e') and t.typcategory <> 'A'
            and not exists (
                select from pg_opclass o join pg_am a on a.oid = o.opcmethod and a.amname = 'btree'
                 where o.opcdefault
                   and (o.opcintype = t.oid
                        or o.opcintype in (select casttarget from pg_cast
                                            where castsource = t.oid and castmethod = 'b' and castcontext = 'i')))",
    )
    .bind(relation)
    .fetch_all(reader)
    .await?;
    Ok(names.into_iter().collect())
}

fn sample(kind: &str, row: &PgRow) -> Result<Sample, Error> {
    let json = |index| -> Result<Option<Box<RawValue>>, Error> {
        let text: Option<String> = row.try_get(index)?;
        let read = |text| RawValue::from_string(text).map_err(|error| sqlx::Error::Decode(error.into()));
        Ok(text.map(read).transpose()?)
    };
    let key = json(0)?.ok_or_else(|| sqlx::Error::RowNotFound)?;
    Ok(Sample { kind: kind.to_owned(), key, old: json(1)?, new: json(2)? })
}

/// The rows of two tables, side by side.
struct Joined {
    from: String,
    key: Vec<String>,
    values: Vec<String>,
    /// Of each value, how it is compared: as it is, or as text.
    casts: Vec<&'static str>,
}

impl Joined {
    fn new(
        projection: &str,
        (old, new): (i32, i32),
        table: &str,
        key: &[String],
        values: &[(&str, bool)],
        touched: bool,
    ) -> Self {
        let key: Vec<String> = key.iter().map(|name| ident(name)).collect();
        let casts = values.iter().map(|(_, as_text)| if *as_text { "::text" } else { "" }).collect();
        let values: Vec<String> = values.iter().map(|(name, _)| ident(name)).collect();
        let join = if touched { "right" } else { "full" };
        let from = format!(
            "{} o {join} join {} n using ({})",
            relation(projection, old, table),
            relation(projection, new, table),
            key.join(", ")
        );
        Self { from, key, values, casts }
    }

    /// Whether a row is in one of them: a column of the key is never null there.
    fn kind(&self, kind: &str) -> String {
        let (missing_old, missing_new) = (format!("o.{} is null", self.key[0]), format!("n.{} is null", self.key[0]));
        match kind {
            "added" => missing_old,
            "removed" => missing_new,
            _ => format!("(not {missing_old} and not {missing_new} and {})", self.differs()),
        }
    }

    fn differs(&self) -> String {
        if self.values.is_empty() {
            return "false".to_owned();
        }
        let side = |side: &str| {
            let values = self.values.iter().zip(&self.casts);
            values.map(|(name, cast)| format!("{side}.{name}{cast}")).collect::<Vec<_>>().join(", ")
        };
        format!("(({}) is distinct from ({}))", side("o"), side("n"))
    }

    fn count(&self) -> String {
        let changed = self.kind("changed");
        let columns: String = self
            .values
            .iter()
            .zip(&self.casts)
            .map(|(name, cast)| {
                format!(", count(*) filter (where {changed} and o.{name}{cast} is distinct from n.{name}{cast})")
            })
            .collect();
        format!(
            "select count(*) filter (where not o.{key} is null and not n.{key} is null and not {differs}),
                    count(*) filter (where {added}), count(*) filter (where {removed}), count(*) filter (where {changed})
                    {columns} from {from}",
            key = self.key[0],
            differs = self.differs(),
            added = self.kind("added"),
            removed = self.kind("removed"),
            from = self.from,
        )
    }

    fn sample(&self, kind: &str, limit: usize) -> String {
        let object = |names: &[String], side: &str| {
            let pairs: Vec<String> = names.iter().map(|name| format!("{side}{name}")).collect();
            // `.*`: a column may be called as the row is.
            format!("(select to_jsonb(r.*)::text from (select {}) r)", pairs.join(", "))
        };
        let shown = |side: &str| {
            if self.values.is_empty() {
                return "null::text".to_owned();
            }
            object(&self.values, &format!("{side}."))
        };
        let (old, new) = (shown("o"), shown("n"));
        format!(
            "select {}, case when o.{first} is null then null else {old} end,
                    case when n.{first} is null then null else {new} end
               from {} where {} order by {} limit {limit}",
            object(&self.key, ""),
            self.from,
            self.kind(kind),
            self.key.join(", "),
            first = self.key[0],
        )
    }
}
