//! What of a bug is planted in a run's own database: text of `millpond.advance_fence` that is replaced.
//!
//! The function is read from the database and put back with a part changed, so a function that is not what it was is an
//! error here and not a bug that was never planted.

use anyhow::ensure;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use super::bugs::Planted;

/// Plants what of a bug is SQL.
pub async fn plant(connection: &mut PgConnection, bug: &Planted) -> anyhow::Result<()> {
    let Some((part, instead)) = bug.fence else { return Ok(()) };
    let sql = "select pg_get_functiondef('millpond.advance_fence'::regproc)";
    let function: String = sqlx::query_scalar(sql).fetch_one(&mut *connection).await?;
    let name = bug.name;
    ensure!(
        function.contains(part),
        "`{part}` is not in advance_fence any more: the bug {name} has to be planted anew"
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(function.replace(part, instead)))).await?;
    Ok(())
}
