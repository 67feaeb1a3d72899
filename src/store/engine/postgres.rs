//! Connections to Postgres that never make anybody wait for ever.
//!
//! A server that is stopped, or behind a network that has gone, says nothing; so each statement has its time, and a connection that did
//! not answer in it is closed and not used again. So is one that was left in the middle of a statement, because whoever wanted its
//! answer has gone. A transaction that is dropped is rolled back before the connection is anybody else's.

use std::io::ErrorKind;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::{FromRow, PgPool, Postgres, SqlStr};

use super::ANSWER_SECONDS_MAX;

/// How often a connection is asked for anew, where the one that was idle in the pool turned out to be dead: after the server was
/// restarted, all of them are. More than there are in a pool.
const CONNECTIONS_TRIED_MAX: u32 = 20;

/// A statement with its values.
#[derive(Clone)]
pub(super) struct Statement {
    pub(super) sql: SqlStr,
    pub(super) arguments: PgArguments,
    pub(super) patience: Duration,
}

impl Statement {
    /// One that is answered soon.
    pub(super) fn new(sql: SqlStr, arguments: PgArguments) -> Self {
        Self { sql, arguments, patience: Duration::from_secs(ANSWER_SECONDS_MAX) }
    }
}

/// What rows a statement finds that only reads, on any connection.
pub(super) async fn read<T>(pool: &PgPool, statement: &Statement) -> sqlx::Result<Vec<T>>
where
    T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let mut tried = 0;
    loop {
        let mut held = PgHeld::acquire(pool).await?;
        match held.fetch_all(statement.clone()).await {
            Ok(rows) => return Ok(rows),
            Err(error) => {
                tried += 1;
                if !held.is_dead_of_old(&error) || tried >= CONNECTIONS_TRIED_MAX {
                    return Err(error);
                }
            }
        }
    }
}

/// A connection that is held, and how it stands.
pub(in crate::store) struct PgHeld {
    connection: Option<PoolConnection<Postgres>>,
    /// A transaction is running.
    is_begun: bool,
    /// A statement was refused since, and with it all of the transaction.
    is_refused: bool,
    /// No statement is unanswered, and none was answered with the connection's end.
    is_sound: bool,
}

impl PgHeld {
    pub(super) async fn acquire(pool: &PgPool) -> sqlx::Result<Self> {
        let connection = Some(pool.acquire().await?);
        Ok(Self { connection, is_begun: false, is_refused: false, is_sound: true })
    }

    /// A transaction, begun by those statements.
    pub(super) async fn begin(pool: &PgPool, statements: &'static str) -> sqlx::Result<Self> {
        let mut tried = 0;
        loop {
            let mut held = Self::acquire(pool).await?;
            // Also where it fails: what was begun is to be rolled back.
            held.is_begun = true;
            match held.run_raw(statements).await {
                Ok(()) => return Ok(held),
                Err(error) => {
                    tried += 1;
                    if !held.is_dead_of_old(&error) || tried >= CONNECTIONS_TRIED_MAX {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Ends the transaction with effect. Where a statement was refused that cannot be; Postgres would roll back, and say that all is well.
    pub(super) async fn commit(mut self) -> sqlx::Result<()> {
        if self.is_refused {
            return Err(sqlx::Error::Protocol("a statement of the transaction was refused".to_owned()));
        }
        self.run_raw("COMMIT").await?;
        self.is_begun = false;
        Ok(())
    }

    /// How many rows a statement touched.
    pub(super) async fn execute(&mut self, statement: Statement) -> sqlx::Result<u64> {
        let Statement { sql, arguments, patience } = statement;
        self.is_sound = false;
        let executed = sqlx::query_with(sql, arguments).execute(self.inner()?);
        let executed = tokio::time::timeout(patience, executed).await;
        self.answered(executed).map(|done| done.rows_affected())
    }

    /// What rows a statement finds.
    pub(super) async fn fetch_all<T>(&mut self, statement: Statement) -> sqlx::Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let Statement { sql, arguments, patience } = statement;
        self.is_sound = false;
        let fetched = sqlx::query_as_with::<Postgres, T, _>(sql, arguments).fetch_all(self.inner()?);
        let fetched = tokio::time::timeout(patience, fetched).await;
        self.answered(fetched)
    }

    /// Statements without values, many in one message.
    pub(super) async fn run_raw(&mut self, statements: &'static str) -> sqlx::Result<()> {
        self.is_sound = false;
        let patience = Duration::from_secs(ANSWER_SECONDS_MAX);
        let done = tokio::time::timeout(patience, sqlx::raw_sql(statements).execute(self.inner()?)).await;
        self.answered(done).map(|_| ())
    }

    /// Whether a statement failed because its connection, which had been idle, had come to its end: then another connection may do.
    pub(super) fn is_dead_of_old(&self, error: &sqlx::Error) -> bool {
        !self.is_sound && !matches!(error, sqlx::Error::Io(error) if error.kind() == ErrorKind::TimedOut)
    }

    fn inner(&mut self) -> sqlx::Result<&mut PgConnection> {
        self.connection.as_deref_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    /// Notes how the connection stands after an answer, or after none.
    fn answered<T>(&mut self, answer: Result<sqlx::Result<T>, tokio::time::error::Elapsed>) -> sqlx::Result<T> {
        let answer = answer.unwrap_or_else(|_| Err(no_answer()));
        self.is_sound = answer.as_ref().err().is_none_or(leaves_connection_sound);
        self.is_refused |= matches!(answer, Err(sqlx::Error::Database(_)));
        answer
    }
}

impl Drop for PgHeld {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if !self.is_sound {
            connection.close_on_drop();
            return;
        }
        if !self.is_begun {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            connection.close_on_drop();
            return;
        };
        runtime.spawn(async move {
            let patience = Duration::from_secs(ANSWER_SECONDS_MAX);
            let rolled_back = tokio::time::timeout(patience, sqlx::raw_sql("ROLLBACK").execute(&mut *connection)).await;
            if !matches!(rolled_back, Ok(Ok(_))) {
                connection.close_on_drop();
            }
        });
    }
}

/// The server took a statement, or was to, and said nothing.
pub(in crate::store) fn no_answer() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(ErrorKind::TimedOut, "Postgres does not answer"))
}

/// Whether a connection goes on after that error: a statement that was refused leaves it as it was, what the server says at its own end
/// or about the connection does not.
fn leaves_connection_sound(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            // 57P: the server shuts down, or ends this connection. 08: the connection itself. 25P03: idle in a transaction for too long.
            // 25006: it can only be read, because it is a standby now; the address may lead to the new primary.
            let ends =
                |code: &str| code.starts_with("57P") || code.starts_with("08") || code == "25P03" || code == "25006";
            !error.code().is_some_and(|code| ends(&code))
        }
        sqlx::Error::RowNotFound
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => true,
        _ => false,
    }
}
