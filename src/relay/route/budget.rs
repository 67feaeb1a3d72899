//! How many second tries there may be, of all requests together: a provider that is down must not be asked more often than
//! one that is up.

use std::sync::{Mutex, PoisonError};

/// What each request adds, in thousandths of a try.
const EARNED_MILLI: u64 = 200;
/// What has been earned and not used is worth no more than this: quiet hours do not pay for a storm.
const EARNED_MILLI_MAX: u64 = 100_000;
/// What each second adds, whether or not anything is asked; and the most of it that is kept.
const FLOOR_MILLI_PER_SECOND: u64 = 3_000;

/// Second tries that may still be made: a fifth of the requests, and three a second besides.
#[derive(Debug, Default)]
pub struct RetryBudget(Mutex<Purse>);

#[derive(Debug)]
struct Purse {
    earned_milli: u64,
    floor_milli: u64,
    /// Until when the floor has been paid, in microseconds.
    paid_us: u64,
}

impl Default for Purse {
    fn default() -> Self {
        Self { earned_milli: 0, floor_milli: FLOOR_MILLI_PER_SECOND, paid_us: 0 }
    }
}

impl RetryBudget {
    /// A request is asked for the first time.
    pub fn earn(&self) {
        let mut purse = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        purse.earned_milli = (purse.earned_milli + EARNED_MILLI).min(EARNED_MILLI_MAX);
    }

    /// Whether a second try may be made now; if so, it is paid for.
    pub fn take(&self, now_us: u64) -> bool {
        let mut purse = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        purse.pay_floor(now_us);
        let Purse { earned_milli, floor_milli, .. } = &mut *purse;
        for milli in [earned_milli, floor_milli] {
            if let Some(left) = milli.checked_sub(1_000) {
                *milli = left;
                return true;
            }
        }
        false
    }
}

impl Purse {
    fn pay_floor(&mut self, now_us: u64) {
        let milli = now_us.saturating_sub(self.paid_us).saturating_mul(FLOOR_MILLI_PER_SECOND) / 1_000_000;
        if milli > 0 {
            // What is less than a thousandth stays owed.
            self.paid_us += milli.saturating_mul(1_000_000) / FLOOR_MILLI_PER_SECOND;
            self.floor_milli = self.floor_milli.saturating_add(milli).min(FLOOR_MILLI_PER_SECOND);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(budget: &RetryBudget, now_us: u64, asked: usize) -> usize {
        (0..asked).filter(|_| budget.take(now_us)).count()
    }

    #[test]
    fn three_a_second_are_there_without_any_request() {
        let budget = RetryBudget::default();
        assert_eq!(taken(&budget, 0, 10), 3);
        assert_eq!(taken(&budget, 999_999, 10), 2);
        assert_eq!(taken(&budget, 1_000_000, 10), 1);
        assert_eq!(taken(&budget, 3_600_000_000, 10), 3, "an idle hour is not saved up");
    }

    #[test]
    fn five_requests_pay_for_one_more_try() {
        let budget = RetryBudget::default();
        taken(&budget, 0, 3);
        for _ in 0..50 {
            budget.earn();
        }
        assert_eq!(taken(&budget, 0, 50), 10);
    }

    proptest! {
        #[test]
        fn no_storm_is_larger_than_the_promise(steps in prop::collection::vec((0u64..400_000, 0usize..4, 0usize..6), 1..200)) {
            let budget = RetryBudget::default();
            let (mut now_us, mut requests, mut tries) = (0, 0, 0);
            for (pause_us, earns, asks) in steps {
                now_us += pause_us;
                (0..earns).for_each(|_| budget.earn());
                requests += earns;
                tries += taken(&budget, now_us, asks);
                let floor = 3 + usize::try_from(now_us).unwrap() * 3 / 1_000_000;
                prop_assert!(tries <= requests / 5 + floor, "{tries} tries for {requests} requests in {now_us} us");
            }
        }
    }
}
