//! Takes over what a version wrote that spooled each record as a row of its own, as JSON.
//!
//! The old table stays where it is, empty: such a process may still be ending its last requests, and needs it. What that one leaves
//! is taken over at the next start.

use rusqlite::{Connection, params};

use super::oldest_ms;
use crate::billing::batch;
use crate::relay::meter::UsageRecord;

/// How many rows are read at a time, and the most that become a batch.
const ROWS_MAX: i64 = 1_000;

/// Makes batches of the rows; what cannot be read is put aside, as that version did. Inside of the caller's transaction.
pub(super) fn take_over(connection: &Connection) -> rusqlite::Result<()> {
    const IS_THERE: &str = "SELECT COUNT(*) > 0 FROM sqlite_schema WHERE type = 'table' AND name = 'records'";
    const SELECT: &str = "SELECT id, writer, record FROM records ORDER BY id LIMIT ?1";
    const ASIDE: &str = "INSERT INTO unreadable (id, request_id, record)
        SELECT id, request_id, record FROM records WHERE id = ?1 ON CONFLICT (id) DO NOTHING";
    const DELETE: &str = "DELETE FROM records WHERE id <= ?1";
    if !connection.query_row(IS_THERE, [], |row| row.get::<_, bool>(0))? {
        return Ok(());
    }
    loop {
        let mut select = connection.prepare_cached(SELECT)?;
        let rows = select.query_map([ROWS_MAX], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let rows = rows.collect::<rusqlite::Result<Vec<(i64, String, String)>>>()?;
        let Some(&(last, ..)) = rows.last() else { return Ok(()) };
        for same_writer in rows.chunk_by(|(_, one, _), (_, next, _)| one == next) {
            let mut readable = Vec::with_capacity(same_writer.len());
            for (id, _, record) in same_writer {
                match serde_json::from_str::<UsageRecord>(record) {
                    Ok(record) => readable.push(record),
                    Err(error) => {
                        tracing::error!(row = id, %error, "a spooled record cannot be read; it is put aside, unbilled");
                        connection.execute(ASIDE, [id])?;
                    }
                }
            }
            if let Some((first, writer, _)) = same_writer.first() {
                insert(connection, writer, *first, &readable)?;
            }
        }
        connection.execute(DELETE, [last])?;
    }
}

/// A row's number is unique for ever, and so will do for the batch that begins with it.
fn insert(connection: &Connection, writer: &str, number: i64, records: &[UsageRecord]) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT INTO batches (writer, number, records, oldest_ms, body) VALUES (?1, ?2, ?3, ?4, ?5)";
    if records.is_empty() {
        return Ok(());
    }
    let body = batch::encode(&records.iter().collect::<Vec<_>>());
    let body = body.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
    connection.execute(INSERT, params![writer, number, count, oldest_ms(records.iter()), body])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, params};

    use super::super::{SpoolFile, SpoolReader, place, record};

    const OLD: &str = "CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL UNIQUE,
            writer TEXT NOT NULL, ended_at_ms INTEGER NOT NULL, record TEXT NOT NULL);
        CREATE TABLE unreadable (id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, record TEXT NOT NULL)";

    #[test]
    fn rows_of_the_version_before_are_batches_now() {
        const INSERT: &str = "INSERT INTO records (request_id, writer, ended_at_ms, record) VALUES (?1, ?2, 0, ?3)";
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        std::fs::create_dir_all(place.path.parent().unwrap()).unwrap();
        let old = Connection::open(&place.path).unwrap();
        old.execute_batch(OLD).unwrap();
        old.execute_batch("BEGIN").unwrap();
        for number in 1..=2_500 {
            let record = record(number);
            let json = if number == 7 { "{}".to_owned() } else { serde_json::to_string(&record).unwrap() };
            let writer = if number <= 10 { "a" } else { "b" };
            old.execute(INSERT, params![record.request_id.to_string(), writer, json]).unwrap();
        }
        old.execute_batch("COMMIT").unwrap();
        let mut all: Vec<_> = (1..=2_500).filter(|number| *number != 7).map(record).collect();
        for round in 0..2 {
            let mut spool = SpoolFile::open(&place).unwrap();
            let left_behind = spool.adopt().unwrap().stretches;
            let found: Vec<_> = left_behind.iter().map(|stretch| (&*stretch.writer, stretch.records)).collect();
            assert_eq!(found, [("a", 9), ("b", 2_490 + round)]);
            assert!(left_behind.iter().all(|stretch| stretch.legacy));
            let reader = SpoolReader::open(&place.path).unwrap();
            let mut read = Vec::new();
            for stretch in left_behind {
                let mut rest = stretch;
                loop {
                    let back = reader.read(&rest, usize::MAX).unwrap();
                    let Some(last) = back.last() else { break };
                    rest.after = last;
                    read.extend(back.batches.into_iter().flat_map(|batch| batch.records));
                }
            }
            assert_eq!(read, all);
            drop(spool);
            // The process of that version is still there.
            old.execute(INSERT, params!["x", "b", serde_json::to_string(&record(2_501)).unwrap()]).unwrap();
            all.push(record(2_501));
        }
        let aside = old.query_row("SELECT id FROM unreadable", [], |row| row.get::<_, i64>(0));
        assert_eq!(aside.unwrap(), 7);
    }
}
