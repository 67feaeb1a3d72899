//! The rows of settled requests and the sums beside the ledger, many in a statement.
//!
//! Short lists come as JSON arrays, which each of the databases takes apart by functions of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use sqlx::error::BoxDynError;

use super::StoreError;
use super::engine::{Cells, Connection, Each, Insert, query, query_as, query_scalar};
use super::key::saturating_i64;
use super::ledger::{charged, provider_charged};
use crate::relay::meter::UsageRecord;

/// The most tokens of a class that one request is recorded with: more is a provider's nonsense, and would leave sums that no longer fit.
const TOKENS_MAX: u64 = 1 << 40;

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
    connection: &mut Connection,
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
    let used = query_scalar(USED).bind(seqs.start).bind(seqs.end - 1);
    let used: HashSet<i64> = used.fetch_all(connection).await?.into_iter().collect();
    Ok(seqs.filter(|seq| !used.contains(seq)).collect())
}

/// Inserts the ledger's entries for the usage rows that are numbered so, but for those that are to have none.
pub(super) async fn insert_entries(
    connection: &mut Connection,
    first_seq: i64,
    last_seq: i64,
    unentered: &[i64],
) -> Result<(), StoreError> {
    macro_rules! insert {
        ($unentered:literal) => {
            concat!(
                "INSERT INTO ledger_entries (seq, account_id, key_id, kind, amount_nano_usd, request_id, created_at_ms) \
                 SELECT seq, account_id, key_id, 'usage', -cost_nano_usd, request_id, started_at_ms + total_ms \
                 FROM usage_records WHERE seq BETWEEN $1 AND $2 AND seq NOT IN (",
                $unentered,
                ") ORDER BY seq"
            )
        };
    }
    const INSERT: Each = Each {
        sqlite: insert!("SELECT value FROM json_each($3)"),
        postgres: insert!("SELECT CAST(jsonb_array_elements_text(CAST($3 AS JSONB)) AS BIGINT)"),
    };
    query(INSERT).bind(first_seq).bind(last_seq).bind(json(&unentered)?).execute(connection).await?;
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
    fn add(&mut self, to: &mut Cells<'_>, seq: i64, series: i64, record: &'a UsageRecord) -> Result<(), BoxDynError> {
        let usage = &record.usage;
        to.integer(seq)?;
        to.text(record.request_id.to_string())?;
        to.shared(self.shared(&record.account_id))?;
        to.shared(self.shared(&record.key_id))?;
        to.shared(self.shared(&record.model))?;
        to.shared(self.shared(&record.provider))?;
        to.integer(i64::from(record.status))?;
        to.integer(tokens(usage.input))?;
        to.integer(tokens(usage.cache_read))?;
        to.integer(tokens(usage.cache_write_5m))?;
        to.integer(tokens(usage.cache_write_1h))?;
        to.integer(tokens(usage.output))?;
        to.integer(tokens(usage.reasoning))?;
        to.integer(charged(record).0)?;
        to.flag(record.estimated)?;
        to.flag(record.interrupted)?;
        to.integer(record.started_at_ms)?;
        to.maybe_integer(record.first_token_ms)?;
        to.integer(record.total_ms)?;
        to.integer(series)?;
        to.maybe_integer(provider_charged(record).map(|cost| cost.0))
    }
}

/// Tokens of a class, as they are recorded.
pub(super) fn tokens(count: u64) -> i64 {
    saturating_i64(count.min(TOKENS_MAX))
}

/// A sum that is kept beside the ledger: an account's balance or a key's spending.
pub(super) struct Kept {
    read: Each,
    write: Each,
}

macro_rules! kept {
    ($table:literal, $sum:literal, $seq:literal) => {
        Kept {
            read: Each {
                sqlite: concat!(
                    "SELECT id, ",
                    $sum,
                    ", ",
                    $seq,
                    " FROM ",
                    $table,
                    " WHERE id IN (SELECT value FROM json_each($1))"
                ),
                postgres: concat!(
                    "SELECT id, ",
                    $sum,
                    ", ",
                    $seq,
                    " FROM ",
                    $table,
                    " WHERE id = ANY (ARRAY(SELECT jsonb_array_elements_text(CAST($1 AS JSONB))))"
                ),
            },
            write: Each {
                sqlite: concat!(
                    "UPDATE ",
                    $table,
                    " SET ",
                    $sum,
                    " = new.value->>1, ",
                    $seq,
                    " = new.value->>2 \
                     FROM json_each($1) AS new WHERE ",
                    $table,
                    ".id = new.value->>0"
                ),
                postgres: concat!(
                    "UPDATE ",
                    $table,
                    " SET ",
                    $sum,
                    " = CAST(moved.value->>1 AS BIGINT), ",
                    $seq,
                    " = CAST(moved.value->>2 AS BIGINT) FROM jsonb_array_elements(CAST($1 AS JSONB)) AS moved (value) \
                     WHERE ",
                    $table,
                    ".id = moved.value->>0"
                ),
            },
        }
    };
}

/// What accounts have.
pub(super) const BALANCES: Kept = kept!("accounts", "balance_nano_usd", "balance_seq");

/// What keys have spent in all.
pub(super) const SPENDINGS: Kept = kept!("api_keys", "spent_nano_usd", "spent_seq");

impl Kept {
    /// The sums of those ids that there are, each with the last ledger entry that it includes.
    pub(super) async fn read(
        &self,
        connection: &mut Connection,
        ids: &[&str],
    ) -> Result<Vec<(String, i64, i64)>, StoreError> {
        let read = query_as(self.read).bind(json(&ids)?);
        Ok(read.fetch_all(connection).await?)
    }

    /// Writes new sums, each with the last ledger entry that it includes.
    pub(super) async fn write(&self, connection: &mut Connection, sums: &[(&str, i64, i64)]) -> Result<(), StoreError> {
        if !sums.is_empty() {
            query(self.write).bind(json(&sums)?).execute(connection).await?;
        }
        Ok(())
    }
}

/// A list as a statement takes it that takes a JSON array apart.
pub(super) fn json(list: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(list).map_err(|error| StoreError::Database(sqlx::Error::Encode(error.into())))
}
