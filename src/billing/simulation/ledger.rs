//! The ledger: a model with the store's own semantics, alone or beside the real store, that fails as told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;

use super::leases::Leases;
use crate::billing::Ledger;
use crate::relay::admit::Lease;
use crate::relay::meter::{NanoUsd, UsageRecord};
use crate::store::{Settled, SpoolCursor, Store, StoreError};

/// What becomes of the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Nothing is entered.
    Before,
    /// All is entered, and nobody hears of it.
    After,
}

/// Outlives all processes. Clones share it.
#[derive(Clone)]
pub(super) struct SimLedger {
    inner: Arc<Inner>,
    /// Whose requests are settled, where nodes lease credit.
    pub(super) node: Option<Arc<str>>,
}

struct Inner {
    books: Mutex<Books>,
    store: Option<Store>,
}

/// A sum, and the last entry that it includes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) amount: i64,
    pub(super) seq: i64,
}

/// A request as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Billed {
    pub(super) account: Arc<str>,
    pub(super) key: Arc<str>,
    pub(super) cost: i64,
    /// Out of whose spool it came.
    writer: String,
}

pub(super) struct Books {
    pub(super) fault: Fault,
    /// The last call was answered, well or not.
    pub(super) answered: bool,
    pub(super) seq: i64,
    pub(super) leases: Leases,
    pub(super) balances: BTreeMap<Arc<str>, Sum>,
    pub(super) spent: BTreeMap<Arc<str>, Sum>,
    pub(super) granted: BTreeMap<Arc<str>, i64>,
    pub(super) billed: BTreeMap<Uuid, Billed>,
    cursors: BTreeMap<String, i64>,
    /// What may not be, and was.
    pub(super) wrong: Vec<String>,
}

impl SimLedger {
    pub(super) fn new(store: Option<Store>) -> Self {
        let books = Books {
            fault: Fault::None,
            answered: false,
            seq: 0,
            leases: Leases::default(),
            balances: BTreeMap::new(),
            spent: BTreeMap::new(),
            granted: BTreeMap::new(),
            billed: BTreeMap::new(),
            cursors: BTreeMap::new(),
            wrong: Vec::new(),
        };
        Self { inner: Arc::new(Inner { books: Mutex::new(books), store }), node: None }
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.inner.books.lock().unwrap()
    }

    pub(super) fn store(&self) -> Option<&Store> {
        self.inner.store.as_ref()
    }

    /// The account has so much more.
    pub(super) async fn grant(&self, account: &str, amount: i64) {
        if let Some(store) = self.store() {
            store.credit(account, NanoUsd(amount), None, 1).await.unwrap();
        }
        let mut books = self.books();
        books.seq += 1;
        let seq = books.seq;
        let balance = books.balances.entry(account.into()).or_default();
        *balance = Sum { amount: balance.amount + amount, seq };
        *books.granted.entry(account.into()).or_default() += amount;
    }

    /// Balances of accounts and spendings of keys, as a poll is told of them.
    pub(super) async fn amounts(&self) -> (BTreeMap<Arc<str>, Sum>, BTreeMap<Arc<str>, Sum>) {
        let Some(store) = self.store() else {
            let books = self.books();
            return (books.balances.clone(), books.spent.clone());
        };
        let found = store.balances_since(0).await.unwrap();
        let sums = |found: Vec<crate::store::Balance>| {
            found.into_iter().map(|one| (one.id.into(), Sum { amount: one.amount.0, seq: one.seq })).collect()
        };
        (sums(found.accounts), sums(found.keys))
    }
}

impl Ledger for SimLedger {
    async fn settle(
        &self,
        records: &[UsageRecord],
        cursor: Option<SpoolCursor<'_>>,
    ) -> Result<Vec<Settled>, StoreError> {
        let fault = self.books().fault;
        if fault == Fault::Before {
            self.books().answered = true;
            return Err(sqlx::Error::PoolTimedOut.into());
        }
        let real = match self.store() {
            Some(store) => {
                let store = self.node.as_ref().map_or_else(|| store.clone(), |node| store.leasing(Arc::clone(node)));
                Some(store.settle(records, cursor).await?)
            }
            None => None,
        };
        let mut books = self.books();
        let settled = books.enter(records, cursor, self.node.as_ref());
        if real.as_ref().is_some_and(|real| *real != settled) {
            let wrong = format!("the store says {real:?}, and the model {settled:?}");
            books.wrong.push(wrong);
        }
        books.answered = true;
        if fault == Fault::After {
            return Err(sqlx::Error::PoolTimedOut.into());
        }
        Ok(settled)
    }
}

impl Books {
    fn enter(
        &mut self,
        records: &[UsageRecord],
        cursor: Option<SpoolCursor<'_>>,
        node: Option<&Arc<str>>,
    ) -> Vec<Settled> {
        let writer = cursor.map(|cursor| cursor.writer).unwrap_or_default();
        let is_new = cursor.is_none_or(|cursor| self.advance(cursor));
        let first_seq = self.seq + 1;
        if is_new {
            self.seq += records.len() as i64;
        }
        let fresh: Vec<bool> = (first_seq..)
            .zip(records)
            .map(|(seq, record)| match self.billed.get(&record.request_id) {
                Some(before) => {
                    // The same batch may come again, when its first coming was not heard of. The same request in another may not.
                    if before.cost != record.cost.0 || before.writer != writer {
                        self.wrong.push(format!("{} was spooled twice: {before:?}, {record:?}", record.request_id));
                    }
                    false
                }
                None if is_new => {
                    self.bill(seq, record, writer);
                    true
                }
                None => {
                    self.wrong.push(format!("a batch that was entered has {} now", record.request_id));
                    false
                }
            })
            .collect();
        let mut billed: BTreeMap<Arc<str>, (i64, i64)> = BTreeMap::new();
        for (seq, (record, _)) in (first_seq..).zip(records.iter().zip(&fresh)).filter(|(_, (_, fresh))| **fresh) {
            let sum = billed.entry(record.account_id.clone()).or_default();
            *sum = (sum.0 + record.cost.0, seq);
        }
        let leases = node.map(|node| self.charge_leases(node, &billed, self.seq));
        let lease = |leases: &BTreeMap<Arc<str>, Lease>, record: &UsageRecord| {
            let moved = self.balances.get(&record.account_id).is_some_and(|sum| is_new && sum.seq >= first_seq);
            let seq = if moved { self.balances[&record.account_id].seq } else { 0 };
            leases.get(&record.account_id).copied().unwrap_or(Lease { amount: NanoUsd(0), seq })
        };
        let settled = |(record, fresh): (&UsageRecord, bool)| {
            let balance = self.balances.get(&record.account_id).copied().unwrap_or_default();
            let spent = self.spent.get(&record.key_id).copied().unwrap_or_default();
            Settled {
                request_id: record.request_id,
                fresh,
                account_id: record.account_id.clone(),
                balance: NanoUsd(balance.amount),
                balance_seq: balance.seq,
                lease: leases.as_ref().map(|leases| lease(leases, record)),
                key_id: record.key_id.clone(),
                spent: NanoUsd(spent.amount),
                spent_seq: spent.seq,
            }
        };
        records.iter().zip(fresh).map(settled).collect()
    }

    /// Moves the writer's cursor; whether the batches are new.
    fn advance(&mut self, cursor: SpoolCursor<'_>) -> bool {
        let SpoolCursor { writer, first, last } = cursor;
        let entered = self.cursors.entry(writer.to_owned()).or_default();
        if first > *entered + 1 {
            self.wrong.push(format!("a gap: {first} to {last} came after {entered}"));
        }
        let is_new = last > *entered;
        *entered = last.max(*entered);
        is_new
    }

    fn bill(&mut self, seq: i64, record: &UsageRecord, writer: &str) {
        let cost = record.cost.0;
        // A request that failed and cost nothing moves no money.
        if cost != 0 || (record.status < 400 && !record.interrupted) {
            let balance = self.balances.entry(record.account_id.clone()).or_default();
            *balance = Sum { amount: balance.amount - cost, seq };
            let spent = self.spent.entry(record.key_id.clone()).or_default();
            *spent = Sum { amount: spent.amount + cost, seq };
        }
        let (account, key) = (record.account_id.clone(), record.key_id.clone());
        let billed = Billed { account, key, cost, writer: writer.to_owned() };
        self.billed.insert(record.request_id, billed);
    }
}
