//! Accounts, keys, ledger, usage, subscriptions and vouchers at rest, the people who sign in, who changed what of them, and what
//! requests with an `Idempotency-Key` were answered; and which node has which part of an account's credit in its hands.
//!
//! One SQLite file in WAL mode, which the relay and the command line may use at once. The SQL is what Postgres takes as
//! well (numbered placeholders, shared types, of upserts only `ON CONFLICT`), so that several nodes can share a store
//! later. What differs stands in few places: how a transaction begins is here, pragmas and files are in `open`, rows by
//! the hundred in `bulk`, two lists as JSON in `idempotency`, the database's clock in `node`.
//!
//! Money has one rule: a balance changes only together with the ledger entry that explains it, in one transaction that
//! first advances the ledger's counter. That counter's row is the lock that puts all movements of money in order.
//!
//! Deliberately absent: any clock (callers say what time it is), any cache, prices, and plans, which are configuration.

mod account;
mod audit;
mod bulk;
mod change;
mod error;
#[cfg(test)]
mod fixture;
mod idempotency;
mod key;
mod lease;
mod ledger;
mod node;
mod open;
mod people;
mod period;
mod rollup;
mod search;
mod spool;
mod stripe;
mod subscription;
mod totals;
mod trail;
mod usage;
mod voucher;

pub use account::{Account, AccountChange, Credit, CreditKind, Credited};
pub use audit::{Difference, DifferenceKind};
pub use change::{Balance, Balances, Changes};
pub use error::StoreError;
pub use idempotency::{KeyFound, KeyPlace, KeyStep, SealedAnswer};
pub use key::{Key, KeyStatus, KeyTerms, NewKey};
pub use lease::LeaseNews;
pub use ledger::{Settled, SpoolCursor};
pub use node::{Node, NodeName, NodeTerm};
use open::Connections;
pub use people::{Link, LinkPurpose, NewUser, Role, Session, TokenDigest, User, UserChange};
use rollup::KnownSeries;
pub use stripe::{StripeOutcome, StripePlans};
pub use subscription::{Offer, PaidBy, Period, Renewal, Subscription, SubscriptionChange};
pub use totals::{By, DayTotal, GroupPage, UsageTotal, day_begins_ms, day_name, day_number, day_number_of};
pub use trail::{Actor, AuditEntry, AuditFilter, AuditPosition};
pub use usage::{UsageFilter, UsagePosition};
pub use voucher::{NewVouchers, VoucherBatch};

use std::sync::Arc;

use sqlx::{Sqlite, SqlitePool, Transaction};

/// A handle on the store, and in whose name it is changed by it; clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    /// What only reads.
    pool: SqlitePool,
    /// What [`Store::write`]s.
    writer: SqlitePool,
    actor: Actor,
    /// Whose requests are settled, where nodes lease credit.
    node: Option<Arc<str>>,
    series: Arc<KnownSeries>,
}

type WriteTransaction = Transaction<'static, Sqlite>;
type ReadTransaction = Transaction<'static, Sqlite>;

impl Store {
    /// Opens the store at `url` (`sqlite://relative`, `sqlite:///absolute`), creating file and folders where there are
    /// none, for their owner only, and brings its tables to this version. What is changed by this handle is changed in the
    /// relay's own name, unless [`Store::in_the_name_of`] says otherwise.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let Connections { readers, writer } = open::open(url).await?;
        Ok(Self { pool: readers, writer, actor: Actor::Relay, node: None, series: Arc::default() })
    }

    /// Whether the store answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT value FROM counters WHERE name = 'version'").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Closes all connections, those of clones too, once their work is done.
    pub async fn close(&self) {
        self.writer.close().await;
        self.pool.close().await;
    }

    /// A transaction that will write. It takes SQLite's only write lock at once: one that began by reading would be
    /// refused outright, not made to wait, if another writer came between.
    async fn write(&self) -> Result<WriteTransaction, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A transaction whose reads all see the same moment.
    async fn read(&self) -> Result<ReadTransaction, StoreError> {
        Ok(self.pool.begin().await?)
    }
}
