//! A connection of either database, and a transaction on one.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqliteConnection};

use super::postgres::PgHeld;

/// A connection that is held. A transaction may be running on it.
pub(in crate::store) enum Connection {
    Sqlite(SqliteHeld),
    Postgres(PgHeld),
}

/// SQLite's connection, alone or in a transaction that is rolled back unless it is committed.
pub(in crate::store) enum SqliteHeld {
    Idle(PoolConnection<Sqlite>),
    Begun(sqlx::Transaction<'static, Sqlite>),
}

impl SqliteHeld {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        match self {
            SqliteHeld::Idle(connection) => connection,
            SqliteHeld::Begun(transaction) => transaction,
        }
    }
}

/// A transaction: without effect unless it is committed.
pub(in crate::store) struct Transaction(Connection);

impl Transaction {
    pub(super) fn new(begun: Connection) -> Self {
        Self(begun)
    }

    /// Makes its changes last.
    pub(in crate::store) async fn commit(self) -> sqlx::Result<()> {
        match self.0 {
            Connection::Sqlite(SqliteHeld::Begun(transaction)) => transaction.commit().await,
            Connection::Sqlite(SqliteHeld::Idle(_)) => Ok(()),
            Connection::Postgres(held) => held.commit().await,
        }
    }
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Connection::Sqlite(_) => "Connection::Sqlite",
            Connection::Postgres(_) => "Connection::Postgres",
        })
    }
}
