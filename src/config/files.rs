//! The files that a configuration consists of: read once each, remembered so that a change of any is noticed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the file system says of a file; two equal ones mean that nothing was written between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// `None` is a file that is not there, or may not be looked at. Links are followed: a swapped link is a change.
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The files read so far, in that order, those that could not be read included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files(Vec<(PathBuf, Option<Fingerprint>)>);

impl Files {
    /// Reads a file. Its fingerprint is taken before, so that what is written meanwhile counts as a change.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        if !self.contains(path) {
            self.0.push((path.to_path_buf(), Fingerprint::of(path)));
        }
        std::fs::read(path)
    }

    pub(super) fn contains(&self, path: &Path) -> bool {
        self.0.iter().any(|(read, _)| read == path)
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|(path, _)| path.clone()).collect()
    }

    /// The same files as they are now, when any differs from what was read.
    pub(super) fn changed(&self) -> Option<Self> {
        let now = Self(self.0.iter().map(|(path, _)| (path.clone(), Fingerprint::of(path))).collect());
        (now != *self).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_change_a_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, "a = 1").unwrap();
        let read = |path: &Path| {
            let mut files = Files::default();
            let _ = files.read(path);
            files
        };

        let files = read(&path);
        assert_eq!(files.changed(), None);
        std::fs::write(&path, "a = 22").unwrap();
        assert!(files.changed().is_some(), "written in place");

        let files = read(&path);
        let next = folder.path().join("a.toml.new");
        std::fs::write(&next, "a = 33").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert!(files.changed().is_some(), "replaced by a rename");

        let files = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(files.changed().is_some(), "removed");

        let files = read(&path);
        assert_eq!(files.changed(), None);
        std::fs::write(&path, "a = 1").unwrap();
        assert!(files.changed().is_some(), "a file that was missing");
    }
}
