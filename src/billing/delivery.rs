//! From the spool into the ledger.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::backlog::{Next, Parcel};
use super::inbox::Inbox;
use super::reading::Reading;
use super::spool::{Acknowledged, LEDGER, SpoolError};
use super::worker::Books;
use crate::relay::meter::UsageRecord;
use crate::store::{Settled, SpoolCursor, Store, StoreError};

/// The most records in one transaction of the ledger, or one batch.
const DELIVERY_RECORDS_MAX: usize = 4_096;

/// How long the ledger is left alone after it took all that there was: a transaction costs as much as dozens of records, and waits
/// for the disk. Nobody waits for it: what requests cost is charged before.
const DELIVERY_PAUSE: Duration = Duration::from_millis(200);

/// How long to wait before trying again: this, twice this, and so on up to the next.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What delivering needs of the store.
pub trait Ledger: Send + Sync + 'static {
    /// Enters records, each at most once by its request id, all or none of a call, and remembers up to where of the spool they are.
    /// What is not above that is not entered again. A call may be repeated.
    fn settle(
        &self,
        records: &[UsageRecord],
        cursor: Option<SpoolCursor<'_>>,
    ) -> impl Future<Output = Result<Vec<Settled>, StoreError>> + Send;
}

impl Ledger for Store {
    async fn settle(
        &self,
        records: &[UsageRecord],
        cursor: Option<SpoolCursor<'_>>,
    ) -> Result<Vec<Settled>, StoreError> {
        self.settle(records, cursor).await
    }
}

/// Why a batch did not get from the spool into the ledger.
#[derive(Debug, Error)]
pub(super) enum DeliveryError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Ledger(#[from] StoreError),
    #[error("the ledger did not say what became of {0} of the records that it was given")]
    Unconfirmed(usize),
}

/// Hands the ledger what is in the spool, oldest first.
#[derive(Debug)]
pub(super) struct Delivery<L> {
    ledger: L,
    inbox: Arc<Inbox>,
    /// Reads what memory does not hold, beside who writes.
    reading: Reading,
    books: Arc<Books>,
    own: Arc<str>,
    /// What could not be delivered yet.
    in_hand: Option<Parcel>,
    pub(super) retry_first: Duration,
}

impl<L: Ledger> Delivery<L> {
    pub(super) fn new(ledger: L, inbox: Arc<Inbox>, reading: Reading, books: Arc<Books>, own: Arc<str>) -> Self {
        Self { ledger, inbox, reading, books, own, in_hand: None, retry_first: RETRY_FIRST }
    }

    /// Delivers until it is `ending` and nothing is left, or what is left cannot be delivered.
    pub(super) async fn run(&mut self, mut ending: watch::Receiver<bool>) {
        let mut failures = 0;
        loop {
            // Asked before it is looked what there is, so that nothing comes in between.
            let is_ending = *ending.borrow();
            match self.step().await {
                Ok(None) if is_ending => return,
                Ok(None) => tokio::select! {
                    () = self.books.news() => {}
                    _ = ending.wait_for(|ending| *ending) => {}
                },
                Ok(Some(delivered)) => {
                    failures = 0;
                    if delivered < DELIVERY_RECORDS_MAX / 2 && !is_ending {
                        pause(DELIVERY_PAUSE, &mut ending).await;
                    }
                }
                Err(DeliveryError::Spool(SpoolError::Closed)) => return,
                Err(error) => {
                    failures += 1;
                    self.books.state().ledger_failed();
                    tracing::warn!(%error, failures, "spooled requests cannot be billed yet; they stay in the spool");
                    if is_ending {
                        return;
                    }
                    pause(self.retry_after(failures), &mut ending).await;
                }
            }
        }
    }

    /// Hands the oldest records to the ledger, and returns how many it took; `None` where none wait.
    pub(super) async fn step(&mut self) -> Result<Option<usize>, DeliveryError> {
        if self.in_hand.is_none() {
            self.in_hand = self.next_parcel().await?;
        }
        let Some(mut parcel) = self.in_hand.take() else { return Ok(None) };
        let outcome = self.deliver(&mut parcel).await;
        if let Err(error) = outcome {
            self.in_hand = Some(parcel);
            return Err(error);
        }
        let delivered = parcel.records.len();
        self.books.backlog().delivered();
        self.books.report();
        self.books.state().ledger_took(delivered as u64);
        Ok(Some(delivered))
    }

    async fn deliver(&self, parcel: &mut Parcel) -> Result<(), DeliveryError> {
        if !parcel.settled {
            self.settle(parcel).await?;
            parcel.settled = true;
        }
        let (sink, writer) = (LEDGER.into(), Arc::clone(&parcel.writer));
        Ok(self.inbox.acknowledge(Acknowledged { sink, writer, last: parcel.last }).await?)
    }

    /// The oldest records, from memory or read back.
    async fn next_parcel(&self) -> Result<Option<Parcel>, DeliveryError> {
        loop {
            let next = self.books.backlog().next(DELIVERY_RECORDS_MAX);
            let stretch = match next {
                Next::Nothing => return Ok(None),
                Next::Parcel(parcel) => return Ok(Some(parcel)),
                Next::Read(stretch) => stretch,
            };
            let read = self.reading.read(&stretch, DELIVERY_RECORDS_MAX).await?;
            let numbers = read.first().zip(read.last());
            let records = read.batches.into_iter().flat_map(|batch| batch.records).collect();
            if let Some(parcel) = self.books.backlog().advance(&stretch, numbers, records) {
                return Ok(Some(parcel));
            }
        }
    }

    /// Enters records into the ledger, and takes them off the purses that they were charged to.
    async fn settle(&self, parcel: &Parcel) -> Result<(), DeliveryError> {
        let records = &parcel.records;
        let cursor = SpoolCursor { writer: &parcel.writer, first: parcel.first, last: parcel.last };
        let settled = self.ledger.settle(records, (!parcel.legacy).then_some(cursor)).await?;
        let confirmed = settled.len() == records.len()
            && settled.iter().zip(records).all(|(settled, record)| settled.request_id == record.request_id);
        if !confirmed {
            return Err(DeliveryError::Unconfirmed(records.len()));
        }
        // Records of an earlier process were charged to purses of that process.
        if parcel.writer == self.own {
            self.books.debts().settled(records, &settled);
        }
        Ok(())
    }

    fn retry_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.retry_first.saturating_mul(1 << doublings).min(RETRY_MAX)
    }
}

/// Waits, but no longer than until it is ending.
async fn pause(duration: Duration, ending: &mut watch::Receiver<bool>) {
    let _ = tokio::time::timeout(duration, ending.wait_for(|ending| *ending)).await;
}
