//! From a finished request to a ledger entry: recorder, spool, ledger.
//!
//! ```text
//! request ends → Ticket::finish → queue → spool (SQLite beside the relay) → Store::settle → removed from the spool
//! ```
//!
//! A request is admitted only with a [`Ticket`] in hand, so that recording it can neither fail nor wait. What follows runs
//! beside the requests: usage that nobody reported is counted, the record is made durable in the spool, and the ledger takes it
//! from there, at most once by its request id. While the store cannot be reached records stay in the spool; while the spool
//! cannot be written, or is full, no slots are given and nothing is sold.
//!
//! Absent yet: records of requests that are still running, and sinks besides the ledger.

mod backlog;
mod batch;
mod debts;
mod recorder;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "the spool feeds it next"))]
mod sink;
mod spool;
mod state;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use backlog::Backlog;
pub use recorder::{NotKept, Opening, Progress, RECORDS_MAX, Receipt, Recorder, Ticket, Unreported};
pub use sink::{SinkOpenError, SinkPlace, SinkState, SinkTarget};
pub use spool::SpoolError;
pub use state::BillingState;
pub use worker::{Ledger, Worker};

/// Where finished requests wait for the ledger.
#[derive(Debug, Clone)]
pub struct SpoolPlace {
    /// The SQLite file; it and its folder are created where there are none, for their owner only.
    pub path: PathBuf,
    /// How much of the file may be in use before no more requests are admitted.
    pub bytes_max: u64,
    /// What a record in the spool survives.
    pub durability: Durability,
}

/// What a record in the spool survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, however it comes.
    Process,
    /// The end of the machine's power too: each write waits for the disk.
    Power,
}

/// Opens the spool. The recorder takes requests from now on; they go on to the ledger, and so does what an earlier process left
/// in the spool, once the worker runs.
///
/// # Errors
/// When the spool's file cannot be created, or is no spool.
pub async fn open<L: Ledger>(place: &SpoolPlace, ledger: L) -> Result<(Recorder, Worker<L>), SpoolError> {
    let state = Arc::new(BillingState::default());
    let spool = spool::Spool::open(place, Arc::clone(&state)).await?;
    let (sender, receiver) = mpsc::channel(RECORDS_MAX);
    let recorder = Recorder::new(sender, Arc::clone(&state));
    let backlog = Backlog::new(Arc::clone(spool.writer()), spool.left_behind().await?);
    Ok((recorder, Worker::new(receiver, spool, backlog, ledger, state)))
}
