//! What the tests of sinks have in common: records, a source in memory, and time that does not pass by itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::{Parked, SinkState, Source, Times};
use crate::relay::meter::{NanoUsd, Usage, UsageRecord};

/// When the tests begin: 2026-11-23T10:15:00Z.
pub(super) const BEGIN_MS: i64 = 1_795_428_900_000;

/// Records that differ, with ids in the order of their numbers.
pub(super) fn records(numbers: Range<usize>) -> Vec<UsageRecord> {
    numbers
        .map(|number| UsageRecord {
            request_id: Uuid::from_u128(number as u128 + 1),
            account_id: format!("acct_{}", number % 3).into(),
            key_id: "key_1".into(),
            model: "Pro/moonshotai/Kimi-K2.6".into(),
            provider: "moonshot".into(),
            status: 200,
            usage: Usage { input: 7, output: 3, ..Usage::default() },
            cost: NanoUsd(100),
            provider_cost: None,
            estimated: false,
            interrupted: false,
            started_at_ms: BEGIN_MS,
            first_token_ms: Some(12),
            total_ms: 500,
        })
        .collect()
}

pub(super) fn ids(records: &[UsageRecord]) -> Vec<Uuid> {
    records.iter().map(|record| record.request_id).collect()
}

/// A clock that is set by hand, and no chance: every pause is the longest one.
pub(super) fn times() -> (Times, Arc<AtomicI64>) {
    let now = Arc::new(AtomicI64::new(BEGIN_MS));
    let clock = Arc::clone(&now);
    let unix_ms = Arc::new(move || clock.load(Ordering::Relaxed));
    (Times { unix_ms, below: Arc::new(|longest: Duration| longest) }, now)
}

/// A spool in memory, with one cursor. Clones are the same spool, as another process would find it.
#[derive(Clone)]
pub(super) struct MemorySource {
    spool: Arc<Mutex<Spool>>,
    news: watch::Sender<()>,
    state: Arc<SinkState>,
    taken: usize,
}

#[derive(Default)]
struct Spool {
    records: Vec<UsageRecord>,
    cursor: usize,
    parked: BTreeMap<Uuid, Parked>,
    /// How many of the next moves of the cursor fail.
    failures: usize,
    closed: bool,
}

impl MemorySource {
    pub(super) fn new(records: Vec<UsageRecord>) -> Self {
        let spool = Arc::new(Mutex::new(Spool { records, ..Spool::default() }));
        let source = Self { spool, news: watch::Sender::new(()), state: Arc::new(SinkState::new("webhook")), taken: 0 };
        source.report();
        source
    }

    pub(super) fn state(&self) -> &Arc<SinkState> {
        &self.state
    }

    pub(super) fn push(&self, records: Vec<UsageRecord>) {
        self.spool().records.extend(records);
        self.report();
        self.news.send_replace(());
    }

    pub(super) fn close(&self) {
        self.spool().closed = true;
        self.news.send_replace(());
    }

    /// The cursor cannot be moved so many times.
    pub(super) fn fail(&self, times: usize) {
        self.spool().failures = times;
    }

    pub(super) fn parked_now(&self) -> Vec<Parked> {
        self.spool().parked.values().cloned().collect()
    }

    pub(super) fn waiting(&self) -> usize {
        let spool = self.spool();
        spool.records.len() - spool.cursor
    }

    fn report(&self) {
        let spool = self.spool();
        let oldest = spool.records.get(spool.cursor).map(|record| record.started_at_ms + record.total_ms);
        self.state.set_waiting((spool.records.len() - spool.cursor) as u64, oldest);
        self.state.set_aside(spool.parked.len() as u64);
    }

    fn spool(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap()
    }
}

impl Source for MemorySource {
    type Error = &'static str;

    async fn next(&mut self, records_max: usize) -> Result<Vec<UsageRecord>, &'static str> {
        let spool = self.spool();
        let next: Vec<_> = spool.records[spool.cursor..].iter().take(records_max).cloned().collect();
        drop(spool);
        self.taken = next.len();
        Ok(next)
    }

    async fn advance(&mut self, parked: &[Parked]) -> Result<(), &'static str> {
        let mut spool = self.spool();
        if spool.failures > 0 {
            spool.failures -= 1;
            return Err("the disk is gone");
        }
        spool.cursor += self.taken;
        spool.parked.extend(parked.iter().map(|parked| (parked.record.request_id, parked.clone())));
        drop(spool);
        self.taken = 0;
        self.report();
        Ok(())
    }

    async fn more(&mut self) -> bool {
        let mut news = self.news.subscribe();
        loop {
            {
                let spool = self.spool();
                if spool.closed || spool.cursor < spool.records.len() {
                    return !spool.closed;
                }
            }
            news.changed().await.unwrap();
        }
    }

    async fn parked(&mut self, after: Option<Uuid>, records_max: usize) -> Result<Vec<UsageRecord>, &'static str> {
        let spool = self.spool();
        let above = spool.parked.iter().filter(|(id, _)| after.is_none_or(|after| **id > after));
        Ok(above.take(records_max).map(|(_, parked)| parked.record.clone()).collect())
    }

    async fn unpark(&mut self, ids: &[Uuid]) -> Result<(), &'static str> {
        self.spool().parked.retain(|id, _| !ids.contains(id));
        self.report();
        Ok(())
    }
}
