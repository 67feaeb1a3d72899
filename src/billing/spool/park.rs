//! What sinks refuse: kept by the sink's name and the request's id, until it goes through.

use rusqlite::params;
use uuid::Uuid;

use super::read::text;
use super::{Acknowledged, SpoolError, SpoolFile, SpoolReader, WriteError, in_transaction};
use crate::billing::sink::Parked;
use crate::relay::meter::UsageRecord;

impl SpoolFile {
    /// Keeps what a sink refuses of the batches that it acknowledges with this; both or neither. May be repeated.
    pub(in crate::billing) fn park(
        &mut self,
        of: &Acknowledged,
        parked: &[Parked],
        now_ms: i64,
    ) -> Result<(), WriteError> {
        const PARK: &str =
            "INSERT INTO parked_events (sink, id, parked_at_ms, reason, body) VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (sink, id) DO NOTHING";
        let trimmed = in_transaction(&self.connection, || {
            let mut park = self.connection.prepare_cached(PARK)?;
            for Parked { record, why } in parked {
                let (id, body) = (record.request_id.to_string(), serde_json::to_string(record)?);
                park.execute(params![&*of.sink, id, now_ms, why, body])?;
            }
            self.acknowledge(std::slice::from_ref(of))
        })?;
        self.has_trimmed(trimmed);
        Ok(())
    }

    /// These went through after all.
    pub(in crate::billing) fn unpark(&mut self, sink: &str, ids: &[Uuid]) -> Result<(), WriteError> {
        const UNPARK: &str = "DELETE FROM parked_events WHERE sink = ?1 AND id = ?2";
        in_transaction(&self.connection, || {
            let mut unpark = self.connection.prepare_cached(UNPARK)?;
            for id in ids {
                unpark.execute(params![sink, id.to_string()])?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

impl SpoolReader {
    /// What a sink refuses, by ids above `after`. What cannot be read stays where it is, and is told.
    pub(in crate::billing) fn parked(
        &self,
        sink: &str,
        after: Option<Uuid>,
        records_max: usize,
    ) -> Result<Vec<UsageRecord>, SpoolError> {
        // Written with one length and case, ids are in the order of their text.
        const SELECT: &str = "SELECT id, body FROM parked_events WHERE sink = ?1 AND id > ?2 ORDER BY id";
        let mut select = self.connection().prepare_cached(SELECT)?;
        let mut rows = select.query(params![sink, after.map(|id| id.to_string()).unwrap_or_default()])?;
        let mut parked = Vec::new();
        while parked.len() < records_max {
            let Some(row) = rows.next()? else { break };
            match serde_json::from_str(&text(row, 1)?) {
                Ok(record) => parked.push(record),
                Err(error) => {
                    let id = text(row, 0)?;
                    tracing::error!(sink, %id, %error, "a parked record cannot be read; it stays in the table parked_events");
                }
            }
        }
        Ok(parked)
    }

    /// How many records a sink refuses.
    pub(in crate::billing) fn count_parked(&self, sink: &str) -> Result<u64, SpoolError> {
        const COUNT: &str = "SELECT COUNT(*) FROM parked_events WHERE sink = ?1";
        let count: i64 = self.connection().prepare_cached(COUNT)?.query_row([sink], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
