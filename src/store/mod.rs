//! Accounts, keys, ledger, usage, subscriptions and vouchers at rest, the people who sign in, who changed what of them, and what
//! requests with an `Idempotency-Key` were answered; and which node has which part of an account's credit in its hands.
//!
//! One SQLite file in WAL mode, which the relay and the command line may use at once; or a database of Postgres, which several relays
//! may. The SQL is the same (numbered placeholders, shared types, of upserts only `ON CONFLICT`), and `engine` puts it to either.
//! What differs stands in few places: how a transaction begins is here; files, pragmas, connections and how the migrations are read are
//! in `open`; rows by the hundred in `engine::rows`; lists as JSON in `bulk`, `rollup`, `idempotency` and `audit`; the newest requests of
//! several series in `usage`; the database's clock in `node`; and usage by month, which only Postgres has, in `months`.
//!
//! Money has one rule: a balance changes only together with the ledger entry that explains it, in one transaction that
//! first advances the ledger's counter. That counter's row is the lock that puts all movements of money in order.
//!
//! Deliberately absent: any clock (callers say what time it is), any cache, prices, and plans, which are configuration.

mod account;
mod audit;
mod bulk;
mod change;
mod engine;
mod error;
#[cfg(test)]
mod fixture;
mod idempotency;
mod key;
mod lease;
mod ledger;
mod months;
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
use engine::{Each, Engine, Pool, Transaction, query_scalar};
pub use error::StoreError;
pub use idempotency::{KeyFound, KeyPlace, KeyStep, SealedAnswer};
pub use key::{Key, KeyStatus, KeyTerms, NewKey};
pub use lease::LeaseNews;
pub use ledger::{Settled, SpoolCursor};
use months::MonthsMade;
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

/// A handle on the store, and in whose name it is changed by it; clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    /// What only reads.
    pool: Pool,
    /// What [`Store::write`]s.
    writer: Pool,
    actor: Actor,
    /// Whose requests are settled, where nodes lease credit.
    node: Option<Arc<str>>,
    series: Arc<KnownSeries>,
    months: Arc<MonthsMade>,
}

/// The lock is that of all who write, see [`Store::write`]. Each statement after it sees what was committed before it.
const BEGIN_WRITE: Each = Each {
    sqlite: "BEGIN IMMEDIATE",
    postgres: "BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; \
        SELECT pg_advisory_xact_lock(5009714237046870131)",
};

/// The lock is that of all who change what Idempotency-Keys mean, see [`Store::write_keys`].
const BEGIN_WRITE_KEYS: Each = Each {
    sqlite: "BEGIN IMMEDIATE",
    postgres: "BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; \
        SELECT pg_advisory_xact_lock(5009714237046870132)",
};

const BEGIN_WRITE_ROW: Each =
    Each { sqlite: "BEGIN IMMEDIATE", postgres: "BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE" };

const BEGIN_READ: Each =
    Each { sqlite: "BEGIN", postgres: "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY" };

impl Store {
    /// Opens the store at `url` and brings its tables to this version. Of `sqlite://relative` and `sqlite:///absolute`, file and folders
    /// are made where there are none, for their owner only; the database of `postgres://user:password@host:port/database` has to be
    /// there. What is changed by this handle is changed in the relay's own name, unless [`Store::in_the_name_of`] says otherwise.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let Connections { readers, writer } = open::open(url).await?;
        let (series, months) = (Arc::default(), Arc::default());
        let store = Self { pool: readers, writer, actor: Actor::Relay, node: None, series, months };
        if let Err(error) = store.make_months().await {
            tracing::warn!(%error, "the tables of the coming months' usage could not be made; usage is kept in the default one");
        }
        Ok(store)
    }

    /// Whether the store answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let version = query_scalar("SELECT value FROM counters WHERE name = 'version'");
        let _: i64 = version.fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Closes all connections, those of clones too, once their work is done.
    pub async fn close(&self) {
        self.writer.close().await;
        self.pool.close().await;
    }

    /// A transaction that will write. It takes SQLite's only write lock at once: one that began by reading would be
    /// refused outright, not made to wait, if another writer came between. In Postgres a lock of ours is taken that all who write
    /// take, on every node: what such a transaction reads, nobody changes before it ends.
    async fn write(&self) -> Result<Transaction, StoreError> {
        Ok(self.writer.begin(BEGIN_WRITE).await?)
    }

    /// A transaction that changes what Idempotency-Keys mean, and nothing else. In Postgres these have an order of their own, so that they
    /// and settling do not wait for each other: no statement of either touches a table of the other's.
    async fn write_keys(&self) -> Result<Transaction, StoreError> {
        Ok(self.beside_the_writer().begin(BEGIN_WRITE_KEYS).await?)
    }

    /// A transaction of one statement that changes one row at most. In Postgres it waits for nobody but those who change that row, and
    /// its condition is looked at again when the row is free. Of several rows it might hold one that somebody waits for who holds the
    /// next.
    async fn write_row(&self) -> Result<Transaction, StoreError> {
        Ok(self.beside_the_writer().begin(BEGIN_WRITE_ROW).await?)
    }

    /// Where those begin who write and do not wait for the writer. SQLite has no such place.
    fn beside_the_writer(&self) -> &Pool {
        match self.pool.engine() {
            Engine::Sqlite => &self.writer,
            Engine::Postgres => &self.pool,
        }
    }

    /// A transaction whose reads all see the same moment.
    async fn read(&self) -> Result<Transaction, StoreError> {
        Ok(self.pool.begin(BEGIN_READ).await?)
    }
}
