//! Billing's background: counts what nobody reported, looks after what the dead left, and hands what is durable to the ledger
//! and the other sinks.
//!
//! Loops side by side, joined by the spool alone, so that a ledger that cannot be reached holds nothing up but itself. The spool is
//! written by [`super::scribe`], on its own thread.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::backlog::Backlog;
use super::debts::Debts;
use super::delivery::{Delivery, Ledger};
use super::feed::{Feed, SpoolSource};
use super::group::{Group, Pace};
use super::inbox::Inbox;
use super::recorder::Uncounted;
use super::scribe::{self, Kept, Scribe};
use super::sink::{self, AnySink, Times};
use super::spool::{Adopted, SpoolError, SpoolFile, oldest_ms};
use super::state::BillingState;
use crate::relay::meter::UsageRecord;
use crate::store::Store;

/// How often it is looked who has died.
const ADOPT_EVERY: Duration = Duration::from_secs(1);

/// How many of an ended process's last seconds are waited for room in the spool. What has none then is billed by its last checkpoint.
const LAST_SECONDS_STALLED_MAX: u32 = 10;

/// How long the end is put off for a sink that does not answer. One that does ends by itself before.
const SINKS_ENDING_MAX: Duration = Duration::from_secs(12);

/// Takes records from the recorder to the ledger and the other sinks.
#[derive(Debug)]
pub struct Worker<L = Store> {
    pub(super) file: SpoolFile,
    pub(super) inbox: Arc<Inbox>,
    pub(super) uncounted: mpsc::UnboundedReceiver<Uncounted>,
    /// What earlier processes had not spooled when they died.
    pub(super) found: Vec<UsageRecord>,
    pub(super) books: Arc<Books>,
    pub(super) delivery: Delivery<L>,
    /// The sinks besides the ledger, and what each is fed from.
    pub(super) fed: Vec<(AnySink, SpoolSource)>,
    pub(super) times: Times,
    pub(super) pace: Pace,
}

/// What is in the spool and not in the ledger, for the thread that writes and the loop that delivers.
#[derive(Debug)]
pub(super) struct Books {
    backlog: Mutex<Backlog>,
    debts: Mutex<Debts>,
    /// What the other sinks have not had yet, in the order of the configuration.
    feeds: Vec<Arc<Feed>>,
    /// How many other processes live.
    living: AtomicUsize,
    state: Arc<BillingState>,
    /// There is something new to deliver.
    news: Notify,
}

impl<L: Ledger> Worker<L> {
    /// Works until `shutdown`, and then until every ticket that was given out is recorded or dropped, the ledger has what it can take,
    /// and the other sinks what they can in some seconds; what they cannot take stays in the spool for the next run. Begins with what
    /// an earlier run left there. Ends by itself, and soon, when the spool has failed.
    ///
    /// `observe` sees each record once, when it is durable.
    pub async fn run(self, shutdown: impl Future<Output = ()>, observe: impl Fn(&UsageRecord) + Send + Sync + 'static) {
        let Self { file, inbox, uncounted, found, books, mut delivery, fed, times, pace } = self;
        let observe = Arc::new(observe);
        found.iter().for_each(|record| observe(record));
        let seen_by = Arc::clone(&observe);
        let scribe = scribe_of(file, pace, &books, move |record| seen_by(record));
        let state = Arc::clone(&books.state);
        let written = match scribe::start(Arc::clone(&inbox), scribe) {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(%error, "the spool's thread cannot be started");
                state.fail();
                return;
            }
        };
        let (end, ending) = watch::channel(false);
        tokio::join!(
            end_after(shutdown, &state, end),
            count(uncounted, &inbox, ending.clone()),
            adopt(&inbox, &books, &*observe, ending.clone()),
            feed(fed, &times, &state, ending.clone()),
            delivery.run(ending),
        );
        inbox.end();
        let _ = written.await;
    }
}

/// The one who writes the spool, and tells the books of what is durable.
pub(super) fn scribe_of(
    file: SpoolFile,
    pace: Pace,
    books: &Arc<Books>,
    seen_by: impl Fn(&UsageRecord) + Send + 'static,
) -> Scribe<impl FnMut(i64, Vec<Kept>) + Send + 'static> {
    let group = Group::new(pace, file.sizes().records_max);
    let kept_in = Arc::clone(books);
    Scribe::new(file, group, Arc::clone(&books.state), move |number, kept: Vec<Kept>| {
        kept.iter().for_each(|kept| seen_by(&kept.record));
        kept_in.kept(number, kept);
    })
}

impl Books {
    pub(super) fn new(backlog: Backlog, feeds: Vec<Arc<Feed>>, state: Arc<BillingState>) -> Self {
        let (backlog, living) = (Mutex::new(backlog), AtomicUsize::new(0));
        let books = Self { backlog, debts: Mutex::default(), feeds, living, state, news: Notify::new() };
        books.report();
        books
    }

    pub(super) fn state(&self) -> &Arc<BillingState> {
        &self.state
    }

    /// Returns when something came since the last call did.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// A batch is durable.
    fn kept(&self, number: i64, kept: Vec<Kept>) {
        // Before it can be settled.
        let mut debts = self.debts();
        kept.iter().for_each(|kept| debts.charged(&kept.record, &kept.charge));
        drop(debts);
        let (records, oldest_ms) = (kept.len() as u64, oldest_ms(kept.iter().map(|kept| &kept.record)));
        self.backlog().push(number, kept.into_iter().map(|kept| kept.record).collect());
        self.report();
        self.news.notify_one();
        self.feeds.iter().for_each(|feed| feed.push(number, records, oldest_ms));
    }

    /// What the dead left is here.
    pub(super) fn inherit(&self, adopted: Adopted) {
        if !adopted.stretches.is_empty() {
            self.backlog().inherit(adopted.stretches);
            self.report();
            self.news.notify_one();
        }
        // Who ended in good order leaves no batches here, but may have parked something.
        let are_fewer = self.living.swap(adopted.living, Ordering::Relaxed) > adopted.living;
        if adopted.dead > 0 || are_fewer {
            for (place, feed) in self.feeds.iter().enumerate() {
                let of_sink = adopted.of_sinks.iter().filter(|(sink, _)| *sink == place);
                feed.inherit(of_sink.map(|(_, stretch)| stretch.clone()));
            }
        }
        self.state.set_others(adopted.living > 0 || adopted.remains || self.backlog().has_inherited());
    }

    /// Tells how much waits.
    pub(super) fn report(&self) {
        let (records, oldest_ms) = self.backlog().waiting();
        self.state.set_spooled(records, oldest_ms);
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn debts(&self) -> MutexGuard<'_, Debts> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends what runs when it is told to, and every ticket is in; sooner, where that will not be.
async fn end_after(shutdown: impl Future<Output = ()>, state: &BillingState, end: watch::Sender<bool>) {
    tokio::select! {
        () = shutdown => {}
        () = state.until_failed() => {}
    }
    state.close();
    let stalled = async {
        let mut seconds = 0;
        while seconds < LAST_SECONDS_STALLED_MAX {
            tokio::time::sleep(Duration::from_secs(1)).await;
            seconds = if state.is_stalled() { seconds + 1 } else { 0 };
        }
    };
    tokio::select! {
        () = state.until_tickets_are_in() => {}
        () = state.until_failed() => {}
        () = stalled => tracing::error!("the spool has no room at the end; what it did not take is billed by the last checkpoints"),
    }
    end.send_replace(true);
}

/// Counts what nobody reported, on threads where it holds nobody up, as many at a time as there are CPUs.
async fn count(
    mut uncounted: mpsc::UnboundedReceiver<Uncounted>,
    inbox: &Arc<Inbox>,
    mut ending: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));
    loop {
        let next = tokio::select! {
            next = uncounted.recv() => next,
            _ = ending.wait_for(|ending| *ending) => None,
        };
        let Some(next) = next else { return };
        let place = Arc::clone(&places).acquire_owned().await;
        let inbox = Arc::clone(inbox);
        tokio::task::spawn_blocking(move || {
            next.end(&inbox);
            drop(place);
        });
    }
}

/// Takes over what the dead leave.
async fn adopt(
    inbox: &Inbox,
    books: &Books,
    observe: &(impl Fn(&UsageRecord) + Sync),
    mut ending: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(ADOPT_EVERY) => {}
            _ = ending.wait_for(|ending| *ending) => return,
        }
        match inbox.ask(SpoolFile::adopt).await {
            Ok(adopted) => {
                adopted.found.iter().for_each(observe);
                books.inherit(adopted);
            }
            Err(SpoolError::Closed) => return,
            Err(error) => tracing::warn!(%error, "what other processes left in the spool cannot be taken over yet"),
        }
    }
}

/// Runs the sinks. At the end they have a few seconds, which end with their first failure, and none where the spool has failed.
async fn feed(
    fed: Vec<(AnySink, SpoolSource)>,
    times: &Times,
    state: &BillingState,
    mut ending: watch::Receiver<bool>,
) {
    let mut sinks = JoinSet::new();
    for (sink, source) in fed {
        let (sink_state, mut told) = (Arc::clone(source.state()), ending.clone());
        let told = async move {
            let _ = told.wait_for(|ending| *ending).await;
        };
        sinks.spawn(sink::run(sink, source, times.clone(), sink_state, told));
    }
    let all_ended = async {
        while let Some(ended) = sinks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a sink broke off; what it does not have stays in the spool until the next start");
            }
        }
    };
    let too_late = async {
        let _ = ending.wait_for(|ending| *ending).await;
        tokio::time::sleep(SINKS_ENDING_MAX).await;
    };
    tokio::select! {
        () = all_ended => {}
        () = too_late => tracing::warn!("a sink does not answer at the end; it gets what it does not have at the next start"),
        () = state.until_failed() => {}
    }
}

#[cfg(test)]
mod tests;
