//! Records on their way through a sink, in pieces: whole where it takes them, in halves where it refuses one of them, so that
//! only the one is left behind. No I/O.
//!
//! A receiver that refuses everything looks at first like one that refuses a record. Before anything is split a few single records
//! are tried: where none of them goes through either, it is the receiver, and all of it waits as it is.

use std::collections::VecDeque;
use std::ops::Range;

use uuid::Uuid;

use super::{Parked, RECORDS_MAX};
use crate::relay::meter::UsageRecord;

/// How many single records are tried before it is believed that the receiver refuses everything.
const PROBES: usize = 8;

/// Records that were taken together.
#[derive(Debug)]
pub(super) struct Work {
    records: Vec<UsageRecord>,
    /// What is left to try, the next first. Parts of `records`.
    pieces: VecDeque<Range<usize>>,
    passed: Vec<Range<usize>>,
    refused: Vec<(usize, String)>,
    probed: bool,
    /// How often all of it was refused: each time others are tried.
    rounds: usize,
}

impl Work {
    pub(super) fn new(records: Vec<UsageRecord>) -> Self {
        let mut work = Self {
            records,
            pieces: VecDeque::new(),
            passed: Vec::new(),
            refused: Vec::new(),
            probed: false,
            rounds: 0,
        };
        work.begin();
        work
    }

    /// What to try next; `None` when all of it was passed or refused.
    pub(super) fn next(&self) -> Option<&[UsageRecord]> {
        self.pieces.front().and_then(|piece| self.records.get(piece.clone()))
    }

    /// The next piece went through. How many records it is.
    pub(super) fn pass(&mut self) -> usize {
        let Some(piece) = self.pieces.pop_front() else { return 0 };
        let count = piece.len();
        self.passed.push(piece);
        count
    }

    /// The next piece is too large: halves of it, or, where it is a single record, one that is left behind.
    pub(super) fn split(&mut self, why: &str) {
        match self.pieces.pop_front() {
            Some(piece) if piece.len() > 1 => self.halve(piece),
            Some(piece) => self.refused.push((piece.start, why.to_owned())),
            None => {}
        }
    }

    /// The next piece was refused. `false` where it seems that everything is: then nothing of it has gone through, and all is to
    /// be tried again later, from its beginning.
    pub(super) fn refuse(&mut self, why: &str) -> bool {
        match self.pieces.pop_front() {
            Some(piece) if piece.len() > PROBES && !self.probed && self.passed.is_empty() => self.probe(piece),
            Some(piece) if piece.len() > 1 => self.halve(piece),
            Some(piece) => self.refused.push((piece.start, why.to_owned())),
            None => {}
        }
        let all = self.probed && self.passed.is_empty() && self.refused.len() >= PROBES && !self.pieces.is_empty();
        if all {
            self.rounds += 1;
            self.begin();
        }
        !all
    }

    /// What was refused for itself.
    pub(super) fn parked(&self) -> Vec<Parked> {
        let parked = |(place, why): &(usize, String)| {
            let record = self.records.get(*place)?.clone();
            Some(Parked { record, why: why.clone() })
        };
        self.refused.iter().filter_map(parked).collect()
    }

    /// The ids of what went through.
    pub(super) fn passed(&self) -> Vec<Uuid> {
        let passed = self.passed.iter().flat_map(|piece| self.records.get(piece.clone()).unwrap_or_default());
        passed.map(|record| record.request_id).collect()
    }

    /// What has not been tried yet will not be.
    pub(super) fn abandon(&mut self) {
        self.pieces.clear();
    }

    /// Whether all of it went through.
    pub(super) fn is_whole(&self) -> bool {
        self.passed.iter().map(ExactSizeIterator::len).sum::<usize>() == self.records.len()
    }

    /// How many records are neither passed nor refused for themselves.
    pub(super) fn left(&self) -> usize {
        self.pieces.iter().map(ExactSizeIterator::len).sum()
    }

    fn begin(&mut self) {
        let count = self.records.len();
        self.pieces = (0..count).step_by(RECORDS_MAX).map(|start| start..count.min(start + RECORDS_MAX)).collect();
        self.refused.clear();
        self.probed = false;
    }

    fn halve(&mut self, piece: Range<usize>) {
        let middle = piece.start + piece.len() / 2;
        self.pieces.push_front(middle..piece.end);
        self.pieces.push_front(piece.start..middle);
    }

    /// Single records from all over the piece first, and then what is between them.
    fn probe(&mut self, piece: Range<usize>) {
        self.probed = true;
        let offset = |probe: usize| (probe * piece.len() / PROBES + self.rounds) % piece.len();
        let mut singles: Vec<usize> = (0..PROBES).map(|probe| piece.start + offset(probe)).collect();
        singles.sort_unstable();
        let starts = std::iter::once(piece.start).chain(singles.iter().map(|single| single + 1));
        let ends = singles.iter().copied().chain(std::iter::once(piece.end));
        let between = starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty());
        let tried: Vec<Range<usize>> = singles.iter().map(|single| *single..single + 1).chain(between).collect();
        tried.into_iter().rev().for_each(|piece| self.pieces.push_front(piece));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::records;
    use super::*;

    /// Works off everything at a receiver that refuses what `poison` says: attempts, what was left behind, and whether it was
    /// believed to refuse everything.
    fn work_off(count: usize, poison: impl Fn(usize) -> bool) -> (usize, Vec<usize>, bool) {
        let all = records(0..count);
        let place = |record: &UsageRecord| all.iter().position(|other| other == record).unwrap();
        let mut work = Work::new(all.clone());
        let mut attempts = 0;
        while let Some(piece) = work.next() {
            attempts += 1;
            assert!(attempts < 3 * count + 2, "it ends");
            if !piece.iter().map(place).any(&poison) {
                work.pass();
            } else if !work.refuse("no") {
                assert_eq!((work.left(), work.passed().len()), (count, 0), "nothing is lost");
                return (attempts, Vec::new(), true);
            }
        }
        let parked: Vec<usize> = work.parked().iter().map(|parked| place(&parked.record)).collect();
        assert_eq!(work.passed().len() + parked.len(), count);
        (attempts, parked, false)
    }

    #[test]
    fn what_is_taken_goes_in_one_piece() {
        assert_eq!(work_off(1_000, |_| false), (1, vec![], false));
        assert_eq!(work_off(1_001, |_| false), (2, vec![], false));
    }

    #[test]
    fn the_one_that_is_refused_is_found_in_a_few_attempts() {
        for poison in [0, 1, 499, 500, 998, 999] {
            let (attempts, parked, all) = work_off(1_000, |place| place == poison);
            assert_eq!((parked, all), (vec![poison], false));
            assert!(attempts < 40, "{attempts}");
        }
        assert_eq!(work_off(1, |_| true), (1, vec![0], false));
    }

    #[test]
    fn a_tenth_that_is_refused_stops_nobody() {
        let (attempts, mut parked, all) = work_off(1_000, |place| place % 10 == 3);
        parked.sort_unstable();
        assert_eq!((parked.len(), parked[0], all), (100, 3, false));
        assert!(attempts < 1_000, "{attempts}");
    }

    #[test]
    fn a_receiver_that_refuses_everything_is_not_asked_a_thousand_times() {
        let (attempts, _, all) = work_off(1_000, |_| true);
        assert!(all);
        assert_eq!(attempts, 1 + PROBES);
    }

    #[test]
    fn another_round_tries_other_records() {
        let mut work = Work::new(records(0..1_000));
        let mut tried = Vec::new();
        for _ in 0..2 {
            let mut round = Vec::new();
            assert!(work.refuse("no"));
            loop {
                round.push(work.next().unwrap()[0].request_id);
                if !work.refuse("no") {
                    break;
                }
            }
            assert_eq!(round.len(), PROBES);
            tried.extend(round);
        }
        tried.sort_unstable();
        tried.dedup();
        assert_eq!(tried.len(), 2 * PROBES);
    }

    #[test]
    fn too_large_is_halved_down_to_single_records() {
        let mut work = Work::new(records(0..5));
        work.split("large");
        assert_eq!(work.next().unwrap().len(), 2);
        work.pass();
        assert_eq!(work.next().unwrap().len(), 3);
        work.split("large");
        work.split("large");
        assert_eq!((work.parked().len(), work.left()), (1, 2));
        work.pass();
        assert!(work.next().is_none());
    }
}
