//! The slow part of taking the log into the file, beside who writes.
//!
//! It waits for the disk, twice, and the one who writes has clients that wait for it. SQLite lets another connection do it while the
//! log grows on; what is left for the one who writes, before the log can begin anew, is what has come meanwhile.

use std::path::Path;

use rusqlite::Connection;

use super::tables;
use super::{Sizes, SpoolError, WriteError};
use crate::billing::Durability;

/// A connection that writes nothing of its own.
#[derive(Debug)]
pub(in crate::billing) struct LogTaker(Connection);

impl LogTaker {
    pub(super) fn open(path: &Path, durability: Durability, sizes: Sizes) -> Result<Self, SpoolError> {
        Ok(Self(tables::writing(path, durability, sizes)?))
    }

    /// Takes in what is in the log now, as far as nobody reads it.
    pub(in crate::billing) fn take_in(&self) -> Result<(), WriteError> {
        Ok(self.0.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
    }
}
