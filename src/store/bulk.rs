//! The rows of settled requests and the sums beside the ledger, many in a statement: a statement is a hop to the database's thread and
//! back, which costs as much as a dozen rows.
//!
//! Here the SQL is SQLite's own in two places. Rows come as `VALUES` of many rows, at most [`ROWS_MAX`], with unnamed placeholders:
//! numbered ones are looked up by name, each among all the others. Postgres would take a row's columns as arrays, `SELECT … FROM
//! UNNEST($1, $2, …)`. And short lists come as JSON arrays through `json_each`, where Postgres has `ANY($1)` and `UNNEST`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqliteConnection};

use super::StoreError;
use super::key::saturating_i64;
use super::ledger::{charged, provider_charged};
use crate::relay::meter::UsageRecord;

/// The most tokens of a class that one request is recorded with: more is a provider's nonsense, and would leave sums that no longer fit.
const TOKENS_MAX: u64 = 1 << 40;

/// The most rows of a statement. Twice as many cost hardly less, and each connection keeps its statements in memory.
const ROWS_MAX: usize = 256;

/// So many rows has each of the statements that a batch is made of.
const ROW_COUNTS: [usize; 5] = [ROWS_MAX, 64, 16, 4, 1];

/// A statement that puts rows into a table, in the texts for [`ROW_COUNTS`]: the same texts every time, so that each is prepared once
/// a connection.
pub(super) struct Insert {
    columns: usize,
    texts: [Arc<String>; ROW_COUNTS.len()],
}

impl Insert {
    pub(super) fn new(table: &str, columns: &[&str], on_conflict: &str) -> Self {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let names = columns.join(", ");
        let text = |rows| {
            let rows = vec![row.as_str(); rows].join(", ");
            Arc::new(format!("INSERT INTO {table} ({names}) VALUES {rows} {on_conflict}"))
        };
        Self { columns: columns.len(), texts: ROW_COUNTS.map(text) }
    }

    /// Puts those rows in, each with the columns that `add` gives it, and says how many it touched.
    pub(super) async fn run<'a, R>(
        &self,
        connection: &mut SqliteConnection,
        mut rows: &'a [R],
        mut add: impl FnMut(&mut SqliteArguments, &'a R) -> Result<(), BoxDynError>,
    ) -> Result<u64, StoreError> {
        let mut touched = 0;
        for (count, text) in ROW_COUNTS.into_iter().zip(&self.texts) {
            while let Some((chunk, others)) = rows.split_at_checked(count) {
                let mut values = SqliteArguments::default();
                values.reserve(count * self.columns, 0);
                chunk.iter().try_for_each(|row| add(&mut values, row)).map_err(sqlx::Error::Encode)?;
                let insert = sqlx::query_with(AssertSqlSafe(Arc::clone(text)), values);
                touched += insert.execute(&mut *connection).await?.rows_affected();
                rows = others;
            }
        }
        Ok(touched)
    }
}

static INSERT_USAGE: LazyLock<Insert> = LazyLock::new(|| {
    const COLUMNS: [&str; 21] = [
        "seq",
        "request_id",
        "account_id",
        "key_id",
        "model",
        "provider",
        "status",
        "input_tokens",
        "cache_read_tokens",
        "cache_write_5m_tokens",
        "cache_write_1h_tokens",
        "output_tokens",
        "reasoning_tokens",
        "cost_nano_usd",
        "estimated",
        "interrupted",
        "started_at_ms",
        "first_token_ms",
        "total_ms",
        "series",
        "provider_cost_nano_usd",
    ];
    Insert::new("usage_records", &COLUMNS, "ON CONFLICT (request_id) DO NOTHING")
});

/// Inserts a usage row for each record whose request has none yet, numbered from `first_seq` on in the records' order, each in its
/// series. Returns the numbers that were not used, because a request has its row already.
pub(super) async fn insert_usage(
    connection: &mut SqliteConnection,
    first_seq: i64,
    records: &[UsageRecord],
    series: &[i64],
) -> Result<HashSet<i64>, StoreError> {
    const USED: &str = "SELECT seq FROM usage_records WHERE seq BETWEEN $1 AND $2";
    let mut names = Names::default();
    let mut places = (first_seq..).zip(series);
    let inserted = INSERT_USAGE.run(connection, records, |to, record| {
        let (seq, series) = places.next().ok_or("a request without a series")?;
        names.add(to, seq, *series, record)
    });
    let inserted = inserted.await?;
    if inserted == records.len() as u64 {
        return Ok(HashSet::new());
    }
    let seqs = first_seq..first_seq.saturating_add_unsigned(records.len() as u64);
    let used = sqlx::query_scalar(USED).bind(seqs.start).bind(seqs.end - 1);
    let used: HashSet<i64> = used.fetch_all(connection).await?.into_iter().collect();
    Ok(seqs.filter(|seq| !used.contains(seq)).collect())
}

/// Inserts the ledger's entries for the usage rows that are numbered so, but for those that are to have none.
pub(super) async fn insert_entries(
    connection: &mut SqliteConnection,
    first_seq: i64,
    last_seq: i64,
    unentered: &[i64],
) -> Result<(), StoreError> {
    const INSERT: &str = "INSERT INTO ledger_entries \
         (seq, account_id, key_id, kind, amount_nano_usd, request_id, created_at_ms) \
         SELECT seq, account_id, key_id, 'usage', -cost_nano_usd, request_id, started_at_ms + total_ms \
         FROM usage_records WHERE seq BETWEEN $1 AND $2 AND seq NOT IN (SELECT value FROM json_each($3)) ORDER BY seq";
    sqlx::query(INSERT).bind(first_seq).bind(last_seq).bind(json(&unentered)?).execute(connection).await?;
    Ok(())
}

/// The names of a batch's accounts, keys, models and providers, each copied once: few names come in many records.
#[derive(Default)]
struct Names<'a>(HashMap<&'a str, Arc<str>>);

impl<'a> Names<'a> {
    fn shared(&mut self, name: &'a str) -> Arc<str> {
        Arc::clone(self.0.entry(name).or_insert_with(|| name.into()))
    }

    /// Adds a row's columns.
    fn add(
        &mut self,
        to: &mut SqliteArguments,
        seq: i64,
        series: i64,
        record: &'a UsageRecord,
    ) -> Result<(), BoxDynError> {
        let usage = &record.usage;
        to.add(seq)?;
        to.add(record.request_id.to_string())?;
        to.add(self.shared(&record.account_id))?;
        to.add(self.shared(&record.key_id))?;
        to.add(self.shared(&record.model))?;
        to.add(self.shared(&record.provider))?;
        to.add(i64::from(record.status))?;
        to.add(tokens(usage.input))?;
        to.add(tokens(usage.cache_read))?;
        to.add(tokens(usage.cache_write_5m))?;
        to.add(tokens(usage.cache_write_1h))?;
        to.add(tokens(usage.output))?;
        to.add(tokens(usage.reasoning))?;
        to.add(charged(record).0)?;
        to.add(record.estimated)?;
        to.add(record.interrupted)?;
        to.add(record.started_at_ms)?;
        to.add(record.first_token_ms)?;
        to.add(record.total_ms)?;
        to.add(series)?;
        to.add(provider_charged(record).map(|cost| cost.0))
    }
}

/// Tokens of a class, as they are recorded.
pub(super) fn tokens(count: u64) -> i64 {
    saturating_i64(count.min(TOKENS_MAX))
}

/// A sum that is kept beside the ledger: an account's balance or a key's spending.
pub(super) struct Kept {
    read: &'static str,
    write: &'static str,
}

/// What accounts have.
pub(super) const BALANCES: Kept = Kept {
    read: "SELECT id, balance_nano_usd, balance_seq FROM accounts WHERE id IN (SELECT value FROM json_each($1))",
    write: "UPDATE accounts SET balance_nano_usd = new.value->>1, balance_seq = new.value->>2 \
            FROM json_each($1) AS new WHERE accounts.id = new.value->>0",
};

/// What keys have spent in all.
pub(super) const SPENDINGS: Kept = Kept {
    read: "SELECT id, spent_nano_usd, spent_seq FROM api_keys WHERE id IN (SELECT value FROM json_each($1))",
    write: "UPDATE api_keys SET spent_nano_usd = new.value->>1, spent_seq = new.value->>2 \
            FROM json_each($1) AS new WHERE api_keys.id = new.value->>0",
};

impl Kept {
    /// The sums of those ids that there are, each with the last ledger entry that it includes.
    pub(super) async fn read(
        &self,
        connection: &mut SqliteConnection,
        ids: &[&str],
    ) -> Result<Vec<(String, i64, i64)>, StoreError> {
        let read = sqlx::query_as(self.read).bind(json(&ids)?);
        Ok(read.fetch_all(connection).await?)
    }

    /// Writes new sums, each with the last ledger entry that it includes.
    pub(super) async fn write(
        &self,
        connection: &mut SqliteConnection,
        sums: &[(&str, i64, i64)],
    ) -> Result<(), StoreError> {
        if !sums.is_empty() {
            sqlx::query(self.write).bind(json(&sums)?).execute(connection).await?;
        }
        Ok(())
    }
}

/// A list as a statement takes it that reads it through `json_each`.
pub(super) fn json(list: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(list).map_err(|error| StoreError::Database(sqlx::Error::Encode(error.into())))
}
