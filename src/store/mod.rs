//! Accounts, keys, ledger and usage at rest. The signatures that others build on; the store itself is not here yet.

use thiserror::Error;
use uuid::Uuid;

use crate::relay::auth::{KeyDigest, KeyRecord};
use crate::relay::meter::{NanoUsd, UsageRecord};

/// Why the store could not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database failed or did not answer in time.
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
}

/// A request as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Settled {
    pub request_id: Uuid,
    pub fresh: bool,
    pub account_id: Box<str>,
    pub balance: NanoUsd,
    pub balance_seq: i64,
    pub key_id: Box<str>,
    pub spent: NanoUsd,
    pub spent_seq: i64,
}

/// Keys that are not as they were.
#[allow(missing_docs)]
pub struct Changes {
    pub version: i64,
    pub keys: Vec<KeyRecord>,
}

/// Sums of money that are not as they were.
#[allow(missing_docs)]
pub struct Balances {
    pub seq: i64,
    pub accounts: Vec<Balance>,
    pub keys: Vec<Balance>,
}

/// A sum of money as of a moment in the ledger.
#[allow(missing_docs)]
pub struct Balance {
    pub id: String,
    pub amount: NanoUsd,
    pub seq: i64,
}

/// A handle on the store.
#[derive(Debug, Clone)]
pub struct Store;

#[allow(missing_docs, clippy::unused_async)]
impl Store {
    pub async fn open(_url: &str) -> Result<Self, StoreError> {
        Ok(Self)
    }

    pub async fn find_key(&self, _digest: &KeyDigest) -> Result<Option<KeyRecord>, StoreError> {
        Err(sqlx::Error::PoolClosed.into())
    }

    pub async fn changes_since(&self, _version: i64) -> Result<Changes, StoreError> {
        Err(sqlx::Error::PoolClosed.into())
    }

    pub async fn balances_since(&self, _seq: i64) -> Result<Balances, StoreError> {
        Err(sqlx::Error::PoolClosed.into())
    }

    pub async fn settle(&self, _records: &[UsageRecord]) -> Result<Vec<Settled>, StoreError> {
        Err(sqlx::Error::PoolClosed.into())
    }
}
