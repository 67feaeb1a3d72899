//! Statements and their values, put to either database.

use std::fmt::{Display, Write};
use std::marker::PhantomData;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, FromRow, SqlSafeStr, SqlStr};

use super::connection::Connection;
use super::postgres::{self, PgHeld, Statement};
use super::value::Value;
use super::{ANSWER_SECONDS_MAX, Pool};

/// What a row is read into, of either database.
pub(in crate::store) trait Row:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> Row for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

/// A statement's text for each of the databases.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Each {
    pub(in crate::store) sqlite: &'static str,
    pub(in crate::store) postgres: &'static str,
}

/// A statement's text.
pub(in crate::store) enum Sql {
    /// Which both take.
    Same(&'static str),
    Each(Each),
    /// Which both take, made of texts of this program. Values have placeholders.
    Built(String),
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Sql::Same(text)
    }
}

impl From<Each> for Sql {
    fn from(texts: Each) -> Self {
        Sql::Each(texts)
    }
}

impl Sql {
    fn for_sqlite(self) -> SqlStr {
        match self {
            Sql::Same(text) | Sql::Each(Each { sqlite: text, .. }) => text.into_sql_str(),
            Sql::Built(text) => AssertSqlSafe(text).into_sql_str(),
        }
    }

    fn for_postgres(self) -> SqlStr {
        match self {
            Sql::Same(text) | Sql::Each(Each { postgres: text, .. }) => text.into_sql_str(),
            Sql::Built(text) => AssertSqlSafe(text).into_sql_str(),
        }
    }
}

/// Where a statement is put: to any connection, or to one that is held.
pub(in crate::store) enum On<'c> {
    Pool(&'c Pool),
    Connection(&'c mut Connection),
}

impl<'c> From<&'c Pool> for On<'c> {
    fn from(pool: &'c Pool) -> Self {
        On::Pool(pool)
    }
}

impl<'c> From<&'c mut Connection> for On<'c> {
    fn from(connection: &'c mut Connection) -> Self {
        On::Connection(connection)
    }
}

/// A statement that is counted, not read.
pub(in crate::store) fn query(sql: impl Into<Sql>) -> Query {
    Query { sql: sql.into(), values: Vec::new(), patience_seconds: ANSWER_SECONDS_MAX }
}

/// A statement whose rows are read.
pub(in crate::store) fn query_as<T>(sql: impl Into<Sql>) -> QueryAs<T> {
    QueryAs { query: query(sql), row: PhantomData }
}

/// A statement with one column.
pub(in crate::store) fn query_scalar<T>(sql: impl Into<Sql>) -> QueryScalar<T> {
    QueryScalar(query_as(sql))
}

/// A statement with its values.
pub(in crate::store) struct Query {
    sql: Sql,
    values: Vec<Value>,
    patience_seconds: u64,
}

/// A statement with its values, and what its rows are read into.
pub(in crate::store) struct QueryAs<T> {
    query: Query,
    row: PhantomData<fn() -> T>,
}

/// A statement with its values, and what its one column is read into.
pub(in crate::store) struct QueryScalar<T>(QueryAs<(T,)>);

impl Query {
    /// The value of the next placeholder.
    pub(in crate::store) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it, and says how many rows it touched.
    pub(in crate::store) async fn execute(self, on: impl Into<On<'_>>) -> sqlx::Result<u64> {
        match on.into() {
            On::Pool(Pool::Sqlite(pool)) => Ok(self.for_sqlite()?.execute(pool).await?.rows_affected()),
            On::Connection(Connection::Sqlite(held)) => {
                Ok(self.for_sqlite()?.execute(held.connection()).await?.rows_affected())
            }
            On::Pool(Pool::Postgres(pool)) => PgHeld::acquire(pool).await?.execute(self.for_postgres()?).await,
            On::Connection(Connection::Postgres(held)) => held.execute(self.for_postgres()?).await,
        }
    }

    fn for_sqlite(self) -> sqlx::Result<sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>> {
        let (sql, arguments) = self.parts_for_sqlite()?;
        Ok(sqlx::query_with(sql, arguments))
    }

    fn parts_for_sqlite(self) -> sqlx::Result<(SqlStr, SqliteArguments)> {
        let mut arguments = SqliteArguments::default();
        arguments.reserve(self.values.len(), 0);
        self.values
            .into_iter()
            .try_for_each(|value| value.add_to_sqlite(&mut arguments))
            .map_err(sqlx::Error::Encode)?;
        Ok((self.sql.for_sqlite(), arguments))
    }

    fn for_postgres(self) -> sqlx::Result<Statement> {
        let mut arguments = PgArguments::default();
        self.values
            .into_iter()
            .try_for_each(|value| value.add_to_postgres(&mut arguments))
            .map_err(sqlx::Error::Encode)?;
        let patience = Duration::from_secs(self.patience_seconds);
        Ok(Statement { sql: self.sql.for_postgres(), arguments, patience })
    }
}

impl<T> QueryAs<T> {
    /// The value of the next placeholder.
    pub(in crate::store) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.query.values.push(value.into());
        self
    }

    /// It may take so long, in Postgres, where that is another time than [`ANSWER_SECONDS_MAX`].
    pub(in crate::store) fn within_seconds(mut self, seconds_max: u64) -> Self {
        self.query.patience_seconds = seconds_max;
        self
    }
}

impl<T: Row> QueryAs<T> {
    /// All rows.
    pub(in crate::store) async fn fetch_all(self, on: impl Into<On<'_>>) -> sqlx::Result<Vec<T>> {
        match on.into() {
            On::Pool(Pool::Sqlite(pool)) => {
                let (sql, arguments) = self.query.parts_for_sqlite()?;
                sqlx::query_as_with(sql, arguments).fetch_all(pool).await
            }
            On::Connection(Connection::Sqlite(held)) => {
                let (sql, arguments) = self.query.parts_for_sqlite()?;
                sqlx::query_as_with(sql, arguments).fetch_all(held.connection()).await
            }
            On::Pool(Pool::Postgres(pool)) => postgres::read(pool, &self.query.for_postgres()?).await,
            On::Connection(Connection::Postgres(held)) => held.fetch_all(self.query.for_postgres()?).await,
        }
    }

    /// The one row, if there is one. No statement that is read so finds more.
    pub(in crate::store) async fn fetch_optional(self, on: impl Into<On<'_>>) -> sqlx::Result<Option<T>> {
        match on.into() {
            On::Pool(Pool::Sqlite(pool)) => {
                let (sql, arguments) = self.query.parts_for_sqlite()?;
                sqlx::query_as_with(sql, arguments).fetch_optional(pool).await
            }
            On::Connection(Connection::Sqlite(held)) => {
                let (sql, arguments) = self.query.parts_for_sqlite()?;
                sqlx::query_as_with(sql, arguments).fetch_optional(held.connection()).await
            }
            on => Ok(self.fetch_all(on).await?.into_iter().next()),
        }
    }

    /// The one row.
    pub(in crate::store) async fn fetch_one(self, on: impl Into<On<'_>>) -> sqlx::Result<T> {
        self.fetch_optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }
}

impl<T> QueryScalar<T> {
    /// The value of the next placeholder.
    pub(in crate::store) fn bind(self, value: impl Into<Value>) -> Self {
        Self(self.0.bind(value))
    }
}

impl<T> QueryScalar<T>
where
    (T,): Row,
{
    /// The column of all rows.
    pub(in crate::store) async fn fetch_all(self, on: impl Into<On<'_>>) -> sqlx::Result<Vec<T>> {
        Ok(self.0.fetch_all(on).await?.into_iter().map(|(value,)| value).collect())
    }

    /// The column of the one row, if there is one.
    pub(in crate::store) async fn fetch_optional(self, on: impl Into<On<'_>>) -> sqlx::Result<Option<T>> {
        Ok(self.0.fetch_optional(on).await?.map(|(value,)| value))
    }

    /// The column of the one row.
    pub(in crate::store) async fn fetch_one(self, on: impl Into<On<'_>>) -> sqlx::Result<T> {
        Ok(self.0.fetch_one(on).await?.0)
    }
}

/// A statement that is put together, of this program's texts and of values, which get numbered placeholders.
pub(in crate::store) struct Builder {
    text: String,
    values: Vec<Value>,
}

impl Builder {
    pub(in crate::store) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), values: Vec::new() }
    }

    /// Adds to the text. Never what somebody typed.
    pub(in crate::store) fn push(&mut self, text: impl Display) -> &mut Self {
        // Writing to a text does not fail.
        let _ = write!(self.text, "{text}");
        self
    }

    /// Adds a value, and its placeholder to the text.
    pub(in crate::store) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        let number = self.values.len();
        self.push(format_args!("${number}"))
    }

    /// The statement.
    pub(in crate::store) fn into_query_as<T>(self) -> QueryAs<T> {
        let Self { text, values } = self;
        let query = Query { sql: Sql::Built(text), values, patience_seconds: ANSWER_SECONDS_MAX };
        QueryAs { query, row: PhantomData }
    }

    /// The statement, where it has one column.
    pub(in crate::store) fn into_query_scalar<T>(self) -> QueryScalar<T> {
        QueryScalar(self.into_query_as())
    }

    #[cfg(test)]
    pub(in crate::store) fn text(&self) -> &str {
        &self.text
    }

    /// How Postgres would find the rows, line by line.
    #[cfg(test)]
    pub(in crate::store) fn into_plan_of_postgres(mut self) -> QueryScalar<String> {
        self.text.insert_str(0, "EXPLAIN ");
        self.into_query_scalar()
    }
}
