//! How much room there is, and how it is divided.

use std::path::{Path, PathBuf};

/// The part of the limit that the log may take before it is taken into the file, and its bounds. A larger log begins anew more rarely;
/// that is when clients wait for the disk.
const LOG_PARTS: u64 = 8;
const LOG_BYTES_MIN: u64 = 64 * 1024;
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The most records that are written together, and the part of the log that they may take.
const RECORDS_MAX: usize = 1_024;
const RECORDS_MIN: usize = 8;
const TRANSACTION_PARTS: u64 = 4;

/// What a record is reckoned to take at most, in a batch.
const RECORD_BYTES: u64 = 512;

/// How the spool's room is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::billing) struct Sizes {
    /// How large the log may grow before it is taken into the file. Room for it is never sold.
    pub(in crate::billing) log_bytes_max: u64,
    /// The most records of a batch.
    pub(in crate::billing) records_max: usize,
}

impl Sizes {
    /// For so much room.
    pub(in crate::billing) fn of(limit: u64) -> Self {
        let log_bytes_max = (limit / LOG_PARTS).clamp(LOG_BYTES_MIN, LOG_BYTES_MAX);
        let records = usize::try_from(log_bytes_max / TRANSACTION_PARTS / RECORD_BYTES).unwrap_or(RECORDS_MAX);
        Self { log_bytes_max, records_max: records.clamp(RECORDS_MIN, RECORDS_MAX) }
    }
}

/// What the spool takes, and may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::billing) struct Room {
    /// In use, the log's part included.
    pub(in crate::billing) used: u64,
    /// All that there is: what the operator allows, or what the file system has.
    pub(in crate::billing) limit: u64,
}

/// How large the files are that are there now.
pub(super) fn file_bytes(spool: &Path) -> u64 {
    let size = |path: &Path| path.metadata().map_or(0, |found| found.len());
    size(spool) + size(&log_path(spool))
}

/// The write-ahead log beside the spool.
pub(super) fn log_path(spool: &Path) -> PathBuf {
    let mut name = spool.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// How much the spool's files may be in all: `bytes_max`, or less where the file system has no more.
pub(super) fn limit(spool: &Path, bytes_max: u64) -> u64 {
    match rustix::fs::statvfs(spool) {
        Ok(found) => {
            let available = found.f_bavail.saturating_mul(found.f_frsize);
            file_bytes(spool).saturating_add(available).min(bytes_max)
        }
        Err(error) => {
            tracing::warn!(%error, "the spool's file system does not say how much room it has");
            bytes_max
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_spool_has_a_small_log() {
        assert_eq!(Sizes::of(1 << 20), Sizes { log_bytes_max: 128 * 1024, records_max: 64 });
        assert_eq!(Sizes::of(1 << 30), Sizes { log_bytes_max: LOG_BYTES_MAX, records_max: RECORDS_MAX });
        assert_eq!(Sizes::of(0).records_max, 32);
    }

    #[test]
    fn the_file_system_may_have_less_than_the_operator_allows() {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("spool.db");
        std::fs::write(&spool, "12345").unwrap();
        std::fs::write(log_path(&spool), "123").unwrap();
        assert_eq!(file_bytes(&spool), 8);
        assert_eq!(limit(&spool, 10), 10);
        assert!(limit(&spool, u64::MAX) < u64::MAX);
    }
}
