//! The spool's tables, and how connections to its file are set up.

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::{Sizes, SpoolError};
use crate::billing::Durability;

/// How long a write waits for another process at the same file.
const BUSY_SECONDS_MAX: u64 = 10;

/// How many statements a connection keeps prepared: more than there are.
const STATEMENTS_MAX: usize = 64;

/// `writer` begins with the time at which the process began, so that keys are in the order of writing.
///
/// - `writers`: the processes that have rows here. The batches of a `legacy` one were written by a version that did not number them
///   without a gap. Up to the entry `journaled` what is in a writer's journal is in its batches too.
/// - `open_requests`: requests that run.
/// - `batches`: finished requests, written together.
/// - `cursors`: up to which of a writer's batches each sink has them.
/// - `unreadable_batches`, `parked_events`: what is there for the operator, because it cannot be read, or because a sink refuses it.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS writers (
    writer TEXT NOT NULL PRIMARY KEY,
    legacy INTEGER NOT NULL,
    journaled INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open_requests (
    writer TEXT NOT NULL,
    id BLOB NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (writer, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    writer TEXT NOT NULL,
    number INTEGER NOT NULL,
    records INTEGER NOT NULL,
    oldest_ms INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (writer, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (
    sink TEXT NOT NULL,
    writer TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (sink, writer)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unreadable_batches (
    writer TEXT NOT NULL,
    number INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (writer, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parked_events (
    sink TEXT NOT NULL,
    id TEXT NOT NULL,
    parked_at_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (sink, id)
) WITHOUT ROWID;";

/// Batches of writers that are not known are of a version that did not number them without a gap. One writer is looked for after the
/// other, for the batches are many and their writers few.
const ENTER_LEGACY: &str = "
WITH RECURSIVE found (writer) AS (
    SELECT MIN(writer) FROM batches
    UNION ALL
    SELECT (SELECT MIN(writer) FROM batches WHERE batches.writer > found.writer) FROM found WHERE found.writer IS NOT NULL
)
INSERT OR IGNORE INTO writers (writer, legacy) SELECT writer, 1 FROM found WHERE writer IS NOT NULL";

/// Creates file and folder where there are none, closed to everyone but their owner.
pub(super) fn create(path: &Path) -> Result<(), SpoolError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| SpoolError::Create { path, source }
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

/// The connection that writes. Nothing happens on it by itself: when the log is taken into the file is decided elsewhere, so that
/// what goes wrong then is seen, and closing it writes nothing.
pub(super) fn writing(path: &Path, durability: Durability, sizes: Sizes) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(BUSY_SECONDS_MAX))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Another process may have turned the log on in the same moment, which is refused without waiting.
    let mut tries = 0;
    while let Err(error) = connection.pragma_update(None, "journal_mode", "WAL") {
        tries += 1;
        if tries > 100 || error.sqlite_error_code() != Some(rusqlite::ErrorCode::DatabaseBusy) {
            return Err(error);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "journal_size_limit", i64::try_from(sizes.log_bytes_max).unwrap_or(i64::MAX))?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn reading(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(BUSY_SECONDS_MAX))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

/// Brings the tables to this version, and enters the writers of batches that an earlier one left.
pub(super) fn migrate(connection: &Connection) -> rusqlite::Result<()> {
    const HAS_JOURNALED: &str = "SELECT COUNT(*) > 0 FROM pragma_table_info('writers') WHERE name = 'journaled'";
    connection.execute_batch(TABLES)?;
    if !connection.query_row(HAS_JOURNALED, [], |row| row.get::<_, bool>(0))? {
        // Of a version without a journal, which may still be ending its last requests; to it the column is nothing.
        connection.execute_batch("ALTER TABLE writers ADD COLUMN journaled INTEGER NOT NULL DEFAULT 0")?;
    }
    super::upgrade::take_over(connection)?;
    connection.execute(ENTER_LEGACY, [])?;
    Ok(())
}
