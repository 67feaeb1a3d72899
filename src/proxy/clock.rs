//! The one place where the relay asks what time it is. The rules get their time from here, as an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a clock begins with, so that the windows of a process before have a time here.
const BEGINS_AT: Duration = Duration::from_secs(3600);

/// A monotonic clock, counted from before the process's start, and the wall clock beside it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub(super) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Microseconds since some time before the start. Never goes back, whatever happens to the wall clock.
    pub(super) fn now_us(&self) -> u64 {
        micros(BEGINS_AT + self.started.elapsed())
    }

    /// Milliseconds since the Unix epoch, by the wall clock.
    pub(super) fn unix_ms(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }

    /// Nanoseconds since the Unix epoch, by the wall clock, when `now_us` counted `us`.
    pub(super) fn unix_nanos_at(&self, us: u64) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ago_nanos = self.now_us().saturating_sub(us).saturating_mul(1_000);
        u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX).saturating_sub(ago_nanos)
    }

    /// The moment that `now_us` counts as `us`.
    pub(super) fn instant(&self, us: u64) -> Instant {
        self.started + Duration::from_micros(us).saturating_sub(BEGINS_AT)
    }
}

/// A duration in microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
