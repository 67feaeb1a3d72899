//! The journal: requests that have ended, on their way into the spool.
//!
//! What the system has been given to write survives the process, however it ends, so a client whose request is to survive no more than
//! that need not wait for a transaction, nor the core for another thread: its record is written here, by whoever ends the request, and
//! the spool takes it over together with the others of that moment. Measured, with SQLite's write-ahead log alone: 36 µs a
//! transaction and a thread's turn for each moment in which something ends; a write here is 2.
//!
//! One file a process, beside the spool, in two halves. Entries are numbered, and the spool says, in the transaction that takes them
//! over, up to which it has them. A half is written anew when it has all of it, so that the file stays small. What is torn, or is left
//! of earlier turns, has a wrong checksum or a number that does not follow.
//!
//! Deliberately absent: what has to survive the loss of power, which waits for the disk in any case; and open requests, for which
//! nobody waits.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::SpoolError;
use crate::billing::batch;
use crate::relay::meter::UsageRecord;

/// What a journal begins with, and then the size of a half, four bytes, the least first.
const MAGIC: [u8; 4] = *b"tgj1";
const FILE_HEAD_BYTES: u64 = 8;

/// Before each record: its number, its length, and the checksum of both and of the record.
const HEAD_BYTES: usize = 16;

/// As much as an entry usually takes.
const USUAL_BYTES: usize = 512;

/// How long the end of a request waits for that of another. Longer, and the disk hangs: then one thread does, and not all.
const WAIT: Duration = Duration::from_millis(2);

/// The part of the spool's room that a half takes, and its bounds. The largest hold 50 ms of 30,000 requests a second together.
const HALF_PARTS: u64 = 128;
const HALF_BYTES_MIN: u64 = 4 * 1024;
const HALF_BYTES_MAX: u64 = 256 * 1024;

/// A process's journal, as it is written.
#[derive(Debug)]
pub(in crate::billing) struct Journal {
    half_bytes: u64,
    writing: Mutex<Writing>,
    /// Up to which entry the spool has them.
    spooled: AtomicU64,
}

#[derive(Debug)]
struct Writing {
    /// `None` once nothing more is written.
    file: Option<File>,
    /// The last entry's number.
    last: u64,
    half: usize,
    /// Where the next entry begins in it.
    at: u64,
    /// The number of each half's last entry.
    lasts: [u64; 2],
}

/// A record, ready to be written.
#[derive(Debug)]
pub(in crate::billing) struct Entry(Vec<u8>);

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::billing) struct Written {
    pub(in crate::billing) number: u64,
    /// The spool is to take over soon what is here, or there will be no place.
    pub(in crate::billing) is_pressed: bool,
}

impl Entry {
    /// `None` where it cannot be written, which whoever writes it elsewhere is told.
    pub(in crate::billing) fn of(record: &UsageRecord) -> Option<Self> {
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        bytes.extend_from_slice(&[0; HEAD_BYTES]);
        batch::encode_one(record, &mut bytes).ok()?;
        let length = u32::try_from(bytes.len() - HEAD_BYTES).ok()?;
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        Some(Self(bytes))
    }

    fn number(&mut self, number: u64) {
        self.0[..8].copy_from_slice(&number.to_le_bytes());
        let sum = checksum(&self.0);
        self.0[12..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    }
}

impl Journal {
    /// A new one, of a process that has the lock on that name.
    pub(super) fn create(path: &Path, spool_bytes_max: u64) -> Result<Self, SpoolError> {
        let failed = |source| SpoolError::Create { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
        let half_bytes = (spool_bytes_max / HALF_PARTS).clamp(HALF_BYTES_MIN, HALF_BYTES_MAX);
        let mut head = [0; FILE_HEAD_BYTES as usize];
        head[..4].copy_from_slice(&MAGIC);
        head[4..].copy_from_slice(&(half_bytes as u32).to_le_bytes());
        // A disk that is full now may have room later; until then clients wait for the spool.
        let file = match file.write_all_at(&head, 0) {
            Ok(()) => Some(file),
            Err(error) if error.kind() == ErrorKind::StorageFull => None,
            Err(error) => return Err(failed(error)),
        };
        let writing = Mutex::new(Writing { file, last: 0, half: 0, at: 0, lasts: [0; 2] });
        Ok(Self { half_bytes, writing, spooled: AtomicU64::new(0) })
    }

    /// How large the file may become.
    pub(super) fn bytes_max(&self) -> u64 {
        FILE_HEAD_BYTES + 2 * self.half_bytes
    }

    /// Writes an entry, and has `then` done before another is written. `None`, with nothing done, where there is no place for it or it
    /// cannot be written.
    pub(in crate::billing) fn append<T>(&self, mut entry: Entry, then: impl FnOnce(Written) -> T) -> Option<T> {
        let mut writing = self.writing.try_lock_for(WAIT)?;
        let length = entry.0.len() as u64;
        let (half, at) = writing.place(length, self.half_bytes, self.spooled.load(Ordering::Acquire))?;
        let number = writing.last + 1;
        entry.number(number);
        let place = FILE_HEAD_BYTES + half as u64 * self.half_bytes + at;
        match writing.file.as_ref()?.write_all_at(&entry.0, place) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return None,
            Err(error) => {
                // What is in it already is on its way into the spool, which will find out whether it fails too.
                tracing::error!(%error, "the spool's journal failed; clients wait for the spool itself from now on");
                writing.file = None;
                return None;
            }
        }
        (writing.half, writing.at, writing.last) = (half, at + length, number);
        writing.lasts[half] = number;
        let is_other_full = writing.lasts[1 - half] > self.spooled.load(Ordering::Acquire);
        let is_pressed = is_other_full && writing.at > self.half_bytes / 2;
        Some(then(Written { number, is_pressed }))
    }

    /// The spool has all entries up to that one.
    pub(super) fn spooled(&self, number: u64) {
        self.spooled.store(number, Ordering::Release);
    }

    /// Whether the spool does not have all that is here.
    pub(super) fn is_ahead(&self) -> bool {
        self.writing.lock().last > self.spooled.load(Ordering::Acquire)
    }

    /// Takes nothing any more.
    pub(in crate::billing) fn close(&self) {
        self.writing.lock().file = None;
    }
}

impl Writing {
    /// The half and the place in it for so many bytes.
    fn place(&self, length: u64, half_bytes: u64, spooled: u64) -> Option<(usize, u64)> {
        let at = if self.lasts[self.half] <= spooled { 0 } else { self.at };
        if at + length <= half_bytes {
            return Some((self.half, at));
        }
        let other = 1 - self.half;
        (self.lasts[other] <= spooled && length <= half_bytes).then_some((other, 0))
    }
}

/// What was read of a journal.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Left {
    pub(super) records: Vec<UsageRecord>,
    /// The last entry's number, those included that the spool has.
    pub(super) last: u64,
    /// What could not be understood, though it is as it was written.
    pub(super) unreadable: Vec<String>,
}

/// Reads what a dead process left and the spool does not have: the entries after a number. A process of a version without a journal
/// left none.
pub(super) fn read(path: &Path, after: u64) -> Result<Left, SpoolError> {
    let failed = |source| SpoolError::Create { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(FILE_HEAD_BYTES + 2 * HALF_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Left { last: after, ..Left::default() }),
        Err(error) => return Err(failed(error)),
    };
    let mut entries = entries(&bytes);
    entries.sort_unstable_by_key(|(number, _)| *number);
    let mut left = Left { last: after, ..Left::default() };
    for (number, body) in entries.into_iter().filter(|(number, _)| *number > after) {
        let body = String::from_utf8_lossy(body);
        let batch::Read { records, unreadable } = batch::decode(&body);
        left.records.extend(records);
        left.unreadable.extend(unreadable);
        left.last = number;
    }
    Ok(left)
}

/// All entries of both halves, with their numbers.
fn entries(bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let Some((head, halves)) = bytes.split_at_checked(FILE_HEAD_BYTES as usize) else { return Vec::new() };
    let Some(half_bytes) = head.strip_prefix(&MAGIC).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes)
    else {
        return Vec::new();
    };
    let (first, second) = halves.split_at(halves.len().min(half_bytes as usize));
    let mut found = Vec::new();
    for mut half in [first, second] {
        let mut before = None;
        while let Some((number, body, rest)) = next(half) {
            if before.is_some_and(|before| number != before + 1) {
                break;
            }
            found.push((number, body));
            (before, half) = (Some(number), rest);
        }
    }
    found
}

/// The entry that these bytes begin with, and what follows.
fn next(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let number = u64::from_le_bytes(head[..8].try_into().ok()?);
    let length = u32::from_le_bytes(head[8..12].try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(head[12..].try_into().ok()?);
    let (body, rest) = rest.split_at_checked(length)?;
    (number > 0 && checksum(&bytes[..HEAD_BYTES + length]) == sum).then_some((number, body, rest))
}

/// Of an entry, its own place aside.
fn checksum(entry: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&entry[..12]);
    sum.update(&entry[HEAD_BYTES..]);
    sum.finalize()
}

pub(super) fn path_of(spool: &Path, writer: &str) -> PathBuf {
    super::lock::beside(spool, writer, "journal")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::record;
    use super::*;

    fn append(journal: &Journal, number: u128) -> Option<Written> {
        journal.append(Entry::of(&record(number)).unwrap(), |written| written)
    }

    fn records(numbers: impl IntoIterator<Item = u128>) -> Vec<UsageRecord> {
        numbers.into_iter().map(record).collect()
    }

    #[test]
    fn what_was_written_and_is_not_spooled_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert_eq!(read(&path, 3).unwrap(), Left { last: 3, ..Left::default() }, "of an earlier version");
        let journal = Journal::create(&path, u64::MAX).unwrap();
        assert!(!journal.is_ahead());
        assert_eq!(read(&path, 0).unwrap(), Left::default());
        (1..=3).for_each(|number| assert_eq!(append(&journal, number).unwrap().number, number as u64));
        assert_eq!(read(&path, 0).unwrap(), Left { records: records(1..=3), last: 3, unreadable: vec![] });
        assert_eq!(read(&path, 2).unwrap().records, records([3]));
        journal.spooled(2);
        assert!(journal.is_ahead());
        journal.spooled(3);
        assert!(!journal.is_ahead());
        append(&journal, 4).unwrap();
        assert_eq!(read(&path, 3).unwrap(), Left { records: records([4]), last: 4, unreadable: vec![] });
        journal.close();
        assert_eq!(append(&journal, 5), None);
        assert_eq!(read(&path, 3).unwrap().records, records([4]));
    }

    #[test]
    fn a_half_is_written_anew_only_when_the_spool_has_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::create(&path, 0).unwrap();
        let (mut last, mut was_pressed) = (0, false);
        while let Some(written) = append(&journal, u128::from(last) + 1) {
            assert!(written.is_pressed >= was_pressed);
            (last, was_pressed) = (written.number, written.is_pressed);
        }
        assert!(was_pressed && last > 10);
        assert_eq!(read(&path, 0).unwrap().records, records(1..=u128::from(last)));
        // Neither half is free.
        journal.spooled(last / 2 - 1);
        assert_eq!(append(&journal, 0), None);
        journal.spooled(last / 2 + 1);
        assert_eq!(append(&journal, u128::from(last) + 1).unwrap().number, last + 1);
        assert_eq!(
            read(&path, last / 2 + 1).unwrap().records,
            records(u128::from(last / 2 + 2)..=u128::from(last) + 1)
        );
        assert!(path.metadata().unwrap().len() <= journal.bytes_max());
    }

    #[test]
    fn a_record_that_no_half_holds_waits_for_the_spool() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::create(&folder.path().join("journal"), 0).unwrap();
        let long = UsageRecord { model: "m".repeat(5_000).into(), ..record(1) };
        assert_eq!(journal.append(Entry::of(&long).unwrap(), |_| ()), None);
        assert_eq!(append(&journal, 2).unwrap().number, 1);
    }

    #[test]
    fn an_entry_of_another_version_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::create(&path, 0).unwrap();
        let mut entry = Entry::of(&record(1)).unwrap();
        let place = entry.0.len() - 3;
        entry.0[place] = b'x';
        journal.append(entry, |_| ()).unwrap();
        append(&journal, 2).unwrap();
        let left = read(&path, 0).unwrap();
        assert_eq!((left.records, left.last, left.unreadable.len()), (records([2]), 2, 1));
    }

    proptest! {
        /// Written, spooled and written anew in any measure, and cut off within the last entry: what was written whole is found.
        #[test]
        fn whatever_is_torn_nothing_before_it_is_lost(
            steps in vec((1_u64..12, 0_u64..12), 1..30),
            cut in any::<prop::sample::Index>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal");
            let journal = Journal::create(&path, 0).unwrap();
            let (mut last, mut spooled) = (0, 0);
            for (written, taken) in steps {
                for _ in 0..written {
                    last = append(&journal, u128::from(last) + 1).map_or(last, |written| written.number);
                }
                spooled = (spooled + taken).min(last);
                journal.spooled(spooled);
            }
            let before = std::fs::read(&path).unwrap();
            prop_assert_eq!(read(&path, spooled).unwrap().records, records(u128::from(spooled) + 1..=u128::from(last)));
            if append(&journal, u128::from(last) + 1).is_some() {
                let mut after = std::fs::read(&path).unwrap();
                let changed = (0..after.len()).filter(|place| before.get(*place) != after.get(*place)).collect::<Vec<_>>();
                let cut = changed[cut.index(changed.len())];
                after.truncate(cut);
                after.extend(before.get(cut..).unwrap_or_default());
                std::fs::write(&path, after).unwrap();
                let left = read(&path, spooled).unwrap();
                prop_assert_eq!(left.records, records(u128::from(spooled) + 1..=u128::from(last)));
                prop_assert_eq!(left.unreadable, [""; 0]);
            }
        }

        #[test]
        fn any_bytes_can_be_read(bytes in vec(any::<u8>(), 0..300)) {
            entries(&bytes);
            entries(&[&MAGIC, &[64, 0, 0, 0][..], &bytes].concat());
        }
    }
}
