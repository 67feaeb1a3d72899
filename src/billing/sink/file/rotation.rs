//! When a new file is begun, what the old one is called then, and which of the old ones are kept.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

const DAY_MS: i64 = 86_400_000;

/// How long a file grows, and how many stay.
#[derive(Debug, Clone, Copy)]
pub(in crate::billing::sink) struct Rotation {
    pub(in crate::billing::sink) bytes_max: u64,
    /// Full files that are kept beside the one that is written; `None` keeps all.
    pub(in crate::billing::sink) files_max: Option<u32>,
}

impl Rotation {
    /// Whether a file that was last written to then must not be added to now. One that is empty never is.
    pub(super) fn is_due(&self, bytes: u64, more_bytes: u64, written_ms: i64, now_ms: i64) -> bool {
        let is_full = bytes.saturating_add(more_bytes) > self.bytes_max;
        bytes > 0 && (is_full || written_ms.div_euclid(DAY_MS) != now_ms.div_euclid(DAY_MS))
    }

    /// What a file is called that was last written to then.
    pub(super) fn name(path: &Path, written_ms: i64) -> PathBuf {
        let (mut name, extension) = parts(path);
        let format = format_description!("-[year][month][day]T[hour][minute][second]Z");
        let stamp = OffsetDateTime::from_unix_timestamp(written_ms.div_euclid(1_000)).ok();
        let stamp = stamp.and_then(|time| time.format(format).ok());
        name.push(stamp.unwrap_or_else(|| format!("-{written_ms}")));
        name.push(extension);
        path.with_file_name(name)
    }

    /// The full files beside that one, the oldest first.
    pub(super) fn kept(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (stem, extension) = parts(path);
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name();
            if is_name(&name, &stem, &extension) {
                kept.push(folder.join(name));
            }
        }
        kept.sort_unstable();
        Ok(kept)
    }

    /// Those that are too many.
    pub(super) fn outdated(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let Some(files_max) = self.files_max else { return Ok(Vec::new()) };
        let mut kept = self.kept(path)?;
        kept.truncate(kept.len().saturating_sub(usize::try_from(files_max).unwrap_or(usize::MAX)));
        Ok(kept)
    }
}

/// `usage` and `.ndjson` of `data/usage.ndjson`.
fn parts(path: &Path) -> (OsString, OsString) {
    let mut extension = OsString::new();
    if let Some(bare) = path.extension() {
        extension.push(".");
        extension.push(bare);
    }
    (path.file_stem().unwrap_or_default().to_owned(), extension)
}

/// Whether that is what [`Rotation::name`] makes, and not another file of the operator's.
fn is_name(name: &std::ffi::OsStr, stem: &std::ffi::OsStr, extension: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let stamp = name
        .strip_prefix(stem.as_encoded_bytes())
        .and_then(|rest| rest.strip_prefix(b"-"))
        .and_then(|rest| rest.strip_suffix(extension.as_encoded_bytes()))
        .and_then(|stamp| std::str::from_utf8(stamp).ok());
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    stamp.is_some_and(|stamp| PrimitiveDateTime::parse(stamp, format).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON_MS: i64 = 1_795_435_200_000;

    #[test]
    fn files_are_full_by_size_or_by_day() {
        let rotation = Rotation { bytes_max: 100, files_max: None };
        let due = |bytes, more, written_ms, now_ms| rotation.is_due(bytes, more, written_ms, now_ms);
        assert!(!due(50, 50, NOON_MS, NOON_MS));
        assert!(due(50, 51, NOON_MS, NOON_MS));
        assert!(!due(0, 500, NOON_MS, NOON_MS), "a batch is never too large for a file of its own");
        assert!(!due(1, 1, NOON_MS, NOON_MS + DAY_MS / 2 - 1));
        assert!(due(1, 1, NOON_MS, NOON_MS + DAY_MS / 2));
        assert!(!due(0, 1, NOON_MS, NOON_MS + DAY_MS));
    }

    #[test]
    fn old_files_are_named_after_their_last_write() {
        let name = |path: &str| Rotation::name(Path::new(path), 1_795_428_900_999).to_str().unwrap().to_owned();
        assert_eq!(name("data/usage.ndjson"), "data/usage-20261123T101500Z.ndjson");
        assert_eq!(name("usage"), "usage-20261123T101500Z");
    }

    #[test]
    fn only_what_was_named_here_is_ever_removed() {
        let folder = tempfile::tempdir().unwrap();
        let others =
            ["usage.ndjson", "usage-notes.ndjson", "usage-20261123.ndjson", "usage-20261123T101500Z.ndjson.gz"];
        let ours = ["usage-20251231T235959Z.ndjson", "usage-20261123T101500Z.ndjson", "usage-20261123T101501Z.ndjson"];
        others.iter().chain(&ours).for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        let path = folder.path().join("usage.ndjson");
        let outdated = |files_max| {
            let outdated = Rotation { bytes_max: 1, files_max }.outdated(&path).unwrap();
            outdated.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(outdated(None), Vec::<String>::new());
        assert_eq!(outdated(Some(3)), Vec::<String>::new());
        assert_eq!(outdated(Some(1)), ours[..2]);
    }
}
