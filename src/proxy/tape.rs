//! What a request's state and the session in Pingora's hands tell each other while upstreams are tried.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType, Result};
use tokio::time::Instant;

use super::clock::{Clock, micros};
use super::idempotency::Claim;
use crate::billing::Receipt;

/// The upstream took longer than its provider's row allows.
pub(super) const UPSTREAM_OVERDUE: ErrorType = ErrorType::Custom("UpstreamOverdue");
/// The request's record could not be kept, so the client does not get the end of its answer.
pub(super) const NOT_BILLED: ErrorType = ErrorType::Custom("NotBilled");

/// What the request's state and the session in Pingora's hands share.
pub(super) struct Tape {
    clock: Clock,
    /// This try's body.
    body: Mutex<Bytes>,
    /// When this try is overdue, in the clock's microseconds.
    deadline_us: AtomicU64,
    /// How long the answer is read on without its client.
    drain_max_us: u64,
    /// Until when it is, once the client has left; 0 before.
    drain_until_us: AtomicU64,
    /// Whether the upstream's answer is held back: a refusal that is being read.
    holding: AtomicBool,
    /// Whether a stream's beginning is held back, with its head.
    opening: AtomicBool,
    /// Whether the client has a stream's head, though the stream has not begun.
    head_passed: AtomicBool,
    /// After how much silence a stream gets a comment, in microseconds; 0 where it gets none.
    comment_every_us: AtomicU64,
    /// What the client gets in place of the answer that is held back.
    substitute: Mutex<Option<Substitute>>,
    /// What the next bytes to the client wait for: the record of the request that they complete.
    receipt: Mutex<Option<Receipt>>,
    /// The claim that is settled before the answer's last bytes are written.
    claim: Mutex<Option<Box<Claim>>>,
    /// Where the real session returns to when the one in its place is dropped.
    real: Mutex<Option<Box<ServerSession>>>,
}

/// An answer in our words.
pub(super) struct Substitute {
    pub(super) header: Box<ResponseHeader>,
    pub(super) body: Bytes,
}

impl Tape {
    /// For an answer that is read on for `drain_max` when its client leaves.
    pub(super) fn new(clock: Clock, drain_max: Duration) -> Self {
        Self {
            clock,
            body: Mutex::new(Bytes::new()),
            deadline_us: AtomicU64::new(NOT_DUE_US),
            drain_max_us: micros(drain_max),
            drain_until_us: AtomicU64::new(0),
            holding: AtomicBool::new(false),
            opening: AtomicBool::new(false),
            head_passed: AtomicBool::new(false),
            comment_every_us: AtomicU64::new(0),
            substitute: Mutex::new(None),
            receipt: Mutex::new(None),
            claim: Mutex::new(None),
            real: Mutex::new(None),
        }
    }

    /// Puts the body for the next try in.
    pub(super) fn load(&self, body: Bytes) {
        *lock(&self.body) = body;
    }

    /// Says when the upstream is overdue.
    pub(super) fn due_at(&self, us: u64) {
        let drain_until = self.drain_until_us.load(Ordering::Relaxed);
        self.deadline_us.store(if drain_until == 0 { us } else { us.min(drain_until) }, Ordering::Relaxed);
    }

    /// Whether the answer is read on though its client has left.
    pub(super) fn is_draining(&self) -> bool {
        self.drain_until_us.load(Ordering::Relaxed) != 0
    }

    /// The client has left: `false` where the upstream is to be left as well.
    pub(super) fn drain(&self) -> bool {
        if self.drain_max_us != 0 && !self.is_draining() {
            let until = self.clock.now_us().saturating_add(self.drain_max_us);
            self.drain_until_us.store(until, Ordering::Relaxed);
            self.due_at(self.deadline_us.load(Ordering::Relaxed));
        }
        self.drain_max_us != 0
    }

    /// Holds back what the upstream answers, or lets it pass again.
    pub(super) fn hold(&self, holding: bool) {
        self.holding.store(holding, Ordering::Relaxed);
        self.opening.store(false, Ordering::Relaxed);
    }

    /// Holds back a stream's beginning, until that is known to be none of an error.
    pub(super) fn open(&self, opening: bool) {
        self.opening.store(opening, Ordering::Relaxed);
    }

    /// Whether that is so.
    pub(super) fn is_opening(&self) -> bool {
        self.opening.load(Ordering::Relaxed)
    }

    /// The client has got a stream's head, because its beginning took too long to be waited for in silence.
    pub(super) fn head_has_passed(&self) {
        self.head_passed.store(true, Ordering::Relaxed);
        self.opening.store(false, Ordering::Relaxed);
    }

    /// Whether it has: then no other upstream can be asked.
    pub(super) fn has_head_passed(&self) -> bool {
        self.head_passed.load(Ordering::Relaxed)
    }

    /// Has a comment written to a stream after each such silence; none where it is zero.
    pub(super) fn comment_every(&self, silence: Duration) {
        self.comment_every_us.store(micros(silence), Ordering::Relaxed);
    }

    /// After how much silence the client gets a comment.
    pub(super) fn silence_max(&self) -> Option<Duration> {
        let us = self.comment_every_us.load(Ordering::Relaxed);
        (us > 0 && !self.is_draining()).then(|| Duration::from_micros(us))
    }

    /// Whether it is held back.
    pub(super) fn is_holding(&self) -> bool {
        self.holding.load(Ordering::Relaxed)
    }

    /// What the client gets in place of it.
    pub(super) fn take_substitute(&self) -> Option<Substitute> {
        lock(&self.substitute).take()
    }

    /// Returns the real session.
    pub(super) fn return_real(&self, real: Box<ServerSession>) {
        *lock(&self.real) = Some(real);
    }

    /// The real session, once it was returned.
    pub(super) fn take_real(&self) -> Option<Box<ServerSession>> {
        lock(&self.real).take()
    }

    /// Says what the client gets, at its end, in place of the answer that is held back.
    pub(super) fn substitute(&self, substitute: Substitute) {
        *lock(&self.substitute) = Some(substitute);
    }

    /// Lets nothing more pass before the request's record is kept.
    pub(super) fn await_receipt(&self, receipt: Receipt) {
        *lock(&self.receipt) = Some(receipt);
    }

    /// Returns when what is to be written may be written.
    pub(super) async fn billed(&self) -> Result<()> {
        let receipt = lock(&self.receipt).take();
        match receipt {
            None => Ok(()),
            Some(receipt) => match receipt.kept().await {
                Ok(()) => Ok(()),
                Err(error) => Error::e_because(NOT_BILLED, "the answer's end is withheld", error),
            },
        }
    }

    /// Has a claim settled before what is written next, which is the end.
    pub(super) fn settle_claim_at_end(&self, claim: Box<Claim>) {
        *lock(&self.claim) = Some(claim);
    }

    /// The claim that is still to be settled.
    pub(super) fn take_claim(&self) -> Option<Box<Claim>> {
        lock(&self.claim).take()
    }

    /// This try's body.
    pub(super) fn body(&self) -> Bytes {
        lock(&self.body).clone()
    }

    /// When this try is overdue.
    pub(super) fn deadline(&self) -> Instant {
        Instant::from_std(self.clock.instant(self.deadline_us.load(Ordering::Relaxed)))
    }
}

/// Longer than any exchange may take; kept small enough to be added to an `Instant`.
const NOT_DUE_US: u64 = 10 * 365 * 24 * 3600 * 1_000_000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
