//! Where requests and sinks leave what is to be written, for the [scribe](super::scribe) to take.
//!
//! A request that has ended is left in the [`Journal`] first, where there is one, so that its client need not wait for the scribe.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::group::{Acknowledgement, Arrived, Keeping};
use super::open_row::Facts;
use super::recorder::{Finished, Progress};
use super::spool::{Acknowledged, Entry, Journal, SpoolError, SpoolFile, WriteError};
use super::state::Reserved;

/// What is not urgent need not wake who looks again this soon: nothing of it is due before.
const SOON: Duration = Duration::from_millis(20);

/// Something else to be done with the file, between two transactions.
pub(super) type Job = Box<dyn FnOnce(&mut SpoolFile) -> Result<(), WriteError> + Send>;

/// Where requests and sinks leave what is to be written.
pub(super) struct Inbox {
    /// Where requests are kept that have ended, if clients do not wait for the disk.
    journal: Option<Arc<Journal>>,
    held: Mutex<Held>,
    bell: Condvar,
}

#[derive(Default)]
struct Held {
    arrived: Arrived,
    jobs: VecDeque<Job>,
    sleep: Sleep,
    /// What is here is to be written still, and then no more.
    is_ending: bool,
    /// Nobody looks here any more.
    is_abandoned: bool,
}

/// What the scribe waits for.
#[derive(Default, PartialEq, Eq)]
enum Sleep {
    #[default]
    Awake,
    /// For what is urgent, or a time soon enough for all else.
    UntilDue,
    /// For anything.
    ForAnything,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Inbox {
    pub(super) fn new(journal: Option<Arc<Journal>>) -> Self {
        Self { journal, held: Mutex::default(), bell: Condvar::new() }
    }

    /// A request was admitted.
    pub(super) fn opened(&self, id: Uuid, facts: Arc<Facts>) {
        self.leave(false, |held| held.arrived.opened.push((id, facts)));
    }

    /// A request has come so far.
    pub(super) fn passed(&self, id: Uuid, progress: Progress) {
        self.leave(false, |held| drop(held.arrived.passed.insert(id, progress)));
    }

    /// A request was given up.
    pub(super) fn released(&self, id: Uuid, reserved: Reserved) {
        self.leave(false, |held| held.arrived.released.push((id, reserved)));
    }

    /// A request has ended. Where it is not kept already, says who tells when it is.
    pub(super) fn finished(&self, finished: Finished) -> Option<oneshot::Receiver<()>> {
        let finished = self.journal(finished)?;
        let (kept, wait) = oneshot::channel();
        self.leave(true, |held| held.arrived.finish(finished, Keeping::Batch(kept)));
        Some(wait)
    }

    /// A request that has ended was counted; tells when it is kept.
    pub(super) fn counted(&self, finished: Finished, kept: oneshot::Sender<()>) {
        match self.journal(finished) {
            // The client may have left.
            None => drop(kept.send(())),
            Some(finished) => self.leave(true, |held| held.arrived.finish(finished, Keeping::Batch(kept))),
        }
    }

    /// Keeps a finished request in the journal; gives it back where it cannot. Entries come to the scribe in their order, which is how
    /// it knows up to which of them the spool has all.
    fn journal(&self, finished: Finished) -> Option<Finished> {
        let Some((journal, entry)) = self.journal.as_ref().zip(Entry::of(&finished.record)) else {
            return Some(finished);
        };
        let mut finished = Some(finished);
        journal.append(entry, |written| {
            let Some(finished) = finished.take() else { return };
            self.leave(written.is_pressed, |held| {
                held.arrived.finish(finished, Keeping::Journal(written.number));
                if written.is_pressed {
                    held.arrived.hurry();
                }
            });
        });
        finished
    }

    /// A sink has what it was given. Returns when that is written.
    pub(super) async fn acknowledge(&self, of: Acknowledged) -> Result<(), SpoolError> {
        let (written, wait) = oneshot::channel();
        self.leave(false, |held| held.arrived.acknowledged.push(Acknowledgement { of, written }));
        wait.await.map_err(|_| SpoolError::Closed)
    }

    /// Returns when every request that was admitted before has its row, or has ended.
    pub(super) async fn flushed(&self) -> Result<(), SpoolError> {
        let (written, wait) = oneshot::channel();
        self.leave(true, |held| held.arrived.flushes.push(written));
        wait.await.map_err(|_| SpoolError::Closed)
    }

    /// Has something done with the file.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut SpoolFile) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let (answer, wait) = oneshot::channel();
        let job = move |file: &mut SpoolFile| match job(file) {
            Ok(done) => {
                // Who asked may have left.
                let _ = answer.send(Ok(done));
                Ok(())
            }
            Err(WriteError::Stalled(error)) => {
                let _ = answer.send(Err(error));
                Ok(())
            }
            Err(broken) => Err(broken),
        };
        self.leave(true, |held| held.jobs.push_back(Box::new(job)));
        wait.await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Lets the scribe end, once what is here is written.
    pub(super) fn end(&self) {
        self.close_journal();
        self.leave(true, |held| held.is_ending = true);
    }

    fn close_journal(&self) {
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    fn leave(&self, urgent: bool, leave: impl FnOnce(&mut Held)) {
        let mut held = self.lock();
        if held.is_abandoned {
            // Whatever it was going to leave goes with the closure, and whoever waits for it sees that.
            return;
        }
        leave(&mut held);
        let wake = held.sleep == Sleep::ForAnything || (urgent && held.sleep == Sleep::UntilDue);
        if wake {
            held.sleep = Sleep::Awake;
            drop(held);
            self.bell.notify_one();
        }
    }

    /// Takes what is here, waiting until it is time, or something urgent comes, or anything where the time is far.
    pub(super) fn take(&self, wait: Option<Duration>) -> (Arrived, VecDeque<Job>, bool) {
        let mut held = self.lock();
        let until = wait.map(|wait| Instant::now() + wait);
        while !held.is_urgent() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let is_soon = left.is_some_and(|left| left <= SOON);
            if left.is_some_and(|left| left.is_zero()) || !(is_soon || held.arrived.is_empty()) {
                break;
            }
            held.sleep = if is_soon { Sleep::UntilDue } else { Sleep::ForAnything };
            held = match left {
                Some(left) => self.bell.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.bell.wait(held).unwrap_or_else(PoisonError::into_inner),
            };
        }
        held.sleep = Sleep::Awake;
        (std::mem::take(&mut held.arrived), std::mem::take(&mut held.jobs), held.is_ending)
    }

    /// Nothing is written any more: whoever waits is told so.
    pub(super) fn abandon(&self) {
        self.close_journal();
        let mut held = self.lock();
        held.is_abandoned = true;
        let left = (std::mem::take(&mut held.arrived), std::mem::take(&mut held.jobs));
        drop(held);
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn is_urgent(&self) -> bool {
        self.arrived.is_urgent() || !self.jobs.is_empty() || self.is_ending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_urgent_wakes_and_the_rest_waits_for_its_time() {
        let inbox = Arc::new(Inbox::new(None));
        let facts = Facts { account: "a".into(), key: "k".into(), model: "m".into(), started_at_ms: 1, hold: 9 };
        let (took, told) = mpsc::channel();
        let looking = Arc::clone(&inbox);
        let looks = std::thread::spawn(move || {
            for wait in [None, Some(Duration::from_secs(3600)), Some(Duration::from_millis(1)), None] {
                let (arrived, jobs, is_ending) = looking.take(wait);
                took.send((arrived.opened.len(), jobs.len(), is_ending)).unwrap();
            }
        });
        let soon = Duration::from_secs(20);
        inbox.opened(Uuid::from_u128(1), Arc::new(facts.clone()));
        assert_eq!(told.recv_timeout(soon).unwrap(), (1, 0, false), "anything wakes who has nothing to do");
        inbox.opened(Uuid::from_u128(2), Arc::new(facts));
        assert_eq!(told.recv_timeout(soon).unwrap(), (1, 0, false), "or nothing for long");
        assert_eq!(told.recv_timeout(soon).unwrap(), (0, 0, false), "its time came");
        inbox.end();
        assert_eq!(told.recv_timeout(soon).unwrap(), (0, 0, true));
        looks.join().unwrap();
    }
}
