//! When a target is left alone, and how it comes back: consecutive failures open its breaker, for a time that doubles, and
//! then one request at a time finds out whether it is well again.

/// So many failures in a row open it.
pub(super) const FAILURES_MAX: u32 = 5;
/// How long it is open at first, and at most.
const OPEN_US: u64 = 30_000_000;
const OPEN_US_MAX: u64 = 300_000_000;

/// A breaker, with the time as an argument. Microseconds, of any clock that does not go back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Breaker {
    /// In a row.
    failures: u32,
    /// How often it has opened without a whole answer since.
    opened: u32,
    /// When a probe may be made; `None` where it is closed.
    open_until_us: Option<u64>,
    /// A probe is on its way.
    is_probing: bool,
}

/// Whether a target may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// It may.
    Closed,
    /// It may, by one request.
    Probe,
    /// It may not before then.
    Open {
        /// Microseconds. Where a probe is on its way, now.
        until_us: u64,
    },
}

impl Breaker {
    /// Whether the target may be asked now.
    pub(super) fn gate(&self, now_us: u64) -> Gate {
        match self.open_until_us {
            None => Gate::Closed,
            Some(until_us) if now_us < until_us => Gate::Open { until_us },
            Some(_) if self.is_probing => Gate::Open { until_us: now_us },
            Some(_) => Gate::Probe,
        }
    }

    /// A request sets out. Gives whether it is the probe, which is to be said of it again when it ends.
    pub(super) fn enter(&mut self, now_us: u64) -> bool {
        let is_probe = self.gate(now_us) == Gate::Probe;
        self.is_probing |= is_probe;
        is_probe
    }

    /// Its answer has begun. Answers are long: a probe's lets others in before it is whole, and the next failure opens again.
    pub(super) fn began(&mut self, is_probe: bool) {
        if is_probe && self.is_probing {
            *self = Self { failures: FAILURES_MAX - 1, opened: self.opened, ..Self::default() };
        }
    }

    /// Its answer is whole. One that set out before the breaker opened does not close it.
    pub(super) fn succeeded(&mut self, is_probe: bool) {
        if is_probe || self.open_until_us.is_none() {
            *self = Self::default();
        }
    }

    /// It failed, by the target's fault. Those that set out before the breaker opened say nothing new.
    pub(super) fn failed(&mut self, is_probe: bool, now_us: u64) {
        if self.open_until_us.is_some() && !(is_probe && self.is_probing) {
            return;
        }
        self.is_probing = false;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            let open_us = OPEN_US.saturating_mul(1 << self.opened.min(16)).min(OPEN_US_MAX);
            self.opened = self.opened.saturating_add(1);
            self.open_until_us = Some(now_us.saturating_add(open_us));
        }
    }

    /// It ended and told nothing of the target: its client left.
    pub(super) fn left(&mut self, is_probe: bool) {
        self.is_probing &= !is_probe;
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn opened_at(now_us: u64) -> Breaker {
        let mut breaker = Breaker::default();
        (0..FAILURES_MAX).for_each(|_| breaker.failed(false, now_us));
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it_for_half_a_minute() {
        let mut breaker = Breaker::default();
        (1..FAILURES_MAX).for_each(|_| breaker.failed(false, 0));
        assert_eq!(breaker.gate(0), Gate::Closed);
        breaker.succeeded(false);
        (1..FAILURES_MAX).for_each(|_| breaker.failed(false, 0));
        assert_eq!(breaker.gate(0), Gate::Closed, "a success in between");
        breaker.failed(false, 0);
        assert_eq!(breaker.gate(30 * SECOND - 1), Gate::Open { until_us: 30 * SECOND });
        assert_eq!(breaker.gate(30 * SECOND), Gate::Probe);
    }

    #[test]
    fn one_probe_at_a_time_closes_it() {
        let mut breaker = opened_at(0);
        assert!(breaker.enter(31 * SECOND));
        assert_eq!(breaker.gate(31 * SECOND), Gate::Open { until_us: 31 * SECOND });
        assert!(!breaker.enter(31 * SECOND));
        breaker.succeeded(true);
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn a_failed_probe_doubles_the_time_up_to_five_minutes() {
        let mut breaker = opened_at(0);
        let mut now_us = 0;
        for open_seconds in [30, 60, 120, 240, 300, 300] {
            assert_eq!(breaker.gate(now_us), Gate::Open { until_us: now_us + open_seconds * SECOND });
            now_us += open_seconds * SECOND;
            assert!(breaker.enter(now_us));
            breaker.failed(true, now_us);
        }
    }

    #[test]
    fn a_probe_that_begins_well_lets_others_in_until_the_next_failure() {
        let mut breaker = opened_at(0);
        breaker.enter(30 * SECOND);
        breaker.began(true);
        assert_eq!(breaker.gate(30 * SECOND), Gate::Closed);
        breaker.failed(true, 31 * SECOND);
        assert_eq!(breaker.gate(31 * SECOND), Gate::Open { until_us: 91 * SECOND }, "for twice as long");
    }

    #[test]
    fn a_probe_whose_client_left_makes_room_for_another() {
        let mut breaker = opened_at(0);
        assert!(breaker.enter(30 * SECOND));
        breaker.left(true);
        assert!(breaker.enter(30 * SECOND));
    }

    #[test]
    fn what_set_out_before_it_opened_says_nothing_new() {
        let mut breaker = opened_at(0);
        breaker.failed(false, 10 * SECOND);
        breaker.succeeded(false);
        assert_eq!(breaker, opened_at(0));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Wait(u64),
        Enter,
        /// Of the request that set out last or first.
        Began(bool),
        Succeeded(bool),
        Failed(bool),
        Left(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..400u64).prop_map(|seconds| Step::Wait(seconds * SECOND)),
            Just(Step::Enter),
            any::<bool>().prop_map(Step::Began),
            any::<bool>().prop_map(Step::Succeeded),
            any::<bool>().prop_map(Step::Failed),
            any::<bool>().prop_map(Step::Left),
        ]
    }

    proptest! {
        #[test]
        fn there_is_one_probe_at_most_and_no_way_to_stay_shut(steps in prop::collection::vec(step(), 0..200)) {
            let (mut breaker, mut now_us) = (Breaker::default(), 0);
            let mut requests: Vec<bool> = Vec::new();
            // Whether the probe of that place in `requests` has not let others in.
            let mut probing = 0_usize;
            for step in steps {
                let pick = |last: bool, requests: &[bool]| if last { requests.len().checked_sub(1) } else { (!requests.is_empty()).then_some(0) };
                match step {
                    Step::Wait(us) => now_us += us,
                    Step::Enter => if !matches!(breaker.gate(now_us), Gate::Open { .. }) {
                        let is_probe = breaker.enter(now_us);
                        probing += usize::from(is_probe);
                        requests.push(is_probe);
                    },
                    Step::Began(last) => if let Some(at) = pick(last, &requests) {
                        let was = breaker.clone();
                        breaker.began(requests[at]);
                        if breaker != was { probing = 0; requests[at] = false; }
                    },
                    Step::Succeeded(last) | Step::Failed(last) | Step::Left(last) => if let Some(at) = pick(last, &requests) {
                        let is_probe = requests.remove(at);
                        probing -= usize::from(is_probe);
                        match step {
                            Step::Succeeded(_) => breaker.succeeded(is_probe),
                            Step::Failed(_) => breaker.failed(is_probe, now_us),
                            _ => breaker.left(is_probe),
                        }
                    },
                }
                prop_assert!(probing <= 1);
                if let Gate::Open { until_us } = breaker.gate(now_us) {
                    prop_assert!(until_us <= now_us + OPEN_US_MAX);
                    prop_assert!(probing == 1 || until_us > now_us, "nobody probes and nobody may");
                }
            }
        }
    }
}
