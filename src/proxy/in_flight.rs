//! How many requests are under way: a limit for new ones, and what a shutdown waits for.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The count of requests under way.
#[derive(Debug, Default)]
pub(super) struct InFlight(AtomicUsize);

impl InFlight {
    pub(super) fn enter(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}
