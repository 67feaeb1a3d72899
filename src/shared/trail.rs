//! What this node has admitted within the last minute, what of it still runs, and what of it Redis is still to be told.
//!
//! A minute of it is kept, not only what Redis has missed: Redis may come back empty, and what it had forgotten would be sold twice.
//! Everything here is bounded by time, and by number where a minute has more: then the oldest is forgotten, which at worst lets a
//! key take more than its share after an outage.
//!
//! Deliberately absent: the clock and the connection. Times are of the node's own clock; what Redis knows by its own says so.

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

use super::Tag;
use crate::relay::admit::WINDOW_SECONDS;

/// The most admissions that are remembered, some 80 bytes each.
const ENTRIES_MAX: usize = 500_000;
/// The most that waits to be told.
const NOTES_MAX: usize = 500_000;
/// For how long anything is remembered or worth telling: a window, and what clocks may differ by.
const KEPT_US: u64 = (WINDOW_SECONDS + 2) * 1_000_000;

/// A request that was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) tag: Tag,
    pub(super) id: Uuid,
    /// When, by this node's clock.
    pub(super) at_us: u64,
    /// When, by the server's, where that decided.
    pub(super) server_at_us: Option<u64>,
    /// What was reserved, or used in the end; `None` where tokens have no limit.
    pub(super) tokens: Option<u64>,
    /// Whether it takes one of the requests at once.
    pub(super) has_slot: bool,
}

/// What Redis is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// A request was admitted without it, or may be unknown to it.
    Record(Entry),
    /// A request that has a slot has ended.
    Release {
        tag: Tag,
        id: Uuid,
        /// When it was admitted, by the server's clock.
        server_at_us: Option<u64>,
        reserved: Option<u64>,
        used: Option<u64>,
    },
    /// A request is not to have been admitted.
    Undo { tag: Tag, id: Uuid, reserved: Option<u64> },
}

/// A word, and when it may be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    since_us: u64,
    /// Not before: what Redis was asked then may still be under way.
    due_us: u64,
    said: Said,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// The entry of that number, as it is when it is told.
    Entry(u64),
    Word(Word),
}

#[derive(Debug, Default)]
pub(super) struct Trail {
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    first: u64,
    notes: VecDeque<Note>,
    /// Requests that have a slot.
    running: HashMap<Uuid, Tag>,
}

impl Trail {
    /// A request was admitted. Gives the number by which it is known here.
    pub(super) fn admitted(&mut self, entry: Entry) -> u64 {
        let now_us = entry.at_us;
        while self.entries.front().is_some_and(|entry| entry.at_us + KEPT_US < now_us)
            || self.entries.len() >= ENTRIES_MAX
        {
            self.entries.pop_front();
            self.first += 1;
        }
        if entry.has_slot {
            self.running.insert(entry.id, entry.tag);
        }
        self.entries.push_back(entry);
        self.first + self.entries.len() as u64 - 1
    }

    /// That request has ended and used so many tokens, where that is known.
    pub(super) fn ended(&mut self, number: u64, id: Uuid, used: Option<u64>) {
        self.running.remove(&id);
        if let Some(entry) = self.entry_mut(number) {
            entry.has_slot = false;
            entry.tokens = entry.tokens.map(|reserved| used.unwrap_or(reserved));
        }
    }

    /// Redis is to be told of that entry.
    pub(super) fn record(&mut self, number: u64, now_us: u64, due_us: u64) {
        self.note(Note { since_us: now_us, due_us, said: Said::Entry(number) });
    }

    /// Redis is to be told that.
    pub(super) fn tell(&mut self, word: Word, now_us: u64, due_us: u64) {
        self.note(Note { since_us: now_us, due_us, said: Said::Word(word) });
    }

    /// Redis may have lost what it knew: it is to be told of everything.
    pub(super) fn record_all(&mut self, now_us: u64) {
        self.notes.retain(|note| matches!(note.said, Said::Word(_)));
        for number in self.first..self.first + self.entries.len() as u64 {
            self.record(number, now_us, now_us);
        }
    }

    /// The next that may be said, taken from here; in the order in which it came.
    pub(super) fn due(&mut self, now_us: u64, most: usize) -> Vec<(Note, Word)> {
        let mut due = Vec::new();
        while due.len() < most
            && let Some(note) = self.notes.pop_front_if(|note| note.due_us <= now_us)
        {
            if note.since_us + KEPT_US < now_us {
                continue;
            }
            let word = match &note.said {
                Said::Word(word) => Some(word.clone()),
                Said::Entry(number) => self.entry_mut(*number).cloned().map(Word::Record),
            };
            due.extend(word.map(|word| (note, word)));
        }
        due
    }

    /// What was taken could not be said: it is the next again.
    pub(super) fn put_back(&mut self, notes: impl DoubleEndedIterator<Item = Note>) {
        for note in notes.rev() {
            self.notes.push_front(note);
        }
    }

    /// When the next may be said.
    pub(super) fn next_due_us(&self) -> Option<u64> {
        self.notes.front().map(|note| note.due_us)
    }

    /// How much waits.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.notes.len()
    }

    /// How many admissions are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.entries.len()
    }

    /// The requests that have a slot, those of one key together.
    pub(super) fn running(&self) -> Vec<(Tag, Uuid)> {
        let mut running: Vec<_> = self.running.iter().map(|(id, tag)| (*tag, *id)).collect();
        running.sort_unstable();
        running
    }

    fn note(&mut self, note: Note) {
        let stale_us = note.since_us.saturating_sub(KEPT_US);
        while self.notes.len() >= NOTES_MAX || self.notes.front().is_some_and(|first| first.since_us < stale_us) {
            self.notes.pop_front();
        }
        self.notes.push_back(note);
    }

    fn entry_mut(&mut self, number: u64) -> Option<&mut Entry> {
        let place = number.checked_sub(self.first)?;
        self.entries.get_mut(usize::try_from(place).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u128, at_us: u64) -> Entry {
        let id = Uuid::from_u128(number);
        Entry { tag: Tag([1; 16]), id, at_us, server_at_us: None, tokens: Some(100), has_slot: true }
    }

    fn words(trail: &mut Trail, now_us: u64) -> Vec<Word> {
        trail.due(now_us, 100).into_iter().map(|(_, word)| word).collect()
    }

    fn release(number: u128) -> Word {
        let id = Uuid::from_u128(number);
        Word::Release { tag: Tag([1; 16]), id, server_at_us: None, reserved: Some(100), used: Some(7) }
    }

    #[test]
    fn what_has_ended_before_it_is_told_is_told_as_it_ended() {
        let mut trail = Trail::default();
        let number = trail.admitted(entry(1, 10));
        trail.record(number, 10, 50);
        assert_eq!(trail.running(), [(Tag([1; 16]), Uuid::from_u128(1))]);
        trail.ended(number, Uuid::from_u128(1), Some(7));
        trail.tell(release(1), 20, 20);
        assert!(words(&mut trail, 49).is_empty(), "the release waits behind the record");
        assert_eq!(trail.next_due_us(), Some(50));
        let ended = Entry { tokens: Some(7), has_slot: false, ..entry(1, 10) };
        assert_eq!(words(&mut trail, 50), [Word::Record(ended), release(1)]);
        assert!(trail.running().is_empty() && trail.waiting() == 0);
    }

    #[test]
    fn what_could_not_be_said_is_said_first_and_in_order() {
        let mut trail = Trail::default();
        for number in 0..3 {
            trail.tell(release(number), 0, 0);
        }
        let taken = trail.due(0, 2);
        trail.put_back(taken.into_iter().map(|(note, _)| note));
        assert_eq!(words(&mut trail, 0), [release(0), release(1), release(2)]);
    }

    #[test]
    fn everything_of_a_minute_is_told_again_once_and_nothing_older() {
        let mut trail = Trail::default();
        let first = trail.admitted(entry(1, 0));
        trail.record(first, 0, 0);
        trail.admitted(entry(2, 5));
        trail.record_all(10);
        assert_eq!(words(&mut trail, 10), [Word::Record(entry(1, 0)), Word::Record(entry(2, 5))]);

        let later_us = KEPT_US + 3;
        trail.tell(release(9), 10, 10);
        trail.admitted(entry(3, later_us));
        trail.record_all(later_us);
        assert_eq!(
            words(&mut trail, later_us),
            [release(9), Word::Record(entry(2, 5)), Word::Record(entry(3, later_us))]
        );
        trail.tell(release(4), later_us, later_us);
        assert!(words(&mut trail, later_us + KEPT_US + 1).is_empty(), "too old to matter");
        assert_eq!(trail.running().len(), 3, "who runs for long runs still");
    }

    #[test]
    fn there_is_room_for_so_much_and_no_more() {
        let mut trail = Trail::default();
        for number in 0..NOTES_MAX as u128 + 5 {
            let number = trail.admitted(Entry { has_slot: false, ..entry(number, 0) });
            trail.record(number, 0, 0);
        }
        assert_eq!((trail.entries.len(), trail.waiting()), (ENTRIES_MAX, NOTES_MAX));
        assert!(trail.running().is_empty());
        assert_eq!(trail.due(0, 1)[0].1, Word::Record(Entry { has_slot: false, ..entry(5, 0) }));
    }
}
