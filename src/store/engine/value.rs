//! Values of statements.

use std::sync::Arc;

use sqlx::Arguments;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;

/// A value of a statement, as both databases take it.
#[derive(Debug, Clone)]
pub(in crate::store) enum Value {
    Integer(i64),
    MaybeInteger(Option<i64>),
    Flag(bool),
    Text(String),
    MaybeText(Option<String>),
    MaybeBytes(Option<Vec<u8>>),
}

impl Value {
    pub(super) fn add_to_sqlite(self, to: &mut SqliteArguments) -> Result<(), BoxDynError> {
        match self {
            Value::Integer(value) => to.add(value),
            Value::MaybeInteger(value) => to.add(value),
            Value::Flag(value) => to.add(value),
            Value::Text(value) => to.add(value),
            Value::MaybeText(value) => to.add(value),
            Value::MaybeBytes(value) => to.add(value),
        }
    }

    pub(super) fn add_to_postgres(self, to: &mut PgArguments) -> Result<(), BoxDynError> {
        match self {
            Value::Integer(value) => to.add(value),
            Value::MaybeInteger(value) => to.add(value),
            Value::Flag(value) => to.add(value),
            Value::Text(value) => to.add(without_nul(value)),
            Value::MaybeText(value) => to.add(value.map(without_nul)),
            Value::MaybeBytes(value) => to.add(value),
        }
    }
}

/// A text as Postgres takes it, which has no place for U+0000: somebody's typing must not look like a database that fails.
pub(super) fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Integer(value)
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Value::MaybeInteger(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Flag(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Value::Text(value.clone())
    }
}

impl From<&Box<str>> for Value {
    fn from(value: &Box<str>) -> Self {
        Value::Text(value.to_string())
    }
}

impl From<&Arc<str>> for Value {
    fn from(value: &Arc<str>) -> Self {
        Value::Text(value.to_string())
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Value::MaybeText(value)
    }
}

impl From<&Option<String>> for Value {
    fn from(value: &Option<String>) -> Self {
        Value::MaybeText(value.clone())
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Value::MaybeText(value.map(str::to_owned))
    }
}

impl From<Option<&[u8]>> for Value {
    fn from(value: Option<&[u8]>) -> Self {
        Value::MaybeBytes(value.map(<[u8]>::to_vec))
    }
}
