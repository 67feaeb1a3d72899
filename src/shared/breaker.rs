//! When Redis is not asked any more, and how many nodes share a limit while it is not.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// So many slow or failed calls in a row, and nobody waits any more.
const FAILURES_MAX: u32 = 3;

/// How long fewer nodes must have been seen before they are believed: after an outage they come back one by one.
const FEWER_AFTER_US: u64 = 10_000_000;

/// Whether Redis is asked. Nobody is let through at first.
#[derive(Debug)]
pub(super) struct Breaker {
    is_open: AtomicBool,
    failures: AtomicU32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { is_open: AtomicBool::new(true), failures: AtomicU32::new(0) }
    }
}

impl Breaker {
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// A call was answered in time.
    pub(super) fn succeeded(&self) {
        // Read first: the line is every request's.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A call was slow or failed. Whether that was one too many.
    pub(super) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX && self.open()
    }

    /// Nobody asks any more. Whether somebody still did.
    pub(super) fn open(&self) -> bool {
        !self.is_open.swap(true, Ordering::AcqRel)
    }

    /// Redis is asked again.
    pub(super) fn close(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.is_open.store(false, Ordering::Release);
    }
}

/// How many nodes there are, as far as this one knows. More are believed at once, fewer only after a while.
#[derive(Debug)]
pub(super) struct NodeCount {
    least: u32,
    known: u32,
    fewer_since_us: Option<u64>,
}

impl NodeCount {
    /// So many at least.
    pub(super) fn new(least: u32) -> Self {
        Self { least: least.max(1), known: least.max(1), fewer_since_us: None }
    }

    /// So many were seen. Gives how many there are.
    pub(super) fn seen(&mut self, seen: u32, now_us: u64) -> u32 {
        let seen = seen.max(self.least);
        let is_believed =
            seen >= self.known || now_us.saturating_sub(*self.fewer_since_us.get_or_insert(now_us)) >= FEWER_AFTER_US;
        if is_believed {
            (self.known, self.fewer_since_us) = (seen, None);
        }
        self.known
    }

    /// Nothing can be seen; what was seen before does not add up to a while.
    pub(super) fn blind(&mut self) {
        self.fewer_since_us = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_three_failures_in_a_row_and_says_so_once() {
        let breaker = Breaker::default();
        assert!(breaker.is_open(), "at first");
        breaker.close();
        assert!(!breaker.failed() && !breaker.failed());
        breaker.succeeded();
        assert!(!breaker.failed() && !breaker.failed() && !breaker.is_open(), "not in a row");
        assert!(breaker.failed() && breaker.is_open());
        assert!(!breaker.failed() && !breaker.open(), "it is open");
        breaker.close();
        assert!(!breaker.is_open() && !breaker.failed());
    }

    #[test]
    fn fewer_nodes_are_believed_only_after_a_while() {
        const SECOND_US: u64 = 1_000_000;
        let mut nodes = NodeCount::new(0);
        assert_eq!([nodes.seen(1, 0), nodes.seen(3, 0), nodes.seen(1, SECOND_US)], [1, 3, 3]);
        assert_eq!(nodes.seen(1, 10 * SECOND_US), 3);
        nodes.blind();
        assert_eq!([nodes.seen(2, 20 * SECOND_US), nodes.seen(2, 30 * SECOND_US)], [3, 2]);
        let mut told = NodeCount::new(3);
        assert_eq!(
            [told.seen(1, 0), told.seen(1, 60 * SECOND_US), told.seen(4, 0)],
            [3, 3, 4],
            "never fewer than told"
        );
    }
}
