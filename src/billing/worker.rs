//! The worker behind the queue: makes records durable, and hands what is durable to the ledger.
//!
//! Two loops side by side, joined by the spool alone, so that a ledger that cannot be reached holds nothing up but itself.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};

use super::debts::Debts;
use super::recorder::Finished;
use super::spool::{Spool, SpoolError, Spooled};
use super::state::BillingState;
use crate::relay::meter::UsageRecord;
use crate::store::{Settled, Store, StoreError};

/// The most records in one transaction, of the spool or of the ledger.
const BATCH_RECORDS_MAX: usize = 256;

/// How long records are gathered before they are spooled together: a write costs much more than a row.
const GATHER: Duration = Duration::from_millis(5);

/// How long the ledger is left alone after it took all that there was, for the same reason. Nobody waits for it: what requests
/// cost is charged before.
const DELIVERY_PAUSE: Duration = Duration::from_millis(50);

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
    debts: Mutex<Debts>,
    state: Arc<BillingState>,
    retry_first: Duration,
}

impl<L: Ledger> Worker<L> {
    pub(super) fn new(queue: mpsc::Receiver<Finished>, spool: Spool, ledger: L, state: Arc<BillingState>) -> Self {
        let desk = Desk { spool, ledger, debts: Mutex::default(), state, retry_first: RETRY_FIRST };
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
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                () = &mut shutdown, if !going_down => {
                    going_down = true;
                    queue.close();
                    continue;
                }
                received = queue.recv_many(&mut batch, BATCH_RECORDS_MAX) => if received == 0 {
                    return;
                }
            }
            if batch.len() < BATCH_RECORDS_MAX && !going_down {
                tokio::time::sleep(GATHER).await;
                batch.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH_RECORDS_MAX - batch.len()));
            }
            let (reported, unreported): (Vec<_>, Vec<_>) =
                batch.drain(..).partition(|finished| finished.unreported.is_none());
            self.spool_batch(&reported, &observe, &spooled).await;
            // After the others: counting takes its time.
            self.spool_batch(&count(unreported).await, &observe, &spooled).await;
        }
    }

    /// Makes charged records durable, however long it takes. While it takes, nobody is admitted.
    async fn spool_batch(&self, batch: &[Finished], observe: &impl Fn(&UsageRecord), spooled: &watch::Sender<()>) {
        if batch.is_empty() {
            return;
        }
        batch.iter().for_each(|finished| observe(&finished.record));
        // Before they can be settled.
        batch.iter().for_each(|finished| self.debts().charged(finished));
        let records: Vec<_> = batch.iter().map(|finished| &finished.record).collect();
        let mut failures = 0;
        while let Err(error) = self.spool.append(&records).await {
            failures += 1;
            self.state.set_spool_failing(true);
            tracing::error!(%error, failures, records = batch.len(), "finished requests cannot be spooled; trying again");
            tokio::time::sleep(self.retry_after(failures)).await;
        }
        self.state.set_spool_failing(false);
        spooled.send_replace(());
    }

    /// From the spool into the ledger, until `spooled` has ended and nothing is left, or what is left cannot be delivered.
    async fn deliver_spool(&self, mut spooled: watch::Receiver<()>) {
        let mut failures = 0;
        loop {
            // Asked before the spool is looked at, so that nothing comes in between.
            let ended = spooled.has_changed().is_err();
            spooled.mark_unchanged();
            match self.deliver_batch().await {
                Ok(0) if ended => return,
                Ok(0) => {
                    // An error is the end of it, which the next round sees.
                    let _ = spooled.changed().await;
                }
                Ok(delivered) => {
                    failures = 0;
                    if delivered < BATCH_RECORDS_MAX && !ended {
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

    /// Hands the oldest records to the ledger, and returns how many it took.
    async fn deliver_batch(&self) -> Result<usize, DeliveryError> {
        let rows = self.spool.oldest(BATCH_RECORDS_MAX as u32).await?;
        if rows.is_empty() {
            return Ok(0);
        }
        let (records, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().map(|Spooled { id, record, own }| (record, (id, own))).unzip();
        let settled = self.ledger.settle(&records).await?;
        let confirmed = settled.len() == records.len()
            && settled.iter().zip(&records).all(|(settled, record)| settled.request_id == record.request_id);
        if !confirmed {
            return Err(DeliveryError::Unconfirmed(records.len()));
        }
        let ids: Vec<i64> = rows.iter().map(|(id, _)| *id).collect();
        self.spool.remove(&ids).await?;
        // Not before they are removed: what is delivered again, because removing failed, must leave its purse only once.
        // Records of an earlier process were charged to purses of that process.
        let mut debts = self.debts();
        for ((record, settled), _) in records.iter().zip(&settled).zip(&rows).filter(|(_, (_, own))| *own) {
            debts.settled(record, settled);
        }
        drop(debts);
        self.state.ledger_took(records.len() as u64);
        Ok(records.len())
    }

    fn debts(&self) -> std::sync::MutexGuard<'_, Debts> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retry_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.retry_first.saturating_mul(1 << doublings).min(RETRY_MAX)
    }
}

/// Counts what nobody reported, on a thread where it holds nobody up, and charges it.
async fn count(mut unreported: Vec<Finished>) -> Vec<Finished> {
    for finished in &mut unreported {
        let Some(passed) = finished.unreported.take() else { continue };
        let record = &mut finished.record;
        let reported = record.usage;
        record.estimated = true;
        match tokio::task::spawn_blocking(move || passed.count(reported)).await {
            Ok((usage, cost)) => (record.usage, record.cost) = (usage, cost),
            Err(error) => tracing::error!(%error, request_id = %record.request_id, "usage could not be counted"),
        }
        finished.charge();
    }
    unreported
}

/// Waits, but no longer than there may be news.
async fn pause(duration: Duration, news: &mut watch::Receiver<()>) {
    let end_of_news = async { while news.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(duration, end_of_news).await;
}

#[cfg(test)]
mod tests;
