//! What the spool says is running and holds credit, for the audit to compare with the ledger.

use std::path::Path;

use uuid::Uuid;

use super::open_row;
use super::spool::{SpoolError, SpoolReader};
use crate::relay::meter::NanoUsd;

/// A request that the spool says is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpooledHold {
    /// The request; `None` where its row cannot be read.
    pub request_id: Option<Uuid>,
    /// What it holds.
    pub amount: NanoUsd,
}

/// Every request that has a row in the spool at that path; none where there is no spool yet.
///
/// # Errors
/// The file is there and cannot be read.
pub fn spooled_holds(path: &Path) -> Result<Vec<SpooledHold>, SpoolError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut holds = Vec::new();
    SpoolReader::open(path)?.all_open_rows(|id, body| {
        let held = open_row::held(body).ok().filter(|(_, amount)| *amount >= NanoUsd(0));
        let request_id = Uuid::from_slice(id).ok().filter(|_| held.is_some());
        holds.push(SpooledHold { request_id, amount: held.map(|(_, amount)| amount).unwrap_or_default() });
    })?;
    Ok(holds)
}
