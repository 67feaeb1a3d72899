//! What the layers of one connection tell each other: the listener that opened it, the wire that its bytes pass, and the proxy that
//! reads requests from it. They run in one task, which knows its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

tokio::task_local! {
    /// The connection that this task serves. Streams of HTTP/2 have tasks of their own, without one.
    static LINK: Arc<Link>;
}

/// How far a connection has come with what it says next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// It is not known yet what it speaks.
    Opening,
    /// HTTP/1.1: nothing of the next request's head has come.
    Waiting,
    /// HTTP/1.1: some of it has.
    Head,
    /// HTTP/1.1: a request's head has come, and it is being answered.
    Answering,
    /// HTTP/2.
    Frames,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Opening, Self::Waiting, Self::Head, Self::Answering, Self::Frames];
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    stage: AtomicU8,
    is_doubted: AtomicBool,
    changed: Notify,
    /// When the first request's head has to be there.
    first_head_due: Instant,
    head_max: Duration,
}

impl Link {
    pub(super) fn new(first_head_due: Instant, head_max: Duration) -> Self {
        let stage = AtomicU8::new(Stage::Opening as u8);
        Self { stage, is_doubted: AtomicBool::new(false), changed: Notify::new(), first_head_due, head_max }
    }

    /// That of the task that calls.
    pub(super) fn current() -> Option<Arc<Self>> {
        LINK.try_with(Arc::clone).ok()
    }

    /// Makes it the task's for as long as `work` runs.
    pub(super) async fn scope<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        LINK.scope(Arc::clone(self), work).await
    }

    pub(super) fn stage(&self) -> Stage {
        let stage = usize::from(self.stage.load(Ordering::Relaxed));
        Stage::ALL.get(stage).copied().unwrap_or(Stage::Opening)
    }

    /// A request over HTTP/1.1 is read next.
    pub(super) fn expect_head(&self) {
        self.set(Stage::Waiting);
    }

    /// Its first bytes have come.
    pub(super) fn head_began(&self) {
        if self.stage() == Stage::Waiting {
            self.set(Stage::Head);
        }
    }

    /// It is whole.
    pub(super) fn head_arrived(&self) {
        self.set(Stage::Answering);
    }

    /// It is HTTP/2, and the client has said so.
    pub(super) fn frames_began(&self) {
        if self.stage() == Stage::Opening {
            self.set(Stage::Frames);
        }
    }

    /// What follows on it may not be what it seems, and is not read as a request.
    pub(super) fn doubt(&self) {
        self.is_doubted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.is_doubted.load(Ordering::Relaxed)
    }

    /// Returns when the connection is past that stage.
    pub(super) async fn past(&self, stage: Stage) {
        while self.stage() == stage {
            // A change between the two is not lost: it leaves a permit.
            self.changed.notified().await;
        }
    }

    /// When the first request's head has to be there.
    pub(super) fn first_head_due(&self) -> Instant {
        self.first_head_due
    }

    /// How long any head may take from its first byte.
    pub(super) fn head_max(&self) -> Duration {
        self.head_max
    }

    fn set(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_kept_as_they_are_counted() {
        for (place, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, place);
        }
    }

    #[test]
    fn a_head_begins_once_and_only_where_one_is_expected() {
        let link = Link::new(Instant::now(), Duration::ZERO);
        link.head_began();
        assert_eq!(link.stage(), Stage::Opening);
        link.expect_head();
        link.frames_began();
        assert_eq!(link.stage(), Stage::Waiting);
        link.head_began();
        assert_eq!(link.stage(), Stage::Head);
        link.head_arrived();
        link.head_began();
        assert_eq!(link.stage(), Stage::Answering);
    }
}
