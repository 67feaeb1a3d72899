//! How fast a target answers: a moving average of the time to its first byte that rises at once and falls slowly, and falls
//! by itself where nothing is asked, so that who was slow is asked again.

/// In so many microseconds, half of what was known is forgotten.
const HALF_LIFE_US: u64 = 10_000_000;

/// A peak-sensitive moving average. Microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PeakEwma {
    value_us: u64,
    at_us: u64,
}

impl PeakEwma {
    /// A first byte came after so long.
    pub(super) fn observe(&mut self, took_us: u64, now_us: u64) {
        let faded_us = self.at(now_us);
        // Where nothing is known, what comes is all that is.
        let known = self.value_us > 0;
        let kept_us =
            if known { faded(self.value_us.saturating_sub(took_us), now_us.saturating_sub(self.at_us)) } else { 0 };
        let value_us = if took_us >= faded_us { took_us } else { took_us + kept_us };
        *self = Self { value_us: value_us.max(1), at_us: now_us.max(self.at_us) };
    }

    /// What is to be expected now; `None` where nothing was ever seen.
    pub(super) fn expected_us(&self, now_us: u64) -> Option<u64> {
        (self.value_us > 0).then(|| self.at(now_us).max(1))
    }

    fn at(&self, now_us: u64) -> u64 {
        faded(self.value_us, now_us.saturating_sub(self.at_us))
    }
}

/// What is left of a value after so long: halved once each half-life, in a straight line in between.
fn faded(value: u64, after_us: u64) -> u64 {
    let halvings = u32::try_from(after_us / HALF_LIFE_US).unwrap_or(u32::MAX);
    let whole = value.checked_shr(halvings).unwrap_or(0);
    let part = u128::from(whole) * u128::from(after_us % HALF_LIFE_US) / u128::from(2 * HALF_LIFE_US);
    whole.saturating_sub(u64::try_from(part).unwrap_or(whole))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let mut ewma = PeakEwma::default();
        assert_eq!(ewma.expected_us(0), None);
        ewma.observe(SECOND, 0);
        ewma.observe(8 * SECOND, 0);
        assert_eq!(ewma.expected_us(0), Some(8 * SECOND));
        ewma.observe(SECOND, 0);
        assert_eq!(ewma.expected_us(0), Some(8 * SECOND), "no time has passed");
        ewma.observe(SECOND, 10 * SECOND);
        assert_eq!(ewma.expected_us(10 * SECOND), Some(4 * SECOND + SECOND / 2), "half of the way");
    }

    #[test]
    fn who_was_slow_is_forgiven_when_nothing_is_asked() {
        let mut ewma = PeakEwma::default();
        ewma.observe(8 * SECOND, 0);
        assert_eq!(ewma.expected_us(10 * SECOND), Some(4 * SECOND));
        assert_eq!(ewma.expected_us(30 * SECOND), Some(SECOND));
        assert_eq!(ewma.expected_us(u64::MAX), Some(1));
    }

    proptest! {
        #[test]
        fn it_stays_between_what_it_has_seen(observed in prop::collection::vec((1..100 * SECOND, 0..30 * SECOND), 1..50)) {
            let (mut ewma, mut now_us) = (PeakEwma::default(), 0);
            let most = observed.iter().map(|(took, _)| *took).max().unwrap();
            for (took_us, pause_us) in observed {
                now_us += pause_us;
                ewma.observe(took_us, now_us);
                let expected_us = ewma.expected_us(now_us).unwrap();
                prop_assert!(took_us <= expected_us && expected_us <= most, "{took_us} {expected_us} {most}");
            }
        }
    }
}
