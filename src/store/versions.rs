//! Versions of projections: which exist, which one people read, and how a changed folder becomes a new one.

use sqlx::{Connection, PgConnection, Row};

use super::{Error, builds, removal, run, seen};
use crate::domain::{TableInfo, literal, schema_name};

/// What decides the rows of a projection, as the compiler found it in a consumer's folder.
pub struct Definition<'a> {
    pub projection: &'a str,
    pub hash: &'a str,
    pub topics: &'a [String],
    pub tables: &'a [TableInfo],
    /// Whether records may be applied out of the order of their key and give the same rows.
    pub commutes: bool,
    /// DDL of the version's schema and everything in it.
    pub create: &'a (dyn Fn(i32) -> Vec<String> + Sync),
    /// Statements that point the views in `live` at a version.
    pub live_views: &'a (dyn Fn(i32) -> Vec<String> + Sync),
    /// Statements that let the roles that are named read those views; they may be run again.
    pub grants: &'a [String],
    /// The files that it was made of, by their paths from the project's folder.
    pub files: &'a [(String, Vec<u8>)],
}

/// What to do when the folder no longer is what the live version was built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// Build a version of it beside the live one: for `millpond dev`, which makes it live by itself.
    Build,
    /// Leave everything as it is and say what to do.
    Refuse,
}

/// The version a folder stands for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensured {
    Unchanged(i32),
    Created(i32),
    /// It is being built beside the live one.
    Building {
        version: i32,
        live: i32,
    },
    /// One that is being built, or kept to go back to; another one is live.
    Beside(i32),
}

impl Ensured {
    pub fn version(&self) -> i32 {
        match self {
            Self::Unchanged(v) | Self::Created(v) | Self::Building { version: v, .. } | Self::Beside(v) => *v,
        }
    }
}

/// Finds or creates the version that a definition stands for. One transaction, serialised per projection, so that
/// any number of processes may start at once.
pub async fn ensure(
    connection: &mut PgConnection,
    definition: &Definition<'_>,
    on_change: OnChange,
) -> Result<Ensured, Error> {
    let mut tx = connection.begin().await?;
    let next = lock_to_make(&mut tx, definition.projection).await?;
    let live = sqlx::query(
        "select v.version, v.hash from millpond.projections p join millpond.versions v
             on v.projection = p.projection and v.version = p.live_version
          where p.projection = $1",
    )
    .bind(definition.projection)
    .fetch_optional(&mut *tx)
    .await?;
    let ensured = match live {
        None => {
            create_live(&mut tx, definition, next).await?;
            Ensured::Created(next)
        }
        Some(row) if row.try_get::<String, _>("hash")? == definition.hash => {
            let version: i32 = row.try_get("version")?;
            if on_change == OnChange::Build {
                // The folder is again what people read.
                builds::keep_only(&mut tx, definition.projection, definition.hash).await?;
            }
            // One that was made before there was such a table.
            run(&mut tx, seen::create_sql(&schema_name(definition.projection, version))).await?;
            for grant in definition.grants {
                run(&mut tx, grant.clone()).await?;
            }
            note_commutes(&mut tx, definition, version).await?;
            note_sources(&mut tx, definition, version).await?;
            Ensured::Unchanged(version)
        }
        Some(_) if on_change == OnChange::Refuse => {
            if let Some(version) = beside(&mut tx, definition).await? {
                return Ok(Ensured::Beside(version));
            }
            return Err(Error::Refused(format!(
                "the folder of consumer {0} has changed since its live version was built; outside `millpond dev` a \
                 changed folder is not applied to existing tables: build the new version beside it with `millpond rebuild {0}`, \
                 or restore the folder",
                definition.projection
            )));
        }
        Some(row) => {
            let found = builds::keep_only(&mut tx, definition.projection, definition.hash).await?;
            let version = builds::open(&mut tx, definition, found, next).await?;
            Ensured::Building { version, live: row.try_get("version")? }
        }
    };
    tx.commit().await?;
    Ok(ensured)
}

/// A version that an earlier release made does not say it.
async fn note_commutes(tx: &mut PgConnection, definition: &Definition<'_>, version: i32) -> Result<(), Error> {
    sqlx::query("update millpond.versions set commutes = $3 where projection = $1 and version = $2 and commutes <> $3")
        .bind(definition.projection)
        .bind(version)
        .bind(definition.commutes)
        .execute(tx)
        .await?;
    Ok(())
}

/// The version that a folder stands for, if it is being built or kept.
async fn beside(tx: &mut PgConnection, definition: &Definition<'_>) -> Result<Option<i32>, Error> {
    Ok(sqlx::query_scalar(
        "select max(version) from millpond.versions
          where projection = $1 and hash = $2 and state in ('building', 'standby')",
    )
    .bind(definition.projection)
    .bind(definition.hash)
    .fetch_one(tx)
    .await?)
}

/// Whoever makes, swaps or drops versions of a projection takes turns, a transaction each.
pub(super) async fn lock(tx: &mut PgConnection, projection: &str) -> Result<(), Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('millpond.version.' || $1, 0))")
        .bind(projection)
        .execute(tx)
        .await?;
    Ok(())
}

/// [`lock`] for who makes a version; returns its number.
pub(super) async fn lock_to_make(tx: &mut PgConnection, projection: &str) -> Result<i32, Error> {
    lock(tx, projection).await?;
    sqlx::query("insert into millpond.projections (projection) values ($1) on conflict do nothing")
        .bind(projection)
        .execute(&mut *tx)
        .await?;
    // One that was made by an earlier release beside this one is not counted.
    let newest: i32 = sqlx::query_scalar(
        "select greatest(p.versions_made, (select max(v.version) from millpond.versions v where v.projection = $1))
           from millpond.projections p where p.projection = $1",
    )
    .bind(projection)
    .fetch_one(tx)
    .await?;
    Ok(newest + 1)
}

/// Creates a version's schema, tables and description.
pub(super) async fn create(
    tx: &mut PgConnection,
    definition: &Definition<'_>,
    version: i32,
    state: &str,
) -> Result<(), Error> {
    sqlx::query(
        "insert into millpond.versions (projection, version, hash, schema_name, state, topics, tables, commutes)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(definition.projection)
    .bind(version)
    .bind(definition.hash)
    .bind(schema_name(definition.projection, version))
    .bind(state)
    .bind(definition.topics)
    .bind(sqlx::types::Json(definition.tables))
    .bind(definition.commutes)
    .execute(&mut *tx)
    .await?;
    sqlx::query("update millpond.projections set versions_made = $2 where projection = $1")
        .bind(definition.projection)
        .bind(version)
        .execute(&mut *tx)
        .await?;
    for statement in (definition.create)(version) {
        run(tx, statement).await?;
    }
    run(tx, seen::create_sql(&schema_name(definition.projection, version))).await?;
    note_sources(tx, definition, version).await
}

/// Creates a version and makes it the one people read.
async fn create_live(tx: &mut PgConnection, definition: &Definition<'_>, version: i32) -> Result<(), Error> {
    create(tx, definition, version, "live").await?;
    // Nobody may wait behind a long SELECT on the view for longer than this: lock_timeout is 5 s per session.
    for statement in live_sql(definition, version) {
        run(tx, statement).await?;
    }
    sqlx::query("update millpond.projections set live_version = $2 where projection = $1")
        .bind(definition.projection)
        .bind(version)
        .execute(tx)
        .await?;
    Ok(())
}

fn live_sql(definition: &Definition<'_>, version: i32) -> Vec<String> {
    (definition.live_views)(version).into_iter().chain(definition.grants.iter().cloned()).collect()
}

/// Keeps what a version was made of, and what makes it live, for when its folder is another one. What has no part in its hash
/// may have changed since it was made.
pub(super) async fn note_sources(
    tx: &mut PgConnection,
    definition: &Definition<'_>,
    version: i32,
) -> Result<(), Error> {
    sqlx::query("update millpond.versions set live_sql = $3 where projection = $1 and version = $2")
        .bind(definition.projection)
        .bind(version)
        .bind(live_sql(definition, version))
        .execute(&mut *tx)
        .await?;
    let (paths, contents): (Vec<&str>, Vec<&[u8]>) =
        definition.files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).unzip();
    sqlx::query(
        "with gone as (delete from millpond.version_files where projection = $1 and version = $2 and path <> all($3))
         insert into millpond.version_files as v (projection, version, path, content)
         select $1, $2, f.path, f.content from unnest($3::text[], $4::bytea[]) as f(path, content)
         on conflict (projection, version, path) do update set content = excluded.content
          where v.content <> excluded.content",
    )
    .bind(definition.projection)
    .bind(version)
    .bind(paths)
    .bind(contents)
    .execute(tx)
    .await?;
    Ok(())
}

/// Closes a version's fences to its writers and drops its tables. What it has put into the outbox stays: an event that
/// was committed leaves, before those of the next version.
pub(super) async fn retire(tx: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    let of = format!("where projection = {} and version = {version}", literal(projection));
    run(
        tx,
        format!(
            "update millpond.fences set state = 'retired', owner = null {of};
             update millpond.versions set state = 'retired' {of};
             delete from millpond.ends {of};
             delete from millpond.parked_keys {of};"
        ),
    )
    .await?;
    removal::drop_tables(tx, projection, version).await
}

/// Forgets everything of a projection but its dead letters, refusals and verdicts: the next start reads the log from zero.
pub async fn start_over(connection: &mut PgConnection, projection: &str) -> Result<bool, Error> {
    let mut tx = connection.begin().await?;
    lock(&mut tx, projection).await?;
    let live: Option<i32> =
        sqlx::query_scalar("select live_version from millpond.projections where projection = $1 for update")
            .bind(projection)
            .fetch_optional(&mut *tx)
            .await?
            .flatten();
    let Some(version) = live else { return Ok(false) };
    removal::drop_live_views(&mut tx, projection).await?;
    retire(&mut tx, projection, version).await?;
    sqlx::query("update millpond.projections set live_version = null where projection = $1")
        .bind(projection)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(true)
}

/// What became of a projection that was to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    Done,
    /// There is none of that name.
    Unknown,
    /// So many rows of its outbox have not left yet: nothing was done.
    Unsent(i64),
}

/// Removes a projection and everything of it in this database; with `unsent`, also events that have not left yet.
pub async fn drop_projection(connection: &mut PgConnection, projection: &str, unsent: bool) -> Result<Dropped, Error> {
    let mut tx = connection.begin().await?;
    lock(&mut tx, projection).await?;
    // Writers are shut out first, or a batch under way would add to what is counted.
    sqlx::query("update millpond.fences set state = 'retired', owner = null where projection = $1")
        .bind(projection)
        .execute(&mut *tx)
        .await?;
    let waiting: i64 = sqlx::query_scalar("select count(*) from millpond.outbox where projection = $1 and not held")
        .bind(projection)
        .fetch_one(&mut *tx)
        .await?;
    if waiting > 0 && !unsent {
        return Ok(Dropped::Unsent(waiting));
    }
    let versions: Vec<i32> = sqlx::query_scalar("select version from millpond.versions where projection = $1")
        .bind(projection)
        .fetch_all(&mut *tx)
        .await?;
    removal::drop_live_views(&mut tx, projection).await?;
    for version in versions {
        removal::drop_tables(&mut tx, projection, version).await?;
    }
    for table in ["outbox", "ends", "dead_letters", "refusals", "parked_keys", "verdicts", "fences", "versions"] {
        run(&mut tx, format!("delete from millpond.{table} where projection = {}", literal(projection))).await?;
    }
    let dropped = sqlx::query("delete from millpond.projections where projection = $1")
        .bind(projection)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    tx.commit().await?;
    Ok(if dropped > 0 { Dropped::Done } else { Dropped::Unknown })
}

/// A version that is kept up to date by whoever has the role consume: the live one, or one to go back to.
#[derive(Debug, Clone)]
pub struct Kept {
    pub projection: String,
    pub version: i32,
    pub hash: String,
    pub live: bool,
    /// Whether it was kept for as long as it was to be.
    pub is_over: bool,
}

/// The version that people read; none where there is no projection of that name, or none of its versions is live.
pub async fn live(connection: &mut PgConnection, projection: &str) -> Result<Option<i32>, Error> {
    let live = sqlx::query_scalar("select live_version from millpond.projections where projection = $1")
        .bind(projection)
        .fetch_optional(connection)
        .await?;
    Ok(live.flatten())
}

/// Those of some projections.
pub async fn kept(connection: &mut PgConnection, projections: &[String]) -> Result<Vec<Kept>, Error> {
    let rows = sqlx::query(
        "select projection, version, hash, state = 'live' as live, coalesce(kept_until < now(), false) as is_over
           from millpond.versions where projection = any($1) and state in ('live', 'standby') order by 1, 2",
    )
    .bind(projections)
    .fetch_all(connection)
    .await?;
    let kept = |row: &sqlx::postgres::PgRow| {
        Ok(Kept {
            projection: row.try_get("projection")?,
            version: row.try_get("version")?,
            hash: row.try_get("hash")?,
            live: row.try_get("live")?,
            is_over: row.try_get("is_over")?,
        })
    };
    rows.iter().map(kept).collect()
}

/// A version that is not retired.
#[derive(Debug, Clone)]
pub struct Standing {
    pub projection: String,
    pub version: i32,
    pub hash: String,
    /// `building`, `live`, `standby` or `scratch`.
    pub state: String,
    /// Records a second, where it was built beside another one.
    pub build_rate: Option<f64>,
}

/// All of them; none in a database that Millpond has not been in. It changes nothing, and can be asked of the tables of an
/// earlier release.
pub async fn standings(connection: &mut PgConnection) -> Result<Vec<Standing>, Error> {
    let is_there: bool =
        sqlx::query_scalar("select to_regclass('millpond.versions') is not null").fetch_one(&mut *connection).await?;
    if !is_there {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "select v.projection, v.version, v.hash, v.state, (to_jsonb(v) ->> 'build_rate')::float8 as build_rate
           from millpond.versions v where v.state <> 'retired' order by v.projection, v.version",
    )
    .fetch_all(connection)
    .await?;
    let standing = |row: &sqlx::postgres::PgRow| {
        Ok(Standing {
            projection: row.try_get("projection")?,
            version: row.try_get("version")?,
            hash: row.try_get("hash")?,
            state: row.try_get("state")?,
            build_rate: row.try_get("build_rate")?,
        })
    };
    rows.iter().map(standing).collect()
}

/// The files that a version was made of, by their paths.
pub async fn files(
    connection: &mut PgConnection,
    projection: &str,
    version: i32,
) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let rows = sqlx::query(
        "select path, content from millpond.version_files where projection = $1 and version = $2 order by path",
    )
    .bind(projection)
    .bind(version)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("path")?, row.try_get("content")?))).collect()
}
