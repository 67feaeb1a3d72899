//! Finds, creates and migrates the store's file; a store in Postgres is `postgres`'s.

pub(super) mod postgres;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqliteConnection};

use super::StoreError;
use super::engine::{Connection, Pool, query};

/// In the order of their numbers, for both databases: `postgres` says how they are read there.
static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations");

/// How long a writer waits for another, in this process or the next.
const BUSY_SECONDS_MAX: u64 = 10;
/// How long a caller waits for a connection. Longer than a writer waits, so that the clearer error comes first.
const ACQUIRE_SECONDS_MAX: u64 = 15;
/// How many read at a time, beside the writer.
const READERS_MAX: u32 = 3;

/// The connections to a store.
pub(super) struct Connections {
    pub(super) readers: Pool,
    /// One, because SQLite has one writer, and so that writers go one after the other in Postgres, too. So writers of this process wait in a line, not for a lock that they ask for again and
    /// again, and what writing needs is prepared and cached once.
    pub(super) writer: Pool,
}

/// Connections to the store at `url`, migrated.
pub(super) async fn open(url: &str) -> Result<Connections, StoreError> {
    if postgres::is_meant_by(url) {
        return postgres::open(url).await;
    }
    let path = path_of(url)?;
    let folder = create(&path)?;
    let _opening = lock(folder).await?;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        // Every commit reaches the disk: what the ledger has confirmed is deleted from the spool, which must not forget
        // more than the ledger knows, power cuts included. Settling is batched, so this costs one sync a batch.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(BUSY_SECONDS_MAX));
    migrate(&path, &options).await?;
    let pool = SqlitePoolOptions::new()
        .acquire_timeout(Duration::from_secs(ACQUIRE_SECONDS_MAX))
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false);
    let writer = pool.clone().max_connections(1).connect_lazy_with(options.clone());
    let readers = pool.max_connections(READERS_MAX).connect_with(options).await;
    let readers = readers.map_err(|source| StoreError::Open { place: path.display().to_string(), source })?;
    Ok(Connections { readers: Pool::Sqlite(readers), writer: Pool::Sqlite(writer) })
}

fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let refused = |why| Err(StoreError::Address { url: url.to_owned(), why });
    match url.strip_prefix("sqlite://") {
        // It may be anything, and hold a password.
        None => Err(StoreError::Address {
            url: "…".to_owned(),
            why: "the address has the form sqlite://PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE",
        }),
        Some("") => refused("a path has to follow sqlite://"),
        Some(path) if path.contains('?') || path.starts_with(':') => {
            refused("a plain path has to follow sqlite://, without options")
        }
        Some(path) => Ok(PathBuf::from(path)),
    }
}

/// Creates file and folders where there are none, closed to everyone but their owner: digests, names and bills are in
/// them. SQLite gives its journal files the mode of the database. Answers with the file's folder.
fn create(path: &Path) -> Result<PathBuf, StoreError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(refused(folder))?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(refused(path)(error)),
        _ => Ok(folder.to_owned()),
    }
}

/// Waits until nobody else opens a store in that folder. SQLite turns a new file's WAL on without waiting for others, so
/// of two programs that first meet there one would fail. The lock is the folder's, because closing another handle of
/// the database would give up the locks that SQLite holds on it.
async fn lock(folder: PathBuf) -> Result<File, StoreError> {
    let locking = tokio::task::spawn_blocking(move || {
        let file = File::open(&folder).map_err(refused(&folder))?;
        file.lock().map_err(refused(&folder))?;
        Ok(file)
    });
    locking.await.map_err(|error| StoreError::Database(sqlx::Error::Io(error.into())))?
}

fn refused(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    |source| StoreError::Create { path, source }
}

/// Brings the tables to this version inside one transaction, so that a store is never between two versions.
async fn migrate(path: &Path, options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let place = || path.display().to_string();
    let failed = |source| StoreError::Open { place: place(), source };
    let mut connection = SqliteConnection::connect_with(options).await.map_err(failed)?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    MIGRATIONS.run_direct(None, &mut *transaction, false).await.map_err(|source| match source {
        MigrateError::VersionMissing(_) => StoreError::Newer { place: place() },
        source => StoreError::Migrate { place: place(), source },
    })?;
    transaction.commit().await.map_err(failed)?;
    connection.close().await.map_err(failed)
}

/// Gives back what a connection has kept of the pages that went through it, after a whole table has.
pub(super) async fn shrink(connection: &mut Connection) -> Result<(), sqlx::Error> {
    match connection {
        Connection::Sqlite(_) => query("PRAGMA shrink_memory").execute(connection).await.map(|_| ()),
        Connection::Postgres(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::relay::meter::NanoUsd;
    use crate::store::DifferenceKind::EntryMissing;
    use crate::store::Store;
    use crate::store::engine::query_as;

    #[test]
    fn reads_relative_and_absolute_addresses() {
        assert_eq!(path_of("sqlite://data/a.db").unwrap(), Path::new("data/a.db"));
        assert_eq!(path_of("sqlite:///var/a b.db").unwrap(), Path::new("/var/a b.db"));
    }

    #[test]
    fn refuses_other_addresses_with_a_mend() {
        for url in ["", "data/a.db", "sqlite:a.db", "sqlite://", "sqlite://:memory:", "sqlite://a.db?mode=rw"] {
            assert!(path_of(url).unwrap_err().to_string().contains("sqlite://"), "{url}");
        }
    }

    #[tokio::test]
    async fn creates_what_is_missing_for_its_owner_only_and_opens_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/tollgate.db");
        let url = format!("sqlite://{}", path.display());
        let store = Store::open(&url).await.unwrap();
        store.ping().await.unwrap();
        for (path, mode) in [("a", 0o700), ("a/b", 0o700), ("a/b/tollgate.db", 0o600), ("a/b/tollgate.db-wal", 0o600)] {
            let found = folder.path().join(path).metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{path}");
        }
        store.close().await;
        Store::open(&url).await.unwrap().ping().await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "this is a text of more than sixteen characters, and no database").unwrap();
        let error = Store::open(&format!("sqlite://{}", path.display())).await.unwrap_err().to_string();
        assert!(error.contains("notes.txt") && error.contains("not a database"), "{error}");
    }

    #[tokio::test]
    async fn a_store_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tollgate.db", folder.path().display());
        let store = Store::open(&url).await.unwrap();
        store
            .pool
            .run("INSERT INTO _sqlx_migrations VALUES (9999, 'later', CURRENT_TIMESTAMP, TRUE, x'00', 0)")
            .await
            .unwrap();
        let error = Store::open(&url).await.unwrap_err().to_string();
        assert!(error.contains("newer tollgate"), "{error}");
    }

    /// A store as version 1 of the tables left it, by its statements.
    async fn of_version_1(folder: &tempfile::TempDir, statements: &'static str) -> String {
        let path = folder.path().join("tollgate.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let first = MIGRATIONS.iter().take(1).cloned().collect();
        Migrator::with_migrations(first).run_direct(None, &mut connection, false).await.unwrap();
        sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        format!("sqlite://{}", path.display())
    }

    #[tokio::test]
    async fn a_store_of_the_first_version_keeps_its_money_and_its_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let url = of_version_1(
            &folder,
            "UPDATE counters SET value = 9 WHERE name = 'ledger_seq';
             INSERT INTO accounts VALUES ('a', 'Ada', 'free', TRUE, 60, 9, 1, 1);
             INSERT INTO api_keys VALUES ('k', 'a', 'laptop', '00', 0, 0, 0, 0, NULL, '[]', NULL, NULL, 40, 9, 1, 1);
             INSERT INTO ledger_entries VALUES (2, 'a', NULL, 'grant', 100, NULL, 'hello', 5);
             INSERT INTO ledger_entries VALUES (7, 'a', 'k', 'usage', -30, 'r2', NULL, 6);
             INSERT INTO ledger_entries VALUES (9, 'a', 'k', 'usage', -10, 'r1', NULL, 7);
             INSERT INTO usage_records VALUES ('r1', 'a', 'k', 'm', 'p', 200, 1, 2, 3, 4, 5, 6, 10, 0, 1, 3, NULL, 4);
             INSERT INTO usage_records VALUES ('r2', 'a', 'k', 'm', 'p', 200, 1, 2, 3, 4, 5, 6, 30, 1, 0, 3, 2, 3);
             INSERT INTO usage_records VALUES ('r3', 'a', 'k', 'm', 'p', 200, 1, 2, 3, 4, 5, 6, 70, 1, 0, 3, 2, 3);",
        )
        .await;
        let store = Store::open(&url).await.unwrap();
        let rows = "SELECT request_id, seq, cost_nano_usd, interrupted, first_token_ms FROM usage_records ORDER BY seq";
        let rows: Vec<(String, i64, i64, bool, Option<i64>)> = query_as(rows).fetch_all(&store.pool).await.unwrap();
        let row = |id: &str, seq, cost, interrupted, first| (id.to_owned(), seq, cost, interrupted, first);
        let without_entry = row("r3", 10, 70, false, Some(2));
        assert_eq!(rows, [row("r2", 7, 30, false, Some(2)), row("r1", 9, 10, true, None), without_entry]);
        let found = store.audit().await.unwrap();
        assert_eq!(found.iter().map(|one| (one.kind, &*one.id)).collect::<Vec<_>>(), [(EntryMissing, "r3")]);
        let note = &store.credits("a").await.unwrap()[0].note;
        assert_eq!(note.as_deref(), Some("hello"));
        store.credit("a", NanoUsd(1), None, 9).await.unwrap();
        assert_eq!(store.credits("a").await.unwrap()[0].seq, 11, "no number is used twice");
    }

    #[tokio::test]
    async fn rows_of_the_first_version_have_their_places_before_those_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let url = of_version_1(
            &folder,
            "INSERT INTO accounts VALUES ('a', 'Ada', 'free', TRUE, 0, 0, 1, 9);
             INSERT INTO accounts VALUES ('b', 'Bob', 'free', TRUE, 0, 0, 2, 5);
             INSERT INTO api_keys VALUES ('l', 'a', 'x', '00', 0, 0, 0, 0, NULL, '[]', NULL, NULL, 0, 0, 3, 7);
             INSERT INTO api_keys VALUES ('k', 'b', 'y', '01', 0, 0, 0, 0, NULL, '[]', NULL, NULL, 0, 0, 4, 7);",
        )
        .await;
        let store = Store::open(&url).await.unwrap();
        let made = store.create_account("Cyd", "free", 1).await.unwrap().id;
        let ids: Vec<String> = store.accounts_after(None, 9).await.unwrap().into_iter().map(|one| one.id).collect();
        assert_eq!(ids, ["b", "a", &made], "the oldest first, and whoever comes is last");
        let after = store.accounts_after(Some("b"), 1).await.unwrap();
        assert_eq!(after.iter().map(|one| &*one.id).collect::<Vec<_>>(), ["a"]);
        let keys: Vec<String> = store.keys_after(None, None, 9).await.unwrap().into_iter().map(|one| one.id).collect();
        assert_eq!(keys, ["k", "l"]);
        let of_one = store.keys_after(Some("a"), Some("k"), 9).await.unwrap();
        assert_eq!(of_one.iter().map(|one| &*one.id).collect::<Vec<_>>(), ["l"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_may_open_a_new_store_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..10 {
            let url = format!("sqlite://{}/{round}/tollgate.db", folder.path().display());
            let opening: Vec<_> = (0..8)
                .map(|_| {
                    let url = url.clone();
                    tokio::spawn(async move { Store::open(&url).await?.ping().await })
                })
                .collect();
            for opened in opening {
                opened.await.unwrap().unwrap();
            }
        }
    }
}
