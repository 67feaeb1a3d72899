//! The ledger cannot be reached for ten minutes at 500 requests a second: memory does not grow with what waits, and all of it is billed
//! afterwards.
//!
//! Alone in its binary, because it measures the memory of its own process. The requests come as fast as the spool takes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tollgate::billing::{self, Durability, Ledger, Opening, Recorder, SpoolPlace};
use tollgate::relay::admit::{Hold, Purse, Spending};
use tollgate::relay::meter::{NanoUsd, Usage, UsageRecord};
use tollgate::store::{Settled, SpoolCursor, StoreError};
use uuid::Uuid;

/// Ten minutes at 500 a second.
const REQUESTS: u64 = 300_000;
/// How many end at the same time.
const TOGETHER: u64 = 500;

const COST: i64 = 7;
const BALANCE: i64 = 10_000_000;

/// How much the process may grow.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

/// A ledger that is down until it is told otherwise.
#[derive(Clone)]
struct Remote(Arc<Inner>);

struct Inner {
    is_up: AtomicBool,
    refused: AtomicU64,
    /// Which requests are entered.
    entered: Mutex<Vec<bool>>,
}

impl Ledger for Remote {
    async fn settle(&self, records: &[UsageRecord], _: Option<SpoolCursor<'_>>) -> Result<Vec<Settled>, StoreError> {
        if !self.0.is_up.load(Ordering::SeqCst) {
            self.0.refused.fetch_add(1, Ordering::SeqCst);
            return Err(sqlx::Error::PoolTimedOut.into());
        }
        let mut entered = self.0.entered.lock().unwrap();
        for record in records {
            let place = usize::try_from(record.request_id.as_u128()).unwrap();
            assert!(!std::mem::replace(&mut entered[place], true), "{place} comes twice");
            assert_eq!(record.cost, NanoUsd(COST));
        }
        let count = entered.iter().filter(|entered| **entered).count() as i64;
        let settled = |record: &UsageRecord| Settled {
            request_id: record.request_id,
            fresh: true,
            account_id: record.account_id.clone(),
            balance: NanoUsd(BALANCE - COST * count),
            balance_seq: count,
            lease: None,
            key_id: record.key_id.clone(),
            spent: NanoUsd(COST * count),
            spent_seq: count,
        };
        Ok(records.iter().map(settled).collect())
    }
}

/// How much of this process is in memory.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn record(number: u64) -> UsageRecord {
    UsageRecord {
        request_id: Uuid::from_u128(u128::from(number)),
        account_id: "acct_1".into(),
        key_id: "key_1".into(),
        model: "gpt-4o".into(),
        provider: "openai".into(),
        status: 200,
        usage: Usage { input: 7, output: 3, ..Usage::default() },
        cost: NanoUsd(COST),
        provider_cost: None,
        estimated: false,
        interrupted: false,
        started_at_ms: 1_700_000_000_000,
        first_token_ms: Some(12),
        total_ms: 500,
    }
}

/// Requests that run together and end together; returns when all of them are kept.
async fn serve(recorder: &Recorder, purse: &Arc<Purse>, spending: &Arc<Spending>, first: u64) {
    let open = |number| {
        let hold = Hold::take(purse, spending, None, NanoUsd(COST), NanoUsd(COST)).unwrap();
        let UsageRecord { request_id, account_id, key_id, model, started_at_ms, .. } = record(number);
        let opening = Opening { request_id, account_id, key_id, model, started_at_ms, hold };
        (number, recorder.open(opening).unwrap())
    };
    let tickets: Vec<_> = (first..first + TOGETHER).map(open).collect();
    let receipts: Vec<_> = tickets.into_iter().map(|(number, ticket)| ticket.finish(record(number), None)).collect();
    for receipt in receipts {
        receipt.kept().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_minutes_without_the_ledger_take_no_memory_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = SpoolPlace {
        path: folder.path().join("spool.db"),
        bytes_max: 1 << 30,
        durability: Durability::Process,
        sinks: Vec::new(),
    };
    let inner = Inner {
        is_up: AtomicBool::new(false),
        refused: AtomicU64::new(0),
        entered: Mutex::new(vec![false; REQUESTS as usize]),
    };
    let remote = Remote(Arc::new(inner));
    let (purse, spending) = (Arc::new(Purse::new(NanoUsd(BALANCE), 0)), Arc::new(Spending::new(NanoUsd(0), 0)));
    let before = resident_kib();
    let (recorder, worker) = billing::open(&place, remote.clone()).await.unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let working = tokio::spawn(worker.run(async { ended.await.unwrap_or(()) }, |_| {}));

    let mut most = before;
    for first in (0..REQUESTS).step_by(TOGETHER as usize) {
        serve(&recorder, &purse, &spending, first).await;
        most = most.max(resident_kib());
    }
    let owed = NanoUsd(BALANCE - COST * REQUESTS as i64);
    assert_eq!(purse.available(), owed, "it counts though the ledger does not have it");
    let until = Instant::now() + Duration::from_secs(20);
    // A client hears of it a moment before.
    while recorder.state().spooled() < REQUESTS {
        assert!(Instant::now() < until, "{} are in the spool", recorder.state().spooled());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!recorder.state().ledger_reachable() && remote.0.refused.load(Ordering::SeqCst) > 0);

    remote.0.is_up.store(true, Ordering::SeqCst);
    let until = Instant::now() + Duration::from_secs(120);
    while recorder.state().delivered() < REQUESTS {
        assert!(Instant::now() < until, "{} of them were delivered", recorder.state().delivered());
        tokio::time::sleep(Duration::from_millis(5)).await;
        most = most.max(resident_kib());
    }
    assert!(remote.0.entered.lock().unwrap().iter().all(|entered| *entered));
    assert_eq!(
        (purse.available(), purse.held(), spending.spent()),
        (owed, NanoUsd(0), NanoUsd(COST * REQUESTS as i64))
    );
    end.send(()).unwrap();
    working.await.unwrap();
    assert_eq!(recorder.state().spooled(), 0);
    println!("grew from {before} KiB to {most} KiB");
    assert!(most - before < GROWTH_KIB_MAX, "grew from {before} KiB to {most} KiB");
}
