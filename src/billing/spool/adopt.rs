//! What the dead left: requests that they were serving, and batches that they had not delivered.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::lock::WriterLock;
use super::{
    JOURNALED, SpoolError, SpoolFile, Stretch, WriteError, forget, in_transaction, insert_batch, journal,
    keep_unreadable, lock, lowest, trim,
};
use crate::billing::open_row;
use crate::relay::meter::UsageRecord;

/// What was left by processes that are dead.
#[derive(Debug, Default)]
pub(in crate::billing) struct Adopted {
    /// Batches that the ledger does not have.
    pub(in crate::billing) stretches: Vec<Stretch>,
    /// Batches that another sink does not have, with its place in the configuration.
    pub(in crate::billing) of_sinks: Vec<(usize, Stretch)>,
    /// What is a record in those batches only now: what was in a journal, and what ran.
    pub(in crate::billing) found: Vec<UsageRecord>,
    /// How many processes that is.
    pub(in crate::billing) dead: usize,
    /// How many other processes live.
    pub(in crate::billing) living: usize,
    /// There is more, for which there was no room: it is owed, and to be asked for again.
    pub(in crate::billing) remains: bool,
}

impl SpoolFile {
    /// Takes over what dead processes left. Their open requests become records as of their last checkpoints; their batches are from
    /// now on this process's to deliver, for as long as it lives. Where there is no room for all of it, it takes over what it can.
    pub(in crate::billing) fn adopt(&mut self) -> Result<Adopted, WriteError> {
        const OTHERS: &str = "SELECT writer, legacy FROM writers WHERE writer <> ?1 ORDER BY writer";
        let others = {
            let mut select = self.connection.prepare_cached(OTHERS)?;
            let others = select.query_map([&*self.writer], |row| Ok((row.get(0)?, row.get(1)?)))?;
            others.collect::<rusqlite::Result<Vec<(String, bool)>>>()?
        };
        let mut adopted = Adopted::default();
        for (writer, legacy) in others {
            let writer: Arc<str> = writer.into();
            if self.inherited.contains_key(&writer) {
                continue;
            }
            let Some(lock) = WriterLock::take(&self.path, &writer)? else {
                adopted.living += 1;
                continue;
            };
            match self.inherit(writer, legacy, lock, &mut adopted) {
                // Those before it are this process's now, and nobody is told of them again.
                Err(WriteError::Stalled(error)) => {
                    tracing::warn!(%error, "what other processes left in the spool cannot be taken over yet");
                    adopted.remains = true;
                    break;
                }
                inherited => inherited?,
            }
        }
        Ok(adopted)
    }

    /// Removes what is beside the spool of writers that it does not know: they died in between.
    pub(super) fn sweep(&self) -> Result<(), SpoolError> {
        const IS_KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM writers WHERE writer = ?1)";
        for writer in lock::writers_beside(&self.path)? {
            let is_known = |writer: &str| {
                self.connection.prepare_cached(IS_KNOWN)?.query_row([writer], |row| row.get::<_, bool>(0))
            };
            // Whoever begins takes the lock before there is anything of it, so it is asked again.
            if !is_known(&writer)?
                && let Some(lock) = WriterLock::take(&self.path, &writer)?
                && !is_known(&writer)?
            {
                lock.remove();
            }
        }
        Ok(())
    }

    /// Takes over what one dead process left, in one transaction. What ran becomes batches of a writer that never lived, so that its
    /// numbers begin at one, and nobody takes them for another's.
    fn inherit(
        &mut self,
        writer: Arc<str>,
        legacy: bool,
        lock: WriterLock,
        adopted: &mut Adopted,
    ) -> Result<(), WriteError> {
        let heir: Arc<str> = Uuid::now_v7().simple().to_string().into();
        let heir_lock = WriterLock::take(&self.path, &heir)?.ok_or(SpoolError::Closed)?;
        let found = in_transaction(&self.connection, || {
            let found = self.end_requests(&writer, &heir)?;
            let of_heir = Left::of(&self.connection, &heir, false, vec![0; self.sinks.len()])?;
            let cursors = self.cursors_of(&writer)?;
            // A sink that is configured no more may have been the only one that did not have them.
            trim(&self.connection, &writer, lowest(&cursors))?;
            let left = Left::of(&self.connection, &writer, legacy, cursors)?;
            if left.is_none() {
                forget(&self.connection, &writer)?;
            }
            Ok((found, of_heir, left))
        });
        let (found, of_heir, left) = match found {
            Ok(found) => found,
            Err(error) => {
                heir_lock.remove();
                return Err(error.into());
            }
        };
        adopted.dead += 1;
        tracing::info!(%writer, ended = found.len(), left = left.as_ref().map_or(0, Left::records),
            "a process ended without having delivered what it spooled; that is done now");
        for (writer, left, lock) in [(writer, left, lock), (heir, of_heir, heir_lock)] {
            let Some(Left { cursors, stretches }) = left else {
                lock.remove();
                continue;
            };
            self.cursors.insert(Arc::clone(&writer), cursors);
            self.inherited.insert(writer, lock);
            let mut stretches = stretches.into_iter();
            adopted.stretches.extend(stretches.next().flatten());
            let of_sinks = stretches.enumerate().filter_map(|(sink, stretch)| Some((sink, stretch?)));
            adopted.of_sinks.extend(of_sinks);
        }
        adopted.found.extend(found);
        Ok(())
    }

    /// Makes batches of the requests that a dead process had ended and not spooled, and of those that it was serving.
    fn end_requests(&self, writer: &str, heir: &str) -> Result<Vec<UsageRecord>, SpoolError> {
        const SPOOLED: &str = "SELECT journaled FROM writers WHERE writer = ?1";
        let mut unreadable = Vec::new();
        let spooled: i64 = self.connection.prepare_cached(SPOOLED)?.query_row([writer], |row| row.get(0))?;
        let left = journal::read(&journal::path_of(&self.path, writer), spooled.cast_unsigned())?;
        let mut records = left.records;
        for body in left.unreadable {
            tracing::error!(%writer, "a request that ended cannot be read; it is put aside, unbilled");
            unreadable.push(serde_json::json!({ "body": body }));
        }
        let last = left.last.cast_signed();
        if last != spooled {
            self.connection.prepare_cached(JOURNALED)?.execute(params![writer, last])?;
        }
        self.end_open_requests(writer, &mut records, &mut unreadable)?;

        for (number, records) in (1..).zip(records.chunks(self.sizes.records_max)) {
            insert_batch(&self.connection, heir, number, &records.iter().collect::<Vec<_>>())?;
        }
        if !records.is_empty() {
            self.connection.execute("INSERT INTO writers (writer, legacy) VALUES (?1, 0)", [heir])?;
        }
        if !unreadable.is_empty() {
            keep_unreadable(&self.connection, heir, 0, &serde_json::Value::from(unreadable).to_string())?;
        }
        Ok(records)
    }

    /// Adds the requests that were running, but for those that had ended: their rows were to go.
    fn end_open_requests(
        &self,
        writer: &str,
        records: &mut Vec<UsageRecord>,
        unreadable: &mut Vec<serde_json::Value>,
    ) -> Result<(), SpoolError> {
        const SELECT: &str = "SELECT id, body FROM open_requests WHERE writer = ?1 ORDER BY id";
        const DELETE: &str = "DELETE FROM open_requests WHERE writer = ?1";
        let ended: HashSet<Uuid> = records.iter().map(|record| record.request_id).collect();
        let mut select = self.connection.prepare_cached(SELECT)?;
        let mut rows = select.query([writer])?;
        while let Some(row) = rows.next()? {
            let (id, body): ([u8; 16], String) = (row.get(0)?, row.get(1)?);
            let id = Uuid::from_bytes(id);
            if ended.contains(&id) {
                continue;
            }
            match open_row::interrupted(id, &body) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(%id, %error, "a request that ran cannot be read; it is put aside, unbilled");
                    unreadable.push(serde_json::json!({ "id": id.to_string(), "body": body }));
                }
            }
        }
        drop(rows);
        self.connection.execute(DELETE, [writer])?;
        Ok(())
    }

    fn cursors_of(&self, writer: &str) -> rusqlite::Result<Vec<i64>> {
        const SELECT: &str = "SELECT COALESCE(MAX(number), 0) FROM cursors WHERE sink = ?1 AND writer = ?2";
        let mut select = self.connection.prepare_cached(SELECT)?;
        self.sinks.iter().map(|sink| select.query_row(params![&**sink, writer], |row| row.get(0))).collect()
    }
}

/// What is left of a writer.
struct Left {
    /// How far each of the sinks is; the ledger is the first.
    cursors: Vec<i64>,
    /// What each of them does not have.
    stretches: Vec<Option<Stretch>>,
}

impl Left {
    /// `None` where there are no batches.
    fn of(
        connection: &Connection,
        writer: &Arc<str>,
        legacy: bool,
        cursors: Vec<i64>,
    ) -> rusqlite::Result<Option<Self>> {
        let stretches = cursors.iter().map(|cursor| stretch(connection, writer, legacy, *cursor));
        let stretches = stretches.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(stretches.iter().any(Option::is_some).then_some(Self { cursors, stretches }))
    }

    fn records(&self) -> u64 {
        self.stretches.iter().flatten().map(|stretch| stretch.records).max().unwrap_or(0)
    }
}

/// What batches a writer has above a number.
fn stretch(connection: &Connection, writer: &Arc<str>, legacy: bool, after: i64) -> rusqlite::Result<Option<Stretch>> {
    const STRETCH: &str = "SELECT MIN(number) - 1, MAX(number), SUM(records), MIN(oldest_ms)
        FROM batches WHERE writer = ?1 AND number > ?2 HAVING COUNT(*) > 0";
    let mut select = connection.prepare_cached(STRETCH)?;
    let mut rows = select.query(params![&**writer, after])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Stretch {
        writer: Arc::clone(writer),
        legacy,
        after: row.get(0)?,
        last: row.get(1)?,
        records: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
        oldest_ms: row.get(3)?,
    }))
}

#[cfg(test)]
mod tests;
