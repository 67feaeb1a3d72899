//! Whether a process lives: it holds a lock on a file beside the spool for as long as it does, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::SpoolError;

/// A writer's lock, held. It goes with the process, or when this is dropped; the file stays.
#[derive(Debug)]
pub(super) struct WriterLock {
    path: PathBuf,
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
                Ok(found) if found.ino() == inode => return Ok(Some(Self { path, _file: file })),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
    }

    /// Removes the file: nothing is left of that writer that would have to be guarded.
    pub(super) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a spool's lock file could not be removed");
        }
    }
}

pub(super) fn path_of(spool: &Path, writer: &str) -> PathBuf {
    let mut name = spool.as_os_str().to_owned();
    // Whatever the file says, this is a name and no path.
    let writer = writer.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    name.push(format!(".{writer}.lock"));
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
