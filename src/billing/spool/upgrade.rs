//! Takes over what a version wrote that spooled each record as a row of its own, as JSON.
//!
//! The old table stays where it is, empty: such a process may still be ending its last requests, and needs it. What that one leaves
//! is taken over at the next start.

use sqlx::{Sqlite, SqlitePool, Transaction};

use super::{SpoolError, oldest_ms};
use crate::billing::batch;
use crate::relay::meter::UsageRecord;

/// How many rows are read at a time, and the most that become a batch.
const ROWS_MAX: i64 = 1_000;

/// Makes batches of the rows; what cannot be read is put aside, as that version did.
pub(super) async fn take_over(pool: &SqlitePool) -> Result<(), SpoolError> {
    const IS_THERE: &str = "SELECT COUNT(*) > 0 FROM sqlite_schema WHERE type = 'table' AND name = 'records'";
    const SELECT: &str = "SELECT id, writer, record FROM records ORDER BY id LIMIT $1";
    const ASIDE: &str = "INSERT INTO unreadable (id, request_id, record)
        SELECT id, request_id, record FROM records WHERE id = $1 ON CONFLICT (id) DO NOTHING";
    const DELETE: &str = "DELETE FROM records WHERE id <= $1";
    if !sqlx::query_scalar::<_, bool>(IS_THERE).fetch_one(pool).await? {
        return Ok(());
    }
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    loop {
        let rows = sqlx::query_as(SELECT).bind(ROWS_MAX);
        let rows: Vec<(i64, String, String)> = rows.fetch_all(&mut *transaction).await?;
        let Some(&(last, ..)) = rows.last() else { break };
        for same_writer in rows.chunk_by(|(_, one, _), (_, next, _)| one == next) {
            let mut readable = Vec::with_capacity(same_writer.len());
            for (id, _, record) in same_writer {
                match serde_json::from_str::<UsageRecord>(record) {
                    Ok(record) => readable.push(record),
                    Err(error) => {
                        tracing::error!(row = id, %error, "a spooled record cannot be read; it is put aside, unbilled");
                        sqlx::query(ASIDE).bind(id).execute(&mut *transaction).await?;
                    }
                }
            }
            if let Some((first, writer, _)) = same_writer.first() {
                insert(&mut transaction, writer, *first, &readable).await?;
            }
        }
        sqlx::query(DELETE).bind(last).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// A row's number is unique for ever, and so will do for the batch that begins with it.
async fn insert(
    transaction: &mut Transaction<'static, Sqlite>,
    writer: &str,
    number: i64,
    records: &[UsageRecord],
) -> Result<(), SpoolError> {
    const INSERT: &str = "INSERT INTO batches (writer, number, records, oldest_ms, body) VALUES ($1, $2, $3, $4, $5)";
    if records.is_empty() {
        return Ok(());
    }
    sqlx::query(INSERT)
        .bind(writer)
        .bind(number)
        .bind(i64::try_from(records.len()).unwrap_or(i64::MAX))
        .bind(oldest_ms(records.iter()))
        .bind(batch::encode(&records.iter().collect::<Vec<_>>())?)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use super::super::tests::{place, record};
    use super::super::{Spool, Stretch};

    const OLD: &str = "CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL UNIQUE,
            writer TEXT NOT NULL, ended_at_ms INTEGER NOT NULL, record TEXT NOT NULL);
        CREATE TABLE unreadable (id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, record TEXT NOT NULL)";

    #[tokio::test]
    async fn rows_of_the_version_before_are_batches_now() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        std::fs::create_dir_all(place.path.parent().unwrap()).unwrap();
        let options = SqliteConnectOptions::new().filename(&place.path).create_if_missing(true);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        sqlx::raw_sql(OLD).execute(&pool).await.unwrap();
        let mut transaction = pool.begin().await.unwrap();
        for number in 1..=2_500 {
            let record = record(number);
            let json = if number == 7 { "{}".to_owned() } else { serde_json::to_string(&record).unwrap() };
            sqlx::query("INSERT INTO records (request_id, writer, ended_at_ms, record) VALUES ($1, $2, 0, $3)")
                .bind(record.request_id.to_string())
                .bind(if number <= 10 { "a" } else { "b" })
                .bind(json)
                .execute(&mut *transaction)
                .await
                .unwrap();
        }
        transaction.commit().await.unwrap();
        let mut all: Vec<_> = (1..=2_500).filter(|number| *number != 7).map(record).collect();
        for round in 0..2 {
            let spool = Spool::open(&place, Arc::default()).await.unwrap();
            let left_behind: Vec<Stretch> = spool.left_behind().await.unwrap();
            let found: Vec<_> = left_behind.iter().map(|stretch| (&*stretch.writer, stretch.records)).collect();
            assert_eq!(found, [("a", 9), ("b", 2_490 + round)]);
            let mut read = Vec::new();
            for stretch in &left_behind {
                read.extend(spool.read(stretch, usize::MAX).await.unwrap().records);
            }
            assert_eq!(read, all);
            spool.close().await;
            // The process of that version is still there.
            sqlx::query("INSERT INTO records (request_id, writer, ended_at_ms, record) VALUES ('x', 'b', 0, $1)")
                .bind(serde_json::to_string(&record(2_501)).unwrap())
                .execute(&pool)
                .await
                .unwrap();
            all.push(record(2_501));
        }
        let aside: Vec<i64> = sqlx::query_scalar("SELECT id FROM unreadable").fetch_all(&pool).await.unwrap();
        assert_eq!(aside, [7]);
    }
}
