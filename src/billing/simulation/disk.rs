//! The spool's files, and what is left of them when a process dies in the middle of a write.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::chance::Chance;

/// A frame of the log begins anew after these; they change when the log is begun anew.
const LOG_HEAD_BYTES: usize = 32;

const PAGE_BYTES: usize = 4096;

/// The spool's files at one moment.
pub(super) struct Files {
    file: Vec<u8>,
    log: Vec<u8>,
    journals: Journals,
}

/// What is in each process's journal.
pub(super) type Journals = BTreeMap<OsString, Vec<u8>>;

impl Files {
    pub(super) fn read(path: &Path) -> Self {
        let log = std::fs::read(log_path(path)).unwrap_or_default();
        Self { file: std::fs::read(path).unwrap(), log, journals: journals(path) }
    }

    /// Whether a journal is not as it was.
    pub(super) fn has_other(&self, before: &Journals) -> bool {
        self.journals != *before
    }

    /// With what may be there in between, where only an entry of a journal was written since.
    pub(super) fn with_entry_torn(mut self, before: &Journals, chance: &mut Chance) -> Self {
        for (name, after) in &mut self.journals {
            let Some(before) = before.get(name).filter(|before| before != &after) else { continue };
            let changed: Vec<_> = (0..after.len()).filter(|place| before.get(*place) != after.get(*place)).collect();
            let cut = *chance.pick(&changed);
            after.truncate(cut);
            after.extend(before.get(cut..).unwrap_or_default());
        }
        self
    }

    /// What may be there in between `self` and `after`, of which the writes came in order: first all of the log, which was synced
    /// before anything of it went into the file.
    pub(super) fn torn(self, after: Self, chance: &mut Chance) -> (Self, String) {
        let is_begun_anew = self.log.get(..LOG_HEAD_BYTES) != after.log.get(..LOG_HEAD_BYTES);
        let is_taken_in = self.file != after.file;
        if is_taken_in && is_begun_anew && !self.log.is_empty() {
            // Taken in, and begun anew: whether it was taken in again cannot be seen, so this is a crash in between two writes.
            return (after, "between two writes".to_owned());
        }
        if is_taken_in {
            let pages = self.file.len().max(after.file.len()).div_ceil(PAGE_BYTES);
            let taken = chance.index(pages + 1);
            let mut file = self.file;
            file.resize(file.len().max(after.file.len()), 0);
            let upto = (taken * PAGE_BYTES).min(after.file.len());
            file[..upto].copy_from_slice(&after.file[..upto]);
            return (
                Self { file, log: after.log, journals: after.journals },
                format!("with {taken} of {pages} pages taken in"),
            );
        }
        let same = self.log.iter().zip(&after.log).take_while(|(before, after)| before == after).count();
        let changed = after.log.len() - same;
        let cut = same + chance.index(changed + 1);
        // Files are removed after what makes them needless is written.
        let journals = if cut < after.log.len() { self.journals } else { after.journals };
        let mut log = after.log[..cut].to_vec();
        log.extend(self.log.get(cut..).unwrap_or_default());
        (Self { file: after.file, log, journals }, format!("with {} of {changed} bytes written", cut - same))
    }

    pub(super) fn write(&self, path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &self.file).unwrap();
        std::fs::write(log_path(path), &self.log).unwrap();
        for (name, bytes) in &self.journals {
            std::fs::write(path.with_file_name(name), bytes).unwrap();
        }
    }
}

/// The journals beside a spool.
pub(super) fn journals(path: &Path) -> Journals {
    let names = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let journals = names.filter(|name| name.to_str().unwrap().ends_with(".journal"));
    journals.map(|name| (name.clone(), std::fs::read(path.with_file_name(name)).unwrap())).collect()
}

fn log_path(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

/// A folder in memory, where there is one.
pub(super) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// What is in a spool that nobody has open, and beside it.
pub(super) fn rows_left(path: &Path) -> Vec<String> {
    const TABLES: [&str; 5] = ["writers", "open_requests", "batches", "cursors", "unreadable_batches"];
    let connection = rusqlite::Connection::open(path).unwrap();
    let count = |table: &str| {
        connection.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let rows = TABLES.iter().map(|table| (table, count(table))).filter(|(_, count)| *count > 0);
    let rows: Vec<_> = rows.map(|(table, count)| format!("{count} of {table}")).collect();
    let names = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let beside = names.filter_map(|name| name.into_string().ok());
    let beside = beside.filter(|name| name.ends_with(".lock") || name.ends_with(".journal"));
    rows.into_iter().chain(beside).collect()
}
