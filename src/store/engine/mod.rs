//! The two databases behind one face: connections, transactions, and statements with their values.
//!
//! The store's modules write SQL once, with numbered placeholders, and give values by [`query`], [`query_as`], [`query_scalar`] or
//! a [`Builder`]; here it is put to SQLite or to Postgres. Where the two need different texts, both stand side by side as an
//! [`Each`]. Rows are read by sqlx's own `FromRow`, of either database.
//!
//! Deliberately absent: sqlx's `Any`, which copies each row and knows no BOOLEAN columns in SQLite; and any knowledge of tables.

mod connection;
mod postgres;
mod query;
mod rows;
#[cfg(test)]
mod tests;
mod value;

pub(super) use connection::{Connection, Transaction};
pub(super) use postgres::no_answer;
pub(super) use query::{Builder, Each, Sql, query, query_as, query_scalar};
pub(super) use rows::{Cells, Insert};

use std::time::Duration;

use sqlx::{PgPool, SqlitePool};

use postgres::PgHeld;

/// How long Postgres may take to answer a statement. SQLite's waits are its own, see `open`.
pub(super) const ANSWER_SECONDS_MAX: u64 = 5;
/// The same of one that a page waits for which may show much.
pub(super) const PAGE_SECONDS_MAX: u64 = 30;
/// The same of one that reads whole tables.
pub(super) const WHOLE_TABLE_SECONDS_MAX: u64 = 600;

/// Connections to one of the databases. Clones share them.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Which of the databases it is, for whoever has to put a statement together in two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Sqlite,
    Postgres,
}

impl Pool {
    pub(super) fn engine(&self) -> Engine {
        match self {
            Pool::Sqlite(_) => Engine::Sqlite,
            Pool::Postgres(_) => Engine::Postgres,
        }
    }

    /// A connection for some statements that need not see the same moment.
    pub(super) async fn acquire(&self) -> sqlx::Result<Connection> {
        Ok(match self {
            Pool::Sqlite(pool) => Connection::Sqlite(connection::SqliteHeld::Idle(pool.acquire().await?)),
            Pool::Postgres(pool) => Connection::Postgres(PgHeld::acquire(pool).await?),
        })
    }

    /// A transaction that begins with the statement of its database.
    pub(super) async fn begin(&self, begin: Each) -> sqlx::Result<Transaction> {
        let connection = match self {
            Pool::Sqlite(pool) => {
                Connection::Sqlite(connection::SqliteHeld::Begun(pool.begin_with(begin.sqlite).await?))
            }
            Pool::Postgres(pool) => Connection::Postgres(PgHeld::begin(pool, begin.postgres).await?),
        };
        Ok(Transaction::new(connection))
    }

    /// Closes all connections, those of clones too, once their work is done. A database that does not answer is not waited for.
    pub(super) async fn close(&self) {
        match self {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => {
                let patience = Duration::from_secs(ANSWER_SECONDS_MAX);
                // What is left open then, the end of the process closes.
                let _ = tokio::time::timeout(patience, pool.close()).await;
            }
        }
    }

    /// Runs statements without values, for tests that tamper with the tables.
    #[cfg(test)]
    pub(super) async fn run(&self, statements: &'static str) -> sqlx::Result<()> {
        match self {
            Pool::Sqlite(pool) => sqlx::raw_sql(statements).execute(pool).await.map(|_| ()),
            Pool::Postgres(pool) => sqlx::raw_sql(statements).execute(pool).await.map(|_| ()),
        }
    }
}
