//! What an error of Postgres means to the person who sent the query.

use tokio_postgres::{
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    ServeState,
    compile::{Slot, Statement, Value},
    connections::Error,
    grammar::abbreviated,
    problem::{BAD_CURSOR, BAD_OPERATOR, BAD_VALUE, BUSY, INTERNAL, TIMED_OUT, UNAVAILABLE},
};
use crate::http::Problem;

/// How a failed statement is answered.
pub enum Failure {
    /// The tables are not those the statement was written for.
    Stale,
    Problem(Problem),
}

/// Explains the failure of a read.
pub async fn explain(state: &ServeState, error: &Error, statement: &Statement) -> Failure {
    let Some(code) = error.code() else { return Failure::Problem(problem(error, Some(statement))) };
    let gone = [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::INVALID_SCHEMA_NAME,
        SqlState::UNDEFINED_OBJECT,
        SqlState::FEATURE_NOT_SUPPORTED, // cached plan must not change result type
    ];
    if gone.contains(code) {
        return Failure::Stale;
    }
    // Postgres does not say which parameter, so each is tried alone.
    if error.is_of_value() {
        for (slot, value) in statement.template.slots.iter().zip(&statement.values) {
            if !is_readable(state, slot, value).await {
                return Failure::Problem(bad_value(slot, value));
            }
        }
    }
    Failure::Problem(problem(error, Some(statement)))
}

async fn is_readable(state: &ServeState, slot: &Slot, value: &Value) -> bool {
    let (list, value, from): (_, &(dyn ToSql + Sync), _) = match value {
        Value::Text(text) => ("", text, Type::TEXT),
        Value::List(values) => ("[]", values, Type::TEXT_ARRAY),
    };
    let sql = format!("select $1::text{list}::{}{list} is null", slot.pg_type);
    let tried = state.connections().probe(&sql, value, from).await;
    !matches!(tried, Err(error) if error.is_of_value())
}

fn bad_value(slot: &Slot, value: &Value) -> Problem {
    if slot.is_of_cursor() {
        return BAD_CURSOR.problem("parameter `after`: the value is damaged").with("parameter", "after");
    }
    let got = match value {
        Value::Text(text) => abbreviated(text),
        Value::List(values) => format!("the list {}", abbreviated(&values.join(","))),
    };
    let detail = format!(
        "parameter `{}`: {got} cannot be read as {}, the type of `{}`",
        slot.parameter, slot.pg_type, slot.column
    );
    let spaced = slot.pg_type.starts_with("time") && got.contains(' ');
    let hint = spaced.then_some("a `+` in a URL means a space: write %2B for a time zone's plus, or Z");
    BAD_VALUE
        .problem(detail)
        .with("parameter", slot.parameter.clone())
        .with("expected", slot.pg_type.clone())
        .hint(hint)
}

/// The problem for an error that is not about one value.
pub fn problem(error: &Error, statement: Option<&Statement>) -> Problem {
    match error {
        Error::Busy => BUSY.problem("too many reads are waiting for the database").retry_after(1),
        Error::NoAnswer(_) => UNAVAILABLE.problem("the database did not answer in time").retry_after(2),
        Error::Unavailable(last) => {
            tracing::debug!(last, "read refused without a connection");
            UNAVAILABLE.problem("there is no connection to the database").retry_after(1)
        }
        Error::Postgres(cause) => match cause.code() {
            Some(code) => by_code(code, error, cause, statement),
            None => UNAVAILABLE.problem("the connection to the database was lost").retry_after(1),
        },
    }
}

/// Says which grant would have let the read pass, as far as Postgres tells: `permission denied for schema live`.
fn missing_grant(message: &str) -> String {
    let grant = match message.strip_prefix("permission denied for ").and_then(|what| what.split_once(' ')) {
        Some(("schema", schema)) => {
            format!("grant usage on schema {schema} and grant select on all tables in schema {schema}")
        }
        Some((_, name)) => format!("grant usage on the schema of {name} and grant select on all tables in it"),
        None => "grant usage on the schema and grant select on all tables in it".to_owned(),
    };
    format!(
        "postgres says `{message}`: the database account of serve lacks a grant; as the account of consume, {grant}"
    )
}

fn by_code(code: &SqlState, error: &Error, cause: &tokio_postgres::Error, statement: Option<&Statement>) -> Problem {
    let message = cause.as_db_error().map(tokio_postgres::error::DbError::message).unwrap_or_default();
    let operator = [
        SqlState::UNDEFINED_FUNCTION,
        SqlState::AMBIGUOUS_FUNCTION,
        SqlState::DATATYPE_MISMATCH,
        SqlState::CANNOT_COERCE,
        SqlState::INDETERMINATE_DATATYPE,
    ];
    if operator.contains(code) && statement.is_some() {
        return BAD_OPERATOR.problem(message.to_owned());
    }
    if *code == SqlState::QUERY_CANCELED {
        return TIMED_OUT.problem(TIMED_OUT.remedy);
    }
    if *code == SqlState::UNDEFINED_TABLE {
        let detail =
            "the platform's tables are not in this database: start `millpond consume` or `millpond dev` on it once";
        return UNAVAILABLE.problem(detail).retry_after(5);
    }
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        tracing::error!(error = message, "read refused: serve's database account lacks a grant");
        return UNAVAILABLE.problem(missing_grant(message)).retry_after(5);
    }
    let passing = matches!(&code.code()[..2], "08" | "40" | "53" | "55" | "57" | "58");
    if passing {
        tracing::warn!(code = code.code(), error = message, "read refused by postgres");
        return UNAVAILABLE.problem("the database refuses reads at the moment").retry_after(1);
    }
    let sql = statement.map(|statement| statement.template.sql.text());
    tracing::error!(code = code.code(), %error, message, sql, "read failed");
    INTERNAL.problem(format!("postgres answered with error {}", code.code()))
}
