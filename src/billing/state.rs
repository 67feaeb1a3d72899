//! How billing is doing, for admission, readiness and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use super::sink::SinkState;

/// How billing is doing. Written by the worker, read by anyone.
#[derive(Debug, Default)]
pub struct BillingState {
    spooled: AtomicU64,
    /// 0 where the spool is empty.
    oldest_ms: AtomicI64,
    spool_full: AtomicBool,
    spool_failing: AtomicBool,
    ledger_failing: AtomicBool,
    delivered: AtomicU64,
    deliveries_failed: AtomicU64,
    sinks: Vec<Arc<SinkState>>,
}

impl BillingState {
    /// Of a relay with these sinks besides the ledger.
    pub fn with_sinks(sinks: Vec<Arc<SinkState>>) -> Self {
        Self { sinks, ..Self::default() }
    }

    /// Whether finished requests can be kept: the spool is neither full nor failing.
    pub fn can_record(&self) -> bool {
        !self.spool_full() && !self.spool_failing.load(Ordering::Relaxed)
    }

    /// Whether the spool holds as much as it may.
    pub fn spool_full(&self) -> bool {
        self.spool_full.load(Ordering::Relaxed)
    }

    /// Whether the ledger took the last batch that it was given.
    pub fn ledger_reachable(&self) -> bool {
        !self.ledger_failing.load(Ordering::Relaxed)
    }

    /// Records that wait in the spool.
    pub fn spooled(&self) -> u64 {
        self.spooled.load(Ordering::Relaxed)
    }

    /// When the request ended that has waited the longest, in Unix milliseconds; `None` where none waits.
    pub fn oldest_ms(&self) -> Option<i64> {
        Some(self.oldest_ms.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// Records that the ledger has taken.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Times that the ledger did not take a batch.
    pub fn deliveries_failed(&self) -> u64 {
        self.deliveries_failed.load(Ordering::Relaxed)
    }

    /// How the sinks besides the ledger are doing.
    pub fn sinks(&self) -> &[Arc<SinkState>] {
        &self.sinks
    }

    pub(super) fn set_spooled(&self, records: u64, oldest_ms: Option<i64>) {
        self.spooled.store(records, Ordering::Relaxed);
        self.oldest_ms.store(oldest_ms.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn set_spool_full(&self, full: bool) {
        self.spool_full.store(full, Ordering::Relaxed);
    }

    pub(super) fn set_spool_failing(&self, failing: bool) {
        self.spool_failing.store(failing, Ordering::Relaxed);
    }

    pub(super) fn ledger_took(&self, records: u64) {
        self.delivered.fetch_add(records, Ordering::Relaxed);
        self.ledger_failing.store(false, Ordering::Relaxed);
    }

    pub(super) fn ledger_failed(&self) {
        self.deliveries_failed.fetch_add(1, Ordering::Relaxed);
        self.ledger_failing.store(true, Ordering::Relaxed);
    }
}
