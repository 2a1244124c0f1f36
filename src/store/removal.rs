//! Removing what a version has in the database, and nothing of anybody else's.

use sqlx::{PgConnection, Row};

use super::{Error, builds, run, seen, versions};
use crate::domain::{ident, literal, schema_name};

/// How long the removal of a version waits for the locks it needs: whoever makes, swaps or drops another one waits behind it
/// for as long, and it is tried again.
const LOCKS: &str = "200ms";

/// Drops the tables of a version and its schema.
///
/// # Errors
/// [`Error::NeededByOthers`] when something that is not the version's depends on them, or stands in its schema.
pub(super) async fn drop_tables(tx: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    let schema = schema_name(projection, version);
    // Restricted, as it is where nothing else is said: Postgres itself knows all that depends on a table.
    let sql = format!(
        "do $millpond$ declare names text; begin
           select string_agg(format('%I.%I', {schema}, t.name), ', ') into names
             from (select jsonb_array_elements(tables) ->> 'name' as name from millpond.versions
                    where projection = {projection} and version = {version} union select {seen}) t
            where to_regclass(format('%I.%I', {schema}, t.name)) is not null;
           if names is not null then execute 'drop table ' || names; end if;
           drop schema if exists {name};
         end $millpond$",
        projection = literal(projection),
        seen = literal(seen::TABLE),
        name = ident(&schema),
        schema = literal(&schema),
    );
    run(tx, sql).await.map_err(|error| error.of_dependents(&format!("version {version} of {projection}")))
}

/// Drops the views by which people read a projection.
pub(super) async fn drop_live_views(tx: &mut PgConnection, projection: &str) -> Result<(), Error> {
    let sql = format!(
        "do $millpond$ declare names text; begin
           select string_agg(format('%I.%I', n.nspname, c.relname), ', ') into names
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where n.nspname = 'live' and c.relkind = 'v' and obj_description(c.oid, 'pg_class') = {};
           if names is not null then execute 'drop view ' || names; end if;
         end $millpond$",
        literal(&format!("projection {projection}")),
    );
    run(tx, sql).await.map_err(|error| error.of_dependents(&format!("the live version of {projection}")))
}

/// What stands in the way of dropping the old version's views now and its tables later.
pub(super) async fn refuse_dependents(tx: &mut PgConnection, projection: &str, from: i32) -> Result<(), Error> {
    let dependents: Vec<String> = sqlx::query_scalar(
        "with ours as (
            select c.oid, c.reltype from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = $1 or (n.nspname = 'live' and obj_description(c.oid, 'pg_class') = $2)),
         types as (
            select t.oid from pg_type t where t.oid in (select reltype from ours)
               or t.typelem in (select nullif(reltype, 0) from ours)),
         dependents as (
            select d.classid, d.objid,
                   case d.classid when 'pg_rewrite'::regclass then (select ev_class from pg_rewrite where oid = d.objid)
                                  when 'pg_constraint'::regclass then (select nullif(conrelid, 0) from pg_constraint where oid = d.objid)
                                  when 'pg_attrdef'::regclass then (select adrelid from pg_attrdef where oid = d.objid)
                                  when 'pg_trigger'::regclass then (select tgrelid from pg_trigger where oid = d.objid)
                                  when 'pg_policy'::regclass then (select polrelid from pg_policy where oid = d.objid)
                                  when 'pg_class'::regclass then d.objid end as relation
              from pg_depend d
             where d.deptype = 'n'
               and (d.refclassid = 'pg_class'::regclass and d.refobjid in (select oid from ours)
                    or d.refclassid = 'pg_type'::regclass and d.refobjid in (table types)))
         select distinct i.type || ' ' || i.identity
           from dependents cross join lateral
                pg_identify_object(case when relation is null then classid else 'pg_class'::regclass end, coalesce(relation, objid), 0) i
          where relation is null or relation not in (select oid from ours) order by 1",
    )
    .bind(schema_name(projection, from))
    .bind(format!("projection {projection}"))
    .fetch_all(tx)
    .await?;
    if dependents.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} depend{} on the views or tables of {projection}, which a swap replaces: drop {} first and make {} again after it",
        dependents.join(", "),
        if dependents.len() == 1 { "s" } else { "" },
        if dependents.len() == 1 { "it" } else { "them" },
        if dependents.len() == 1 { "it" } else { "them" },
    )))
}

/// The versions of all projections that are kept to go back to, or to look around in, and were so for as long as they were
/// to be.
pub async fn over(connection: &mut PgConnection) -> Result<Vec<(String, i32)>, Error> {
    let rows = sqlx::query(
        "select projection, version from millpond.versions
          where state in ('standby', 'scratch') and kept_until < now() order by 1, 2",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Removes one of them; false when it is none of them any more.
///
/// # Errors
/// [`Error::NeededByOthers`] where something of somebody else's depends on it; a lock timeout while somebody reads it.
pub async fn remove_over(connection: &mut PgConnection, projection: &str, version: i32) -> Result<bool, Error> {
    let mut tx = sqlx::Connection::begin(connection).await?;
    run(&mut tx, format!("set local lock_timeout = '{LOCKS}'")).await?;
    versions::lock(&mut tx, projection).await?;
    let state: Option<String> = sqlx::query_scalar(
        "select state from millpond.versions where projection = $1 and version = $2
            and state in ('standby', 'scratch') and kept_until < now()",
    )
    .bind(projection)
    .bind(version)
    .fetch_optional(&mut *tx)
    .await?;
    match state.as_deref() {
        None => return Ok(false),
        Some("scratch") => builds::give_up(&mut tx, projection, version).await?,
        // What it would have sent, had it stayed live, is sent by the one that is.
        Some(_) => {
            let of = format!("where projection = {} and version = {version}", literal(projection));
            run(&mut tx, format!("delete from millpond.outbox {of} and held")).await?;
            for table in ["dead_letters", "refusals"] {
                run(&mut tx, format!("delete from millpond.{table} {of}")).await?;
            }
            versions::retire(&mut tx, projection, version).await?;
        }
    }
    tx.commit().await?;
    Ok(true)
}
