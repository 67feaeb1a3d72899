//! Reaches and migrates a store in Postgres.

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqlSafeStr};

use super::{Connections, MIGRATIONS};
use crate::store::StoreError;
use crate::store::engine::{ANSWER_SECONDS_MAX, Pool, WHOLE_TABLE_SECONDS_MAX, no_answer};

/// How long a caller waits for a connection, or for one to be made. As long as for an answer: whoever waits for both is told within some
/// seconds that the store does not answer.
const ACQUIRE_SECONDS_MAX: u64 = 4;
/// How many read at a time, and change rows that are nobody else's, beside the writer.
const READERS_MAX: u32 = 8;
/// Writers go one after the other, on all nodes. Those of this process wait for this connection rather than at the server.
const WRITERS_MAX: u32 = 1;

/// What the server is told for each connection. A process that is stopped in the middle of a transaction keeps its locks no longer than
/// the server waits for it, and a statement whose client has gone is given up. Compiling a statement costs more than running ours.
const SETTINGS: &str = "SET statement_timeout = '600s'; SET lock_timeout = '4s'; \
    SET idle_in_transaction_session_timeout = '10s'; SET client_connection_check_interval = '2s'; \
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET jit = off";

/// Follows 0008 in its transaction.
const AFTER_0008: &str = include_str!("../migrations/postgres/0008_usage_by_month.sql");

/// Whether the address is one of Postgres.
pub(super) fn is_meant_by(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// Connections to the store at `url`, migrated.
pub(super) async fn open(url: &str) -> Result<Connections, StoreError> {
    let refused = |why| StoreError::Address { url: "postgres://…".to_owned(), why };
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| refused("the address has the form postgres://USER:PASSWORD@HOST:PORT/DATABASE"))?
        .application_name("tollgate");
    let place = place(&options);
    migrate(&options, &place).await?;
    let pool = |connections: u32| {
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(ACQUIRE_SECONDS_MAX))
            .idle_timeout(None)
            .max_lifetime(None)
            // The engine finds dead connections out by itself, without asking each time.
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(SETTINGS).execute(connection).await.map(|_| ()) })
            })
            .connect_lazy_with(options.clone())
    };
    let (readers, writer): (PgPool, PgPool) = (pool(READERS_MAX), pool(WRITERS_MAX));
    Ok(Connections { readers: Pool::Postgres(readers), writer: Pool::Postgres(writer) })
}

/// The database and where it is, without who asks and by what password.
fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    match options.get_socket() {
        Some(socket) => format!("{database:?} in Postgres at {}", socket.display()),
        None => format!("{database:?} in Postgres at {}:{}", options.get_host(), options.get_port()),
    }
}

/// Brings the tables to this version, each step in a transaction of its own. Of several who come at once one does it, the others wait.
async fn migrate(options: &PgConnectOptions, place: &str) -> Result<(), StoreError> {
    let failed = |source| StoreError::Open { place: place.to_owned(), source };
    let connecting = tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS_MAX), options.connect());
    let mut connection: PgConnection = connecting.await.unwrap_or(Err(no_answer())).map_err(failed)?;
    let migrator = migrator();
    let migrating = migrator.run_direct(None, &mut connection, false);
    let migrated = tokio::time::timeout(Duration::from_secs(WHOLE_TABLE_SECONDS_MAX), migrating).await;
    let migrated = migrated.unwrap_or(Err(MigrateError::Execute(no_answer())));
    migrated.map_err(|source| match source {
        MigrateError::VersionMissing(_) => StoreError::Newer { place: place.to_owned() },
        source => StoreError::Migrate { place: place.to_owned(), source },
    })?;
    connection.close().await.map_err(failed)
}

/// The migrations as Postgres takes them. What is said of them here is part of them: it is not changed for those that are out.
pub(in crate::store) fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|shared| {
        let mut text = translated(shared.sql.as_str());
        if shared.version == 8 {
            text.push_str(AFTER_0008);
        }
        let (description, kind) = (shared.description.clone(), shared.migration_type);
        Migration::new(shared.version, description, kind, AssertSqlSafe(text).into_sql_str(), shared.no_tx)
    });
    Migrator::with_migrations(migrations.collect())
}

/// The same types: INTEGER is as wide as SQLite's, and TEXT is compared by its bytes, whatever the database was made with, as ids and
/// pages need it.
fn translated(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len() + sql.len() / 4);
    for line in sql.lines() {
        match line.trim_start().starts_with("--") {
            true => text.push_str(line),
            false => text.push_str(&line.replace(" INTEGER", " BIGINT").replace(" TEXT", " TEXT COLLATE \"C\"")),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::fixture::{Database, skip_without_postgres};

    #[test]
    fn types_are_translated_and_comments_are_not() {
        let sql = "-- An INTEGER, a TEXT.\nCREATE TABLE a (\n    id INTEGER NOT NULL,\n    name TEXT\n);";
        let expected =
            "-- An INTEGER, a TEXT.\nCREATE TABLE a (\n    id BIGINT NOT NULL,\n    name TEXT COLLATE \"C\"\n);\n";
        assert_eq!(translated(sql), expected);
    }

    #[tokio::test]
    async fn what_is_wrong_with_an_address_is_told_without_its_password() {
        for url in [
            "postgres://ada:s3cret@127.0.0.1:1/nowhere",
            "postgres://ada:s3cret@127.0.0.1:nowhere/x",
            "postgresql://ada:s3cret@[::/x",
            "postgres://ada:s3cret@127.0.0.1/x?sslmode=s3cret",
        ] {
            let error = Store::open(url).await.unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains("ostgres") && !told.contains("s3cret"), "{told}");
        }
        let refused = Store::open("postgres://ada:s3cret@127.0.0.1:1/nowhere").await.unwrap_err().to_string();
        assert!(refused.contains("\"nowhere\"") && refused.contains("127.0.0.1:1"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_may_open_a_new_store_at_once() {
        let Some(server) = skip_without_postgres() else { return };
        let database = Database::empty(&server).await;
        let opening: Vec<_> = (0..6)
            .map(|_| {
                let url = database.url.clone();
                tokio::spawn(async move { Store::open(&url).await?.ping().await })
            })
            .collect();
        for opened in opening {
            opened.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn no_such_database_and_a_newer_store_are_named() {
        let Some(server) = skip_without_postgres() else { return };
        let database = Database::migrated(&server).await;
        let store = Store::open(&database.url).await.unwrap();
        let later = "INSERT INTO _sqlx_migrations VALUES (9999, 'later', now(), TRUE, '', 0)";
        store.pool.run(later).await.unwrap();
        let error = Store::open(&database.url).await.unwrap_err().to_string();
        assert!(error.contains("newer tollgate") && error.contains(&database.name), "{error}");
        store.ping().await.unwrap();
        let error = Store::open(&database.url.replace(&database.name, "tollgate_none")).await.unwrap_err().to_string();
        assert!(error.contains("\"tollgate_none\"") && error.contains("does not exist"), "{error}");
    }
}
