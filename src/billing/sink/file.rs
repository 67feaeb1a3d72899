//! The sink that writes: one JSON object a line, the object of `tollgate usage --json`, appended to a file.
//!
//! A batch is one write, and on the disk before the cursor moves. What a crash leaves in between is put right when the file is
//! opened again: half a line is cut off, and the records that are there already are known by their ids (`tail`) and not written
//! again. So each record is in the files once.
//!
//! A file that is full, or of another day (UTC), is renamed after the time at which it was last written to, and a new one begun:
//! `usage.ndjson` becomes `usage-20261123T101500Z.ndjson`. One process writes at a time, by a lock on the file; while an old process
//! ends beside a new one, the new one waits.

mod rotation;
mod tail;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use uuid::Uuid;

use super::pace::UnixMs;
use super::{Sink, SinkError, TAKEN_MAX};
use crate::relay::meter::{UsageDocument, UsageRecord};
pub(super) use rotation::Rotation;
use tail::Recent;

/// Appends to a file.
#[derive(Debug)]
pub(in crate::billing) struct FileSink {
    name: Box<str>,
    journal: Arc<Mutex<Journal>>,
}

impl FileSink {
    /// Opens the file, and creates it and its folder where there are none. That another process still writes it is no error; the
    /// error is for the operator.
    pub(super) async fn open(
        name: Box<str>,
        path: PathBuf,
        rotation: Rotation,
        unix_ms: UnixMs,
    ) -> Result<Self, String> {
        let journal = Journal { path, rotation, unix_ms, current: None, recent: Recent::default() };
        let opened = tokio::task::spawn_blocking(move || {
            let mut journal = journal;
            match journal.open() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(journal.describe(&error)),
                _ => Ok(journal),
            }
        });
        let journal = opened.await.map_err(|error| error.to_string())??;
        Ok(Self { name, journal: Arc::new(Mutex::new(journal)) })
    }
}

impl Sink for FileSink {
    fn name(&self) -> &str {
        &self.name
    }

    async fn deliver(&mut self, records: &[UsageRecord]) -> Result<(), SinkError> {
        let line = |record| serde_json::to_string(&UsageDocument::from(record)).map(|line| line + "\n");
        let lines = records.iter().map(|record| Ok((record.request_id, line(record)?)));
        let lines: Vec<(Uuid, String)> = lines
            .collect::<Result<_, serde_json::Error>>()
            .map_err(|error| SinkError::Refused(format!("cannot be written as JSON: {error}")))?;
        let journal = Arc::clone(&self.journal);
        let written = tokio::task::spawn_blocking(move || {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            journal.append(&lines).map_err(|error| journal.describe(&error))
        });
        let written = written.await.unwrap_or_else(|_| Err("the write broke off".to_owned()));
        written.map_err(|why| SinkError::Later { why, retry_after: None })
    }
}

/// The file, and what is known of it.
struct Journal {
    path: PathBuf,
    rotation: Rotation,
    unix_ms: UnixMs,
    current: Option<Current>,
    /// What was written last, to this file and those before it.
    recent: Recent,
}

/// The file that is written to, locked.
#[derive(Debug)]
struct Current {
    file: File,
    /// When it was last written to, Unix milliseconds.
    written_ms: i64,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).field("rotation", &self.rotation).finish_non_exhaustive()
    }
}

impl Journal {
    /// Writes the lines that are not there yet. When it returns they are on the disk; when it fails none of them is in the file, or
    /// the next call finds those that are.
    fn append(&mut self, lines: &[(Uuid, String)]) -> io::Result<()> {
        self.reopen_if_moved()?;
        let fresh: Vec<&(Uuid, String)> = lines.iter().filter(|(id, _)| !self.recent.contains(*id)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let text: String = fresh.iter().map(|(_, line)| line.as_str()).collect();
        // A batch of which a part is there already stays together.
        if fresh.len() == lines.len() {
            self.rotate_if_due(text.len() as u64)?;
        }
        let now_ms = (self.unix_ms)();
        let Some(current) = &mut self.current else { return Err(io::ErrorKind::NotFound.into()) };
        let bytes = current.file.metadata()?.len();
        if let Err(error) = current.file.write_all(text.as_bytes()).and_then(|()| current.file.sync_data()) {
            // What could not be synced may be in memory only, where the next look would find it and take it for written.
            if let Err(error) = current.file.set_len(bytes) {
                tracing::error!(%error, path = %self.path.display(), "a failed write cannot be undone");
            }
            self.current = None;
            return Err(error);
        }
        current.written_ms = now_ms;
        self.recent.extend(fresh.into_iter().map(|(id, _)| *id));
        Ok(())
    }

    /// Opens the file where it is not open, or where somebody has moved or removed it.
    fn reopen_if_moved(&mut self) -> io::Result<()> {
        let is_there = match &self.current {
            Some(current) => is_at(&current.file, &self.path)?,
            None => false,
        };
        if is_there { Ok(()) } else { self.open() }
    }

    fn open(&mut self) -> io::Result<()> {
        self.current = None;
        let file = lock(&self.path)?;
        // A repair writes nothing.
        let written_ms = modified_ms(&file)?;
        let cut_bytes = tail::repair(&file)?;
        if cut_bytes > 0 {
            tracing::warn!(path = %self.path.display(), cut_bytes, "the file ended in half a line, which was cut off");
        }
        // The tail may have been written by a process that died before it was on the disk.
        file.sync_all()?;
        let mut files = vec![tail::ids(&file, TAKEN_MAX)?];
        for path in self.rotation.kept(&self.path)?.iter().rev() {
            let missing = TAKEN_MAX.saturating_sub(files.iter().map(Vec::len).sum());
            if missing == 0 {
                break;
            }
            files.push(tail::ids(&File::open(path)?, missing)?);
        }
        self.recent.extend(files.into_iter().rev().flatten());
        self.current = Some(Current { file, written_ms });
        Ok(())
    }

    /// Begins a new file where this one is full with so many bytes more, or of another day.
    fn rotate_if_due(&mut self, more_bytes: u64) -> io::Result<()> {
        let Some(current) = &self.current else { return Ok(()) };
        let bytes = current.file.metadata()?.len();
        if !self.rotation.is_due(bytes, more_bytes, current.written_ms, (self.unix_ms)()) {
            return Ok(());
        }
        let name = Rotation::name(&self.path, current.written_ms);
        if name.try_exists()? {
            // Two in one second: the next write has another time.
            return Ok(());
        }
        std::fs::rename(&self.path, &name)?;
        self.current = None;
        let file = lock(&self.path)?;
        self.current = Some(Current { file, written_ms: (self.unix_ms)() });
        for path in self.rotation.outdated(&self.path)? {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "an old file of usage cannot be removed");
            }
        }
        Ok(())
    }

    fn describe(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.path.display())
    }
}

/// Opens the file for one writer, and creates it and its folder where there are none, for their owner only.
fn lock(path: &Path) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let busy = || io::Error::new(io::ErrorKind::WouldBlock, "another process writes this file");
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => busy(),
        TryLockError::Error(error) => error,
    })?;
    // Between the two somebody may have begun a new file.
    if !is_at(&file, path)? {
        return Err(busy());
    }
    File::open(folder)?.sync_all()?;
    Ok(file)
}

/// Whether an open file is the one at that path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn modified_ms(file: &File) -> io::Result<i64> {
    let since_epoch = file.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
