//! The worker against a ledger in memory that fails as told, and against the real one.

use std::collections::HashMap;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::billing::backlog::HELD_RECORDS_MAX;
use crate::billing::delivery::Ledger;
use crate::billing::open;
use crate::billing::recorder::{Opening, Receipt, Recorder, Ticket, Unreported};
use crate::billing::spool::{place, record};
use crate::relay::admit::{Hold, Purse, Spending};
use crate::relay::auth::KeyDigest;
use crate::relay::meter::{Encoding, NanoUsd, Price, PromptHead, Rates, SampledText};
use crate::store::{KeyTerms, NewKey, Settled, SpoolCursor, StoreError};

const BALANCE: i64 = 100_000_000;

/// What each request holds.
const HELD: i64 = 400;

/// A ledger in memory that outlives the workers: at most once by request id, as the store's.
#[derive(Debug, Default, Clone)]
struct FakeLedger(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    entries: HashMap<Uuid, NanoUsd>,
    /// Of each writer, the last batch that is entered.
    cursors: HashMap<String, i64>,
    /// How many calls to fail without having entered anything.
    fail_before: u32,
    /// How many calls after those to fail though everything was entered.
    fail_after: u32,
}

impl FakeLedger {
    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }

    /// How many entries there are, and what they come to.
    fn total(&self) -> (usize, i64) {
        let books = self.books();
        (books.entries.len(), books.entries.values().map(|cost| cost.0).sum())
    }
}

impl Ledger for FakeLedger {
    async fn settle(
        &self,
        records: &[UsageRecord],
        cursor: Option<SpoolCursor<'_>>,
    ) -> Result<Vec<Settled>, StoreError> {
        let mut books = self.books();
        if books.fail_before > 0 {
            books.fail_before -= 1;
            return Err(sqlx::Error::PoolTimedOut.into());
        }
        if let Some(SpoolCursor { writer, first, last }) = cursor {
            let entered = books.cursors.entry(writer.to_owned()).or_default();
            assert!(
                first <= *entered + 1 && last > *entered || first <= last && last == *entered,
                "{writer}: {first}-{last} after {entered}"
            );
            *entered = last;
        }
        let fresh: Vec<_> =
            records.iter().map(|record| books.entries.insert(record.request_id, record.cost).is_none()).collect();
        if books.fail_after > 0 {
            books.fail_after -= 1;
            return Err(sqlx::Error::PoolTimedOut.into());
        }
        let spent = NanoUsd(books.entries.values().map(|cost| cost.0).sum());
        let seq = books.entries.len() as i64;
        let settled = |(record, fresh): (&UsageRecord, bool)| Settled {
            request_id: record.request_id,
            fresh,
            account_id: record.account_id.clone(),
            balance: NanoUsd(BALANCE - spent.0),
            balance_seq: seq,
            lease: None,
            key_id: record.key_id.clone(),
            spent,
            spent_seq: seq,
        };
        Ok(records.iter().zip(fresh).map(settled).collect())
    }
}

struct Running {
    shutdown: oneshot::Sender<()>,
    worker: JoinHandle<()>,
    observed: Arc<Mutex<Vec<UsageRecord>>>,
}

impl Running {
    fn start<L: Ledger>(mut worker: Worker<L>) -> Self {
        worker.delivery.retry_first = Duration::from_millis(1);
        let (shutdown, told) = oneshot::channel::<()>();
        let observed: Arc<Mutex<Vec<UsageRecord>>> = Arc::default();
        let seen = Arc::clone(&observed);
        let worker = tokio::spawn(worker.run(async { told.await.unwrap_or(()) }, move |record| {
            seen.lock().unwrap().push(record.clone());
        }));
        Self { shutdown, worker, observed }
    }

    async fn stop(self) -> Vec<UsageRecord> {
        self.shutdown.send(()).unwrap();
        self.worker.await.unwrap();
        let observed = self.observed.lock().unwrap();
        observed.clone()
    }
}

struct Payer {
    account: Arc<Purse>,
    spending: Arc<Spending>,
}

impl Payer {
    fn new() -> Self {
        let account = Arc::new(Purse::new(NanoUsd(BALANCE), 0));
        Self { account, spending: Arc::new(Spending::new(NanoUsd(0), 0)) }
    }

    fn ticket(&self, recorder: &Recorder, number: u128) -> Option<Ticket> {
        recorder.open(Opening {
            request_id: Uuid::from_u128(number),
            account_id: "acct_1".into(),
            key_id: "key_1".into(),
            model: "Pro/moonshotai/Kimi-K2.6".into(),
            started_at_ms: 0,
            hold: Hold::take(&self.account, &self.spending, None, NanoUsd(0), NanoUsd(HELD)).unwrap(),
        })
    }

    fn finish(&self, recorder: &Recorder, number: u128) -> Receipt {
        self.ticket(recorder, number).unwrap().finish(record(number), None)
    }

    fn record(&self, recorder: &Recorder, numbers: impl Iterator<Item = u128>) {
        numbers.for_each(|number| drop(self.finish(recorder, number)));
    }
}

/// What passed of a prompt and an answer, at 1,000 nano-USD a token and 2,000.
fn unreported() -> Unreported {
    let mut text = SampledText::new();
    text.push(b"tiktoken is great!");
    let rates =
        Rates { input: 1_000_000_000, output: 2_000_000_000, cache_read: 0, cache_write_5m: 0, cache_write_1h: 0 };
    Unreported {
        prompt: Some(PromptHead::new(br#"["tiktoken is great!"]"#, 18, 1, 0)),
        output: text,
        encoding: Encoding::O200k,
        price: Price { base: rates, tiers: Vec::new() },
        provider_price: Some(Price { base: Rates { output: 500_000_000, ..rates }, tiers: Vec::new() }),
    }
}

#[tokio::test]
async fn records_reach_the_ledger_once_and_purses_follow() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let payer = Payer::new();
    payer.record(&recorder, 1..=700);
    assert_eq!(payer.account.available(), NanoUsd(BALANCE - 70_000), "before anything is spooled");
    assert_eq!(payer.spending.spent(), NanoUsd(70_000));
    let observed = Running::start(worker).stop().await;
    assert_eq!(observed.len(), 700);
    assert_eq!(ledger.total(), (700, 70_000));
    assert_eq!(payer.account.available(), NanoUsd(BALANCE - 70_000), "and after it is settled");
    assert_eq!(payer.spending.spent(), NanoUsd(70_000));
    let state = recorder.state();
    assert_eq!((state.spooled(), state.delivered(), state.oldest_ms()), (0, 700, None));
    assert!(!recorder.is_open(), "the worker is gone");
}

#[tokio::test]
async fn what_a_crash_left_is_settled_by_the_next_run_at_most_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let records: Vec<_> = (1..=9).map(record).collect();
    {
        let mut file = SpoolFile::open(&place(&folder)).unwrap();
        file.append(&records[..5]);
        file.append(&records[5..]);
        // The first of them reached the ledger, and the process died before it removed them from the spool.
        let cursor = SpoolCursor { writer: file.writer(), first: 1, last: 1 };
        ledger.settle(&records[..5], Some(cursor)).await.unwrap();
    }
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    assert_eq!(recorder.state().spooled(), 9);
    let payer = Payer::new();
    payer.record(&recorder, 10..=10);
    let observed = Running::start(worker).stop().await;
    assert_eq!(observed.len(), 1, "only what is new is observed");
    assert_eq!(ledger.total(), (10, 1_000));
    assert_eq!(
        payer.account.available(),
        NanoUsd(BALANCE - 1_000),
        "charges of another run leave no purse of this one"
    );
    assert_eq!(recorder.state().spooled(), 0);
}

#[tokio::test]
async fn a_ledger_that_fails_holds_nothing_up_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    *ledger.books() = Books { fail_before: 3, fail_after: 2, ..Books::default() };
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let payer = Payer::new();
    payer.record(&recorder, 1..=50);
    let running = Running::start(worker);
    while recorder.state().delivered() < 50 {
        tokio::task::yield_now().await;
    }
    assert!(recorder.state().ledger_reachable());
    assert_eq!(recorder.state().deliveries_failed(), 5);
    running.stop().await;
    assert_eq!(ledger.total(), (50, 5_000));
    assert_eq!(payer.account.available(), NanoUsd(BALANCE - 5_000));
}

#[tokio::test]
async fn what_cannot_be_delivered_at_the_end_waits_for_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    ledger.books().fail_before = u32::MAX;
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    Payer::new().record(&recorder, 1..=5);
    Running::start(worker).stop().await;
    assert!(!recorder.state().ledger_reachable());
    assert_eq!((recorder.state().spooled(), ledger.books().entries.len()), (5, 0));

    ledger.books().fail_before = 0;
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    Running::start(worker).stop().await;
    assert_eq!((recorder.state().spooled(), ledger.books().entries.len()), (0, 5));
}

#[tokio::test]
async fn usage_that_nobody_reported_is_counted_priced_and_marked() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let payer = Payer::new();
    let bare = |number| UsageRecord { cost: NanoUsd(0), usage: Default::default(), ..record(number) };
    drop(payer.ticket(&recorder, 1).unwrap().finish(bare(1), Some(unreported())));
    let prompt_known = UsageRecord { usage: record(2).usage, ..bare(2) };
    let only_output = Unreported { prompt: None, ..unreported() };
    drop(payer.ticket(&recorder, 2).unwrap().finish(prompt_known, Some(only_output)));
    assert_eq!(payer.account.available(), NanoUsd(BALANCE - 2 * HELD), "held until it is known");
    let mut observed = Running::start(worker).stop().await;
    observed.sort_by_key(|record| record.request_id);
    assert!(observed.iter().all(|record| record.estimated));
    // 6 tokens of text, 4 of the message, 3 that open the answer.
    assert_eq!((observed[0].usage.input, observed[0].usage.output), (13, 6));
    assert_eq!(observed[0].cost, NanoUsd(13 * 1_000 + 6 * 2_000));
    assert_eq!(observed[0].provider_cost, Some(NanoUsd(13 * 1_000 + 6 * 500)));
    assert_eq!((observed[1].usage.input, observed[1].usage.output), (7, 6), "what was reported stays");
    let total = observed.iter().map(|record| record.cost.0).sum::<i64>();
    assert_eq!(ledger.total(), (2, total));
    assert_eq!(payer.account.available(), NanoUsd(BALANCE - total));
}

#[tokio::test]
async fn the_worker_waits_for_slots_that_are_out() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let (late, never) = (Payer::new().ticket(&recorder, 1).unwrap(), Payer::new().ticket(&recorder, 2).unwrap());
    let Running { shutdown, worker, .. } = Running::start(worker);
    shutdown.send(()).unwrap();
    while recorder.is_open() {
        tokio::task::yield_now().await;
    }
    assert!(!worker.is_finished());
    drop(never);
    drop(late.finish(record(1), None));
    worker.await.unwrap();
    assert_eq!(ledger.total(), (1, 100));
}

#[tokio::test]
async fn more_than_memory_holds_waits_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    ledger.books().fail_before = u32::MAX;
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let payer = Payer::new();
    let running = Running::start(worker);
    let many = 2 * HELD_RECORDS_MAX as u128;
    payer.record(&recorder, 1..=many);
    while u128::from(recorder.state().spooled()) < many {
        tokio::task::yield_now().await;
    }
    assert_eq!(recorder.state().oldest_ms(), Some(1_700_000_000_501));
    ledger.books().fail_before = 0;
    while u128::from(recorder.state().delivered()) < many {
        tokio::task::yield_now().await;
    }
    payer.record(&recorder, many + 1..=many + 10);
    running.stop().await;
    assert_eq!(ledger.total(), (many as usize + 10, 100 * (many as i64 + 10)));
    assert_eq!((recorder.state().spooled(), recorder.state().oldest_ms()), (0, None));
    assert_eq!(payer.account.available(), NanoUsd(BALANCE - 100 * (many as i64 + 10)));
}

#[tokio::test]
async fn a_batch_of_nothing_readable_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = FakeLedger::default();
    {
        let mut file = SpoolFile::open(&place(&folder)).unwrap();
        (1..=3).for_each(|number| assert!(file.append(&[record(number)]) > 0));
        file.damage(1);
        file.damage(3);
    }
    let (recorder, worker) = open(&place(&folder), ledger.clone()).await.unwrap();
    let running = Running::start(worker);
    while recorder.state().spooled() > 0 {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    assert_eq!(ledger.total(), (1, 100));
}

#[tokio::test]
async fn the_real_ledger_enters_each_record_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite://{}/tollgate.db", folder.path().display())).await.unwrap();
    let account_id = store.create_account("Ada", "free", 1).await.unwrap().id;
    store.credit(&account_id, NanoUsd(BALANCE), None, 1).await.unwrap();
    let key = NewKey { account_id: account_id.clone(), name: "laptop".into(), terms: KeyTerms::default() };
    let key_id = store.create_key(&key, &KeyDigest([7; 32]), 1).await.unwrap().id;
    let (account, key) = (account_id.as_str(), key_id.as_str());
    let of_key = |number| UsageRecord { account_id: account.into(), key_id: key.into(), ..record(number) };
    let payer = Payer { account: Arc::new(Purse::new(NanoUsd(BALANCE), 1)), ..Payer::new() };
    for _ in 0..2 {
        let (recorder, worker) = open(&place(&folder), store.clone()).await.unwrap();
        for number in 1..=300 {
            drop(payer.ticket(&recorder, number).unwrap().finish(of_key(number), None));
        }
        Running::start(worker).stop().await;
    }
    assert_eq!(store.account(&account_id).await.unwrap().balance, NanoUsd(BALANCE - 30_000));
    assert_eq!(payer.account.available(), NanoUsd(BALANCE - 30_000));
    assert_eq!(payer.spending.spent(), NanoUsd(30_000));
    assert_eq!(store.audit().await.unwrap(), []);
}

#[cfg(test)]
mod trouble;
