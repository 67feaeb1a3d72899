//! A lane is one way to a model: a target with one of its provider's credentials. What is known of its health stands here,
//! shared by all requests and kept over reloads.
//!
//! A request that takes a lane holds a [`Lease`]. Its end tells the lane how it went; one that is dropped without a word,
//! because its client left, tells nothing.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::breaker::{Breaker, Gate};
use super::load::PeakEwma;

/// A provider that asks for hours is believed, one that asks for days is not.
const REST_US_MAX: u64 = 3_600_000_000;

/// One of a provider's credentials, whatever the model.
#[derive(Debug, Default)]
pub struct Account {
    is_refused: AtomicBool,
    /// Whatever is known of its lanes, they may be taken.
    is_always_open: AtomicBool,
}

impl Account {
    /// The configuration was read anew: what was refused may be good now. Whether its lanes have a breaker, it says.
    pub(super) fn forgive(&self, has_breaker: bool) {
        self.is_refused.store(false, Ordering::Relaxed);
        self.is_always_open.store(!has_breaker, Ordering::Relaxed);
    }

    /// Whether the provider has refused the credential.
    pub fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }
}

/// A target with one credential.
#[derive(Debug)]
pub struct Lane {
    account: Arc<Account>,
    in_flight: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    breaker: Breaker,
    /// The provider has said when it will take requests again.
    rests_until_us: u64,
    /// The credential is refused for this model.
    is_refused: bool,
    /// Of answers that are streamed, and of whole ones, whose first byte comes with their last.
    first_byte: [PeakEwma; 2],
}

/// Whether a lane may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Ready,
    /// It was opened by failures, and one request may find out whether it is well.
    Probing,
    /// Failures have opened its breaker.
    Open {
        /// Microseconds; in the past where a probe is on its way.
        until_us: u64,
    },
    /// The provider has asked to be left alone.
    Resting {
        /// Microseconds.
        until_us: u64,
    },
    /// Its credential is refused, until the configuration is read anew.
    Refused,
}

impl Standing {
    /// Every name, in the order of severity.
    pub const NAMES: [&'static str; 5] = ["closed", "half_open", "open", "resting", "refused"];

    /// The name in metrics and in the admin API.
    pub fn name(self, now_us: u64) -> &'static str {
        match self {
            Standing::Ready => "closed",
            Standing::Probing => "half_open",
            Standing::Open { until_us } if until_us <= now_us => "half_open",
            Standing::Open { .. } => "open",
            Standing::Resting { .. } => "resting",
            Standing::Refused => "refused",
        }
    }
}

/// What a lane shows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneView {
    /// How it is; where its provider has no breaker, nothing follows from that.
    pub condition: Standing,
    /// Failures in a row.
    pub failures: u32,
    /// Requests on it.
    pub in_flight: u32,
    /// What a streamed answer's first byte is expected to take, where one was seen. Microseconds.
    pub first_byte_us: Option<u64>,
}

/// How a request on a lane went, where that says something of the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered, be it with a refusal of what the request says.
    Succeeded,
    /// The target failed.
    Failed,
    /// It asked to be left alone.
    Rest {
        /// For so long, in milliseconds.
        after_ms: u64,
    },
    /// It refused the credential for whatever model.
    CredentialRefused,
    /// It refused the credential for this model.
    ModelRefused,
}

impl Lane {
    /// A lane of which nothing is known.
    pub(super) fn new(account: Arc<Account>) -> Self {
        Self { account, in_flight: AtomicU32::new(0), state: Mutex::default() }
    }

    /// The configuration was read anew.
    pub(super) fn forgive(&self) {
        self.state().is_refused = false;
    }

    /// Whether it may be taken now.
    pub fn standing(&self, now_us: u64) -> Standing {
        self.standing_of(&self.state(), now_us)
    }

    fn standing_of(&self, state: &State, now_us: u64) -> Standing {
        match self.account.is_always_open.load(Ordering::Relaxed) {
            true => Standing::Ready,
            false => self.condition_of(state, now_us),
        }
    }

    /// How it is, whether or not anything follows from that.
    pub(super) fn condition(&self, now_us: u64) -> Standing {
        self.condition_of(&self.state(), now_us)
    }

    fn condition_of(&self, state: &State, now_us: u64) -> Standing {
        if state.is_refused || self.account.is_refused() {
            return Standing::Refused;
        }
        if now_us < state.rests_until_us {
            return Standing::Resting { until_us: state.rests_until_us };
        }
        match state.breaker.gate(now_us) {
            Gate::Closed => Standing::Ready,
            Gate::Probe => Standing::Probing,
            Gate::Open { until_us } => Standing::Open { until_us },
        }
    }

    /// Takes it for a request, if it may be taken.
    pub fn enter(self: &Arc<Self>, is_stream: bool, now_us: u64) -> Option<Lease> {
        let mut state = self.state();
        if !matches!(self.standing_of(&state, now_us), Standing::Ready | Standing::Probing) {
            return None;
        }
        let is_probe = state.breaker.enter(now_us);
        drop(state);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Lease { lane: Arc::clone(self), is_stream, is_probe, is_over: false, sent_us: now_us })
    }

    /// Requests on it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What an answer's first byte is expected to take, where one was seen. Microseconds.
    pub fn first_byte_us(&self, is_stream: bool, now_us: u64) -> Option<u64> {
        self.state().first_byte[usize::from(is_stream)].expected_us(now_us)
    }

    /// All that it shows.
    pub fn view(&self, now_us: u64) -> LaneView {
        let state = self.state();
        LaneView {
            condition: self.condition_of(&state, now_us),
            failures: state.breaker.failures(),
            in_flight: self.in_flight(),
            first_byte_us: state.first_byte[1].expected_us(now_us),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request on a lane.
#[derive(Debug)]
pub struct Lease {
    lane: Arc<Lane>,
    is_stream: bool,
    is_probe: bool,
    /// How it went has been told.
    is_over: bool,
    sent_us: u64,
}

impl Lease {
    /// The request is sent now, or once more.
    pub fn sent(&mut self, now_us: u64) {
        self.sent_us = now_us;
    }

    /// The answer has begun.
    pub fn began(&mut self, now_us: u64) {
        let took_us = now_us.saturating_sub(self.sent_us);
        let mut state = self.lane.state();
        state.first_byte[usize::from(self.is_stream)].observe(took_us, now_us);
        state.breaker.began(self.is_probe);
        self.is_probe = false;
    }

    /// It went so. The first word counts; where a lease is dropped without one, nothing is known.
    pub fn end(&mut self, verdict: Verdict, now_us: u64) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let mut state = self.lane.state();
        match verdict {
            Verdict::Succeeded => state.breaker.succeeded(self.is_probe),
            Verdict::Failed => state.breaker.failed(self.is_probe, now_us),
            Verdict::Rest { after_ms } => {
                let rest_us = after_ms.saturating_mul(1000).min(REST_US_MAX);
                state.rests_until_us = state.rests_until_us.max(now_us.saturating_add(rest_us));
                state.breaker.left(self.is_probe);
            }
            Verdict::CredentialRefused => {
                self.lane.account.is_refused.store(true, Ordering::Relaxed);
                state.breaker.left(self.is_probe);
            }
            Verdict::ModelRefused => {
                state.is_refused = true;
                state.breaker.left(self.is_probe);
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.lane.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.is_over && self.is_probe {
            self.lane.state().breaker.left(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn lane() -> Arc<Lane> {
        Arc::new(Lane::new(Arc::default()))
    }

    fn ends(lane: &Arc<Lane>, verdict: Verdict, now_us: u64) {
        lane.enter(true, now_us).unwrap().end(verdict, now_us);
    }

    #[test]
    fn failures_open_it_and_one_probe_finds_out() {
        let lane = lane();
        (0..5).for_each(|_| ends(&lane, Verdict::Failed, 0));
        assert_eq!(lane.standing(0), Standing::Open { until_us: 30 * SECOND });
        assert!(lane.enter(true, 0).is_none());
        let probe = lane.enter(true, 30 * SECOND).unwrap();
        assert!(lane.enter(true, 30 * SECOND).is_none(), "one at a time");
        drop(probe);
        let mut probe = lane.enter(true, 31 * SECOND).unwrap();
        probe.began(32 * SECOND);
        assert_eq!(lane.standing(32 * SECOND), Standing::Ready);
        probe.end(Verdict::Succeeded, 33 * SECOND);
        assert_eq!(lane.view(33 * SECOND).failures, 0);
    }

    #[test]
    fn it_is_left_alone_for_as_long_as_it_asks_and_no_longer_than_an_hour() {
        let lane = lane();
        ends(&lane, Verdict::Rest { after_ms: 7_000 }, 0);
        assert_eq!(lane.standing(0), Standing::Resting { until_us: 7 * SECOND });
        assert_eq!(lane.standing(7 * SECOND), Standing::Ready);
        ends(&lane, Verdict::Rest { after_ms: u64::MAX }, 7 * SECOND);
        assert_eq!(lane.standing(7 * SECOND), Standing::Resting { until_us: 3_607 * SECOND });
    }

    #[test]
    fn a_refused_credential_closes_its_lanes_and_no_other() {
        let account = Arc::new(Account::default());
        let [first, second] = [(); 2].map(|()| Arc::new(Lane::new(Arc::clone(&account))));
        ends(&first, Verdict::ModelRefused, 0);
        assert_eq!((first.standing(0), second.standing(0)), (Standing::Refused, Standing::Ready));
        ends(&second, Verdict::CredentialRefused, 0);
        first.forgive();
        assert_eq!(first.standing(0), Standing::Refused);
        account.forgive(true);
        assert_eq!(first.standing(0), Standing::Ready);
    }

    #[test]
    fn without_a_breaker_it_may_be_taken_whatever_is_known_of_it() {
        let account = Arc::new(Account::default());
        account.forgive(false);
        let lane = Arc::new(Lane::new(account));
        for verdict in [Verdict::CredentialRefused, Verdict::ModelRefused, Verdict::Rest { after_ms: 1 }] {
            ends(&lane, verdict, 0);
        }
        (0..9).for_each(|_| ends(&lane, Verdict::Failed, 0));
        assert_eq!((lane.standing(0), lane.view(0).condition), (Standing::Ready, Standing::Refused));
    }

    #[test]
    fn requests_on_it_are_counted_however_they_end() {
        let lane = lane();
        let mut leases: Vec<Lease> = (0..3).filter_map(|_| lane.enter(false, 0)).collect();
        assert_eq!(lane.in_flight(), 3);
        leases[0].end(Verdict::Failed, 0);
        leases[0].end(Verdict::Succeeded, 0);
        assert_eq!(lane.view(0).failures, 1, "the first word counts");
        drop(leases);
        assert_eq!(lane.in_flight(), 0);
    }
}
