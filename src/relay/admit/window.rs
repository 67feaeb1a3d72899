//! Sliding windows of 60 seconds: one exact to the microsecond for requests, one in buckets of a second for tokens.
//!
//! Both take the time from their caller, in microseconds of a clock that never goes back. Callers race between reading the
//! clock and taking the lock around a window, so a time may still be a little older than the last: it then counts as the last.

use std::collections::VecDeque;

/// The length of a window.
pub const WINDOW_SECONDS: u64 = 60;

const SECOND_US: u64 = 1_000_000;
const WINDOW_US: u64 = WINDOW_SECONDS * SECOND_US;

/// A limit as clients are told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The most in any 60 seconds.
    pub limit: u64,
    /// What of it is free.
    pub remaining: u64,
    /// Until more of it is free; 0 where all of it is.
    pub reset_ms: u64,
}

/// When requests were admitted. A request admitted at `t` has its slot up to and including `t` + 60 s.
///
/// Holds the time of each request, because anything less than that admits too many or too few: at most as many as the highest
/// limit that was in force in the last 60 seconds, 8 bytes each, allocated as they come.
#[derive(Debug, Default)]
pub(super) struct RequestWindow {
    admitted_us: VecDeque<u64>,
}

impl RequestWindow {
    /// Whether one more fits `limit`; where not, for how many milliseconds not.
    pub(super) fn check(&mut self, limit: u64, now_us: u64) -> Result<(), u64> {
        self.expire(now_us);
        if self.held() < limit { Ok(()) } else { Err(self.until_one_more_ms(limit, now_us)) }
    }

    /// Takes a slot.
    pub(super) fn take(&mut self, now_us: u64) {
        let last_us = self.admitted_us.back().copied().unwrap_or(0);
        self.admitted_us.push_back(now_us.max(last_us));
    }

    /// How long ago each request was admitted, the first one first.
    pub(super) fn ages_us(&mut self, now_us: u64) -> Vec<u64> {
        self.expire(now_us);
        self.admitted_us.iter().map(|admitted_us| now_us.saturating_sub(*admitted_us)).collect()
    }

    /// Takes over what another window held, by its ages.
    pub(super) fn inherit(&mut self, ages_us: &[u64], now_us: u64) {
        self.admitted_us.extend(ages_us.iter().map(|age_us| now_us.saturating_sub(*age_us)));
        self.admitted_us.make_contiguous().sort_unstable();
    }

    pub(super) fn view(&mut self, limit: u64, now_us: u64) -> Window {
        self.expire(now_us);
        let reset_ms = if self.held() == 0 { 0 } else { self.until_one_more_ms(limit, now_us) };
        Window { limit, remaining: limit.saturating_sub(self.held()), reset_ms }
    }

    fn held(&self) -> u64 {
        self.admitted_us.len() as u64
    }

    /// Until fewer than `limit` requests are in the window; where that is so already, until there is one fewer.
    fn until_one_more_ms(&self, limit: u64, now_us: u64) -> u64 {
        let last_to_leave = self.held().saturating_sub(limit.max(1));
        let admitted_us = usize::try_from(last_to_leave).ok().and_then(|at| self.admitted_us.get(at));
        // The microsecond past the 60 seconds is not told: whoever waits begins to after this moment.
        admitted_us.map_or(WINDOW_US / 1000, |admitted_us| {
            (admitted_us + WINDOW_US).saturating_sub(now_us).div_ceil(1000).max(1)
        })
    }

    fn expire(&mut self, now_us: u64) {
        while self.admitted_us.front().is_some_and(|admitted_us| now_us > admitted_us + WINDOW_US) {
            self.admitted_us.pop_front();
        }
    }
}

/// Tokens used, those of one second in one bucket, which leaves as a whole 60 seconds after the last of them. So a token counts
/// for 60 to 61 seconds: never too short, in at most 61 buckets, and nobody is told to wait for longer than a window.
#[derive(Debug, Default)]
pub(super) struct TokenWindow {
    buckets: VecDeque<Bucket>,
    used: u64,
}

#[derive(Debug)]
struct Bucket {
    second: u64,
    last_us: u64,
    tokens: u64,
}

/// Tokens taken before it is known how many are used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reservation {
    /// The bucket that they were taken from.
    second: u64,
    /// How many of that bucket are still this reservation's.
    tokens: u64,
    /// How many were taken later, from other buckets, because those did not suffice.
    tokens_added: u64,
}

/// Why tokens cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoTokens {
    /// Not for that many milliseconds.
    For { milliseconds: u64 },
    /// Never: more than the whole limit.
    Ever,
}

impl TokenWindow {
    /// Whether that many more fit `limit`.
    pub(super) fn check(&mut self, limit: u64, tokens: u64, now_us: u64) -> Result<(), NoTokens> {
        self.expire(now_us);
        if tokens > limit {
            return Err(NoTokens::Ever);
        }
        let fits_below = limit - tokens;
        // A window that is used up refuses everything, also what claims to need nothing.
        if self.used <= fits_below && self.used < limit {
            return Ok(());
        }
        Err(NoTokens::For { milliseconds: self.until_used_ms(fits_below.min(limit.saturating_sub(1)), now_us) })
    }

    /// Counts tokens whose number may turn out to be another.
    pub(super) fn reserve(&mut self, tokens: u64, now_us: u64) -> Reservation {
        let second = self.add(tokens, now_us);
        Reservation { second, tokens, tokens_added: 0 }
    }

    /// Makes `used` of a reservation: what was too much is given back where it was taken, what was too little is taken now.
    pub(super) fn settle(&mut self, reservation: &mut Reservation, used: u64, now_us: u64) {
        self.expire(now_us);
        let taken = reservation.tokens.saturating_add(reservation.tokens_added);
        if used > taken {
            self.add(used - taken, now_us);
            reservation.tokens_added = used - reservation.tokens;
            return;
        }
        let unused = (taken - used).min(reservation.tokens);
        reservation.tokens -= unused;
        if let Some(bucket) = self.buckets.iter_mut().find(|bucket| bucket.second == reservation.second) {
            let unused = unused.min(bucket.tokens);
            bucket.tokens -= unused;
            self.used -= unused;
        }
    }

    /// How long ago tokens were used, and how many, the oldest first.
    pub(super) fn ages_us(&mut self, now_us: u64) -> Vec<(u64, u64)> {
        self.expire(now_us);
        let age = |bucket: &Bucket| (now_us.saturating_sub(bucket.last_us), bucket.tokens);
        self.buckets.iter().filter(|bucket| bucket.tokens > 0).map(age).collect()
    }

    /// Takes over what another window held, by its ages, the oldest first. Nothing is to be counted here before.
    pub(super) fn inherit(&mut self, ages_us: &[(u64, u64)], now_us: u64) {
        for (age_us, tokens) in ages_us {
            self.add(*tokens, now_us.saturating_sub(*age_us));
        }
    }

    pub(super) fn view(&mut self, limit: u64, now_us: u64) -> Window {
        self.expire(now_us);
        let reset_ms = match self.used {
            0 => 0,
            used => self.until_used_ms((used - 1).min(limit.saturating_sub(1)), now_us),
        };
        Window { limit, remaining: limit.saturating_sub(self.used), reset_ms }
    }

    fn add(&mut self, tokens: u64, now_us: u64) -> u64 {
        let now_second = now_us / SECOND_US;
        let second = self.buckets.back().map_or(now_second, |last| last.second.max(now_second));
        // What is counted is bounded so that neither a bucket nor the sum of them can overflow.
        let tokens = tokens.min(u64::MAX - self.used);
        self.used += tokens;
        match self.buckets.back_mut().filter(|last| last.second == second) {
            _ if tokens == 0 => {}
            Some(last) => {
                last.tokens += tokens;
                last.last_us = last.last_us.max(now_us);
            }
            None => self.buckets.push_back(Bucket { second, last_us: now_us, tokens }),
        }
        second
    }

    /// Until at most `bound` tokens are counted.
    fn until_used_ms(&self, bound: u64, now_us: u64) -> u64 {
        let mut left = self.used;
        for bucket in &self.buckets {
            left -= bucket.tokens;
            if left <= bound {
                return (bucket.last_us + WINDOW_US + 1).saturating_sub(now_us).div_ceil(1000);
            }
        }
        0
    }

    fn expire(&mut self, now_us: u64) {
        while let Some(bucket) = self.buckets.front().filter(|bucket| now_us > bucket.last_us + WINDOW_US) {
            self.used -= bucket.tokens;
            self.buckets.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_frees_strictly_later_than_60_seconds() {
        let mut window = RequestWindow::default();
        let admitted_us = 5_000_000;
        assert_eq!(window.view(1, admitted_us), Window { limit: 1, remaining: 1, reset_ms: 0 });
        assert_eq!(window.check(1, admitted_us), Ok(()));
        window.take(admitted_us);
        assert_eq!(window.check(1, admitted_us), Err(60_000));
        assert_eq!(window.check(1, admitted_us + WINDOW_US), Err(1));
        assert_eq!(window.check(1, admitted_us + WINDOW_US + 1), Ok(()));
    }

    #[test]
    fn a_lowered_limit_waits_for_as_many_as_are_over_it() {
        let mut window = RequestWindow::default();
        for second in 0..5 {
            window.take(second * SECOND_US);
        }
        let now_us = 10 * SECOND_US;
        // Two are allowed, five are held: the fourth must leave.
        assert_eq!(window.check(2, now_us), Err(53_000));
        assert_eq!(window.view(2, now_us), Window { limit: 2, remaining: 0, reset_ms: 53_000 });
        assert_eq!(window.view(9, now_us), Window { limit: 9, remaining: 4, reset_ms: 50_000 });
        assert_eq!(window.check(0, now_us), Err(54_000), "a limit of none is still an answer");
    }

    #[test]
    fn a_token_counts_at_least_60_seconds() {
        let mut window = TokenWindow::default();
        window.reserve(100, 1_999_999);
        assert_eq!(window.check(100, 1, 61_999_999), Err(NoTokens::For { milliseconds: 1 }));
        assert_eq!(window.check(100, 100, 62_000_000), Ok(()));
        assert_eq!(window.check(100, 101, 62_000_000), Err(NoTokens::Ever));
    }

    #[test]
    fn a_window_used_up_refuses_even_nothing() {
        let mut window = TokenWindow::default();
        let mut reservation = window.reserve(10, 0);
        window.settle(&mut reservation, 250, 5 * SECOND_US);
        assert_eq!(window.view(100, 5 * SECOND_US), Window { limit: 100, remaining: 0, reset_ms: 60_001 });
        assert_eq!(window.check(100, 0, 5 * SECOND_US), Err(NoTokens::For { milliseconds: 60_001 }));
        assert_eq!(window.check(100, 0, 66 * SECOND_US), Ok(()));
    }

    #[test]
    fn what_was_reserved_too_much_is_given_back() {
        let mut window = TokenWindow::default();
        let mut reservation = window.reserve(80, 0);
        assert_eq!(window.check(100, 30, SECOND_US), Err(NoTokens::For { milliseconds: 59_001 }));
        window.settle(&mut reservation, 20, SECOND_US);
        assert_eq!(window.check(100, 30, SECOND_US), Ok(()));
        assert_eq!(window.view(100, SECOND_US).remaining, 80);
        // A reservation that has left the window has nothing to give back.
        let mut late = window.reserve(50, 2 * SECOND_US);
        window.settle(&mut late, 10, 200 * SECOND_US);
        assert_eq!(window.view(100, 200 * SECOND_US), Window { limit: 100, remaining: 100, reset_ms: 0 });
    }

    #[test]
    fn a_reservation_gives_back_only_its_own() {
        let mut window = TokenWindow::default();
        window.reserve(50, 0);
        let mut reservation = window.reserve(10, 0);
        window.settle(&mut reservation, 40, 30 * SECOND_US);
        assert_eq!(window.view(200, 30 * SECOND_US).remaining, 110);
        window.settle(&mut reservation, 0, 31 * SECOND_US);
        assert_eq!(window.view(200, 31 * SECOND_US).remaining, 120, "the ten; what was added later stays");
    }

    /// Arrivals: microseconds since the one before, and the limit that is then in force.
    fn arrivals() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let gap_us = prop_oneof![
            Just(0u64),
            Just(WINDOW_US),
            Just(WINDOW_US + 1),
            0u64..10,
            0u64..SECOND_US,
            0u64..20 * SECOND_US,
        ];
        vec((gap_us, prop_oneof![4 => Just(5u64), 1 => 1u64..12]), 1..300)
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_and_never_fewer_than_could_be(arrivals in arrivals()) {
            let mut window = RequestWindow::default();
            let mut admitted: Vec<u64> = Vec::new();
            let mut now_us = 0;
            for (gap_us, limit) in arrivals {
                now_us += gap_us;
                let held = admitted.iter().filter(|at| now_us - **at <= WINDOW_US).count() as u64;
                let view = window.view(limit, now_us);
                prop_assert_eq!(view.remaining, limit.saturating_sub(held));
                match window.check(limit, now_us) {
                    Ok(()) => {
                        prop_assert!(held < limit, "admitted past the limit");
                        window.take(now_us);
                        admitted.push(now_us);
                    }
                    Err(retry_after_ms) => {
                        prop_assert!(held >= limit, "refused though {held} < {limit}");
                        // Said to the millisecond: not free a millisecond earlier, free right after that time.
                        let held_at = |at_us: u64| admitted.iter().filter(|at| at_us - **at <= WINDOW_US).count() as u64;
                        prop_assert!(held_at(now_us + retry_after_ms * 1000 + 1) < limit);
                        prop_assert!(held_at(now_us + (retry_after_ms - 1) * 1000) >= limit);
                    }
                }
                prop_assert!(window.admitted_us.len() <= 12);
            }
        }

        #[test]
        fn tokens_of_any_60_seconds_stay_within_the_limit(
            arrivals in vec((0u64..8 * SECOND_US, 0u64..40, 0u64..40), 1..300),
        ) {
            const LIMIT: u64 = 100;
            let mut window = TokenWindow::default();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            let mut now_us = 0;
            for (gap_us, asked, unused) in arrivals {
                now_us += gap_us;
                let used_in = |from_us: u64| taken.iter().filter(|(at, _)| *at >= from_us).map(|(_, n)| n).sum::<u64>();
                match window.check(LIMIT, asked, now_us) {
                    Ok(()) => {
                        let mut reservation = window.reserve(asked, now_us);
                        let used = asked.saturating_sub(unused);
                        window.settle(&mut reservation, used, now_us);
                        taken.push((now_us, used));
                        let in_window: u64 = taken.iter().filter(|(at, _)| now_us - at <= WINDOW_US).map(|(_, n)| n).sum();
                        prop_assert!(in_window <= LIMIT);
                    }
                    Err(NoTokens::For { milliseconds }) => {
                        // Refused only where the tokens of 61 seconds leave no room, and for no longer than said.
                        prop_assert!(milliseconds <= 60_001);
                        prop_assert!(used_in(now_us.saturating_sub(WINDOW_US + SECOND_US)) + asked >= LIMIT);
                        let later_us = now_us + milliseconds * 1000;
                        prop_assert_eq!(window.check(LIMIT, asked, later_us), Ok(()));
                        now_us = later_us;
                    }
                    Err(NoTokens::Ever) => prop_assert!(false, "40 is not over the limit"),
                }
                prop_assert!(window.buckets.len() <= 61);
                prop_assert_eq!(window.used, window.buckets.iter().map(|bucket| bucket.tokens).sum::<u64>());
            }
        }
    }
}
