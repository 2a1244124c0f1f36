//! The swap: another version becomes the one that people read, in one transaction; and what is left of the one before.
//!
//! What was sent downstream by the one must not be sent again by the other. Up to where the live version was at the swap it
//! has sent all that it made; so the next one sends what lies behind that, and of what lies before it only the events of
//! records that the old one had set aside.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, Row};

use super::{Error, fence, near, parked, removal, run, versions};
use crate::planted::{self, Bug};

/// Longest wait for a fence or a view: who reads waits behind us as long.
const LOCKS: Duration = Duration::from_secs(2);

/// What a swap did.
#[derive(Debug, Clone)]
pub struct Swapped {
    pub from: i32,
    pub to: i32,
    /// How long the old version applied nothing.
    pub pause: Duration,
    /// Rows of the outbox that the other version had sent already.
    pub sent_before: u64,
}

/// Makes `to` the live version. The old one is kept for so long to go back to.
///
/// # Errors
/// [`Error::Behind`] while it is behind; [`Error::Refused`] while it has halted, or something of somebody else's depends on the old one.
pub async fn swap(
    connection: &mut PgConnection,
    projection: &str,
    to: i32,
    keep: Duration,
    by: &str,
) -> Result<Swapped, Error> {
    let mut tx = connection.begin().await?;
    run(&mut tx, format!("set local lock_timeout = '{}ms'", LOCKS.as_millis())).await?;
    versions::lock(&mut tx, projection).await?;
    let row = sqlx::query(
        "select p.live_version, v.state, v.live_sql, v.loaded from millpond.projections p
           join millpond.versions v on v.projection = p.projection and v.version = $2
          where p.projection = $1 for update of p",
    )
    .bind(projection)
    .bind(to)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Err(Error::Refused(format!("{projection} has no version {to}"))) };
    let (from, state): (Option<i32>, String) = (row.try_get("live_version")?, row.try_get("state")?);
    let Some(from) = from.filter(|from| *from != to) else {
        return Err(Error::Refused(format!("version {to} of {projection} is the live one")));
    };
    if state == "retired" {
        return Err(Error::Refused(format!("version {to} of {projection} is not kept any more")));
    }
    if !row.try_get::<bool, _>("loaded")? && !planted::is(Bug::SwapUnchecked) {
        return Err(Error::Refused(format!(
            "version {to} of {projection} has not been at the end of the log with all its indexes since its build began or went on: \
             `millpond rebuild {projection}` brings it there, or wait for the one that runs"
        )));
    }
    let live_sql: Vec<String> = row.try_get::<Option<Vec<String>>, _>("live_sql")?.unwrap_or_default();
    removal::refuse_dependents(&mut tx, projection, from).await?;
    // Not while anybody is held.
    trim_held(&mut tx, projection, to).await?;
    let is_checked = !planted::is(Bug::SwapUnchecked);
    if is_checked && !near::comes_near(&mut tx, projection, (from, to), LOCKS).await? {
        return Err(behind(&mut tx, projection, from, to).await?);
    }
    let began = Instant::now();
    fence::hold(&mut tx, projection, from).await?;
    if is_checked {
        wait_until_there(&mut tx, projection, from, to).await?;
    }
    fence::hold(&mut tx, projection, to).await?;
    parked::follow_verdicts(&mut tx, projection, to).await?;
    parked::follow_wishes(&mut tx, projection, (from, to)).await?;
    let sent_before = release(&mut tx, projection, from, to).await?;
    for statement in live_sql.into_iter().filter(|_| !planted::is(Bug::ViewsLeft)) {
        run(&mut tx, statement).await.map_err(|error| error.of_dependents(&format!("the view of {projection}")))?;
    }
    if planted::is(Bug::SwapApart) {
        run(&mut tx, "commit; select pg_sleep(0.1); begin").await?;
    }
    sqlx::query(
        "with kept as (update millpond.versions set state = 'standby', kept_until = now() + make_interval(secs => $4)
                        where projection = $1 and version = $2),
              older as (update millpond.versions set kept_until = now()
                         where projection = $1 and state = 'standby' and version not in ($2, $3)),
              live as (update millpond.versions set state = 'live', kept_until = null where projection = $1 and version = $3),
              told as (insert into millpond.swaps (projection, from_version, to_version, swapped_by) values ($1, $2, $3, $5))
         update millpond.projections set live_version = $3 where projection = $1",
    )
    .bind(projection)
    .bind(from)
    .bind(to)
    .bind(keep.as_secs_f64())
    .bind(by)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Swapped { from, to, pause: began.elapsed(), sent_before })
}

/// The live version is held: the other one comes to where it is in a moment, unless nobody is at work on it. A read that has
/// seen a position must not go back behind it.
async fn wait_until_there(tx: &mut PgConnection, projection: &str, from: i32, to: i32) -> Result<(), Error> {
    if near::comes_near(tx, projection, (from, to), LOCKS).await? {
        return Ok(());
    }
    Err(behind(tx, projection, from, to).await?)
}

/// Why a version cannot be made live that is not as far as the live one.
async fn behind(tx: &mut PgConnection, projection: &str, from: i32, to: i32) -> Result<Error, Error> {
    Ok(Error::Behind(format!(
        "version {to} of {projection} is behind the live one on {}; a read would go back in time. Is somebody at work on it? \
         `millpond rebuild {projection}` goes on with it",
        near::behind(tx, projection, (from, to)).await?
    )))
}

/// Removes from the outbox, in steps, what the live version has sent, or put there to be sent, of what another one holds.
/// What that is does not change later, so who is beside the live version does it all the time, and a swap finds little.
pub async fn trim_held(connection: &mut PgConnection, projection: &str, version: i32) -> Result<(), Error> {
    let live: Option<i32> = sqlx::query_scalar("select live_version from millpond.projections where projection = $1")
        .bind(projection)
        .fetch_optional(&mut *connection)
        .await?
        .flatten();
    let Some(live) = live.filter(|live| *live != version) else { return Ok(()) };
    let scratch: bool = sqlx::query_scalar(
        "select exists (select from millpond.versions where projection = $1 and version = $2 and state = 'scratch')",
    )
    .bind(projection)
    .bind(version)
    .fetch_one(&mut *connection)
    .await?;
    if scratch {
        // What it would have sent is what was asked for.
        return Ok(());
    }
    for _ in 0..STEPS {
        if drop_sent(connection, projection, (live, version), STEP).await? < u64::from(STEP) {
            break;
        }
    }
    Ok(())
}

/// Rows that are removed at a time, some 100 ms of work, and how often at most: the next look is a second away.
const STEP: u32 = 10_000;
const STEPS: usize = 10;

/// An event has been sent by the version that is past its record and has not set it aside. A mirror of a dead letter has been
/// sent by the version that has the dead letter, or had it until somebody decided.
async fn drop_sent(
    connection: &mut PgConnection,
    projection: &str,
    (from, to): (i32, i32),
    most: u32,
) -> Result<u64, Error> {
    let dropped = sqlx::query(
        "delete from millpond.outbox x where x.ctid = any(array(
         select o.ctid from millpond.outbox o
           join millpond.fences f on f.projection = o.projection and f.version = $2 and f.topic = o.topic
                and f.partition = o.partition and o.source_offset < f.next_offset
          where o.projection = $1 and o.version = $3 and o.held
            and case when o.index >= 0 then
                     not exists (select from millpond.dead_letters d
                                  where d.projection = o.projection and d.version = $2 and d.topic = o.topic
                                    and d.partition = o.partition and d.\"offset\" = o.source_offset)
                else exists (select from millpond.dead_letters d
                              where d.projection = o.projection and d.version = $2 and d.topic = o.topic
                                and d.partition = o.partition and d.\"offset\" = o.source_offset
                                and d.reason_class <> 'waits')
                  or exists (select from millpond.verdicts v
                              where v.projection = o.projection and v.topic = o.topic and v.partition = o.partition
                                and v.\"offset\" = o.source_offset and not v.void) end
          limit $4 for update of o skip locked))",
    )
    .bind(projection)
    .bind(from)
    .bind(to)
    .bind(i64::from(most))
    .execute(connection)
    .await?;
    Ok(dropped.rows_affected())
}

/// Removes what the other version has sent; the rest may leave.
async fn release(tx: &mut PgConnection, projection: &str, from: i32, to: i32) -> Result<u64, Error> {
    let dropped = drop_sent(tx, projection, (from, to), u32::MAX).await?;
    sqlx::query("update millpond.outbox set held = false where projection = $1 and version = $2 and held")
        .bind(projection)
        .bind(to)
        .execute(tx)
        .await?;
    Ok(dropped)
}

/// The version that was live before the last swap, if it is kept.
pub async fn previous(connection: &mut PgConnection, projection: &str) -> Result<Option<i32>, Error> {
    Ok(sqlx::query_scalar(
        "select s.from_version from millpond.swaps s
           join millpond.projections p on p.projection = s.projection and p.live_version = s.to_version
           join millpond.versions v on v.projection = s.projection and v.version = s.from_version and v.state = 'standby'
          where s.projection = $1 order by s.id desc limit 1",
    )
    .bind(projection)
    .fetch_optional(connection)
    .await?)
}
