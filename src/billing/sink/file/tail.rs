//! The end of a file of records: what a crash left of it is put right, and what is in it is remembered.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Deserialize;
use uuid::Uuid;

use super::super::TAKEN_MAX;

/// How much is read at a time, going backwards.
const BLOCK_BYTES: u64 = 64 * 1024;

/// How every line begins.
const LINE_BEGINS: &[u8] = br#"{"request_id":""#;

/// The ids of what was written last: as many as may come again, twice over, so that a look at the file adds to what is known.
#[derive(Debug, Default)]
pub(super) struct Recent {
    order: VecDeque<Uuid>,
    known: HashSet<Uuid>,
}

impl Recent {
    pub(super) fn contains(&self, id: Uuid) -> bool {
        self.known.contains(&id)
    }

    /// Adds ids, the oldest first.
    pub(super) fn extend(&mut self, ids: impl IntoIterator<Item = Uuid>) {
        for id in ids {
            if self.known.insert(id) {
                self.order.push_back(id);
            }
        }
        while self.order.len() > 2 * TAKEN_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

/// Cuts off what is no whole line at the end, and says how many bytes that was. A power cut can leave zeros instead of text, in
/// what was not on the disk yet; whatever follows them goes too, as it comes again.
///
/// # Errors
/// The file cannot be read or cut, or is not one of records: then it is left as it is.
pub(super) fn repair(file: &File) -> io::Result<u64> {
    let bytes = file.metadata()?.len();
    let mut first = vec![0; LINE_BEGINS.len().min(usize::try_from(bytes).unwrap_or(usize::MAX))];
    file.read_exact_at(&mut first, 0)?;
    if !LINE_BEGINS.starts_with(&first) && first.iter().any(|byte| *byte != 0) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "there is something else than usage in this file"));
    }
    let tail = Tail::read(file, TAKEN_MAX)?;
    let written = memchr::memchr(0, &tail.text).unwrap_or(tail.text.len());
    let whole = memchr::memrchr(b'\n', tail.text.get(..written).unwrap_or_default()).map_or(0, |at| at + 1);
    let whole = tail.begins.saturating_add(whole as u64);
    if whole < bytes {
        file.set_len(whole)?;
    }
    Ok(bytes - whole)
}

/// The ids of the last lines, the oldest first. Lines that are not records are passed over.
pub(super) fn ids(file: &File, lines_max: usize) -> io::Result<Vec<Uuid>> {
    #[derive(Deserialize)]
    struct Line {
        request_id: Uuid,
    }

    let tail = Tail::read(file, lines_max)?;
    let lines = tail.text.split(|byte| *byte == b'\n');
    let lines: Vec<Uuid> =
        lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok()).map(|line| line.request_id).collect();
    Ok(lines.get(lines.len().saturating_sub(lines_max)..).unwrap_or_default().to_vec())
}

/// The end of a file, from the beginning of a line.
struct Tail {
    begins: u64,
    text: Vec<u8>,
}

impl Tail {
    /// At least that many lines, where there are so many.
    fn read(file: &File, lines_max: usize) -> io::Result<Self> {
        let mut begins = file.metadata()?.len();
        let mut blocks = Vec::new();
        let mut lines = 0;
        // The first line of what is read may be half a one, and the last.
        while begins > 0 && lines <= lines_max + 1 {
            let start = begins.saturating_sub(BLOCK_BYTES);
            let mut block = vec![0; usize::try_from(begins - start).unwrap_or(0)];
            file.read_exact_at(&mut block, start)?;
            lines += memchr::memchr_iter(b'\n', &block).count();
            blocks.push(block);
            begins = start;
        }
        let mut text: Vec<u8> = blocks.into_iter().rev().flatten().collect();
        if begins > 0 {
            let half = memchr::memchr(b'\n', &text).map_or(text.len(), |at| at + 1);
            text.drain(..half);
            begins += half as u64;
        }
        Ok(Self { begins, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(text, 0).unwrap();
        file
    }

    fn line(number: u128) -> String {
        format!("{{\"request_id\":\"{}\",\"more\":1}}\n", Uuid::from_u128(number))
    }

    fn lines(numbers: std::ops::Range<u128>) -> String {
        numbers.map(line).collect()
    }

    fn after_repair(text: &[u8]) -> Vec<u8> {
        let file = file(text);
        let cut = repair(&file).unwrap();
        let tail = Tail::read(&file, usize::MAX - 1).unwrap();
        assert_eq!(cut + tail.text.len() as u64, text.len() as u64);
        tail.text
    }

    #[test]
    fn half_a_line_is_cut_off_wherever_it_ends() {
        let whole = lines(0..2);
        let torn = lines(0..3);
        for end in whole.len()..torn.len() {
            assert_eq!(after_repair(&torn.as_bytes()[..end]), whole.as_bytes(), "{end}");
        }
        assert_eq!(after_repair(torn.as_bytes()), torn.as_bytes());
        assert_eq!(after_repair(&torn.as_bytes()[..5]), b"");
        assert_eq!(after_repair(b""), b"");
    }

    #[test]
    fn zeros_of_a_power_cut_go_with_what_follows_them() {
        let whole = lines(0..2);
        let zeros = [0; 5_000];
        assert_eq!(after_repair(&[whole.as_bytes(), &zeros].concat()), whole.as_bytes());
        assert_eq!(after_repair(&[whole.as_bytes(), &zeros, line(9).as_bytes()].concat()), whole.as_bytes());
        assert_eq!(after_repair(&zeros), b"");
    }

    #[test]
    fn another_file_is_left_as_it_is() {
        for text in ["root:x:0:0", "{\"other\":1}\n{\"half", "\n"] {
            let file = file(text.as_bytes());
            assert_eq!(repair(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(file.metadata().unwrap().len(), text.len() as u64);
        }
    }

    #[test]
    fn the_last_ids_are_found_in_long_and_short_files() {
        let numbers = |range: std::ops::Range<u128>| range.map(Uuid::from_u128).collect::<Vec<_>>();
        let long = file(lines(0..5_000).as_bytes());
        assert!(long.metadata().unwrap().len() > 4 * BLOCK_BYTES);
        for count in [1, 2, 1_000, 4_999, 5_000] {
            assert_eq!(ids(&long, usize::try_from(count).unwrap()).unwrap(), numbers(5_000 - count..5_000), "{count}");
        }
        assert_eq!(ids(&long, 9_000).unwrap(), numbers(0..5_000));
        let mixed = [line(1), "garbage\n".to_owned(), line(2)].concat();
        assert_eq!(ids(&file(mixed.as_bytes()), 9).unwrap(), numbers(1..3));
    }

    #[test]
    fn as_many_are_remembered_as_may_come_again() {
        let mut recent = Recent::default();
        recent.extend((0..3 * TAKEN_MAX as u128).map(Uuid::from_u128));
        assert!(!recent.contains(Uuid::from_u128(0)));
        assert!(recent.contains(Uuid::from_u128(2 * TAKEN_MAX as u128)));
        assert_eq!((recent.order.len(), recent.known.len()), (2 * TAKEN_MAX, 2 * TAKEN_MAX));
    }
}
