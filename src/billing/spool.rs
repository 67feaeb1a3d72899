//! The spool: finished requests in a local SQLite file, from their end until the ledger has them.
//!
//! A row is a batch of records, written together. Batches belong to the process that wrote them and are numbered by it: while an
//! old process ends its last requests beside a new one, each settles its own batches, and the new one what was there when it
//! began. A record that cannot be read is never dropped: it is put aside for the operator, and the log names it.
//!
//! Each call is one statement. At ten thousand requests a second it is the statements and the pages that they touch that cost, not
//! the records: so one table, found by its key alone, and nothing in it that is written twice.

mod upgrade;

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};
use thiserror::Error;
use uuid::Uuid;

use super::batch;
use super::state::BillingState;
use super::{Durability, SpoolPlace};
use crate::relay::meter::UsageRecord;

/// How long a write waits for another process at the same file.
const BUSY_SECONDS_MAX: u64 = 10;

/// The file is measured when what was written since is this part of what it may hold, and whenever something was removed.
const MEASURED_PARTS: u64 = 64;

/// `writer` begins with the time at which the process began, so that keys are in the order of writing.
const CREATE_BATCHES: &str = "CREATE TABLE IF NOT EXISTS batches (
    writer TEXT NOT NULL,
    number INTEGER NOT NULL,
    records INTEGER NOT NULL,
    oldest_ms INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (writer, number)
) WITHOUT ROWID";

const CREATE_UNREADABLE: &str = "CREATE TABLE IF NOT EXISTS unreadable_batches (
    writer TEXT NOT NULL,
    number INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (writer, number)
) WITHOUT ROWID";

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
    /// This process, as its batches are marked.
    writer: Arc<str>,
    bytes_max: u64,
    /// What was written since the file was measured.
    bytes_unmeasured: AtomicU64,
    state: Arc<BillingState>,
}

/// Batches of one process that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The process.
    pub(super) writer: Arc<str>,
    /// All numbers above this one are still to be read.
    pub(super) after: i64,
    /// The last number.
    pub(super) last: i64,
    /// How many records there are.
    pub(super) records: u64,
    /// When the request ended that waits the longest, Unix milliseconds.
    pub(super) oldest_ms: i64,
}

/// Records that were read back, the oldest of a stretch.
#[derive(Debug, Default)]
pub(super) struct ReadBack {
    pub(super) records: Vec<UsageRecord>,
    /// The last batch that they are of; `None` where the stretch is at its end.
    pub(super) last: Option<i64>,
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
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            // A file's connection does not go stale, and asking it costs as much as a statement.
            .test_before_acquire(false);
        let failed = |source| SpoolError::Open { path: place.path.clone(), source };
        let pool = pool.connect_with(options).await.map_err(failed)?;
        for create in [CREATE_BATCHES, CREATE_UNREADABLE] {
            sqlx::query(create).execute(&pool).await.map_err(failed)?;
        }
        upgrade::take_over(&pool).await?;
        let spool = Self {
            pool,
            writer: Uuid::now_v7().simple().to_string().into(),
            bytes_max: place.bytes_max,
            bytes_unmeasured: AtomicU64::new(0),
            state,
        };
        spool.measure().await?;
        Ok(spool)
    }

    /// This process, as its batches are marked.
    pub(super) fn writer(&self) -> &Arc<str> {
        &self.writer
    }

    /// What others have written so far, and not removed; the oldest first.
    pub(super) async fn left_behind(&self) -> Result<Vec<Stretch>, SpoolError> {
        const STRETCHES: &str = "SELECT writer, MIN(number) - 1, MAX(number), SUM(records), MIN(oldest_ms)
            FROM batches WHERE writer <> $1 GROUP BY writer ORDER BY writer";
        let stretches = sqlx::query_as(STRETCHES).bind(&*self.writer).fetch_all(&self.pool).await?;
        let stretch = |(writer, after, last, records, oldest_ms): (String, _, _, i64, _)| Stretch {
            writer: writer.into(),
            after,
            last,
            records: u64::try_from(records).unwrap_or(0),
            oldest_ms,
        };
        Ok(stretches.into_iter().map(stretch).collect())
    }

    /// Makes records durable, all or none, as this process's batch of that number. May be repeated: a batch that is there already
    /// stays as it is.
    pub(super) async fn append(&self, number: i64, records: &[&UsageRecord]) -> Result<(), SpoolError> {
        const INSERT: &str = "INSERT INTO batches (writer, number, records, oldest_ms, body)
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (writer, number) DO NOTHING";
        let body = batch::encode(records)?;
        let bytes = body.len() as u64;
        sqlx::query(INSERT)
            .bind(Arc::clone(&self.writer))
            .bind(number)
            .bind(i64::try_from(records.len()).unwrap_or(i64::MAX))
            .bind(oldest_ms(records.iter().copied()))
            .bind(body)
            .execute(&self.pool)
            .await?;
        let unmeasured = self.bytes_unmeasured.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if unmeasured > self.bytes_max / MEASURED_PARTS {
            self.report().await;
        }
        Ok(())
    }

    /// The records of the stretch's oldest batches: at least one batch where there is one, and no more once they are
    /// `records_max`. What cannot be read is put aside.
    pub(super) async fn read(&self, stretch: &Stretch, records_max: usize) -> Result<ReadBack, SpoolError> {
        const SELECT: &str = "SELECT number, body FROM batches
            WHERE writer = $1 AND number > $2 AND number <= $3 ORDER BY number LIMIT 1";
        let mut read = ReadBack::default();
        while read.records.len() < records_max {
            let after = read.last.unwrap_or(stretch.after);
            let row = sqlx::query_as(SELECT).bind(&*stretch.writer).bind(after).bind(stretch.last);
            let Some((number, body)): Option<(i64, String)> = row.fetch_optional(&self.pool).await? else { break };
            let batch = batch::decode(&body);
            if let Some(unreadable) = &batch.unreadable {
                tracing::error!(
                    batch = %format_args!("{}/{number}", stretch.writer),
                    "spooled records cannot be read; they are put aside, unbilled, in the table unreadable_batches"
                );
                self.put_aside(&stretch.writer, number, &batch.records, unreadable).await?;
            }
            read.records.extend(batch.records);
            read.last = Some(number);
        }
        Ok(read)
    }

    /// Removes a process's batches from one number to another: the ledger has them.
    pub(super) async fn remove(&self, writer: &str, first: i64, last: i64) -> Result<(), SpoolError> {
        const DELETE: &str = "DELETE FROM batches WHERE writer = $1 AND number BETWEEN $2 AND $3";
        sqlx::query(DELETE).bind(writer).bind(first).bind(last).execute(&self.pool).await?;
        self.report().await;
        Ok(())
    }

    /// Keeps of a batch what could be read, and the rest elsewhere.
    async fn put_aside(
        &self,
        writer: &str,
        number: i64,
        readable: &[UsageRecord],
        unreadable: &str,
    ) -> Result<(), SpoolError> {
        const KEEP: &str = "INSERT INTO unreadable_batches (writer, number, body) VALUES ($1, $2, $3)
            ON CONFLICT (writer, number) DO NOTHING";
        const REPLACE: &str = "UPDATE batches SET records = $3, body = $4 WHERE writer = $1 AND number = $2";
        let mut transaction = self.write().await?;
        sqlx::query(KEEP).bind(writer).bind(number).bind(unreadable).execute(&mut *transaction).await?;
        let body = batch::encode(&readable.iter().collect::<Vec<_>>())?;
        sqlx::query(REPLACE)
            .bind(writer)
            .bind(number)
            .bind(i64::try_from(readable.len()).unwrap_or(i64::MAX))
            .bind(body)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>, SpoolError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
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

    async fn measure(&self) -> Result<(), SpoolError> {
        const BYTES: &str = "SELECT (page_count - freelist_count) * page_size
            FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()";
        self.bytes_unmeasured.store(0, Ordering::Relaxed);
        let bytes: i64 = sqlx::query_scalar(BYTES).fetch_one(&self.pool).await?;
        self.state.set_spool_full(u64::try_from(bytes).unwrap_or(0) >= self.bytes_max);
        Ok(())
    }
}

/// When the request ended that ended first; 0 where there is none.
pub(super) fn oldest_ms<'a>(records: impl Iterator<Item = &'a UsageRecord>) -> i64 {
    records.map(|record| record.started_at_ms.saturating_add(record.total_ms)).min().unwrap_or(0)
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

    impl Spool {
        /// Makes a batch unreadable.
        pub(in crate::billing) async fn damage(&self, number: i64) {
            let damage = sqlx::query("UPDATE batches SET body = 'x' || body WHERE number = $1").bind(number);
            damage.execute(&self.pool).await.unwrap();
        }

        /// Lets every removal fail, or not any more.
        pub(in crate::billing) async fn refuse_removal(&self, refuse: bool) {
            let trigger = match refuse {
                true => "CREATE TRIGGER refuse BEFORE DELETE ON batches BEGIN SELECT RAISE(ABORT, 'refused'); END",
                false => "DROP TRIGGER refuse",
            };
            sqlx::query(trigger).execute(&self.pool).await.unwrap();
        }

        /// Another handle on the same connection.
        pub(in crate::billing) fn other(&self) -> Self {
            Self {
                pool: self.pool.clone(),
                writer: Arc::clone(&self.writer),
                bytes_max: self.bytes_max,
                bytes_unmeasured: AtomicU64::new(0),
                state: Arc::clone(&self.state),
            }
        }
    }

    async fn open(place: &SpoolPlace) -> (Spool, Arc<BillingState>) {
        let state = Arc::new(BillingState::default());
        (Spool::open(place, Arc::clone(&state)).await.unwrap(), state)
    }

    /// All batches of a spool from the first to that one.
    fn own(spool: &Spool, last: i64) -> Stretch {
        Stretch { writer: Arc::clone(&spool.writer), after: 0, last, records: 0, oldest_ms: 0 }
    }

    #[tokio::test]
    async fn keeps_batches_in_order_until_they_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = open(&place(&folder)).await;
        let records: Vec<_> = (1..=5).map(record).collect();
        for _ in 0..2 {
            spool.append(1, &records[..2].iter().collect::<Vec<_>>()).await.unwrap();
            spool.append(2, &[&records[2]]).await.unwrap();
            spool.append(3, &records[3..].iter().collect::<Vec<_>>()).await.unwrap();
        }
        let all = spool.read(&own(&spool, 9), 100).await.unwrap();
        assert_eq!((all.records, all.last), (records.clone(), Some(3)), "each once, though written twice");
        let oldest = spool.read(&own(&spool, 9), 3).await.unwrap();
        assert_eq!((oldest.records.len(), oldest.last), (3, Some(2)));
        spool.remove(spool.writer(), 1, 2).await.unwrap();
        let rest = spool.read(&own(&spool, 9), 100).await.unwrap();
        assert_eq!((&*rest.records, rest.last), (&records[3..], Some(3)));
        assert_eq!(spool.read(&own(&spool, 2), 100).await.unwrap().last, None);
    }

    #[tokio::test]
    async fn a_full_spool_says_so_until_it_is_drained() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, state) = open(&SpoolPlace { bytes_max: 64 * 1024, ..place(&folder) }).await;
        let records: Vec<_> = (1..=100).map(record).collect();
        let mut last = 0;
        while state.can_record() {
            assert!(last < 100);
            last += 1;
            spool.append(last, &records.iter().collect::<Vec<_>>()).await.unwrap();
        }
        assert!(state.spool_full());
        spool.remove(spool.writer(), 1, last).await.unwrap();
        assert!(!state.spool_full() && state.can_record());
    }

    #[tokio::test]
    async fn a_damaged_record_is_kept_and_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = open(&place(&folder)).await;
        spool.append(1, &[&record(1), &record(2)]).await.unwrap();
        spool.append(2, &[&record(3)]).await.unwrap();
        spool.append(3, &[&record(4)]).await.unwrap();
        let doctor = "UPDATE batches SET body = CASE number WHEN 1 THEN REPLACE(body, $1, '?') ELSE 'x' || body END
            WHERE number < 3";
        sqlx::query(doctor).bind(record(1).request_id.to_string()).execute(&spool.pool).await.unwrap();
        for _ in 0..2 {
            let read = spool.read(&own(&spool, 9), 100).await.unwrap();
            assert_eq!((read.records, read.last), (vec![record(2), record(4)], Some(3)));
        }
        spool.remove(spool.writer(), 1, 3).await.unwrap();
        let kept = sqlx::query_as("SELECT number, body FROM unreadable_batches ORDER BY number");
        let kept: Vec<(i64, String)> = kept.fetch_all(&spool.pool).await.unwrap();
        assert_eq!(kept.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2]);
        assert!(kept[0].1.contains("\"?\"") && !kept[0].1.contains(&record(2).request_id.to_string()));
        assert_eq!(batch::decode(&kept[1].1[1..]).records, [record(3)]);
    }

    #[tokio::test]
    async fn two_processes_settle_their_own_batches() {
        let folder = tempfile::tempdir().unwrap();
        let (old, _) = open(&place(&folder)).await;
        assert_eq!(old.left_behind().await.unwrap(), []);
        old.append(1, &[&record(1)]).await.unwrap();
        old.append(2, &[&record(2), &record(3)]).await.unwrap();
        old.remove(old.writer(), 1, 1).await.unwrap();
        let (new, _) = open(&place(&folder)).await;
        let left_behind = new.left_behind().await.unwrap();
        let writer = Arc::clone(old.writer());
        assert_eq!(left_behind, [Stretch { writer, after: 1, last: 2, records: 2, oldest_ms: 1_700_000_000_502 }]);
        old.append(3, &[&record(4)]).await.unwrap();
        new.append(1, &[&record(5)]).await.unwrap();
        assert_eq!(new.read(&left_behind[0], 100).await.unwrap().records, [record(2), record(3)]);
        assert_eq!(new.read(&own(&new, 9), 100).await.unwrap().records, [record(5)]);
        new.remove(old.writer(), 1, 2).await.unwrap();
        assert_eq!(old.read(&own(&old, 9), 100).await.unwrap().records, [record(4)]);
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
