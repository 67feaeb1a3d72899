//! How long endings are gathered before they are written together.
//!
//! A write costs as much as dozens of the records in it, and each time the spool's thread gets its turn, the threads that serve
//! clients lose theirs, and what their caches held. So where requests end in quick succession some are gathered first: at 12,000 a
//! second on one core a tenth of a millisecond makes seven of a write, a whole one nineteen, and the same core then serves half as many
//! again, each of them sooner, for it waited for the core. Where it has time to spare, what ends is written at once.

use std::time::Duration;

/// What is counted is what ended in so much time.
const SLICE_US: u64 = 4_000;

/// From so many on, 2,000 a second, they are gathered for that long.
const SOME: u64 = 8;
const SOME_US: u64 = 100;

/// From there on, 5,000 a second, for longer, up to so many, 10,000 a second, for that long.
const MANY: u64 = 20;
const MOST: u64 = 40;
const MOST_US: u64 = 1_000;

/// Counts what ends.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    slice: u64,
    ended: u64,
    ended_before: u64,
}

impl Gathering {
    /// So many have ended.
    pub(super) fn ended(&mut self, count: u64, now_us: u64) {
        self.turn_to(now_us);
        self.ended += count;
    }

    /// How long to wait before what has ended is written; nothing where it is written at once.
    pub(super) fn time(&mut self, now_us: u64) -> Option<Duration> {
        self.turn_to(now_us);
        if self.ended_before < SOME {
            return None;
        }
        let beyond = self.ended_before.clamp(MANY, MOST) - MANY;
        Some(Duration::from_micros(SOME_US + beyond * (MOST_US - SOME_US) / (MOST - MANY)))
    }

    fn turn_to(&mut self, now_us: u64) {
        let slice = now_us / SLICE_US;
        if slice > self.slice {
            self.ended_before = if slice == self.slice + 1 { self.ended } else { 0 };
            self.ended = 0;
            self.slice = slice;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long is gathered once so many have ended in each slice.
    fn after(each_slice: u64) -> Option<Duration> {
        let mut gathering = Gathering::default();
        for slice in 1..4 {
            for ended in 0..each_slice {
                gathering.ended(1, slice * SLICE_US + ended * SLICE_US / each_slice);
            }
        }
        gathering.time(4 * SLICE_US)
    }

    #[test]
    fn what_ends_now_and_then_is_written_at_once() {
        assert_eq!(after(0), None);
        assert_eq!(after(7), None);
    }

    #[test]
    fn the_more_ends_the_longer_it_is_gathered_and_never_for_more_than_a_millisecond() {
        let micros = |count| after(count).map(|time| time.as_micros());
        assert_eq!(micros(8), Some(100));
        assert_eq!(micros(20), Some(100));
        assert_eq!(micros(30), Some(550));
        assert_eq!(micros(40), Some(1_000));
        assert_eq!(micros(4_000), Some(1_000));
    }

    #[test]
    fn a_rush_that_is_over_is_forgotten() {
        let mut gathering = Gathering::default();
        gathering.ended(100, SLICE_US);
        assert_eq!(gathering.time(2 * SLICE_US), Some(Duration::from_millis(1)));
        assert_eq!(gathering.time(3 * SLICE_US), None);
    }
}
