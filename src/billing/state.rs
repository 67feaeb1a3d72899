//! How billing is doing, for admission, readiness and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tokio::sync::{Notify, watch};

use super::recorder::{LONG_TICKET_BYTES, RECORDS_MAX};
use super::sink::SinkState;
use super::spool::{LEDGER, Room};

/// Of so many parts of the spool's room one is kept for what is under way: a removal takes room before it gives any.
const KEPT_FREE_PARTS: u64 = 20;

/// How billing is doing. Written by the worker, read by anyone.
#[derive(Debug, Default)]
pub struct BillingState {
    spooled: AtomicU64,
    /// 0 where the spool is empty.
    oldest_ms: AtomicI64,
    open_rows: AtomicU64,
    bytes_used: AtomicU64,
    bytes_limit: AtomicU64,
    /// What running requests may still write.
    bytes_reserved: AtomicU64,
    tickets: AtomicU64,
    /// No ticket is out, or so it was.
    tickets_are_in: Notify,
    spool_stalled: AtomicBool,
    failed: watch::Sender<bool>,
    closed: AtomicBool,
    others: AtomicBool,
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

    /// Whether a request could be taken that writes so much: the spool has room for it, works, and stays open.
    pub fn can_record(&self, bytes: u64) -> bool {
        let reserved = self.bytes_reserved.load(Ordering::Relaxed);
        let fits = self.fits(reserved.saturating_add(bytes));
        fits && !self.is_refusing() && self.tickets.load(Ordering::Relaxed) < RECORDS_MAX as u64
    }

    /// Whether the spool holds as much as it may, or the disk as much as it can, so that no request can be taken.
    pub fn spool_full(&self) -> bool {
        let reserved = self.bytes_reserved.load(Ordering::Relaxed);
        self.is_stalled() || !self.fits(reserved.saturating_add(LONG_TICKET_BYTES))
    }

    /// Whether the spool could not be written, for another reason than want of room. It stays so: what a system failed to write
    /// once it may have forgotten, so nothing is written any more, and the process is to end. The next one finds out what is there.
    pub fn failed(&self) -> bool {
        *self.failed.borrow()
    }

    /// Returns when [`BillingState::failed`].
    pub async fn until_failed(&self) {
        // The sender is here, so this does not end before.
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
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

    /// Running requests of this process that have a row in the spool.
    pub fn open_rows(&self) -> u64 {
        self.open_rows.load(Ordering::Relaxed)
    }

    /// What the spool takes of its room in bytes, its log's share included, without what is reserved.
    pub fn bytes_used(&self) -> u64 {
        self.bytes_used.load(Ordering::Relaxed)
    }

    /// The spool's room in bytes: `spool_bytes_max`, or what the file system has.
    pub fn bytes_limit(&self) -> u64 {
        self.bytes_limit.load(Ordering::Relaxed)
    }

    /// What running requests may still write into the spool, in bytes.
    pub fn bytes_reserved(&self) -> u64 {
        self.bytes_reserved.load(Ordering::Relaxed)
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

    /// Who most of what is in the spool waits for, the ledger included: name, records, and when the oldest that waits ended.
    pub fn behind(&self) -> Vec<(&str, u64, Option<i64>)> {
        let ledger = (LEDGER, self.spooled(), self.oldest_ms());
        let sinks = self.sinks.iter().map(|sink| (sink.name(), sink.kept(), sink.oldest_ms()));
        let mut all: Vec<_> = std::iter::once(ledger).chain(sinks).collect();
        let most = all.iter().map(|(_, records, _)| *records).max().unwrap_or(0);
        all.retain(|(_, records, _)| *records > most / 2);
        all
    }

    /// Keeps room for a request; `None` where it could not be billed.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reserved> {
        if self.is_refusing() {
            return None;
        }
        let reserved = self.bytes_reserved.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let tickets = self.tickets.fetch_add(1, Ordering::AcqRel);
        let reservation = Reserved { state: Arc::clone(self), bytes };
        // Asked again: whoever waits until all tickets are in may have looked in between.
        let takes = self.fits(reserved) && tickets < RECORDS_MAX as u64 && !self.is_refusing();
        takes.then_some(reservation)
    }

    /// Gives out no tickets any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Returns when no ticket is out.
    pub(super) async fn until_tickets_are_in(&self) {
        loop {
            let in_again = self.tickets_are_in.notified();
            if self.tickets.load(Ordering::SeqCst) == 0 {
                return;
            }
            in_again.await;
        }
    }

    pub(super) fn set_spooled(&self, records: u64, oldest_ms: Option<i64>) {
        self.spooled.store(records, Ordering::Relaxed);
        self.oldest_ms.store(oldest_ms.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn set_open_rows(&self, rows: u64) {
        self.open_rows.store(rows, Ordering::Relaxed);
    }

    pub(super) fn set_room(&self, room: Room) {
        self.bytes_used.store(room.used, Ordering::Relaxed);
        self.bytes_limit.store(room.limit, Ordering::Relaxed);
    }

    /// So much was written since the room was measured.
    pub(super) fn add_used(&self, bytes: u64) {
        self.bytes_used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_spool_stalled(&self, stalled: bool) {
        self.spool_stalled.store(stalled, Ordering::Relaxed);
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.spool_stalled.load(Ordering::Relaxed)
    }

    pub(super) fn fail(&self) {
        self.failed.send_replace(true);
    }

    /// Whether there are rows of other processes.
    pub fn others(&self) -> bool {
        self.others.load(Ordering::Relaxed)
    }

    pub(super) fn set_others(&self, others: bool) {
        self.others.store(others, Ordering::Relaxed);
    }

    pub(super) fn ledger_took(&self, records: u64) {
        self.delivered.fetch_add(records, Ordering::Relaxed);
        self.ledger_failing.store(false, Ordering::Relaxed);
    }

    pub(super) fn ledger_failed(&self) {
        self.deliveries_failed.fetch_add(1, Ordering::Relaxed);
        self.ledger_failing.store(true, Ordering::Relaxed);
    }

    fn is_refusing(&self) -> bool {
        self.closed.load(Ordering::SeqCst) || self.is_stalled() || self.failed()
    }

    fn fits(&self, reserved: u64) -> bool {
        let limit = self.bytes_limit();
        self.bytes_used().saturating_add(reserved) < limit - limit / KEPT_FREE_PARTS
    }
}

/// Room that is kept for one request, from its admission until its record is written or it is given up.
#[derive(Debug)]
pub(super) struct Reserved {
    state: Arc<BillingState>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.state.bytes_reserved.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.state.tickets.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.state.tickets_are_in.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_room(used: u64, limit: u64) -> Arc<BillingState> {
        let state = Arc::new(BillingState::default());
        state.set_room(Room { used, limit });
        state
    }

    #[test]
    fn room_is_kept_for_those_who_run() {
        let state = with_room(30_000, 100_000);
        let first = state.reserve(40_000).unwrap();
        assert!(!state.can_record(30_000) && state.can_record(24_900));
        assert!(state.reserve(30_000).is_none());
        assert_eq!(state.bytes_reserved(), 40_000, "who was refused keeps nothing");
        drop(first);
        let _second = state.reserve(60_000).unwrap();
        assert!(!state.spool_full());
        state.add_used(5_000);
        assert!(state.spool_full());
    }

    #[test]
    fn who_is_behind_is_who_the_spool_is_full_of() {
        let sinks = ["file", "webhook", "parks"].map(|name| Arc::new(SinkState::new(name)));
        let state = BillingState::with_sinks(sinks.to_vec());
        assert_eq!(state.behind(), []);
        state.set_spooled(40, Some(9));
        assert_eq!(state.behind(), [("ledger", 40, Some(9))]);
        let [file, webhook, parks] = &sinks;
        file.set_waiting(30, Some(8));
        webhook.set_waiting(7_000, Some(1));
        parks.set_aside(5_000);
        assert_eq!(state.behind(), [("webhook", 7_000, Some(1)), ("parks", 5_000, None)]);
    }

    #[tokio::test]
    async fn nothing_is_given_out_by_what_is_closed_stalled_or_failed() {
        let state = with_room(0, 100_000);
        state.set_spool_stalled(true);
        assert!(state.reserve(1).is_none() && state.spool_full());
        state.set_spool_stalled(false);
        let out = state.reserve(1).unwrap();
        state.close();
        assert!(state.reserve(1).is_none());
        drop(out);
        state.until_tickets_are_in().await;

        let state = with_room(0, 100_000);
        state.fail();
        state.until_failed().await;
        assert!(state.reserve(1).is_none() && !state.can_record(1));
    }
}
