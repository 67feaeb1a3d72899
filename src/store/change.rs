//! What changed since: two counters that a relay polls, so that what the command line or another node does reaches it.
//!
//! `version` numbers changes of keys and accounts, `ledger_seq` movements of money. A counter's row is held from the
//! change to its commit, so numbers are committed in their order: who has seen one has missed none below it.

use sqlx::SqliteConnection;

use super::key::{self, KeyRecordRow};
use super::{Store, StoreError};
use crate::relay::auth::KeyRecord;
use crate::relay::meter::NanoUsd;

/// Keys that are not as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Where to ask from the next time.
    pub version: i64,
    /// The keys as they are now; revoked ones too.
    pub keys: Vec<KeyRecord>,
}

/// Sums of money that are not as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balances {
    /// Where to ask from the next time.
    pub seq: i64,
    /// What accounts have.
    pub accounts: Vec<Balance>,
    /// What keys have spent in all.
    pub keys: Vec<Balance>,
}

/// A sum of money as of a moment in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// The account or key.
    pub id: String,
    /// The sum.
    pub amount: NanoUsd,
    /// The last ledger entry that the sum includes.
    pub seq: i64,
}

impl Store {
    /// Keys of which the own row or the account's changed after `version`. A relay begins with the answer to
    /// `i64::MAX`, which is the present version and no keys.
    pub async fn changes_since(&self, version: i64) -> Result<Changes, StoreError> {
        let mut transaction = self.read().await?;
        let now = Counter::Version.value(&mut transaction).await?;
        if now <= version {
            return Ok(Changes { version: now, keys: Vec::new() });
        }
        let rows: Vec<KeyRecordRow> =
            sqlx::query_as(key::RECORDS_CHANGED_SINCE).bind(version).fetch_all(&mut *transaction).await?;
        let keys = rows.into_iter().map(KeyRecord::try_from).collect::<Result<_, _>>()?;
        Ok(Changes { version: now, keys })
    }

    /// Accounts' balances and keys' spendings that moved after `seq`. A relay begins with the answer to `i64::MAX`,
    /// which is the present number and no sums.
    pub async fn balances_since(&self, seq: i64) -> Result<Balances, StoreError> {
        const ACCOUNTS: &str = "SELECT id, balance_nano_usd, balance_seq FROM accounts WHERE balance_seq > $1";
        const KEYS: &str = "SELECT id, spent_nano_usd, spent_seq FROM api_keys WHERE spent_seq > $1";
        let mut transaction = self.read().await?;
        let now = Counter::LedgerSeq.value(&mut transaction).await?;
        let mut balances = Balances { seq: now, accounts: Vec::new(), keys: Vec::new() };
        if now > seq {
            balances.accounts = sums(&mut transaction, ACCOUNTS, seq).await?;
            balances.keys = sums(&mut transaction, KEYS, seq).await?;
        }
        Ok(balances)
    }
}

async fn sums(connection: &mut SqliteConnection, sql: &'static str, seq: i64) -> Result<Vec<Balance>, StoreError> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(sql).bind(seq).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(id, nano, seq)| Balance { id, amount: NanoUsd(nano), seq }).collect())
}

/// The counters, by the names of their rows.
#[derive(Clone, Copy)]
pub(super) enum Counter {
    /// Changes of keys and accounts, but for their money.
    Version,
    /// Movements of money.
    LedgerSeq,
}

impl Counter {
    fn name(self) -> &'static str {
        match self {
            Counter::Version => "version",
            Counter::LedgerSeq => "ledger_seq",
        }
    }

    async fn value(self, connection: &mut SqliteConnection) -> Result<i64, StoreError> {
        let value = sqlx::query_scalar("SELECT value FROM counters WHERE name = $1");
        Ok(value.bind(self.name()).fetch_one(connection).await?)
    }

    /// Takes the next `count` numbers for the transaction; the last of them is returned. Until the transaction ends,
    /// all others who want numbers of this counter wait.
    pub(super) async fn advance(self, connection: &mut SqliteConnection, count: i64) -> Result<i64, StoreError> {
        let last = sqlx::query_scalar("UPDATE counters SET value = value + $1 WHERE name = $2 RETURNING value");
        Ok(last.bind(count).bind(self.name()).fetch_one(connection).await?)
    }
}
