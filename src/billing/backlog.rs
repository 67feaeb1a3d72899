//! What the ledger does not have yet, oldest first, and where it is.
//!
//! All of it is in the spool. What this process spooled lately is held in memory as well, so that a record goes to the ledger without
//! being read back. Only what an earlier process left is read, and what came while the ledger was so far behind that memory is for
//! something else.

use std::collections::VecDeque;
use std::sync::Arc;

use super::spool::{Stretch, oldest_ms};
use crate::relay::meter::UsageRecord;

/// How many records are held in memory: a second and a half of ten thousand requests a second, and some megabytes.
pub(super) const HELD_RECORDS_MAX: usize = 16_384;

/// What waits for the ledger.
#[derive(Debug)]
pub(super) struct Backlog {
    /// What others left, to be read first.
    left_behind: VecDeque<Stretch>,
    /// What is on its way to the ledger.
    on_its_way: Option<Waiting>,
    /// Batches of this process.
    held: VecDeque<Batch>,
    held_records: usize,
    /// Batches of this process after those, to be read. While there are any, whatever comes is added to them.
    not_held: Option<Stretch>,
    /// This process.
    writer: Arc<str>,
}

/// Records that were spooled together.
#[derive(Debug)]
struct Batch {
    number: i64,
    records: Vec<UsageRecord>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Whether others wrote them.
    inherited: bool,
    records: u64,
    oldest_ms: i64,
}

/// What goes to the ledger next.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    /// These records.
    Parcel(Parcel),
    /// The beginning of this stretch, which is to be read, and [`Backlog::advance`]d past.
    Read(Stretch),
}

/// Records on their way to the ledger: all that are left of batches of one process that follow each other.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) writer: Arc<str>,
    /// Whether its numbers may have gaps, because an earlier version wrote them.
    pub(super) legacy: bool,
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) records: Vec<UsageRecord>,
    /// The ledger has them; what remains is to remove them from the spool.
    pub(super) settled: bool,
}

impl Backlog {
    /// Of a process that has spooled nothing yet.
    pub(super) fn new(writer: Arc<str>, left_behind: Vec<Stretch>) -> Self {
        Self {
            left_behind: left_behind.into(),
            on_its_way: None,
            held: VecDeque::new(),
            held_records: 0,
            not_held: None,
            writer,
        }
    }

    /// Others have left something, which is this process's to deliver.
    pub(super) fn inherit(&mut self, stretches: Vec<Stretch>) {
        self.left_behind.extend(stretches);
    }

    /// Whether anything of others waits.
    pub(super) fn has_inherited(&self) -> bool {
        !self.left_behind.is_empty() || self.on_its_way.is_some_and(|waiting| waiting.inherited)
    }

    /// A batch of this process is in the spool. Numbers follow each other.
    pub(super) fn push(&mut self, number: i64, records: Vec<UsageRecord>) {
        if let Some(stretch) = &mut self.not_held {
            stretch.last = number;
            stretch.records += records.len() as u64;
        } else if self.held_records + records.len() > HELD_RECORDS_MAX {
            self.not_held = Some(Stretch {
                writer: Arc::clone(&self.writer),
                legacy: false,
                after: number - 1,
                last: number,
                records: records.len() as u64,
                oldest_ms: oldest_ms(records.iter()),
            });
        } else {
            self.held_records += records.len();
            self.held.push_back(Batch { number, records });
        }
    }

    /// What to hand to the ledger, at most `records_max` records or one batch. Afterwards it is on its way, until it is
    /// [`Backlog::delivered`].
    pub(super) fn next(&mut self, records_max: usize) -> Next {
        if let Some(stretch) = self.left_behind.front() {
            return Next::Read(stretch.clone());
        }
        let Some(Batch { number, mut records }) = self.held.pop_front() else {
            return self.not_held.clone().map_or(Next::Nothing, Next::Read);
        };
        let mut last = number;
        while let Some(batch) = self.held.pop_front_if(|batch| records.len() + batch.records.len() <= records_max) {
            last = batch.number;
            records.extend(batch.records);
        }
        self.held_records -= records.len();
        let writer = Arc::clone(&self.writer);
        let parcel = Parcel { writer, legacy: false, first: number, last, records, settled: false };
        self.depart(&parcel);
        Next::Parcel(parcel)
    }

    /// Of a stretch that was to be read the batches of those numbers have been read, whose records are on their way now; with `None`
    /// nothing is left of it.
    pub(super) fn advance(
        &mut self,
        stretch: &Stretch,
        numbers: Option<(i64, i64)>,
        records: Vec<UsageRecord>,
    ) -> Option<Parcel> {
        let last = numbers.map(|(_, last)| last);
        let left_behind = !self.left_behind.is_empty();
        let rest = if left_behind { self.left_behind.front_mut() } else { self.not_held.as_mut() };
        let at_end = rest.is_none_or(|rest| {
            rest.after = last.unwrap_or(stretch.last);
            rest.records = rest.records.saturating_sub(records.len() as u64);
            rest.oldest_ms = records.last().map_or(rest.oldest_ms, |last| oldest_ms(std::iter::once(last)));
            // Not where the stretch that was read ended: meanwhile it may have grown.
            rest.after >= rest.last
        });
        if at_end && left_behind {
            self.left_behind.pop_front();
        } else if at_end {
            self.not_held = None;
        }
        let (first, last) = numbers?;
        let (writer, legacy) = (Arc::clone(&stretch.writer), stretch.legacy);
        let parcel = Parcel { writer, legacy, first, last, records, settled: false };
        self.depart(&parcel);
        Some(parcel)
    }

    /// What was on its way is in the ledger, and in the spool no more.
    pub(super) fn delivered(&mut self) {
        self.on_its_way = None;
    }

    /// How many records wait, and when the request ended that has waited the longest.
    pub(super) fn waiting(&self) -> (u64, Option<i64>) {
        let stretches = self.left_behind.iter().chain(&self.not_held);
        let read: u64 = stretches.map(|stretch| stretch.records).sum();
        let on_its_way = self.on_its_way.map_or(0, |waiting| waiting.records);
        let oldest = self.on_its_way.map(|waiting| waiting.oldest_ms);
        let oldest = oldest.or_else(|| self.left_behind.front().map(|stretch| stretch.oldest_ms));
        let oldest = oldest.or_else(|| self.held.front().map(|batch| oldest_ms(batch.records.iter())));
        let oldest = oldest.or_else(|| self.not_held.as_ref().map(|stretch| stretch.oldest_ms));
        (read + on_its_way + self.held_records as u64, oldest)
    }

    fn depart(&mut self, parcel: &Parcel) {
        let records = parcel.records.len() as u64;
        let inherited = parcel.writer != self.writer;
        self.on_its_way = Some(Waiting { inherited, records, oldest_ms: oldest_ms(parcel.records.iter()) });
    }
}

#[cfg(test)]
mod tests {
    use super::super::spool::record;
    use super::*;

    fn backlog(left_behind: Vec<Stretch>) -> Backlog {
        Backlog::new("b".into(), left_behind)
    }

    fn left(writer: &str, last: i64) -> Stretch {
        Stretch { writer: writer.into(), legacy: false, after: 0, last, records: 2, oldest_ms: 5 }
    }

    fn some(count: usize) -> Vec<UsageRecord> {
        vec![record(1); count]
    }

    fn parcel(next: Next) -> (i64, i64, usize) {
        match next {
            Next::Parcel(parcel) => (parcel.first, parcel.last, parcel.records.len()),
            other => panic!("{other:?}"),
        }
    }

    fn stretch(next: Next) -> Stretch {
        match next {
            Next::Read(stretch) => stretch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn batches_go_together_up_to_a_limit_and_one_always() {
        let mut backlog = backlog(Vec::new());
        for (number, records) in [(1, 5), (2, 4), (3, 3), (4, 20)] {
            backlog.push(number, some(records));
        }
        assert_eq!(backlog.waiting(), (32, Some(1_700_000_000_501)));
        assert_eq!(parcel(backlog.next(10)), (1, 2, 9));
        assert_eq!(backlog.waiting().0, 32, "what is on its way waits still");
        backlog.delivered();
        assert_eq!(parcel(backlog.next(10)), (3, 3, 3));
        assert_eq!(parcel(backlog.next(10)), (4, 4, 20));
        backlog.delivered();
        assert!(matches!(backlog.next(10), Next::Nothing));
        assert_eq!(backlog.waiting(), (0, None));
    }

    #[test]
    fn what_others_left_comes_first() {
        let mut backlog = backlog(vec![left("a", 7), left("aa", 9)]);
        backlog.push(1, some(1));
        assert_eq!(backlog.waiting(), (5, Some(5)));
        let first = stretch(backlog.next(10));
        let read = backlog.advance(&first, Some((1, 3)), some(1)).unwrap();
        assert_eq!((&*read.writer, read.first, read.last, read.records.len()), ("a", 1, 3, 1));
        let rest = stretch(backlog.next(10));
        assert_eq!((rest.after, rest.last), (3, 7));
        backlog.advance(&rest, Some((4, 7)), some(1)).unwrap();
        let second = stretch(backlog.next(10));
        assert_eq!(&*second.writer, "aa");
        assert!(backlog.advance(&second, None, Vec::new()).is_none(), "its process settled it itself");
        assert_eq!(parcel(backlog.next(10)), (1, 1, 1));
        backlog.delivered();
        assert_eq!(backlog.waiting(), (0, None));
    }

    #[test]
    fn what_memory_does_not_hold_is_read_back_in_its_place() {
        let mut backlog = backlog(Vec::new());
        backlog.push(1, some(HELD_RECORDS_MAX));
        backlog.push(2, some(1));
        assert_eq!(parcel(backlog.next(10)), (1, 1, HELD_RECORDS_MAX));
        backlog.delivered();
        backlog.push(3, some(1));
        let rest = stretch(backlog.next(10));
        assert_eq!((rest.after, rest.last, rest.records), (1, 3, 2), "there is room again, but not before its turn");
        backlog.push(4, some(1));
        let read = backlog.advance(&rest, Some((2, 3)), some(2)).unwrap();
        assert_eq!((read.first, read.last), (2, 3));
        backlog.delivered();
        let grown = stretch(backlog.next(10));
        assert_eq!((grown.after, grown.last, grown.records), (3, 4, 1));
        backlog.advance(&grown, Some((4, 4)), some(1)).unwrap();
        backlog.delivered();
        backlog.push(5, some(1));
        assert_eq!(parcel(backlog.next(10)), (5, 5, 1), "held again");
        backlog.delivered();
        assert_eq!(backlog.waiting(), (0, None));
    }
}
