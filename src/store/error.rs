//! Why the store could not do what it was asked.

use std::path::PathBuf;

use sqlx::migrate::MigrateError;
use thiserror::Error;

use crate::relay::meter::NanoUsd;

/// Why the store could not do what it was asked. The messages are for the operator; no key or digest stands in them.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The operator's mistake: the store's address is not one that this build can open.
    #[error("cannot open the store {url:?}: {why}")]
    Address {
        /// As it was given, without what may be a password.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file, or the folder that it is to be in, cannot be made or used.
    #[error("cannot create or use {}: {source}", path.display())]
    Create {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is there but is no database, cannot be read, or the like; or the server cannot be reached, or refuses.
    #[error("cannot open the store {place}: {source}")]
    Open {
        /// The file, or the database and its server.
        place: String,
        /// The database's reason.
        source: sqlx::Error,
    },
    /// The store was last migrated by a version of this program that knows of tables that this one does not.
    #[error("the store {place} was written by a newer tollgate; use that version, or restore a backup")]
    Newer {
        /// The file, or the database and its server.
        place: String,
    },
    /// The tables could not be brought to this version.
    #[error("cannot bring the store {place} to this version: {source}")]
    Migrate {
        /// The file, or the database and its server.
        place: String,
        /// The database's reason.
        source: MigrateError,
    },
    /// The caller's mistake: there is no such account.
    #[error("there is no account {0:?}; `tollgate account list` shows them")]
    UnknownAccount(String),
    /// The caller's mistake: there is no such key.
    #[error("there is no key {0:?}; `tollgate key list` shows them")]
    UnknownKey(String),
    /// The caller's mistake: there is no such person.
    #[error("there is no user {0:?}; `tollgate user list` shows them")]
    UnknownUser(String),
    /// The caller's mistake: there is no such node.
    #[error("there is no node {0:?}; `tollgate node list` shows them")]
    UnknownNode(String),
    /// The caller's mistake: somebody else has this address.
    #[error("there is a user with this address already")]
    EmailTaken,
    /// The caller's mistake: somebody who is suspended is not let in.
    #[error("this user is suspended; resume them first")]
    UserSuspended,
    /// The caller's mistake: the balance would leave what can be held exactly.
    #[error("the balance would pass the largest amount that can be kept")]
    AmountTooLarge,
    /// The caller's mistake: the same Idempotency-Key stands for another amount or note.
    #[error("this Idempotency-Key was used with another amount or note")]
    CreditKeyReused,
    /// The caller's mistake: the account's plan is a subscription's, and changes with that.
    #[error("the account has a subscription to the plan {plan:?}; change, cancel or end that")]
    Subscribed {
        /// The plan that it has.
        plan: String,
    },
    /// The caller's mistake: the account has no subscription that has not ended.
    #[error("the account {0:?} has no subscription")]
    NotSubscribed(String),
    /// The caller's mistake: the subscription is paid at Stripe, and changes there first.
    #[error("the subscription is paid at Stripe; change or cancel it there, or end it")]
    PaidAtStripe,
    /// The customer's trouble: what is to be paid is more than the balance.
    #[error("{needed} USD are needed and the balance is {balance} USD")]
    NotEnoughCredit {
        /// What is to be paid.
        needed: NanoUsd,
        /// What there is.
        balance: NanoUsd,
    },
    /// The caller's mistake: there is no such batch of vouchers.
    #[error("there is no batch of vouchers {0:?}; `tollgate voucher list` shows them")]
    UnknownVoucherBatch(String),
    /// The customer's mistake: the code is no voucher's.
    #[error("this is no voucher's code; look whether it is typed as it was given")]
    UnknownVoucher,
    /// The customer's mistake: the voucher was redeemed before.
    #[error("this voucher was redeemed before")]
    VoucherUsed,
    /// The voucher's time is over.
    #[error("this voucher has expired")]
    VoucherExpired,
    /// The operator took the voucher back.
    #[error("this voucher was taken back")]
    VoucherRevoked,
    /// The customer tried too many codes that were no voucher's.
    #[error("too many codes were wrong; try again later")]
    TooManyVouchers {
        /// When the next try is heard. Milliseconds from now.
        retry_after_ms: i64,
    },
    /// A row holds what this program never writes.
    #[error("the store is damaged: {what} of {id:?} cannot be read")]
    Damaged {
        /// The column.
        what: &'static str,
        /// The row.
        id: String,
    },
    /// The database failed or did not answer in time. The same call may succeed later; it had no effect, unless the
    /// connection was lost while it committed.
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
}
