//! Where the process stands between its start and its end, and what its doors do then.
//!
//! ```text
//! starting ── open ──► serving ◄──────────► held ── hand_over ──► handed over
//!                         └───── end ──────────────────┴──► ending ◄──┘
//! ```
//!
//! Held, nothing is accepted and what asks to be let in waits: for the moment in which another process takes the doors over, or does
//! not. Who has handed over serves on what its clients still ask on the connections that they have, and tells each of them to leave.
//! Who ends refuses that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

/// What the doors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doorway {
    /// Nobody is let in yet, or for a moment.
    Held,
    /// Whoever comes is let in.
    Open,
    /// They are another process's.
    Given,
    /// Who stands before them is let in still, and then they are gone.
    Shut,
}

/// Where the process stands.
#[derive(Debug)]
pub(super) struct Stage {
    doorway: watch::Sender<Doorway>,
    /// Connections are to end with what they are at.
    leaving: watch::Sender<bool>,
    is_leaving: AtomicBool,
    ending: watch::Sender<bool>,
    is_ending: AtomicBool,
    handed_over_at: Mutex<Option<Instant>>,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            doorway: watch::Sender::new(Doorway::Held),
            leaving: watch::Sender::new(false),
            is_leaving: AtomicBool::new(false),
            ending: watch::Sender::new(false),
            is_ending: AtomicBool::new(false),
            handed_over_at: Mutex::new(None),
        }
    }
}

impl Stage {
    /// What the doors do, now and later.
    pub(super) fn doorway(&self) -> watch::Receiver<Doorway> {
        self.doorway.subscribe()
    }

    /// Becomes true when connections are to end.
    pub(super) fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
    }

    /// Whether this connection is told to end with its answer.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// Whether nothing new is served.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    /// Returns when nothing new is served any more.
    pub(super) async fn until_ending(&self) {
        // The sender is here, so this does not end before.
        let _ = self.ending.subscribe().wait_for(|ending| *ending).await;
    }

    /// Since when the doors are another process's.
    pub(super) fn handed_over_at(&self) -> Option<Instant> {
        *self.handed_over_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets clients in, for the first time or again.
    pub(super) fn open(&self) {
        self.turn(|from| (from == Doorway::Held).then_some(Doorway::Open));
    }

    /// Lets nobody in for a moment; false where the process is past that.
    pub(super) fn hold(&self) -> bool {
        self.turn(|from| (from == Doorway::Open).then_some(Doorway::Held))
    }

    /// The doors are another's from now on; false where the process was told to end meanwhile.
    pub(super) fn hand_over(&self, now: Instant) -> bool {
        let is_given = self.turn(|from| (from == Doorway::Held).then_some(Doorway::Given));
        if is_given {
            *self.handed_over_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            self.leave();
        }
        is_given
    }

    /// Nothing new is served from now on.
    pub(super) fn end(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.ending.send_replace(true);
        self.leave();
        self.turn(|from| (from != Doorway::Given).then_some(Doorway::Shut));
    }

    fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.leaving.send_replace(true);
    }

    fn turn(&self, to: impl FnOnce(Doorway) -> Option<Doorway>) -> bool {
        self.doorway.send_if_modified(|doorway| match to(*doorway) {
            Some(next) => {
                *doorway = next;
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_over_is_opened_again() {
        let stage = Stage::default();
        let doorway = stage.doorway();
        assert!(!stage.hold(), "nobody was let in yet");
        stage.open();
        assert!(stage.hold());
        assert_eq!(*doorway.borrow(), Doorway::Held);
        stage.open();
        assert_eq!((*doorway.borrow(), stage.is_leaving()), (Doorway::Open, false));
    }

    #[test]
    fn what_is_handed_over_is_not_opened_again_and_its_connections_are_told() {
        let stage = Stage::default();
        stage.open();
        stage.hold();
        let now = Instant::now();
        assert!(stage.hand_over(now));
        stage.open();
        assert_eq!(*stage.doorway().borrow(), Doorway::Given);
        assert_eq!((stage.is_leaving(), stage.is_ending(), *stage.leaving().borrow()), (true, false, true));
        assert_eq!(stage.handed_over_at(), Some(now));
        stage.end();
        assert_eq!((*stage.doorway().borrow(), stage.is_ending()), (Doorway::Given, true));
    }

    #[test]
    fn a_process_that_was_told_to_end_does_not_hand_over() {
        let stage = Stage::default();
        stage.open();
        stage.hold();
        stage.end();
        assert!(!stage.hand_over(Instant::now()));
        assert_eq!((*stage.doorway().borrow(), stage.handed_over_at()), (Doorway::Shut, None));
    }
}
