//! The worker behind the queue: makes records durable, and hands what is durable to the ledger.
//!
//! Two loops side by side, joined by the spool alone, so that a ledger that cannot be reached holds nothing up but itself.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};

use super::backlog::{Backlog, Next, Parcel};
use super::debts::Debts;
use super::recorder::{Finished, Payment};
use super::spool::{Spool, SpoolError};
use super::state::BillingState;
use crate::relay::meter::UsageRecord;
use crate::store::{Settled, Store, StoreError};

/// The most records that are spooled together.
const BATCH_RECORDS_MAX: usize = 1_024;

/// How long records are gathered before they are spooled together: a write costs much more than a record.
const GATHER: Duration = Duration::from_millis(5);

/// The most records in one transaction of the ledger, or one batch.
const DELIVERY_RECORDS_MAX: usize = 4_096;

/// How long the ledger is left alone after it took all that there was: a transaction costs as much as dozens of records, and waits
/// for the disk. Nobody waits for it: what requests cost is charged before.
const DELIVERY_PAUSE: Duration = Duration::from_millis(200);

/// How long to wait before trying again: this, twice this, and so on up to the next.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the worker needs of the store.
pub trait Ledger: Send + Sync + 'static {
    /// Enters records, each at most once by its request id, all or none of a call. A call may be repeated.
    fn settle(&self, records: &[UsageRecord]) -> impl Future<Output = Result<Vec<Settled>, StoreError>> + Send;
}

impl Ledger for Store {
    async fn settle(&self, records: &[UsageRecord]) -> Result<Vec<Settled>, StoreError> {
        self.settle(records).await
    }
}

/// Why a batch did not get from the spool into the ledger.
#[derive(Debug, Error)]
enum DeliveryError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Ledger(#[from] StoreError),
    #[error("the ledger did not say what became of {0} of the records that it was given")]
    Unconfirmed(usize),
}

/// Takes records from the queue to the ledger.
#[derive(Debug)]
pub struct Worker<L = Store> {
    queue: mpsc::Receiver<Finished>,
    desk: Desk<L>,
}

/// What both loops use.
#[derive(Debug)]
struct Desk<L> {
    spool: Spool,
    ledger: L,
    backlog: Mutex<Backlog>,
    debts: Mutex<Debts>,
    state: Arc<BillingState>,
    retry_first: Duration,
}

impl<L: Ledger> Worker<L> {
    pub(super) fn new(
        queue: mpsc::Receiver<Finished>,
        spool: Spool,
        backlog: Backlog,
        ledger: L,
        state: Arc<BillingState>,
    ) -> Self {
        let (backlog, debts) = (Mutex::new(backlog), Mutex::default());
        let desk = Desk { spool, ledger, backlog, debts, state, retry_first: RETRY_FIRST };
        desk.report();
        Self { queue, desk }
    }

    /// Works until `shutdown`, and then until every slot that was given out is recorded or dropped and the ledger has what it can
    /// take; what it cannot take stays in the spool for the next run. Begins with what an earlier run left there.
    ///
    /// `observe` sees each record once, when its usage and cost are final and before it is durable.
    pub async fn run(self, shutdown: impl Future<Output = ()>, observe: impl Fn(&UsageRecord)) {
        let Self { queue, desk } = self;
        let (spooled, news) = watch::channel(());
        tokio::join!(desk.spool_queue(queue, spooled, shutdown, observe), desk.deliver_spool(news));
        desk.spool.close().await;
    }
}

impl<L: Ledger> Desk<L> {
    /// From the queue into the spool, until the queue has ended. Ends `spooled` with it.
    async fn spool_queue(
        &self,
        mut queue: mpsc::Receiver<Finished>,
        spooled: watch::Sender<()>,
        shutdown: impl Future<Output = ()>,
        observe: impl Fn(&UsageRecord),
    ) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut going_down = false;
        let mut number = 0;
        let mut gathered = Vec::new();
        loop {
            tokio::select! {
                () = &mut shutdown, if !going_down => {
                    going_down = true;
                    queue.close();
                    continue;
                }
                received = queue.recv_many(&mut gathered, BATCH_RECORDS_MAX) => if received == 0 {
                    return;
                }
            }
            if gathered.len() < BATCH_RECORDS_MAX && !going_down {
                tokio::time::sleep(GATHER).await;
                let room = BATCH_RECORDS_MAX - gathered.len();
                gathered.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(room));
            }
            let (reported, unreported): (Vec<_>, Vec<_>) =
                gathered.drain(..).partition(|finished| matches!(finished.payment, Payment::Charged(_)));
            self.spool_batch(&mut number, reported, &observe, &spooled).await;
            // After the others: counting takes its time.
            self.spool_batch(&mut number, count(unreported).await, &observe, &spooled).await;
        }
    }

    /// Makes charged records durable as the batch after `number`, however long it takes. While it takes, nobody is admitted.
    async fn spool_batch(
        &self,
        number: &mut i64,
        batch: Vec<Finished>,
        observe: &impl Fn(&UsageRecord),
        spooled: &watch::Sender<()>,
    ) {
        if batch.is_empty() {
            return;
        }
        *number += 1;
        batch.iter().for_each(|finished| observe(&finished.record));
        // Before they can be settled.
        self.charged(&batch);
        let records: Vec<_> = batch.iter().map(|finished| &finished.record).collect();
        let mut failures = 0;
        while let Err(error) = self.spool.append(*number, &records).await {
            failures += 1;
            self.state.set_spool_failing(true);
            tracing::error!(%error, failures, records = batch.len(), "finished requests cannot be spooled; trying again");
            tokio::time::sleep(self.retry_after(failures)).await;
        }
        self.state.set_spool_failing(false);
        let kept = |finished: Finished| {
            // Nobody may be waiting for it.
            let _ = finished.receipt.send(());
            finished.record
        };
        self.backlog().push(*number, batch.into_iter().map(kept).collect());
        self.report();
        spooled.send_replace(());
    }

    /// From the spool into the ledger, until `spooled` has ended and nothing is left, or what is left cannot be delivered.
    async fn deliver_spool(&self, mut spooled: watch::Receiver<()>) {
        let mut failures = 0;
        let mut in_hand = None;
        loop {
            // Asked before it is looked what there is, so that nothing comes in between.
            let ended = spooled.has_changed().is_err();
            spooled.mark_unchanged();
            match self.deliver_next(&mut in_hand).await {
                Ok(None) if ended => return,
                Ok(None) => {
                    // An error is the end of it, which the next round sees.
                    let _ = spooled.changed().await;
                }
                Ok(Some(delivered)) => {
                    failures = 0;
                    if delivered < DELIVERY_RECORDS_MAX / 2 && !ended {
                        pause(DELIVERY_PAUSE, &mut spooled).await;
                    }
                }
                Err(error) => {
                    failures += 1;
                    self.state.ledger_failed();
                    tracing::warn!(%error, failures, "spooled requests cannot be billed yet; they stay in the spool");
                    if ended {
                        return;
                    }
                    pause(self.retry_after(failures), &mut spooled).await;
                }
            }
        }
    }

    /// Hands the oldest records to the ledger, and returns how many it took; `None` where none wait. What could not be delivered
    /// stays `in_hand`.
    async fn deliver_next(&self, in_hand: &mut Option<Parcel>) -> Result<Option<usize>, DeliveryError> {
        if in_hand.is_none() {
            *in_hand = self.next_parcel().await?;
        }
        let Some(parcel) = in_hand else { return Ok(None) };
        if !parcel.settled {
            self.settle(parcel).await?;
            parcel.settled = true;
        }
        self.spool.remove(&parcel.writer, parcel.first, parcel.last).await?;
        let delivered = parcel.records.len();
        *in_hand = None;
        self.backlog().delivered();
        self.report();
        self.state.ledger_took(delivered as u64);
        Ok(Some(delivered))
    }

    /// The oldest records, from memory or read back.
    async fn next_parcel(&self) -> Result<Option<Parcel>, DeliveryError> {
        loop {
            let next = self.backlog().next(DELIVERY_RECORDS_MAX);
            let stretch = match next {
                Next::Nothing => return Ok(None),
                Next::Parcel(parcel) => return Ok(Some(parcel)),
                Next::Read(stretch) => stretch,
            };
            let read = self.spool.read(&stretch, DELIVERY_RECORDS_MAX).await?;
            if let Some(parcel) = self.backlog().advance(&stretch, read.last, read.records) {
                return Ok(Some(parcel));
            }
        }
    }

    /// Enters records into the ledger, and takes them off the purses that they were charged to.
    async fn settle(&self, parcel: &Parcel) -> Result<(), DeliveryError> {
        let records = &parcel.records;
        let settled = self.ledger.settle(records).await?;
        let confirmed = settled.len() == records.len()
            && settled.iter().zip(records).all(|(settled, record)| settled.request_id == record.request_id);
        if !confirmed {
            return Err(DeliveryError::Unconfirmed(records.len()));
        }
        // Records of an earlier process were charged to purses of that process.
        if parcel.writer == *self.spool.writer() {
            self.debts().settled(records, &settled);
        }
        Ok(())
    }

    /// Remembers which purses wait for those records.
    fn charged(&self, batch: &[Finished]) {
        let mut debts = self.debts();
        for Finished { record, payment, .. } in batch {
            if let Payment::Charged(charge) = payment {
                debts.charged(record, charge);
            }
        }
    }

    /// Tells how much waits.
    fn report(&self) {
        let (records, oldest_ms) = self.backlog().waiting();
        self.state.set_spooled(records, oldest_ms);
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn debts(&self) -> MutexGuard<'_, Debts> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retry_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.retry_first.saturating_mul(1 << doublings).min(RETRY_MAX)
    }
}

/// Counts what nobody reported, on a thread where it holds nobody up, and charges it.
async fn count(unreported: Vec<Finished>) -> Vec<Finished> {
    let mut counted = Vec::with_capacity(unreported.len());
    for mut finished in unreported {
        if let Payment::Held(hold, passed) = finished.payment {
            let record = &mut finished.record;
            let reported = record.usage;
            record.estimated = true;
            match tokio::task::spawn_blocking(move || passed.count(reported)).await {
                Ok((usage, cost)) => (record.usage, record.cost) = (usage, cost),
                Err(error) => tracing::error!(%error, request_id = %record.request_id, "usage could not be counted"),
            }
            finished.payment = Payment::Charged(hold.settle(record.cost));
        }
        counted.push(finished);
    }
    counted
}

/// Waits, but no longer than there may be news.
async fn pause(duration: Duration, news: &mut watch::Receiver<()>) {
    let end_of_news = async { while news.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(duration, end_of_news).await;
}

#[cfg(test)]
mod tests;
