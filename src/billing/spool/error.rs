//! What can go wrong with the spool.

use std::path::PathBuf;

use rusqlite::ErrorCode;
use thiserror::Error;

/// Why the spool could not do what it was asked. The messages are for the operator.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The file, or the folder that it is to be in, or a lock beside it, cannot be made.
    #[error("cannot create the spool {}: {source}", path.display())]
    Create {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is there but is no spool, cannot be read, or the like.
    #[error("cannot open the spool {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The database's reason.
        source: rusqlite::Error,
    },
    /// The file cannot be read or written now.
    #[error("the spool failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// A record cannot be written as JSON.
    #[error("a record cannot be spooled: {0}")]
    Record(#[from] serde_json::Error),
    /// What works on the spool has ended, because the file failed or the process ends.
    #[error("the spool is closed")]
    Closed,
}

/// What a write that failed says of the file.
#[derive(Debug, Error)]
pub(in crate::billing) enum WriteError {
    /// Nothing was written, and the same may be tried again: there is no room now, or another process does not let go.
    #[error("{0}")]
    Stalled(SpoolError),
    /// It is not known what became of it, and trying again would prove nothing: what the system failed to write once it may have
    /// forgotten.
    #[error("{0}")]
    Broken(SpoolError),
}

impl From<SpoolError> for WriteError {
    fn from(error: SpoolError) -> Self {
        /// The log's index cannot be made larger, for want of room: nothing was written.
        const IOERR_SHMSIZE: i32 = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
        let stalled = match &error {
            SpoolError::Database(error) => {
                matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
                ) || error.sqlite_error().is_some_and(|error| error.extended_code == IOERR_SHMSIZE)
            }
            _ => false,
        };
        if stalled { Self::Stalled(error) } else { Self::Broken(error) }
    }
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        SpoolError::from(error).into()
    }
}
