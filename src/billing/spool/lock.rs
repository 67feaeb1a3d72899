//! Whether a process lives: it holds a lock on a file beside the spool for as long as it does, however it ends. And the names of what
//! each process has beside the spool.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::SpoolError;

/// A writer's lock, held. It goes with the process, or when this is dropped; the file stays.
#[derive(Debug)]
pub(super) struct WriterLock {
    path: PathBuf,
    journal: PathBuf,
    _file: File,
}

impl WriterLock {
    /// Takes a writer's lock, creating its file where there is none; `None` where somebody has it.
    pub(super) fn take(spool: &Path, writer: &str) -> Result<Option<Self>, SpoolError> {
        let path = path_of(spool, writer);
        let failed = |source| SpoolError::Create { path: path.clone(), source };
        loop {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // Whoever had it may have removed it in between; then it guards nothing.
            let inode = file.metadata().map_err(failed)?.ino();
            match path.metadata() {
                Ok(found) if found.ino() == inode => {
                    return Ok(Some(Self { path, journal: super::journal::path_of(spool, writer), _file: file }));
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
    }

    /// Removes the file, and the writer's journal before it: nothing is left of that writer that would have to be guarded.
    pub(super) fn remove(self) {
        for path in [&self.journal, &self.path] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "a file beside the spool could not be removed");
                }
                _ => {}
            }
        }
    }
}

pub(super) fn path_of(spool: &Path, writer: &str) -> PathBuf {
    beside(spool, writer, "lock")
}

/// Everyone who has a file beside the spool.
pub(super) fn writers_beside(spool: &Path) -> Result<BTreeSet<String>, SpoolError> {
    let failed = |source| SpoolError::Create { path: spool.to_owned(), source };
    let folder = spool.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(prefix) = spool.file_name().and_then(|name| name.to_str()).map(|name| format!("{name}.")) else {
        return Ok(BTreeSet::new());
    };
    let mut writers = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let of_writer = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.rsplit_once('.'));
        if let Some((writer, "lock" | "journal")) = of_writer {
            writers.insert(writer.to_owned());
        }
    }
    Ok(writers)
}

/// A writer's file of a kind.
pub(super) fn beside(spool: &Path, writer: &str, kind: &str) -> PathBuf {
    let mut name = spool.as_os_str().to_owned();
    // Whatever the file says, this is a name and no path.
    let writer = writer.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    name.push(format!(".{writer}.{kind}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_until_it_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("spool.db");
        let held = WriterLock::take(&spool, "a").unwrap().unwrap();
        assert!(WriterLock::take(&spool, "a").unwrap().is_none());
        assert!(WriterLock::take(&spool, "b").unwrap().is_some());
        drop(held);
        assert!(folder.path().join("spool.db.a.lock").exists(), "as after a crash");
        WriterLock::take(&spool, "a").unwrap().unwrap().remove();
        assert!(!folder.path().join("spool.db.a.lock").exists());
    }
}
