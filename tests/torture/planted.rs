//! Bugs planted on purpose in a run's own database, to see whether the rig finds them.
//!
//! Only what is decided in SQL can be planted so; the function is read from the database and put back with a part missing,
//! so a function that has changed is an error here and not a bug that was never planted.

use anyhow::{Context as _, ensure};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

/// A planted bug: its name, and which text of `millpond.advance_fence` becomes which.
pub const BUGS: &[(&str, &str, &str)] = &[
    // A member that was replaced goes on, as long as nobody else has moved the fence.
    ("a", "and owner = p_owner and epoch = p_epoch ", ""),
    // A batch is applied wherever the fence is.
    ("b", "and next_offset = p_from ", ""),
    // A batch is applied when the fence is at its beginning or before.
    ("c", "and next_offset = p_from ", "and next_offset <= p_from "),
    // Whoever comes late moves the fence all the same.
    ("ab", "and owner = p_owner and epoch = p_epoch and next_offset = p_from ", ""),
];

/// Plants a bug.
pub async fn plant(connection: &mut PgConnection, bug: &str) -> anyhow::Result<()> {
    let (_, part, instead) = BUGS.iter().find(|(name, ..)| *name == bug).with_context(|| {
        let names: Vec<&str> = BUGS.iter().map(|(name, ..)| *name).collect();
        format!("there is no bug {bug} to plant; there are {}", names.join(", "))
    })?;
    let sql = "select pg_get_functiondef('millpond.advance_fence'::regproc)";
    let function: String = sqlx::query_scalar(sql).fetch_one(&mut *connection).await?;
    ensure!(function.contains(part), "`{part}` is not in advance_fence any more: the bug {bug} has to be planted anew");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(function.replace(part, instead)))).await?;
    Ok(())
}
