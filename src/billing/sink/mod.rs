//! Where finished requests are delivered besides the ledger: `[[billing.sink]]`.
//!
//! ```text
//! spool ── Source ──► run ──► Sink (webhook | file)
//!            ▲          │
//!            └──────────┴─ cursor moves past what was delivered; what a receiver refuses for itself is parked
//! ```
//!
//! A sink has a cursor of its own in the spool, so that one that cannot be reached holds up neither the ledger nor the others.
//! Delivery is at least once, and every record has a stable id: a webhook's receiver counts an id once, the file is looked at
//! before it is written to. Nothing is ever dropped.
//!
//! Deliberately absent: where cursors and parked records are kept, which is the spool's ([`Source`]).

mod file;
mod pace;
mod run;
mod state;
mod webhook;
mod work;

use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;

use file::FileSink;
pub(super) use pace::Times;
pub(super) use run::run;
pub use state::SinkState;
use webhook::Webhook;

use crate::relay::meter::UsageRecord;
use crate::relay::route::Secret;
use crate::relay::webhook::SigningKey;

/// The most records that a sink is handed at a time.
pub(super) const RECORDS_MAX: usize = 1_000;

/// The most records between two moves of a cursor, and so the most that may come again.
pub(super) const TAKEN_MAX: usize = 4_096;

/// Where finished requests are delivered besides the ledger.
pub(super) trait Sink: Send + 'static {
    /// The name that metrics, the log and the cursor carry: `webhook`, `webhook_2`, `file`, or what the operator chose.
    fn name(&self) -> &str;

    /// Hands records over, oldest first and at most [`RECORDS_MAX`], all or none as far as the sink can tell. May be repeated with
    /// the same records, or with the same and others: ids are stable.
    fn deliver(&mut self, records: &[UsageRecord]) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// Why records did not go through. The texts are for the operator and hold nothing secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum SinkError {
    /// Not now: nobody there, overloaded, no room. The same may go through later.
    #[error("{why}")]
    Later {
        why: String,
        /// How long the receiver asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The receiver refuses us, whatever we bring, until an operator has mended one or the other.
    #[error("{0}")]
    Closed(String),
    /// The receiver refuses these records, or one among them.
    #[error("{0}")]
    Refused(String),
    /// These are too many at a time.
    #[error("{0}")]
    TooLarge(String),
}

/// A record that its receiver refuses for itself. It is kept, and tried again now and then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parked {
    pub(super) record: UsageRecord,
    /// What the receiver said, for the operator.
    pub(super) why: String,
}

/// What a sink is fed from: the records after its cursor, in the order in which they were spooled, and those that are parked.
///
/// Whoever implements it also tells the sink's [`SinkState`] how many records wait, and since when, whenever that changes, and how
/// many are parked: it alone knows while a receiver is not answering.
pub(super) trait Source: Send + 'static {
    type Error: Display + Send;

    /// The oldest records after the cursor: at most `records_max`, or one batch of the spool should that be more, and never more
    /// than [`TAKEN_MAX`]; none where none wait. Until [`Source::advance`] it returns the same again, or the same and more; also
    /// after the process has died.
    fn next(&mut self, records_max: usize) -> impl Future<Output = Result<Vec<UsageRecord>, Self::Error>> + Send;

    /// Keeps `parked` for later, and moves the cursor past what `next` returned last; both or neither. Durable when it returns.
    fn advance(&mut self, parked: &[Parked]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Waits until there may be records after the cursor; `false` where none will ever come.
    fn more(&mut self) -> impl Future<Output = bool> + Send;

    /// Parked records by their ids: those above `after`, at most `records_max`.
    fn parked(
        &mut self,
        after: Option<Uuid>,
        records_max: usize,
    ) -> impl Future<Output = Result<Vec<UsageRecord>, Self::Error>> + Send;

    /// These parked records went through.
    fn unpark(&mut self, ids: &[Uuid]) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// A sink as the configuration describes it.
#[derive(Debug, Clone)]
pub struct SinkPlace {
    /// What metrics, the log and the cursor know it by.
    pub name: Box<str>,
    /// Where it leads.
    pub target: SinkTarget,
}

/// Where a sink leads.
#[derive(Debug, Clone)]
pub enum SinkTarget {
    /// An HTTP endpoint that takes batches of CloudEvents.
    Webhook {
        /// `http://` or `https://`, without user and password.
        url: Box<str>,
        /// What the receiver knows our requests by.
        key: SigningKey,
        /// A bearer token that it asks for besides.
        authorization: Option<Secret>,
        /// The events' `source`.
        source: Box<str>,
    },
    /// A file with one JSON object a line.
    File {
        /// Where it is; its folder is created where there is none.
        path: PathBuf,
        /// At what size a new one is begun.
        bytes_max: u64,
        /// How many full ones are kept; `None` keeps all.
        files_max: Option<u32>,
    },
}

/// Why a sink cannot be set up. For the operator; holds nothing secret.
#[derive(Debug, Error)]
#[error("the sink {name} cannot be opened: {why}")]
pub struct SinkOpenError {
    name: Box<str>,
    why: String,
}

/// A sink of any kind.
#[derive(Debug)]
pub(super) enum AnySink {
    Webhook(Webhook),
    File(FileSink),
}

impl AnySink {
    /// Sets a sink up. A receiver need not answer yet, but a file must be one that can be written.
    pub(super) async fn open(place: SinkPlace, times: &Times) -> Result<Self, SinkOpenError> {
        let SinkPlace { name, target } = place;
        let failed = |why: String| SinkOpenError { name: name.clone(), why };
        match target {
            SinkTarget::Webhook { url, key, authorization, source } => {
                let limits = webhook::Limits::default();
                let post = webhook::Post { url, key, authorization, source };
                Webhook::open(name.clone(), post, limits, Arc::clone(&times.unix_ms)).map(Self::Webhook).map_err(failed)
            }
            SinkTarget::File { path, bytes_max, files_max } => {
                let rotation = file::Rotation { bytes_max, files_max };
                let opened = FileSink::open(name.clone(), path, rotation, Arc::clone(&times.unix_ms)).await;
                opened.map(Self::File).map_err(failed)
            }
        }
    }
}

impl Sink for AnySink {
    fn name(&self) -> &str {
        match self {
            Self::Webhook(webhook) => webhook.name(),
            Self::File(file) => file.name(),
        }
    }

    async fn deliver(&mut self, records: &[UsageRecord]) -> Result<(), SinkError> {
        match self {
            Self::Webhook(webhook) => webhook.deliver(records).await,
            Self::File(file) => file.deliver(records).await,
        }
    }
}

#[cfg(test)]
mod testing;
