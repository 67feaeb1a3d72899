//! The thread that takes the spool's log into the file, beside the one that writes it.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::spool::{SpoolFile, WriteError};
use super::state::BillingState;

/// Starts the thread; it works whenever it is told to, and ends when nobody can tell it any more. Where it cannot have a connection
/// of its own, all is done all the same, but clients wait longer.
pub(super) fn start(file: &SpoolFile, state: &Arc<BillingState>) -> std::io::Result<Option<SyncSender<()>>> {
    let taker = match file.log_taker() {
        Ok(taker) => taker,
        Err(error) => {
            tracing::warn!(%error, "the spool's log is taken in by who writes it");
            return Ok(None);
        }
    };
    let state = Arc::clone(state);
    let (tell, told) = sync_channel(1);
    std::thread::Builder::new().name("spool log".into()).spawn(move || {
        while told.recv().is_ok() {
            match taker.take_in() {
                Ok(()) => {}
                Err(WriteError::Stalled(error)) => tracing::warn!(%error, "the spool's log cannot be taken in yet"),
                Err(WriteError::Broken(error)) => {
                    tracing::error!(%error, "the spool's log cannot be taken in; nothing more is sold, and the process is to end");
                    state.fail();
                    return;
                }
            }
        }
    })?;
    Ok(Some(tell))
}
