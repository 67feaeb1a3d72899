//! How a sink is doing, for metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// How a sink is doing. What went through is written by its runner, what waits by its source; read by anyone.
#[derive(Debug)]
pub struct SinkState {
    name: Box<str>,
    delivered: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    held: AtomicU64,
    parked: AtomicU64,
    waiting: AtomicU64,
    /// 0 where none waits.
    oldest_ms: AtomicI64,
}

impl SinkState {
    pub(in crate::billing) fn new(name: impl Into<Box<str>>) -> Self {
        Self {
            name: name.into(),
            delivered: AtomicU64::default(),
            failed: AtomicU64::default(),
            refused: AtomicU64::default(),
            held: AtomicU64::default(),
            parked: AtomicU64::default(),
            waiting: AtomicU64::default(),
            oldest_ms: AtomicI64::default(),
        }
    }

    /// The sink's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Records that it has taken.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Times that it could not take any.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Times that it did not want what it was given.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Records that it refuses: those that were put aside, and those that everything behind them waits for.
    pub fn parked(&self) -> u64 {
        self.aside().saturating_add(self.held.load(Ordering::Relaxed))
    }

    /// Records that it has not been given, or not taken yet, but for those that were put aside.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Records that the spool keeps for it alone, or with others: all that it has not taken.
    pub fn kept(&self) -> u64 {
        self.waiting().saturating_add(self.aside())
    }

    /// When the request ended that has waited the longest, in Unix milliseconds; `None` where none waits.
    pub fn oldest_ms(&self) -> Option<i64> {
        Some(self.oldest_ms.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    pub(in crate::billing) fn set_waiting(&self, records: u64, oldest_ms: Option<i64>) {
        self.waiting.store(records, Ordering::Relaxed);
        self.oldest_ms.store(oldest_ms.unwrap_or(0), Ordering::Relaxed);
    }

    pub(in crate::billing) fn set_aside(&self, records: u64) {
        self.parked.store(records, Ordering::Relaxed);
    }

    /// How many were put aside.
    pub(super) fn aside(&self) -> u64 {
        self.parked.load(Ordering::Relaxed)
    }

    pub(super) fn took(&self, records: usize) {
        self.delivered.fetch_add(records as u64, Ordering::Relaxed);
        self.set_held(0);
    }

    pub(super) fn has_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn has_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_held(&self, records: usize) {
        self.held.store(records as u64, Ordering::Relaxed);
    }
}
