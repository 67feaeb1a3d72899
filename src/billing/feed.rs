//! What a sink besides the ledger has not had yet, and how it comes to it.
//!
//! All of it is read back from the spool: a sink may be away for days, and memory is for what the ledger waits for. What dead
//! processes left goes first, a little of each in turn, and then this process's own. Batches of processes that live are theirs to
//! deliver, so that no two move the same cursor.
//!
//! In turn, because what a crash interrupted comes again to a sink that may have it already, and a file knows only what was written
//! to it lately.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::inbox::Inbox;
use super::reading::Reading;
use super::sink::{Parked, SinkState, Source, Times};
use super::spool::{Acknowledged, SpoolError, SpoolFile, Stretch, oldest_ms};
use crate::relay::meter::UsageRecord;

/// How long a sink is left alone after it was given less than it takes at a time: what comes meanwhile goes together.
const GATHER: Duration = Duration::from_millis(200);

/// What one sink has not had yet, for the thread that writes and the loop that delivers.
#[derive(Debug)]
pub(super) struct Feed {
    waiting: Mutex<Waiting>,
    state: Arc<SinkState>,
    /// There is something new to deliver.
    news: Notify,
}

#[derive(Debug)]
struct Waiting {
    inherited: VecDeque<Stretch>,
    /// Of this process; nothing waits where `after` is `last`.
    own: Stretch,
    /// Somebody who ended may have parked something.
    recount: bool,
}

/// Batches that the sink is being given.
#[derive(Debug)]
struct Taken {
    writer: Arc<str>,
    last: i64,
    records: u64,
    /// About when the oldest of what follows ended.
    until_ms: i64,
}

impl Feed {
    /// Of a process that has spooled nothing yet.
    pub(super) fn new(own: Arc<str>, state: Arc<SinkState>) -> Self {
        let own = Stretch { writer: own, legacy: false, after: 0, last: 0, records: 0, oldest_ms: 0 };
        let waiting = Waiting { inherited: VecDeque::new(), own, recount: false };
        Self { waiting: Mutex::new(waiting), state, news: Notify::new() }
    }

    pub(super) fn state(&self) -> &Arc<SinkState> {
        &self.state
    }

    /// A batch of this process is in the spool. Numbers follow each other.
    pub(super) fn push(&self, number: i64, records: u64, oldest_ms: i64) {
        let mut waiting = self.waiting();
        let own = &mut waiting.own;
        if own.after == own.last {
            own.oldest_ms = oldest_ms;
        }
        own.last = number;
        own.records += records;
        self.report(&waiting);
        drop(waiting);
        self.news.notify_one();
    }

    /// Processes have ended, and left that of batches that this sink does not have.
    pub(super) fn inherit(&self, stretches: impl IntoIterator<Item = Stretch>) {
        let mut waiting = self.waiting();
        waiting.inherited.extend(stretches);
        waiting.recount = true;
        self.report(&waiting);
        drop(waiting);
        self.news.notify_one();
    }

    /// What to read next: more of what is taken, or else of what has had its turn the longest ago.
    fn next(&self, taken: Option<&Taken>) -> Option<Stretch> {
        let waiting = self.waiting();
        let is_own_waiting = waiting.own.after < waiting.own.last;
        let mut stretches = waiting.inherited.iter().chain(is_own_waiting.then_some(&waiting.own));
        match taken {
            Some(taken) => stretches.find(|stretch| stretch.writer == taken.writer).cloned(),
            None => stretches.next().cloned(),
        }
    }

    /// The cursor is past what was taken.
    fn passed(&self, taken: &Taken) {
        let mut waiting = self.waiting();
        let Waiting { inherited, own, .. } = &mut *waiting;
        if own.writer == taken.writer {
            own.pass(taken);
        } else if let Some(place) = inherited.iter().position(|stretch| stretch.writer == taken.writer)
            && let Some(mut stretch) = inherited.remove(place)
        {
            stretch.pass(taken);
            if stretch.after < stretch.last {
                inherited.push_back(stretch);
            }
        }
        self.report(&waiting);
    }

    /// Returns when there is something to be had.
    async fn until_something_waits(&self) {
        loop {
            {
                let waiting = self.waiting();
                if waiting.own.after < waiting.own.last || !waiting.inherited.is_empty() || waiting.recount {
                    return;
                }
            }
            self.news.notified().await;
        }
    }

    fn is_to_recount(&self) -> bool {
        self.waiting().recount
    }

    fn recounted(&self, parked: u64) {
        self.waiting().recount = false;
        self.state.set_aside(parked);
    }

    fn report(&self, waiting: &Waiting) {
        let own = Some(&waiting.own).filter(|own| own.after < own.last);
        let (mut records, mut oldest_ms) = (0, None::<i64>);
        for stretch in waiting.inherited.iter().chain(own) {
            records += stretch.records;
            oldest_ms = Some(oldest_ms.map_or(stretch.oldest_ms, |oldest| oldest.min(stretch.oldest_ms)));
        }
        self.state.set_waiting(records, oldest_ms);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stretch {
    fn pass(&mut self, taken: &Taken) {
        self.after = taken.last;
        self.oldest_ms = taken.until_ms;
        // What could not be read was counted and not given.
        self.records = if self.after < self.last { self.records.saturating_sub(taken.records) } else { 0 };
    }
}

/// The spool, as one sink is fed from it.
#[derive(Debug)]
pub(super) struct SpoolSource {
    sink: Arc<str>,
    feed: Arc<Feed>,
    inbox: Arc<Inbox>,
    reading: Reading,
    times: Times,
    taken: Option<Taken>,
    /// Until then it waits for others what is less than the sink takes at a time.
    gathers_until: Option<Instant>,
    gather: Duration,
}

impl SpoolSource {
    /// Of a sink; `parked` is how many records it refuses.
    pub(super) fn new(feed: Arc<Feed>, inbox: Arc<Inbox>, reading: Reading, times: Times, parked: u64) -> Self {
        feed.recounted(parked);
        let sink = feed.state().name().into();
        Self { sink, feed, inbox, reading, times, taken: None, gathers_until: None, gather: GATHER }
    }

    pub(super) fn state(&self) -> &Arc<SinkState> {
        self.feed.state()
    }

    fn of(&self, taken: &Taken) -> Acknowledged {
        Acknowledged { sink: Arc::clone(&self.sink), writer: Arc::clone(&taken.writer), last: taken.last }
    }

    async fn recount(&self) -> Result<(), SpoolError> {
        let sink = Arc::clone(&self.sink);
        self.feed.recounted(self.reading.look(move |reader| reader.count_parked(&sink)).await?);
        Ok(())
    }

    /// Lets a few records wait for more. A sink costs by the delivery, a file the disk's time as well.
    async fn gather(&mut self, records_max: usize) {
        if let Some(until) = self.gathers_until.take()
            && self.feed.state().waiting() < records_max as u64
        {
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Source for SpoolSource {
    type Error = SpoolError;

    async fn next(&mut self, records_max: usize) -> Result<Vec<UsageRecord>, SpoolError> {
        if self.feed.is_to_recount() {
            self.recount().await?;
        }
        loop {
            let Some(stretch) = self.feed.next(self.taken.as_ref()) else { return Ok(Vec::new()) };
            if self.taken.is_none() {
                self.gather(records_max).await;
            }
            let read = self.reading.read(&stretch, records_max).await?.within(records_max);
            // Where nothing is left of a stretch, it is passed as a whole.
            let last = read.last().unwrap_or(stretch.last);
            let records: Vec<UsageRecord> = read.batches.into_iter().flat_map(|batch| batch.records).collect();
            self.taken = Some(Taken {
                writer: stretch.writer,
                last,
                records: records.len() as u64,
                until_ms: records.last().map_or(stretch.oldest_ms, |last| oldest_ms(std::iter::once(last))),
            });
            if !records.is_empty() {
                return Ok(records);
            }
            self.advance(&[]).await?;
        }
    }

    async fn advance(&mut self, parked: &[Parked]) -> Result<(), SpoolError> {
        let Some(taken) = &self.taken else { return Ok(()) };
        let of = self.of(taken);
        if parked.is_empty() {
            self.inbox.acknowledge(of).await?;
        } else {
            let (parked, now_ms) = (parked.to_vec(), self.times.now_ms());
            self.inbox.ask(move |file: &mut SpoolFile| file.park(&of, &parked, now_ms)).await?;
            self.recount().await?;
        }
        self.feed.passed(taken);
        self.taken = None;
        self.gathers_until = Some(Instant::now() + self.gather);
        Ok(())
    }

    async fn more(&mut self) -> bool {
        self.feed.until_something_waits().await;
        true
    }

    async fn parked(&mut self, after: Option<Uuid>, records_max: usize) -> Result<Vec<UsageRecord>, SpoolError> {
        let sink = Arc::clone(&self.sink);
        let parked = self.reading.look(move |reader| reader.parked(&sink, after, records_max)).await?;
        if parked.is_empty() {
            // Another process may have delivered what this one counted.
            self.recount().await?;
        }
        Ok(parked)
    }

    async fn unpark(&mut self, ids: &[Uuid]) -> Result<(), SpoolError> {
        let (sink, ids) = (Arc::clone(&self.sink), ids.to_vec());
        self.inbox.ask(move |file: &mut SpoolFile| file.unpark(&sink, &ids)).await?;
        self.recount().await
    }
}

#[cfg(test)]
mod tests;
