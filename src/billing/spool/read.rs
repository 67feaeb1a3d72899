//! Reading the spool beside the one that writes it, which neither waits for the other.

use std::borrow::Cow;
use std::path::Path;

use rusqlite::{Connection, Row, params};

use super::{LEDGER, SpoolError, Stretch, tables};
use crate::billing::batch;
use crate::relay::meter::UsageRecord;

/// The spool, read only.
#[derive(Debug)]
pub(in crate::billing) struct SpoolReader(Connection);

/// What was read back: the oldest batches of a stretch, numbered without a gap unless they are of an earlier version.
#[derive(Debug, Default, PartialEq)]
pub(in crate::billing) struct ReadBack {
    pub(in crate::billing) batches: Vec<ReadBatch>,
}

#[derive(Debug, PartialEq)]
pub(in crate::billing) struct ReadBatch {
    pub(in crate::billing) number: i64,
    pub(in crate::billing) records: Vec<UsageRecord>,
    /// What of it could not be read.
    pub(in crate::billing) unreadable: Option<String>,
}

impl ReadBack {
    pub(in crate::billing) fn first(&self) -> Option<i64> {
        self.batches.first().map(|batch| batch.number)
    }

    /// Without the last batches, so many that there are no more records than that, or one batch.
    pub(in crate::billing) fn within(mut self, records_max: usize) -> Self {
        let mut records: usize = self.batches.iter().map(|batch| batch.records.len()).sum();
        while records > records_max && self.batches.len() > 1 {
            records -= self.batches.pop().map_or(0, |batch| batch.records.len());
        }
        self
    }

    /// The last batch; `None` where the stretch is at its end.
    pub(in crate::billing) fn last(&self) -> Option<i64> {
        self.batches.last().map(|batch| batch.number)
    }
}

impl SpoolReader {
    pub(in crate::billing) fn open(path: &Path) -> Result<Self, SpoolError> {
        let failed = |source| SpoolError::Open { path: path.to_owned(), source };
        Ok(Self(tables::reading(path).map_err(failed)?))
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.0
    }

    /// The stretch's oldest batches: at least one where there is one, and no more once there are `records_max` records, or once
    /// numbers are left out. Each batch is a read of its own, so that a long one holds nobody up.
    pub(in crate::billing) fn read(&self, stretch: &Stretch, records_max: usize) -> Result<ReadBack, SpoolError> {
        const SELECT: &str = "SELECT number, body FROM batches
            WHERE writer = ?1 AND number > ?2 AND number <= ?3 ORDER BY number LIMIT 1";
        let mut select = self.0.prepare_cached(SELECT)?;
        let mut read = ReadBack::default();
        let mut records = 0;
        while records < records_max {
            let after = read.last().unwrap_or(stretch.after);
            let mut rows = select.query(params![&*stretch.writer, after, stretch.last])?;
            let Some(row) = rows.next()? else { break };
            let number = row.get(0)?;
            if read.last().is_some_and(|last| number != last + 1) && !stretch.legacy {
                break;
            }
            let batch::Read { records: readable, unreadable } = batch::decode(&text(row, 1)?);
            records += readable.len();
            read.batches.push(ReadBatch { number, records: readable, unreadable });
        }
        Ok(read)
    }

    /// Everyone else who has rows here.
    pub(in crate::billing) fn others(&self, own: &str) -> Result<Vec<String>, SpoolError> {
        let mut select = self.0.prepare_cached("SELECT writer FROM writers WHERE writer <> ?1")?;
        let writers = select.query_map([own], |row| row.get(0))?;
        Ok(writers.collect::<rusqlite::Result<_>>()?)
    }

    /// The rows of a writer's open requests.
    pub(in crate::billing) fn open_rows(&self, writer: &str, mut each: impl FnMut(&str)) -> Result<(), SpoolError> {
        let mut select = self.0.prepare_cached("SELECT body FROM open_requests WHERE writer = ?1")?;
        let mut rows = select.query([writer])?;
        while let Some(row) = rows.next()? {
            each(&text(row, 0)?);
        }
        Ok(())
    }

    /// The rows of everyone's open requests, with their ids. Of a spool that was never opened by this version, none.
    pub(in crate::billing) fn all_open_rows(&self, mut each: impl FnMut(&[u8], &str)) -> Result<(), SpoolError> {
        const IS_THERE: &str = "SELECT COUNT(*) FROM sqlite_schema WHERE name = 'open_requests'";
        if self.0.query_row(IS_THERE, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(());
        }
        let mut select = self.0.prepare_cached("SELECT id, body FROM open_requests")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let id = row.get_ref(0)?.as_bytes_or_null().ok().flatten().unwrap_or_default();
            each(id, &text(row, 1)?);
        }
        Ok(())
    }

    /// A writer's next batch that the ledger does not have, after a number; and which that is not lower than.
    pub(in crate::billing) fn next_batch(&self, writer: &str, after: i64) -> Result<Option<ReadBatch>, SpoolError> {
        const SELECT: &str =
            "SELECT number, body FROM batches WHERE writer = ?1 AND number > ?2 ORDER BY number LIMIT 1";
        let mut select = self.0.prepare_cached(SELECT)?;
        let mut rows = select.query(params![writer, after])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let batch::Read { records, unreadable } = batch::decode(&text(row, 1)?);
        Ok(Some(ReadBatch { number: row.get(0)?, records, unreadable }))
    }

    /// Up to which of a writer's batches the ledger has them: those that it took, and those that are gone.
    pub(in crate::billing) fn ledger_has(&self, writer: &str) -> Result<i64, SpoolError> {
        const SELECT: &str = "SELECT MAX(
            COALESCE((SELECT number FROM cursors WHERE sink = ?1 AND writer = ?2), 0),
            COALESCE((SELECT MIN(number) - 1 FROM batches WHERE writer = ?2), 0))";
        Ok(self.0.prepare_cached(SELECT)?.query_row(params![LEDGER, writer], |row| row.get(0))?)
    }
}

/// A column as text, whatever has become of it: what is no text any more is to be put aside, not lost.
pub(super) fn text<'a>(row: &'a Row<'_>, column: usize) -> Result<Cow<'a, str>, SpoolError> {
    let value = row.get_ref(column)?;
    Ok(String::from_utf8_lossy(value.as_bytes_or_null().ok().flatten().unwrap_or_default()))
}
