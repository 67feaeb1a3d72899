//! The spool: requests in a local SQLite file, from their admission until the ledger and every other sink has them.
//!
//! A request that runs has a row of its own, rewritten as it goes on. When it has ended its record is in a batch, together with
//! others that ended in the same moment, and its row is gone: both in one transaction. Rows belong to the process that wrote them,
//! its batches are numbered by it without a gap. While an old process ends its last requests beside a new one, each delivers its own
//! batches; what the dead left is [adopted](SpoolFile::adopt). A record that cannot be read is never dropped: it is put aside for
//! the operator, and the log names it.
//!
//! At ten thousand requests a second it is the statements and the pages that they touch that cost, not the records: so few tables,
//! found by their keys alone, and nothing in them that is written twice.
//!
//! Absent: threads, clocks and waiting. This is a file and what is done to it, one call after the other; [`super::scribe`] calls.

mod adopt;
mod error;
mod journal;
mod lock;
mod log;
mod node;
mod park;
mod read;
mod space;
mod tables;
mod upgrade;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{Connection, params};
use uuid::Uuid;

pub(super) use self::adopt::Adopted;
pub use self::error::SpoolError;
pub(super) use self::error::WriteError;
pub(super) use self::journal::{Entry, Journal};
use self::lock::WriterLock;
pub(super) use self::log::LogTaker;
pub use self::node::{known_node_id, node_id};
pub(super) use self::read::{ReadBack, SpoolReader};
pub(super) use self::space::{Room, Sizes};
use super::{Durability, SpoolPlace, batch};
use crate::relay::meter::UsageRecord;

/// The sink that is always there.
pub(super) const LEDGER: &str = "ledger";

/// A frame of the log has this much beside its page.
const FRAME_HEAD_BYTES: u64 = 24;

thread_local! {
    /// How many pages the log has, as SQLite says after each commit on this thread. A hook knows nothing else.
    static LOG_PAGES: Cell<u32> = const { Cell::new(0) };
}

/// An open spool. Dropping it is what a crash is: nothing more is written, and the lock goes.
#[derive(Debug)]
pub(super) struct SpoolFile {
    connection: Connection,
    path: PathBuf,
    bytes_max: u64,
    durability: Durability,
    sizes: Sizes,
    /// This process, as its rows are marked.
    writer: Arc<str>,
    lock: WriterLock,
    /// Where clients do not wait for the disk.
    journal: Option<Arc<Journal>>,
    /// Dead writers whose batches are this process's to deliver.
    inherited: BTreeMap<Arc<str>, WriterLock>,
    /// This process's last batch.
    number: i64,
    /// Who is to have each batch; the ledger is the first.
    sinks: Vec<Box<str>>,
    /// Of each writer whose batches this process delivers, how far each of the sinks is.
    cursors: HashMap<Arc<str>, Vec<i64>>,
}

/// What is to be written, all or none.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Writes<'a> {
    /// Requests that run and have no row yet.
    pub(super) opened: &'a [(Uuid, String)],
    /// Requests that run and have gone on.
    pub(super) passed: &'a [(Uuid, String)],
    /// Requests that have a row which is to go.
    pub(super) closed: &'a [Uuid],
    /// Requests that have ended: a batch.
    pub(super) records: &'a [&'a UsageRecord],
    /// Up to which entry of the journal that is all.
    pub(super) journaled: Option<u64>,
    /// What sinks have taken.
    pub(super) acknowledged: &'a [Acknowledged],
}

/// A sink has all batches of a writer up to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) sink: Arc<str>,
    pub(super) writer: Arc<str>,
    pub(super) last: i64,
}

/// What became of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Committed {
    /// The batch's number, where there is one.
    pub(super) number: Option<i64>,
    /// How large the log is now.
    pub(super) log_bytes: u64,
}

/// Batches of one writer that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The process.
    pub(super) writer: Arc<str>,
    /// Whether its numbers may have gaps, because an earlier version wrote them.
    pub(super) legacy: bool,
    /// All numbers above this one are still to be read.
    pub(super) after: i64,
    /// The last number.
    pub(super) last: i64,
    /// How many records there are.
    pub(super) records: u64,
    /// When the request ended that waits the longest, Unix milliseconds.
    pub(super) oldest_ms: i64,
}

impl SpoolFile {
    /// Opens the spool of that place as a process of its own.
    pub(super) fn open(place: &SpoolPlace) -> Result<Self, SpoolError> {
        tables::create(&place.path)?;
        let sizes = Sizes::of(space::limit(&place.path, place.bytes_max));
        let failed = |source| SpoolError::Open { path: place.path.clone(), source };
        let connection = tables::writing(&place.path, place.durability, sizes).map_err(failed)?;
        LOG_PAGES.set(0);
        connection.wal_hook(Some(|_, pages| {
            LOG_PAGES.set(u32::try_from(pages).unwrap_or(0));
            Ok(())
        }));
        let writer: Arc<str> = Uuid::now_v7().simple().to_string().into();
        // Before there is any row of it.
        let lock = WriterLock::take(&place.path, &writer)?.ok_or(SpoolError::Closed)?;
        let configured = place.sinks.iter().map(|sink| sink.name.clone());
        let sinks = std::iter::once(LEDGER.into()).chain(configured).collect::<Vec<Box<str>>>();
        let journal = match place.durability {
            Durability::Process => Some(Journal::create(&journal::path_of(&place.path, &writer), place.bytes_max)?),
            Durability::Power => None,
        };
        let opening = in_transaction(&connection, || {
            tables::migrate(&connection)?;
            connection.execute("INSERT INTO writers (writer, legacy) VALUES (?1, 0)", [&*writer])?;
            forget_other_sinks(&connection, &sinks)?;
            remember_sinks(&connection, &writer, &sinks)?;
            Ok(())
        });
        opening.map_err(|error| match error {
            SpoolError::Database(source) => failed(source),
            other => other,
        })?;
        let spool = Self {
            connection,
            path: place.path.clone(),
            bytes_max: place.bytes_max,
            durability: place.durability,
            sizes,
            cursors: HashMap::from([(Arc::clone(&writer), vec![0; sinks.len()])]),
            writer,
            lock,
            journal: journal.map(Arc::new),
            inherited: BTreeMap::new(),
            number: 0,
            sinks,
        };
        spool.sweep()?;
        Ok(spool)
    }

    /// This process, as its rows are marked.
    pub(super) fn writer(&self) -> &Arc<str> {
        &self.writer
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Where requests that end are written first, if clients do not wait for the disk.
    pub(super) fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.as_ref()
    }

    /// One who takes the log in from another thread.
    pub(super) fn log_taker(&self) -> Result<LogTaker, SpoolError> {
        LogTaker::open(&self.path, self.durability, self.sizes)
    }

    /// Writes, all or none. When this returns the writes survive what the durability says.
    pub(super) fn commit(&mut self, writes: Writes<'_>) -> Result<Committed, WriteError> {
        let number = (!writes.records.is_empty()).then_some(self.number + 1);
        let trimmed = in_transaction(&self.connection, || {
            self.write_open(&writes)?;
            if let Some(number) = number {
                insert_batch(&self.connection, &self.writer, number, writes.records)?;
            }
            if let Some(entry) = writes.journaled {
                self.connection.prepare_cached(JOURNALED)?.execute(params![&*self.writer, entry.cast_signed()])?;
            }
            self.acknowledge(writes.acknowledged)
        })?;
        self.number = number.unwrap_or(self.number);
        if let Some((journal, entry)) = self.journal.as_ref().zip(writes.journaled) {
            journal.spooled(entry);
        }
        self.has_trimmed(trimmed);
        Ok(Committed { number, log_bytes: self.log_bytes() })
    }

    /// Keeps of a batch what could be read, and the rest elsewhere.
    pub(super) fn put_aside(
        &mut self,
        writer: &str,
        number: i64,
        readable: &[UsageRecord],
        unreadable: &str,
    ) -> Result<(), WriteError> {
        const REPLACE: &str = "UPDATE batches SET records = ?3, body = ?4 WHERE writer = ?1 AND number = ?2";
        in_transaction(&self.connection, || {
            keep_unreadable(&self.connection, writer, number, unreadable)?;
            let body = batch::encode(&readable.iter().collect::<Vec<_>>())?;
            self.connection.prepare_cached(REPLACE)?.execute(params![writer, number, readable.len() as i64, body])?;
            Ok(())
        })?;
        Ok(())
    }

    /// Takes the log into the file, as far as nobody reads it, and says how large it is still. Where it is nothing, what is written
    /// next begins it anew.
    pub(super) fn take_log_in(&mut self) -> Result<u64, WriteError> {
        let (pages, taken) = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })?;
        if pages == taken {
            LOG_PAGES.set(0);
        }
        Ok(self.log_bytes())
    }

    /// How much room there is and is used. What is free inside of the file will be used again, so it counts as free.
    pub(super) fn room(&self) -> Result<Room, SpoolError> {
        const BYTES: &str = "SELECT (page_count - freelist_count) * page_size
            FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()";
        let used: i64 = self.connection.prepare_cached(BYTES)?.query_row([], |row| row.get(0))?;
        let log = self.sizes.log_bytes_max.max(self.log_bytes());
        let journal = self.journal.as_ref().map_or(0, |journal| journal.bytes_max());
        let used = u64::try_from(used).unwrap_or(0).saturating_add(log + journal);
        Ok(Room { used, limit: space::limit(&self.path, self.bytes_max) })
    }

    /// Ends the process's part in good order: the log is in the file, and whoever comes next need not wonder whether it lives. What of
    /// the journal found no room is left to them, as after a crash.
    pub(super) fn close(self) -> Result<(), WriteError> {
        const FORGET: &str = "DELETE FROM writers WHERE writer = ?1
            AND NOT EXISTS (SELECT 1 FROM batches WHERE writer = ?1)
            AND NOT EXISTS (SELECT 1 FROM open_requests WHERE writer = ?1)";
        const FORGET_CURSORS: &str = "DELETE FROM cursors WHERE writer NOT IN (SELECT writer FROM writers)";
        let is_ahead = self.journal.as_ref().is_some_and(|journal| {
            journal.close();
            journal.is_ahead()
        });
        if !is_ahead {
            in_transaction(&self.connection, || {
                self.connection.execute(FORGET, [&*self.writer])?;
                self.connection.execute(FORGET_CURSORS, [])?;
                Ok(())
            })?;
        }
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        if !is_ahead {
            self.lock.remove();
        }
        Ok(())
    }

    fn log_bytes(&self) -> u64 {
        /// SQLite's default, which no spool has been made with another than.
        const PAGE_BYTES: u64 = 4096;
        u64::from(LOG_PAGES.get()) * (PAGE_BYTES + FRAME_HEAD_BYTES)
    }

    fn write_open(&self, writes: &Writes<'_>) -> Result<(), SpoolError> {
        // Written anew where it is there, as after a checkpoint: an id comes once.
        const OPEN: &str = "INSERT INTO open_requests (writer, id, body) VALUES (?1, ?2, ?3)
            ON CONFLICT (writer, id) DO UPDATE SET body = excluded.body";
        const PASS: &str = "UPDATE open_requests SET body = ?3 WHERE writer = ?1 AND id = ?2";
        const CLOSE: &str = "DELETE FROM open_requests WHERE writer = ?1 AND id = ?2";
        for (sql, rows) in [(OPEN, writes.opened), (PASS, writes.passed)] {
            if !rows.is_empty() {
                let mut statement = self.connection.prepare_cached(sql)?;
                for (id, body) in rows {
                    statement.execute(params![&*self.writer, id.as_bytes(), body])?;
                }
            }
        }
        if !writes.closed.is_empty() {
            let mut close = self.connection.prepare_cached(CLOSE)?;
            for id in writes.closed {
                close.execute(params![&*self.writer, id.as_bytes()])?;
            }
        }
        Ok(())
    }

    /// Moves cursors, and removes what all sinks have.
    fn acknowledge(&self, acknowledged: &[Acknowledged]) -> Result<Trimmed, SpoolError> {
        const MOVE: &str = "INSERT INTO cursors (sink, writer, number) VALUES (?1, ?2, ?3)
            ON CONFLICT (sink, writer) DO UPDATE SET number = excluded.number";
        let mut trimmed = Trimmed::default();
        for Acknowledged { sink, writer, last } in acknowledged {
            let Some(place) = self.sinks.iter().position(|name| **name == **sink) else { continue };
            let known = trimmed.cursors.remove(writer).or_else(|| self.cursors.get(writer).cloned());
            let Some(mut cursors) = known else { continue };
            if *last <= cursors[place] {
                trimmed.cursors.insert(Arc::clone(writer), cursors);
                continue;
            }
            let before = lowest(&cursors);
            cursors[place] = *last;
            self.connection.prepare_cached(MOVE)?.execute(params![&**sink, &**writer, last])?;
            let low = lowest(&cursors);
            if low > before {
                trim(&self.connection, writer, low)?;
                if self.inherited.contains_key(writer) && self.is_empty_of(writer)? {
                    forget(&self.connection, writer)?;
                    trimmed.emptied.push(Arc::clone(writer));
                }
            }
            trimmed.cursors.insert(Arc::clone(writer), cursors);
        }
        Ok(trimmed)
    }

    /// What was acknowledged is committed.
    fn has_trimmed(&mut self, trimmed: Trimmed) {
        for (writer, places) in trimmed.cursors {
            self.cursors.insert(writer, places);
        }
        for writer in trimmed.emptied {
            self.cursors.remove(&writer);
            if let Some(lock) = self.inherited.remove(&writer) {
                lock.remove();
            }
        }
    }

    fn is_empty_of(&self, writer: &str) -> rusqlite::Result<bool> {
        const ANY: &str = "SELECT NOT EXISTS (SELECT 1 FROM batches WHERE writer = ?1)";
        self.connection.prepare_cached(ANY)?.query_row([writer], |row| row.get(0))
    }
}

/// Up to which entry of a writer's journal the spool has them.
const JOURNALED: &str = "UPDATE writers SET journaled = ?2 WHERE writer = ?1";

/// What acknowledging came to, once it is committed.
#[derive(Debug, Default)]
struct Trimmed {
    cursors: HashMap<Arc<str>, Vec<i64>>,
    /// Dead writers that have nothing here any more.
    emptied: Vec<Arc<str>>,
}

/// When the request ended that ended first; 0 where there is none.
pub(super) fn oldest_ms<'a>(records: impl Iterator<Item = &'a UsageRecord>) -> i64 {
    records.map(|record| record.started_at_ms.saturating_add(record.total_ms)).min().unwrap_or(0)
}

/// Runs writes in one transaction, which is rolled back where any of them fails.
fn in_transaction<T>(connection: &Connection, writes: impl FnOnce() -> Result<T, SpoolError>) -> Result<T, SpoolError> {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    run("BEGIN IMMEDIATE")?;
    let done = writes().and_then(|done| Ok(run("COMMIT").map(|_| done)?));
    // Of some failures SQLite rolls back by itself.
    if done.is_err() && !connection.is_autocommit() {
        run("ROLLBACK")?;
    }
    done
}

fn insert_batch(
    connection: &Connection,
    writer: &str,
    number: i64,
    records: &[&UsageRecord],
) -> Result<(), SpoolError> {
    const INSERT: &str = "INSERT INTO batches (writer, number, records, oldest_ms, body) VALUES (?1, ?2, ?3, ?4, ?5)";
    let body = batch::encode(records)?;
    let oldest_ms = oldest_ms(records.iter().copied());
    connection.prepare_cached(INSERT)?.execute(params![writer, number, records.len() as i64, oldest_ms, body])?;
    Ok(())
}

fn keep_unreadable(connection: &Connection, writer: &str, number: i64, unreadable: &str) -> rusqlite::Result<()> {
    const KEEP: &str = "INSERT INTO unreadable_batches (writer, number, body) VALUES (?1, ?2, ?3)
        ON CONFLICT (writer, number) DO NOTHING";
    connection.prepare_cached(KEEP)?.execute(params![writer, number, unreadable])?;
    Ok(())
}

/// What every sink has.
fn lowest(cursors: &[i64]) -> i64 {
    cursors.iter().copied().min().unwrap_or(0)
}

/// Removes what every sink has.
fn trim(connection: &Connection, writer: &str, lowest: i64) -> rusqlite::Result<()> {
    const TRIM: &str = "DELETE FROM batches WHERE writer = ?1 AND number <= ?2";
    connection.prepare_cached(TRIM)?.execute(params![writer, lowest])?;
    Ok(())
}

/// Nothing is left of a writer.
fn forget(connection: &Connection, writer: &str) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM cursors WHERE writer = ?1")?.execute([writer])?;
    connection.prepare_cached("DELETE FROM writers WHERE writer = ?1")?.execute([writer])?;
    Ok(())
}

/// A sink that is configured no more would hold back every batch for ever.
fn forget_other_sinks(connection: &Connection, sinks: &[Box<str>]) -> rusqlite::Result<()> {
    let mut known = connection.prepare_cached("SELECT DISTINCT sink FROM cursors")?;
    for sink in known.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()? {
        if !sinks.iter().any(|configured| **configured == *sink) {
            connection.execute("DELETE FROM cursors WHERE sink = ?1", [&sink])?;
            tracing::warn!(sink, "this sink is configured no more; what it had not taken it will not get");
        }
    }
    Ok(())
}

/// So that whoever starts without one of them can say so, though it never took anything.
fn remember_sinks(connection: &Connection, writer: &str, sinks: &[Box<str>]) -> rusqlite::Result<()> {
    let mut remember = connection.prepare_cached("INSERT INTO cursors (sink, writer, number) VALUES (?1, ?2, 0)")?;
    for sink in sinks {
        remember.execute(params![&**sink, writer])?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) use self::tests::{open_row, place, record, sink};

#[cfg(test)]
mod tests;
