//! The spool: finished requests in a local SQLite file, from their end until the ledger has them.
//!
//! A row is a record as JSON, so that a file written by another version can be read. Rows belong to the process that wrote them:
//! while an old process ends its last requests beside a new one, each settles its own rows, and the new one what was there when
//! it began. A row that cannot be read is never dropped: it is put aside for the operator, and the log names it.
//!
//! Each call is one statement for all its rows. At a thousand requests a second it is the statements that cost, not the rows.

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use thiserror::Error;
use uuid::Uuid;

use super::state::BillingState;
use super::{Durability, SpoolPlace};
use crate::relay::meter::UsageRecord;

/// How long a write waits for another process at the same file.
const BUSY_SECONDS_MAX: u64 = 10;

const CREATE_RECORDS: &str = "CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    writer TEXT NOT NULL,
    ended_at_ms INTEGER NOT NULL,
    record TEXT NOT NULL
)";

const CREATE_UNREADABLE: &str = "CREATE TABLE IF NOT EXISTS unreadable (
    id INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL,
    record TEXT NOT NULL
)";

/// Why the spool could not do what it was asked. The messages are for the operator.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The file, or the folder that it is to be in, cannot be made.
    #[error("cannot create the spool {}: {source}", path.display())]
    Create {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is there but is no spool, cannot be read, or the like.
    #[error("cannot open the spool {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The database's reason.
        source: sqlx::Error,
    },
    /// The file cannot be read or written now.
    #[error("the spool failed: {0}")]
    Database(#[from] sqlx::Error),
    /// A record cannot be written as JSON.
    #[error("a record cannot be spooled: {0}")]
    Record(#[from] serde_json::Error),
}

/// An open spool.
#[derive(Debug)]
pub(super) struct Spool {
    /// One connection: there is one writer, and one reader beside it that waits its turn.
    pool: SqlitePool,
    /// This process, as its rows are marked.
    writer: String,
    /// The last row that an earlier process left.
    left_behind_id: i64,
    bytes_max: u64,
    state: Arc<BillingState>,
}

/// A record in the spool.
#[derive(Debug)]
pub(super) struct Spooled {
    pub(super) id: i64,
    pub(super) record: UsageRecord,
    /// Whether this process wrote it; otherwise an earlier one did.
    pub(super) own: bool,
}

impl Spool {
    pub(super) async fn open(place: &SpoolPlace, state: Arc<BillingState>) -> Result<Self, SpoolError> {
        create(&place.path)?;
        let synchronous = match place.durability {
            Durability::Process => SqliteSynchronous::Normal,
            Durability::Power => SqliteSynchronous::Full,
        };
        let options = SqliteConnectOptions::new()
            .filename(&place.path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .busy_timeout(Duration::from_secs(BUSY_SECONDS_MAX));
        let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let failed = |source| SpoolError::Open { path: place.path.clone(), source };
        let pool = pool.connect_with(options).await.map_err(failed)?;
        for create in [CREATE_RECORDS, CREATE_UNREADABLE] {
            sqlx::query(create).execute(&pool).await.map_err(failed)?;
        }
        let last = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM records");
        let left_behind_id = last.fetch_one(&pool).await.map_err(failed)?;
        let spool = Self {
            pool,
            writer: Uuid::now_v7().simple().to_string(),
            left_behind_id,
            bytes_max: place.bytes_max,
            state,
        };
        spool.measure().await?;
        Ok(spool)
    }

    /// Makes records durable, all or none. May be repeated: a record that is there already stays as it is.
    pub(super) async fn append(&self, records: &[&UsageRecord]) -> Result<(), SpoolError> {
        const INSERT: &str = "INSERT INTO records (request_id, writer, ended_at_ms, record)
            SELECT value->>'request_id', $1, value->>'started_at_ms' + value->>'total_ms', value FROM json_each($2)
            WHERE TRUE ON CONFLICT (request_id) DO NOTHING";
        let records = serde_json::to_string(records)?;
        sqlx::query(INSERT).bind(&self.writer).bind(records).execute(&self.pool).await?;
        self.report().await;
        Ok(())
    }

    /// The records that have waited the longest, at most `rows_max`; none where none wait.
    pub(super) async fn oldest(&self, rows_max: u32) -> Result<Vec<Spooled>, SpoolError> {
        const SELECT: &str = "SELECT id, writer = $1, record FROM records
            WHERE writer = $1 OR id <= $2 ORDER BY id LIMIT $3";
        loop {
            let rows = sqlx::query_as(SELECT).bind(&self.writer).bind(self.left_behind_id).bind(rows_max);
            let rows: Vec<(i64, bool, String)> = rows.fetch_all(&self.pool).await?;
            let mut unreadable = Vec::new();
            let readable: Vec<Spooled> = rows
                .into_iter()
                .filter_map(|(id, own, record)| match serde_json::from_str(&record) {
                    Ok(record) => Some(Spooled { id, record, own }),
                    Err(error) => {
                        tracing::error!(row = id, %error, "a spooled record cannot be read; it is put aside, unbilled");
                        unreadable.push(id);
                        None
                    }
                })
                .collect();
            if unreadable.is_empty() {
                return Ok(readable);
            }
            self.put_aside(&unreadable).await?;
        }
    }

    /// Removes records that the ledger has.
    pub(super) async fn remove(&self, ids: &[i64]) -> Result<(), SpoolError> {
        const DELETE: &str = "DELETE FROM records WHERE id IN (SELECT value FROM json_each($1))";
        sqlx::query(DELETE).bind(serde_json::to_string(ids)?).execute(&self.pool).await?;
        self.report().await;
        Ok(())
    }

    async fn put_aside(&self, ids: &[i64]) -> Result<(), SpoolError> {
        const COPY: &str = "INSERT INTO unreadable (id, request_id, record)
            SELECT id, request_id, record FROM records WHERE id IN (SELECT value FROM json_each($1))
            ON CONFLICT (id) DO NOTHING";
        sqlx::query(COPY).bind(serde_json::to_string(ids)?).execute(&self.pool).await?;
        self.remove(ids).await
    }

    /// Closes the file; what was written is in it.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Tells how full the spool is. That it cannot be told is no failure of what was done before.
    async fn report(&self) {
        if let Err(error) = self.measure().await {
            tracing::warn!(%error, "the spool cannot be measured");
        }
    }

    /// Ids are given out without gaps worth speaking of and removed from the oldest on, so the distance of the last from the
    /// first is their number, without counting them.
    async fn measure(&self) -> Result<(), SpoolError> {
        const EXTENT: &str = "SELECT
            COALESCE((SELECT id FROM records ORDER BY id DESC LIMIT 1), -1),
            COALESCE((SELECT id FROM records ORDER BY id LIMIT 1), 0),
            (SELECT ended_at_ms FROM records ORDER BY id LIMIT 1),
            (SELECT page_count - freelist_count FROM pragma_page_count(), pragma_freelist_count()),
            (SELECT page_size FROM pragma_page_size())";
        let (last, first, oldest_ms, pages, page_bytes): (i64, i64, Option<i64>, i64, i64) =
            sqlx::query_as(EXTENT).fetch_one(&self.pool).await?;
        let records = u64::try_from(last - first + 1).unwrap_or(0);
        let bytes = u64::try_from(pages.saturating_mul(page_bytes)).unwrap_or(0);
        self.state.set_spooled(records, oldest_ms);
        self.state.set_spool_full(bytes >= self.bytes_max);
        Ok(())
    }
}

/// Creates file and folder where there are none, closed to everyone but their owner.
fn create(path: &Path) -> Result<(), SpoolError> {
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::relay::meter::{NanoUsd, Usage};

    pub(in crate::billing) fn place(folder: &tempfile::TempDir) -> SpoolPlace {
        SpoolPlace { path: folder.path().join("data/spool.db"), bytes_max: u64::MAX, durability: Durability::Process }
    }

    pub(in crate::billing) fn record(number: u128) -> UsageRecord {
        UsageRecord {
            request_id: Uuid::from_u128(number),
            account_id: "acct_1".into(),
            key_id: "key_1".into(),
            model: "Pro/moonshotai/Kimi-K2.6".into(),
            provider: "moonshot".into(),
            status: 200,
            usage: Usage { input: 7, output: 3, ..Usage::default() },
            cost: NanoUsd(100),
            estimated: false,
            interrupted: true,
            started_at_ms: 1_700_000_000_000 + i64::try_from(number).unwrap(),
            first_token_ms: Some(12),
            total_ms: 500,
        }
    }

    fn ids(rows: &[Spooled]) -> Vec<i64> {
        rows.iter().map(|row| row.id).collect()
    }

    async fn open(place: &SpoolPlace) -> (Spool, Arc<BillingState>) {
        let state = Arc::new(BillingState::default());
        (Spool::open(place, Arc::clone(&state)).await.unwrap(), state)
    }

    #[tokio::test]
    async fn keeps_records_in_order_until_they_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, state) = open(&place(&folder)).await;
        assert_eq!((state.spooled(), state.oldest_ms()), (0, None));
        let records: Vec<_> = (1..=5).map(record).collect();
        spool.append(&records.iter().collect::<Vec<_>>()).await.unwrap();
        spool.append(&records.iter().collect::<Vec<_>>()).await.unwrap();
        assert_eq!((state.spooled(), state.oldest_ms()), (5, Some(1_700_000_000_501)));
        let oldest = spool.oldest(3).await.unwrap();
        assert!(oldest.iter().all(|row| row.own));
        assert!(oldest.iter().map(|row| &row.record).eq(&records[..3]));
        spool.remove(&ids(&oldest)).await.unwrap();
        assert_eq!((state.spooled(), state.oldest_ms()), (2, Some(1_700_000_000_504)));
        assert_eq!(spool.oldest(3).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_full_spool_says_so_until_it_is_drained() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, state) = open(&SpoolPlace { bytes_max: 64 * 1024, ..place(&folder) }).await;
        let records: Vec<_> = (1..=500).map(record).collect();
        spool.append(&records.iter().collect::<Vec<_>>()).await.unwrap();
        assert!(state.spool_full() && !state.can_record());
        let oldest = spool.oldest(500).await.unwrap();
        spool.remove(&ids(&oldest)).await.unwrap();
        assert!(!state.spool_full() && state.can_record());
    }

    #[tokio::test]
    async fn a_damaged_row_is_kept_and_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, state) = open(&place(&folder)).await;
        spool.append(&[&record(1), &record(2)]).await.unwrap();
        sqlx::query("UPDATE records SET record = '{}' WHERE id = 1").execute(&spool.pool).await.unwrap();
        let readable = spool.oldest(1).await.unwrap();
        assert_eq!(readable[0].record, record(2));
        assert_eq!(state.spooled(), 1);
        spool.remove(&ids(&readable)).await.unwrap();
        assert!(spool.oldest(10).await.unwrap().is_empty());
        let kept = sqlx::query_scalar("SELECT request_id FROM unreadable");
        let kept: Vec<String> = kept.fetch_all(&spool.pool).await.unwrap();
        assert_eq!(kept, [record(1).request_id.to_string()]);
    }

    #[tokio::test]
    async fn two_processes_settle_their_own_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (old, _) = open(&place(&folder)).await;
        old.append(&[&record(1)]).await.unwrap();
        let (new, _) = open(&place(&folder)).await;
        old.append(&[&record(2)]).await.unwrap();
        new.append(&[&record(3)]).await.unwrap();
        let numbers = |rows: Vec<Spooled>| -> Vec<_> {
            rows.into_iter().map(|row| (row.record.request_id.as_u128(), row.own)).collect()
        };
        assert_eq!(numbers(old.oldest(9).await.unwrap()), [(1, true), (2, true)]);
        assert_eq!(numbers(new.oldest(9).await.unwrap()), [(1, false), (3, true)]);
    }

    #[tokio::test]
    async fn every_field_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = open(&place(&folder)).await;
        let most = u64::MAX;
        let full = UsageRecord {
            model: "quoted \"\\ \u{1F600}".into(),
            usage: Usage {
                input: most,
                cache_read: 1,
                cache_write_5m: 2,
                cache_write_1h: 3,
                output: most - 1,
                reasoning: 4,
            },
            cost: NanoUsd(i64::MAX),
            estimated: true,
            interrupted: false,
            first_token_ms: None,
            request_id: Uuid::from_u128(u128::MAX),
            ..record(1)
        };
        spool.append(&[&full]).await.unwrap();
        assert_eq!(spool.oldest(1).await.unwrap()[0].record, full);
    }

    #[tokio::test]
    async fn what_is_no_spool_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        std::fs::create_dir_all(place.path.parent().unwrap()).unwrap();
        std::fs::write(&place.path, "this is a text of more than sixteen characters, and no database").unwrap();
        let error = Spool::open(&place, Arc::default()).await.unwrap_err().to_string();
        assert!(error.contains("spool.db") && error.contains("not a database"), "{error}");
    }
}
