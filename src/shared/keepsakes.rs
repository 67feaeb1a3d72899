//! Small things that one node keeps for the others, for an hour, and that are no loss where they get lost.
//!
//! Bounded twice: by what may wait to be written, and by what a node writes in an hour, so that a node has at most twice that in Redis.

use std::collections::VecDeque;

/// How long a thing is kept.
pub(super) const KEPT_MS: u64 = 3_600_000;
/// The longest.
pub(super) const THING_BYTES_MAX: usize = 32 * 1024;
/// The most bytes that wait.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most bytes that are written in the time that a thing is kept.
const WRITTEN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A thing and its name.
pub(super) type Thing = (String, Vec<u8>);

#[derive(Debug, Default)]
pub(super) struct Keepsakes {
    waiting: VecDeque<Thing>,
    waiting_bytes: usize,
    written_bytes: usize,
    since_us: u64,
}

impl Keepsakes {
    /// Takes a thing to be kept, where there is room.
    pub(super) fn push(&mut self, name: String, thing: Vec<u8>, now_us: u64) {
        if now_us.saturating_sub(self.since_us) >= KEPT_MS * 1000 {
            (self.since_us, self.written_bytes) = (now_us, 0);
        }
        let bytes = thing.len();
        let has_room = bytes <= THING_BYTES_MAX
            && self.waiting_bytes + bytes <= WAITING_BYTES_MAX
            && self.written_bytes + bytes <= WRITTEN_BYTES_MAX;
        if has_room {
            self.waiting_bytes += bytes;
            self.written_bytes += bytes;
            self.waiting.push_back((name, thing));
        }
    }

    /// The next to be written.
    pub(super) fn take(&mut self, most: usize) -> Vec<Thing> {
        let taken: Vec<_> = self.waiting.drain(..most.min(self.waiting.len())).collect();
        self.waiting_bytes -= taken.iter().map(|(_, thing)| thing.len()).sum::<usize>();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_waits_and_no_more_is_written_than_may() {
        let mut kept = Keepsakes::default();
        kept.push("long".into(), vec![0; THING_BYTES_MAX + 1], 0);
        assert!(kept.take(1).is_empty());
        let mut written = 0;
        for turn in 0..2 {
            for _ in 0..WRITTEN_BYTES_MAX / WAITING_BYTES_MAX + 2 {
                (0..200).for_each(|_| kept.push("a".into(), vec![0; THING_BYTES_MAX], turn * KEPT_MS * 1000));
                assert!(kept.waiting_bytes <= WAITING_BYTES_MAX);
                written += kept.take(usize::MAX).len() * THING_BYTES_MAX;
                assert_eq!(kept.waiting_bytes, 0);
            }
            assert_eq!(written, (turn as usize + 1) * WRITTEN_BYTES_MAX);
        }
    }
}
