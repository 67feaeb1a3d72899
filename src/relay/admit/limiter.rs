//! One key's limits: windows of requests and tokens, and requests at once, behind one lock so that a request is admitted by all
//! of them or by none.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::lock;
use super::window::{NoTokens, RequestWindow, Reservation, TokenWindow, WINDOW_SECONDS, Window};
use crate::relay::auth::KeyRecord;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::Plan;

/// When to come back where it depends on requests that are still running: nobody can know, so soon.
const CONCURRENCY_RETRY_MS: u64 = 1_000;

/// What a key may take. Read anew for each request, so that a change applies to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests in any 60 seconds.
    pub requests_per_minute: u32,
    /// Tokens of prompt and answer in any 60 seconds; no limit where `None`.
    pub tokens_per_minute: Option<u64>,
    /// Requests at once; no limit where `None`.
    pub concurrent_requests: Option<u32>,
}

impl KeyLimits {
    /// A key's own limits, and its plan's where it has none of its own, or where the plan's are lower and the key is to keep within.
    pub fn new(key: &KeyRecord, plan: &Plan) -> Self {
        Self {
            requests_per_minute: limit(key, key.requests_per_minute, Some(plan.requests_per_minute))
                .unwrap_or(plan.requests_per_minute),
            tokens_per_minute: limit(key, key.tokens_per_minute, plan.tokens_per_minute),
            concurrent_requests: limit(key, key.concurrent_requests, plan.concurrent_requests),
        }
    }

    /// What one of so many nodes gives out of them where it cannot ask what the others have given: an equal part, rounded up.
    #[must_use]
    pub fn share(&self, nodes: u32) -> Self {
        let nodes = nodes.max(1);
        Self {
            requests_per_minute: self.requests_per_minute.div_ceil(nodes),
            tokens_per_minute: self.tokens_per_minute.map(|limit| limit.div_ceil(u64::from(nodes))),
            concurrent_requests: self.concurrent_requests.map(|limit| limit.div_ceil(nodes)),
        }
    }

    /// Limits that nothing meets and that count what these count: for windows that follow what is decided elsewhere.
    #[must_use]
    pub fn counting(&self) -> Self {
        Self {
            requests_per_minute: u32::MAX,
            tokens_per_minute: self.tokens_per_minute.map(|_| u64::MAX),
            concurrent_requests: None,
        }
    }
}

fn limit<N: Ord>(key: &KeyRecord, own: Option<N>, of_plan: Option<N>) -> Option<N> {
    match (own, of_plan) {
        (Some(own), Some(of_plan)) if key.within_plan => Some(own.min(of_plan)),
        (own, of_plan) => own.or(of_plan),
    }
}

/// A key's windows, for the headers that every answer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowView {
    /// Requests.
    pub requests: Window,
    /// Tokens, where the key has a limit of them.
    pub tokens: Option<Window>,
}

/// What of a key's limits is taken, for another process to take over: by ages, for each process has a clock of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenLimits {
    /// How long ago each request was admitted, in microseconds, the first one first.
    pub requests_us: Vec<u64>,
    /// How long ago tokens were used, in microseconds, and how many.
    pub tokens_us: Vec<(u64, u64)>,
    /// How many requests are running.
    pub running: u32,
}

impl TakenLimits {
    /// Whether nothing is taken.
    pub fn is_empty(&self) -> bool {
        self.requests_us.is_empty() && self.tokens_us.is_empty() && self.running == 0
    }
}

/// What of a key's limits is taken. One for each key, shared by all its requests.
#[derive(Debug, Default)]
pub struct KeyLimiter {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    requests: RequestWindow,
    tokens: TokenWindow,
    in_flight: u32,
    /// Requests that run in a process that this one takes over from.
    in_flight_elsewhere: u32,
}

impl KeyLimiter {
    /// Admits a request, or says why not and when to try again; a request that is refused takes nothing.
    ///
    /// `reserve_tokens` is an estimate of what the request will use, [`Permit::settle_tokens`] corrects it. `now_us` is
    /// microseconds of a clock that never goes back.
    ///
    /// # Errors
    /// [`Cause::RateLimitExceeded`] or [`Cause::ConcurrencyLimitExceeded`].
    pub fn admit(self: &Arc<Self>, limits: &KeyLimits, reserve_tokens: u64, now_us: u64) -> Result<Permit, Refusal> {
        self.admit_with(limits, reserve_tokens, now_us, || Ok(())).map(|(permit, ())| permit)
    }

    /// The same, with what else the request needs: it is taken only of a key that is within its limits, and the key's slot only
    /// if it could be had. So a key that is over its limits holds no money that others could use, and a request that there is
    /// no money for takes no slot. `take` runs under the key's lock.
    ///
    /// # Errors
    /// As of [`KeyLimiter::admit`], and what `take` fails with.
    pub fn admit_with<T>(
        self: &Arc<Self>,
        limits: &KeyLimits,
        reserve_tokens: u64,
        now_us: u64,
        take: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<(Permit, T), Refusal> {
        let mut taken = lock(&self.taken);
        if let Err(denied) = taken.check(limits, reserve_tokens, now_us) {
            drop(taken);
            return Err(denied.refusal(limits, reserve_tokens));
        }
        let thing = take()?;
        let (reservation, view) = taken.take(limits, reserve_tokens, now_us);
        drop(taken);
        Ok((Permit { limiter: Arc::clone(self), reservation, view }, thing))
    }

    /// The windows as they stand, for answers to requests that were not admitted.
    pub fn view(&self, limits: &KeyLimits, now_us: u64) -> WindowView {
        lock(&self.taken).view(limits, now_us)
    }

    /// What is taken now.
    pub fn taken(&self, now_us: u64) -> TakenLimits {
        let mut taken = lock(&self.taken);
        TakenLimits {
            requests_us: taken.requests.ages_us(now_us),
            tokens_us: taken.tokens.ages_us(now_us),
            running: taken.in_flight.saturating_add(taken.in_flight_elsewhere),
        }
    }

    /// Counts what was taken in another process as taken here; before anything is taken here.
    pub fn inherit(&self, of: &TakenLimits, now_us: u64) {
        let mut taken = lock(&self.taken);
        taken.requests.inherit(&of.requests_us, now_us);
        taken.tokens.inherit(&of.tokens_us, now_us);
        taken.in_flight_elsewhere = of.running;
    }

    /// How many requests of the key are running, here and in the process that was taken over from.
    pub fn running(&self) -> u32 {
        let taken = lock(&self.taken);
        taken.in_flight.saturating_add(taken.in_flight_elsewhere)
    }

    /// How many requests of the key are running in the process that was taken over from.
    pub fn set_running_elsewhere(&self, running: u32) {
        lock(&self.taken).in_flight_elsewhere = running;
    }

    /// How many requests of the key are running.
    pub fn in_flight(&self) -> u32 {
        lock(&self.taken).in_flight
    }
}

/// Which limit is in the way of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Requests a minute.
    Requests {
        /// Until one more is free.
        retry_after_ms: u64,
    },
    /// Tokens a minute.
    Tokens {
        /// Until as many are free.
        retry_after_ms: u64,
    },
    /// Tokens a minute, for ever: the request needs more than all of them.
    TooManyTokens,
    /// Requests at once.
    AtOnce,
}

impl Taken {
    fn check(&mut self, limits: &KeyLimits, reserve_tokens: u64, now_us: u64) -> Result<(), Denied> {
        self.requests
            .check(u64::from(limits.requests_per_minute), now_us)
            .map_err(|retry_after_ms| Denied::Requests { retry_after_ms })?;
        if let Some(limit) = limits.tokens_per_minute {
            self.tokens.check(limit, reserve_tokens, now_us).map_err(|refused| match refused {
                NoTokens::For { milliseconds } => Denied::Tokens { retry_after_ms: milliseconds },
                NoTokens::Ever => Denied::TooManyTokens,
            })?;
        }
        let running = self.in_flight.saturating_add(self.in_flight_elsewhere);
        if limits.concurrent_requests.is_some_and(|limit| running >= limit) {
            return Err(Denied::AtOnce);
        }
        Ok(())
    }

    fn take(&mut self, limits: &KeyLimits, reserve_tokens: u64, now_us: u64) -> (Option<Reservation>, WindowView) {
        self.requests.take(now_us);
        // Without a limit tokens need no window; a limit that comes later begins with the requests after it.
        let reservation = limits.tokens_per_minute.map(|_| self.tokens.reserve(reserve_tokens, now_us));
        self.in_flight = self.in_flight.saturating_add(1);
        (reservation, self.view(limits, now_us))
    }

    fn view(&mut self, limits: &KeyLimits, now_us: u64) -> WindowView {
        WindowView {
            requests: self.requests.view(u64::from(limits.requests_per_minute), now_us),
            tokens: limits.tokens_per_minute.map(|limit| self.tokens.view(limit, now_us)),
        }
    }
}

/// Proof that a request was admitted. Dropping it ends the request's share of the concurrency; its slot in the request window
/// and the tokens last reserved or settled stay taken until they leave their windows.
#[must_use = "a request is running for as long as its permit is held"]
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<KeyLimiter>,
    reservation: Option<Reservation>,
    view: WindowView,
}

impl Permit {
    /// The windows right after this request was admitted, itself counted.
    pub fn view(&self) -> &WindowView {
        &self.view
    }

    /// Replaces the tokens reserved at admission (or settled before) by those used.
    pub fn settle_tokens(&mut self, used: u64, now_us: u64) {
        if let Some(reservation) = &mut self.reservation {
            lock(&self.limiter.taken).tokens.settle(reservation, used, now_us);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = lock(&self.limiter.taken);
        taken.in_flight = taken.in_flight.saturating_sub(1);
    }
}

impl Denied {
    /// What the client is told.
    pub fn refusal(&self, limits: &KeyLimits, asked_tokens: u64) -> Refusal {
        let requests = limits.requests_per_minute;
        let tokens = limits.tokens_per_minute.unwrap_or(u64::MAX);
        let about =
            format_args!("{tokens} tokens in {WINDOW_SECONDS} seconds, this request needs about {asked_tokens}");
        match *self {
            Denied::Requests { retry_after_ms } => Refusal::new(
                Cause::RateLimitExceeded,
                format!(
                    "Rate limit reached: {requests} requests in {WINDOW_SECONDS} seconds. Try again in {} s.",
                    seconds(retry_after_ms)
                ),
            )
            .retry_after_ms(retry_after_ms),
            Denied::Tokens { retry_after_ms } => Refusal::new(
                Cause::RateLimitExceeded,
                format!("Rate limit reached: {about}. Try again in {} s.", seconds(retry_after_ms)),
            )
            .retry_after_ms(retry_after_ms),
            // No time is named: waiting does not help.
            Denied::TooManyTokens => Refusal::new(
                Cause::RateLimitExceeded,
                format!("Request too large for this key's limit: {about}. Shorten it, or ask for fewer tokens."),
            ),
            Denied::AtOnce => {
                let limit = limits.concurrent_requests.unwrap_or(u32::MAX);
                let message =
                    format!("This key may have {limit} requests running at once. Wait for one of them to end.");
                Refusal::new(Cause::ConcurrencyLimitExceeded, message).retry_after_ms(CONCURRENCY_RETRY_MS)
            }
        }
    }
}

/// Whole seconds, rounded up.
fn seconds(milliseconds: u64) -> u64 {
    milliseconds.div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn limits(requests_per_minute: u32) -> KeyLimits {
        KeyLimits { requests_per_minute, tokens_per_minute: None, concurrent_requests: None }
    }

    #[test]
    fn what_was_taken_in_another_process_is_taken_here_by_its_age() {
        let old = Arc::new(KeyLimiter::default());
        let terms = KeyLimits { requests_per_minute: 3, tokens_per_minute: Some(100), concurrent_requests: Some(2) };
        let permits = [10_000_000, 40_000_000].map(|now_us| old.admit(&terms, 30, now_us).unwrap());
        let taken = old.taken(50_000_000);
        let expected = TakenLimits {
            requests_us: vec![40_000_000, 10_000_000],
            tokens_us: vec![(40_000_000, 30), (10_000_000, 30)],
            running: 2,
        };
        assert_eq!(taken, expected);

        // A clock of its own.
        let (new, now_us) = (Arc::new(KeyLimiter::default()), 3_600_000_000);
        new.inherit(&taken, now_us);
        assert_eq!(new.taken(now_us), taken, "for a third process");
        assert_eq!(new.admit(&terms, 1, now_us).unwrap_err().cause, Cause::ConcurrencyLimitExceeded);
        new.set_running_elsewhere(1);
        assert_eq!(new.running(), 1);
        assert_eq!(
            new.admit(&terms, 41, now_us).unwrap_err().retry_after_ms,
            Some(20_001),
            "when the first tokens leave"
        );
        let third = new.admit(&terms, 40, now_us).unwrap();
        assert_eq!(third.view().requests.remaining, 0);
        new.set_running_elsewhere(0);
        let refusal = new.admit(&terms, 0, now_us).unwrap_err();
        assert_eq!((refusal.cause, refusal.retry_after_ms), (Cause::RateLimitExceeded, Some(20_000)));
        drop((permits, third));
        assert!(old.taken(200_000_000).is_empty());
    }

    #[test]
    fn thirty_pass_the_next_is_refused_with_a_true_retry_after() {
        let limiter = Arc::new(KeyLimiter::default());
        for request in 0..30u64 {
            let permit = limiter.admit(&limits(30), 0, request * 1_000_000).unwrap();
            assert_eq!(permit.view().requests.remaining, 29 - request);
            assert_eq!(permit.view().tokens, None);
        }
        let refusal = limiter.admit(&limits(30), 0, 30_000_000).unwrap_err();
        assert_eq!(refusal.cause, Cause::RateLimitExceeded);
        assert_eq!(refusal.retry_after_ms, Some(30_000));
        assert!(refusal.message.contains("30 requests"), "{}", refusal.message);
        assert!(limiter.admit(&limits(30), 0, 30_000_000 + 30_001_000).is_ok());
        assert!(limiter.admit(&limits(31), 0, 30_000_000).is_ok(), "a raised limit applies at once");
    }

    #[test]
    fn sixty_four_threads_get_exactly_the_limit() {
        let limiter = Arc::new(KeyLimiter::default());
        let clock_us = AtomicU64::new(0);
        let barrier = Barrier::new(64);
        let admitted: usize = thread::scope(|scope| {
            let work = || {
                barrier.wait();
                let now_us = || clock_us.fetch_add(1, Ordering::Relaxed);
                (0..50).filter(|_| limiter.admit(&limits(1_000), 0, now_us()).is_ok()).count()
            };
            let threads: Vec<_> = (0..64).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 1_000);
        assert_eq!(limiter.in_flight(), 0);
    }

    #[test]
    fn a_dropped_permit_frees_its_place() {
        let limiter = Arc::new(KeyLimiter::default());
        let limits = KeyLimits { concurrent_requests: Some(2), ..limits(100) };
        let first = limiter.admit(&limits, 0, 0).unwrap();
        let _second = limiter.admit(&limits, 0, 0).unwrap();
        let refusal = limiter.admit(&limits, 0, 0).unwrap_err();
        assert_eq!(refusal.cause, Cause::ConcurrencyLimitExceeded);
        assert!(refusal.retry_after_ms.is_some());
        drop(first);
        assert_eq!(limiter.in_flight(), 1);
        assert!(limiter.admit(&limits, 0, 0).is_ok());
        assert_eq!(limiter.view(&limits, 0).requests.remaining, 97, "three were admitted; the refused took nothing");
    }

    #[test]
    fn what_else_is_needed_is_taken_within_the_limits_or_nothing_is() {
        let limiter = Arc::new(KeyLimiter::default());
        let no_money = || Err::<(), _>(Refusal::new(Cause::InsufficientCredits, "None."));
        let refusal = limiter.admit_with(&limits(1), 0, 0, no_money).unwrap_err();
        assert_eq!(refusal.cause, Cause::InsufficientCredits);
        assert_eq!((limiter.in_flight(), limiter.view(&limits(1), 0).requests.remaining), (0, 1), "it took no slot");
        let (_permit, money) = limiter.admit_with(&limits(1), 0, 0, || Ok(5)).unwrap();
        assert_eq!(money, 5);
        let refusal = limiter.admit_with(&limits(1), 0, 0, || -> Result<(), _> { panic!("asked for") }).unwrap_err();
        assert_eq!(refusal.cause, Cause::RateLimitExceeded);
    }

    #[test]
    fn tokens_are_reserved_then_corrected() {
        let limiter = Arc::new(KeyLimiter::default());
        let limits = KeyLimits { tokens_per_minute: Some(1_000), ..limits(100) };
        let mut permit = limiter.admit(&limits, 600, 0).unwrap();
        assert_eq!(permit.view().tokens.unwrap().remaining, 400);
        let refusal = limiter.admit(&limits, 600, 0).unwrap_err();
        assert_eq!((refusal.cause, refusal.retry_after_ms), (Cause::RateLimitExceeded, Some(60_001)));
        permit.settle_tokens(150, 10);
        permit.settle_tokens(100, 20);
        assert_eq!(limiter.view(&limits, 30).tokens.unwrap().remaining, 900);
        drop(permit);
        assert_eq!(limiter.view(&limits, 30).tokens.unwrap().remaining, 900, "used tokens stay used");
        let refusal = limiter.admit(&limits, 1_001, 30).unwrap_err();
        assert_eq!((refusal.cause, refusal.retry_after_ms), (Cause::RateLimitExceeded, None));
    }

    #[test]
    fn a_keys_own_limits_stand_before_its_plans() {
        let plan = Plan { name: "free".into(), requests_per_minute: 30, tokens_per_minute: Some(5), ..Plan::default() };
        let mut key = KeyRecord::for_tests();
        assert_eq!(KeyLimits::new(&key, &plan), KeyLimits { tokens_per_minute: Some(5), ..limits(30) });
        key.requests_per_minute = Some(7);
        key.concurrent_requests = Some(1);
        let own = KeyLimits { requests_per_minute: 7, tokens_per_minute: Some(5), concurrent_requests: Some(1) };
        assert_eq!(KeyLimits::new(&key, &plan), own);
    }

    #[test]
    fn a_share_is_rounded_up_so_that_every_node_has_one() {
        let all = KeyLimits { requests_per_minute: 60, tokens_per_minute: Some(1_000), concurrent_requests: Some(2) };
        let third = KeyLimits { requests_per_minute: 20, tokens_per_minute: Some(334), concurrent_requests: Some(1) };
        assert_eq!(all.share(3), third);
        assert_eq!((all.share(1), all.share(0)), (all, all));
        assert_eq!(all.share(1_000).requests_per_minute, 1);
        let limiter = Arc::new(KeyLimiter::default());
        let permits: Vec<_> = (0..70).map(|_| limiter.admit(&all.counting(), 900, 0).unwrap()).collect();
        assert_eq!((permits.len(), limiter.in_flight()), (70, 70), "it only counts");
        assert_eq!(limiter.view(&all, 0).tokens.unwrap().remaining, 0);
    }

    #[test]
    fn a_key_within_its_plan_has_at_most_what_the_plan_has_now() {
        let plan = Plan { name: "free".into(), requests_per_minute: 30, tokens_per_minute: Some(5), ..Plan::default() };
        let terms = (Some(300), Some(3), Some(2));
        let mut key = KeyRecord::for_tests();
        (key.requests_per_minute, key.tokens_per_minute, key.concurrent_requests) = terms;
        let of = |rpm| KeyLimits { tokens_per_minute: Some(3), concurrent_requests: Some(2), ..limits(rpm) };
        assert_eq!(KeyLimits::new(&key, &plan), of(300), "an operator gave it more");
        key.within_plan = true;
        assert_eq!(KeyLimits::new(&key, &plan), of(30));
        assert_eq!(KeyLimits::new(&key, &Plan { requests_per_minute: 500, ..plan }), of(300));
    }

    proptest! {
        #[test]
        fn concurrency_is_what_is_held(steps in vec((any::<bool>(), 1u32..5), 1..200)) {
            let limiter = Arc::new(KeyLimiter::default());
            let mut held = Vec::new();
            for (start, limit) in steps {
                if start {
                    let limits = KeyLimits { concurrent_requests: Some(limit), ..limits(u32::MAX) };
                    match limiter.admit(&limits, 0, 0) {
                        Ok(permit) => {
                            prop_assert!(held.len() < limit as usize);
                            held.push(permit);
                        }
                        Err(_) => prop_assert!(held.len() >= limit as usize),
                    }
                } else {
                    held.pop();
                }
                prop_assert_eq!(limiter.in_flight() as usize, held.len());
            }
        }
    }
}
