//! What can go wrong with Postgres, and what that means for the batch in hand.

use sqlx::{migrate::MigrateError, postgres::PgDatabaseError};

use crate::planted::{self, Bug};

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The database is away, busy or resolving a conflict: roll back, back off, try again. Never a dead letter.
    Transient,
    /// A value in the batch was refused: look for the record.
    Record,
    /// The statements do not fit the tables: no record is to blame, the projection halts.
    Deploy,
    /// The fence belongs to someone else, or stands elsewhere.
    Fenced,
    /// The fence is kept where it is for a moment, while versions are compared.
    Held,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("postgres.url is not a Postgres URL: {0}")]
    Url(String),
    #[error("Postgres accepted the connection but did not answer within 5 s")]
    ConnectTimeout,
    #[error("Postgres did not answer within {0:?}")]
    NoAnswer(std::time::Duration),
    #[error("{}", describe(.0))]
    Sql(sqlx::Error),
    #[error("{}", describe_session(.0))]
    Session(tokio_postgres::Error),
    #[error(transparent)]
    Address(#[from] super::address::Error),
    #[error("the platform tables cannot be migrated: {0}")]
    Migrate(sqlx::migrate::MigrateError),
    #[error("{0}")]
    Refused(String),
    /// A version that was to be swapped in is not as far as the live one.
    #[error("{0}")]
    Behind(String),
    /// Something that is not ours would go with what was to be dropped.
    #[error("{0}")]
    NeededByOthers(String),
}

// Not `#[from]`, which makes a cause of what the text says already: it would be printed twice.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Session(error)
    }
}

impl Error {
    /// SQLSTATE, where Postgres itself answered.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Sql(sqlx::Error::Database(e))
            | Error::Migrate(
                MigrateError::Execute(sqlx::Error::Database(e))
                | MigrateError::ExecuteMigration(sqlx::Error::Database(e), _),
            ) => Some(e.downcast_ref::<PgDatabaseError>().code()),
            Error::Session(e) => e.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }

    /// Says what stands in the way where Postgres would not drop something of ours, as others depend on it.
    pub(super) fn of_dependents(self, what: &str) -> Self {
        let Error::Sql(sqlx::Error::Database(error)) = &self else { return self };
        let error = error.downcast_ref::<PgDatabaseError>();
        if error.code() != "2BP01" {
            return self;
        }
        let others = error.detail().unwrap_or(error.message()).replace('\n', ", ");
        Self::NeededByOthers(format!(
            "{what} cannot be removed: {others}. What is not Millpond's is not dropped with it: drop that first"
        ))
    }

    /// Whether another session held a lock for longer than a statement waits for one.
    pub fn is_lock_timeout(&self) -> bool {
        self.sqlstate() == Some("55P03")
    }

    /// Whether a statement, or all of a transaction, took longer than it may: half the batch may well fit.
    pub fn is_too_slow(&self) -> bool {
        matches!(self, Error::NoAnswer(_)) || self.sqlstate() == Some("57014")
    }

    /// Classes follow the first two characters of SQLSTATE (Postgres manual, appendix A).
    pub fn class(&self) -> Class {
        let Some(code) = self.sqlstate() else {
            return match self {
                // The database was lost on the way, or others are at it.
                Error::Migrate(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)) => Class::Transient,
                Error::Url(_)
                | Error::Address(_)
                | Error::Refused(_)
                | Error::NeededByOthers(_)
                | Error::Migrate(_) => Class::Deploy,
                _ => Class::Transient,
            };
        };
        match code {
            "MP001" => Class::Fenced,
            "MP003" => Class::Held,
            // 21000: a row proposed twice, 54: a limit of Postgres such as a row too wide: the record's doing.
            "21000" => Class::Record,
            "25006" => Class::Transient,
            "40P01" if planted::is(Bug::DeadLetterOnDeadlock) => Class::Record,
            _ => match &code[..2] {
                "22" | "23" | "54" => Class::Record,
                "42" | "3F" | "0A" | "2F" | "38" | "39" | "P0" => Class::Deploy,
                _ => Class::Transient,
            },
        }
    }
}

fn describe(error: &sqlx::Error) -> String {
    let e = match error {
        sqlx::Error::Database(e) => e,
        sqlx::Error::Io(e) => return format!("Postgres cannot be reached or broke off: {e}"),
        other => return format!("Postgres cannot be reached or broke off: {other}"),
    };
    let e = e.downcast_ref::<PgDatabaseError>();
    sentence(
        e.message(),
        e.code(),
        [
            ("table", e.table()),
            ("column", e.column()),
            ("constraint", e.constraint()),
            ("detail", e.detail()),
            ("hint", e.hint()),
        ],
    )
}

fn describe_session(error: &tokio_postgres::Error) -> String {
    let Some(e) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
        return format!("Postgres cannot be reached or broke off: {error}{cause}");
    };
    sentence(
        e.message(),
        e.code().code(),
        [
            ("table", e.table()),
            ("column", e.column()),
            ("constraint", e.constraint()),
            ("detail", e.detail()),
            ("hint", e.hint()),
        ],
    )
}

fn sentence(message: &str, code: &str, parts: [(&str, Option<&str>); 5]) -> String {
    let mut text = format!("{message} (SQLSTATE {code})");
    for (name, value) in parts {
        if let Some(value) = value {
            text.push_str(&format!("; {name}: {value}"));
        }
    }
    if matches!(code, "42P01" | "3F000") && message.contains("millpond.") {
        text.push_str(
            "; this database has no tables of Millpond yet: start `millpond consume`, `millpond publish` or `millpond \
             serve` on it, or check postgres.url with `millpond config`",
        );
    }
    text
}
