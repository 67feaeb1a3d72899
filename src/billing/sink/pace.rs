//! When to try again. Time and chance come from outside, so that no test waits.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The first pause is at most this long, the second twice as long, and so on up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// The longest pause of our own choice; and how often is tried again what a receiver refused.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The longest pause that a receiver may ask for. More is a slip of theirs, and would look like silence of ours.
const ASKED_MAX: Duration = Duration::from_secs(3_600);

/// The time, in milliseconds since the Unix epoch.
pub(in crate::billing) type UnixMs = Arc<dyn Fn() -> i64 + Send + Sync>;

/// A duration by chance, from nothing to the one given, each as likely as any other.
type Below = Arc<dyn Fn(Duration) -> Duration + Send + Sync>;

/// What time it is, and how long to wait by chance.
#[derive(Clone)]
pub(in crate::billing) struct Times {
    pub(super) unix_ms: UnixMs,
    pub(super) below: Below,
}

impl Times {
    /// The machine's.
    pub(in crate::billing) fn real() -> Self {
        Self { unix_ms: Arc::new(unix_ms), below: Arc::new(below) }
    }

    /// The machine's clock, and no pauses but those that are asked for.
    #[cfg(test)]
    pub(in crate::billing) fn without_pauses() -> Self {
        Self { below: Arc::new(|_| Duration::ZERO), ..Self::real() }
    }

    /// Milliseconds since the Unix epoch.
    pub(in crate::billing) fn now_ms(&self) -> i64 {
        (self.unix_ms)()
    }

    /// How long to wait after so many failures in a row: by chance, so that relays that failed together do not come back together,
    /// and never less than the receiver asked for.
    pub(super) fn pause_after(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let longest = PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX);
        (self.below)(longest).max(asked.unwrap_or_default().min(ASKED_MAX))
    }
}

impl fmt::Debug for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Times")
    }
}

fn unix_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

fn below(longest: Duration) -> Duration {
    let milliseconds = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    // Without chance the pause is the longest one. The remainder's bias is one part in 2^45 of it.
    let chance = getrandom::u64().unwrap_or(milliseconds);
    Duration::from_millis(chance % milliseconds.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(part: u32) -> Times {
        Times { unix_ms: Arc::new(|| 0), below: Arc::new(move |longest| longest * part / 100) }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds = |failures| times(100).pause_after(failures, None).as_secs();
        assert_eq!([1, 2, 3, 4].map(seconds), [1, 2, 4, 8]);
        assert_eq!([9, 10, 11, 100, u32::MAX].map(seconds), [256, 300, 300, 300, 300]);
    }

    #[test]
    fn chance_has_the_whole_pause() {
        assert_eq!(times(0).pause_after(10, None), Duration::ZERO);
        assert_eq!(times(50).pause_after(10, None), Duration::from_secs(150));
        let drawn: Vec<Duration> = (0..200).map(|_| below(Duration::from_millis(9))).collect();
        for milliseconds in 0..=9 {
            assert!(drawn.contains(&Duration::from_millis(milliseconds)), "{milliseconds}");
        }
        assert!(drawn.iter().all(|pause| *pause <= Duration::from_millis(9)));
    }

    #[test]
    fn what_a_receiver_asks_for_is_kept_to_within_reason() {
        let asked = |seconds| times(100).pause_after(1, Some(Duration::from_secs(seconds))).as_secs();
        assert_eq!([0, 1, 30, 3_600, 1_000_000].map(asked), [1, 1, 30, 3_600, 3_600]);
    }
}
