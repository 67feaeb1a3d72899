//! Leases as the simulated ledger has them: the store's own semantics, alone or beside the real store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ledger::{Books, SimLedger};
use crate::relay::admit::{Lease, LeaseAnswer, LeaseAsk, LeaseReturn, LeaseReturned};
use crate::relay::meter::NanoUsd;
use crate::store::{LeaseNews, NodeName, NodeTerm, Store};

/// How long leases last in a simulation that are not renewed.
pub(super) const LEASE_MS: i64 = 3_000;

#[derive(Default)]
pub(super) struct Leases {
    nodes: BTreeMap<Arc<str>, Node>,
    /// By account and node.
    pub(super) held: BTreeMap<(Arc<str>, Arc<str>), Held>,
    wants: BTreeMap<Arc<str>, i64>,
    /// What was taken back from nodes past their time, by account: they may have sold it.
    pub(super) buried: BTreeMap<Arc<str>, i64>,
}

struct Node {
    epoch: i64,
    expires_ms: i64,
}

#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) amount: i64,
    seq: i64,
    answered: i64,
}

/// What nodes ask of the ledger.
impl SimLedger {
    /// The real store, by the node's handle, where there is one.
    fn real(&self) -> Option<Store> {
        let store = self.store()?;
        Some(self.node.as_ref().map_or_else(|| store.clone(), |node| store.leasing(Arc::clone(node))))
    }

    pub(super) async fn begin_node(&self, id: &Arc<str>, now_ms: i64) -> NodeTerm {
        let model = self.books().begin_node(id, now_ms);
        if let Some(store) = self.real() {
            let name = NodeName { id: Arc::clone(id), name: "n".into(), version: "1".into() };
            let real = store.begin_node(&name, now_ms, LEASE_MS).await.unwrap();
            self.compare("begins", &real, &model);
        }
        model
    }

    /// Whether the node is still who it was.
    pub(super) async fn renew_node(&self, term: &NodeTerm, now_ms: i64) -> bool {
        let model = self.books().renew_node(term, now_ms);
        if let Some(store) = self.real() {
            let real = store.renew_node(term, now_ms, LEASE_MS).await.unwrap();
            self.compare("renews", &real.is_some(), &model);
        }
        model
    }

    pub(super) async fn end_node(&self, term: &NodeTerm, now_ms: i64) {
        self.books().end_node(term, now_ms);
        if let Some(store) = self.real() {
            store.end_node(term, now_ms).await.unwrap();
        }
    }

    pub(super) async fn take_leases(
        &self,
        term: &NodeTerm,
        asks: &[LeaseAsk],
        now_ms: i64,
    ) -> Option<Vec<LeaseAnswer>> {
        let model = self.books().take_leases(term, asks, now_ms);
        if let Some(store) = self.real() {
            let real = store.take_leases(term, asks, now_ms).await.unwrap();
            self.compare("takes", &real, &model);
        }
        model
    }

    pub(super) async fn return_leases(&self, term: &NodeTerm, returns: &[LeaseReturn]) -> Vec<LeaseReturned> {
        let model = self.books().return_leases(term, returns);
        if let Some(store) = self.real() {
            let real = store.return_leases(term, returns).await.unwrap();
            self.compare("returns", &real, &model);
        }
        model
    }

    pub(super) async fn leases_since(&self, node: &Arc<str>, seq: i64) -> LeaseNews {
        let model = self.books().leases_since(node, seq);
        if let Some(store) = self.real() {
            let mut real = store.leases_since(node, seq).await.unwrap();
            real.leases.sort_by(|one, other| one.0.cmp(&other.0));
            real.wanted.sort();
            self.compare("hears", &real, &model);
        }
        model
    }

    fn compare<T: std::fmt::Debug + PartialEq>(&self, what: &str, real: &T, model: &T) {
        if real != model {
            self.books().wrong.push(format!("who {what}: the store says {real:?}, and the model {model:?}"));
        }
    }
}

impl Books {
    fn begin_node(&mut self, id: &Arc<str>, now_ms: i64) -> NodeTerm {
        self.seq += 1;
        let node = self.leases.nodes.entry(Arc::clone(id)).or_insert(Node { epoch: 1, expires_ms: 0 });
        node.expires_ms = now_ms + LEASE_MS;
        let epoch = node.epoch;
        self.bury(now_ms);
        NodeTerm { id: Arc::clone(id), epoch, seq: self.seq, draining: false }
    }

    fn renew_node(&mut self, term: &NodeTerm, now_ms: i64) -> bool {
        match self.leases.nodes.get_mut(&term.id).filter(|node| node.epoch == term.epoch) {
            Some(node) => {
                node.expires_ms = now_ms + LEASE_MS;
                true
            }
            None => false,
        }
    }

    fn end_node(&mut self, term: &NodeTerm, now_ms: i64) {
        self.seq += 1;
        if let Some(node) = self.leases.nodes.get_mut(&term.id).filter(|node| node.epoch == term.epoch) {
            node.expires_ms = now_ms;
            self.leases.held.retain(|(_, node), _| *node != term.id);
        }
    }

    fn bury(&mut self, now_ms: i64) {
        let Leases { nodes, held, buried, .. } = &mut self.leases;
        for (id, node) in nodes.iter_mut().filter(|(_, node)| node.expires_ms <= now_ms) {
            let before = held.len();
            held.retain(|(account, of), lease| {
                if of == id {
                    *buried.entry(account.clone()).or_default() += lease.amount;
                }
                of != id
            });
            node.epoch += i64::from(held.len() < before);
        }
    }

    fn take_leases(&mut self, term: &NodeTerm, asks: &[LeaseAsk], now_ms: i64) -> Option<Vec<LeaseAnswer>> {
        if self.leases.nodes.get(&term.id).is_none_or(|node| node.epoch != term.epoch) {
            return None;
        }
        self.bury(now_ms);
        Some(asks.iter().map(|ask| self.take(term, ask)).collect())
    }

    fn take(&mut self, term: &NodeTerm, ask: &LeaseAsk) -> LeaseAnswer {
        self.seq += 1;
        let seq = self.seq;
        let balance = self.balances.get(&ask.account_id).map_or(0, |sum| sum.amount);
        let of_account = |(account, _): &(Arc<str>, Arc<str>)| *account == ask.account_id;
        let others: Vec<Held> = self
            .leases
            .held
            .iter()
            .filter(|(id, _)| of_account(id) && id.1 != term.id)
            .map(|(_, held)| *held)
            .collect();
        let own = (ask.account_id.clone(), Arc::clone(&term.id));
        let had = self.leases.held.get(&own).map_or(0, |held| held.amount);
        let free = balance - had - others.iter().map(|held| held.amount).sum::<i64>();
        let since = ask.since.unwrap_or(seq);
        let may_come = others.iter().any(|held| held.amount > 0 && held.answered < since);
        let is_scarce = self.leases.wants.contains_key(&ask.account_id);
        let granted = ask.granted(NanoUsd(free), is_scarce, may_come).0;
        if granted > 0 {
            let held = self.leases.held.entry(own).or_insert(Held { amount: 0, seq, answered: 0 });
            (held.amount, held.seq) = (held.amount + granted, seq);
        }
        let wanted = (granted < ask.need.0 && may_come).then_some(since);
        if ask.since.is_none() && wanted.is_some() {
            self.leases.wants.insert(ask.account_id.clone(), seq);
        }
        let lease = Lease { amount: NanoUsd((had + granted).min(balance.max(0))), seq };
        let (free, is_short) = (NanoUsd(free - granted), granted < ask.need.0);
        LeaseAnswer { account_id: ask.account_id.clone(), lease, free, is_short, wanted }
    }

    fn return_leases(&mut self, term: &NodeTerm, returns: &[LeaseReturn]) -> Vec<LeaseReturned> {
        let is_current = self.leases.nodes.get(&term.id).is_some_and(|node| node.epoch == term.epoch);
        let mut returned = Vec::new();
        for given in returns {
            self.seq += 1;
            let seq = self.seq;
            let place = (given.account_id.clone(), Arc::clone(&term.id));
            let mut taken = false;
            if let Some(held) = self.leases.held.get_mut(&place)
                && is_current
                && held.seq <= given.seq
                && held.amount >= given.amount.0
            {
                taken = true;
                (held.amount, held.seq) = (held.amount - given.amount.0, seq);
                held.answered = held.answered.max(given.wanted.unwrap_or(0));
            }
            let none = Lease { amount: NanoUsd(0), seq };
            let lease = self.leases.held.get(&place).map_or(none, |held| self.told(&given.account_id, held));
            returned.push(LeaseReturned { account_id: given.account_id.clone(), lease, taken });
        }
        returned
    }

    fn leases_since(&self, node: &Arc<str>, seq: i64) -> LeaseNews {
        let own = self.leases.held.iter().filter(|((_, of), _)| of == node);
        let moved = |account: &str| self.balances.get(account).is_some_and(|sum| sum.seq > seq);
        let heard = own.clone().filter(|((account, _), held)| held.seq > seq || moved(account));
        let leases = heard.map(|((account, _), held)| (account.clone(), self.told(account, held))).collect();
        let wanted = own.filter_map(|((account, _), held)| {
            let want = *self.leases.wants.get(account)?;
            (want > seq && held.answered < want).then(|| (account.clone(), want))
        });
        LeaseNews { leases, wanted: wanted.collect() }
    }

    fn told(&self, account: &str, held: &Held) -> Lease {
        let balance = self.balances.get(account).copied().unwrap_or_default();
        Lease { amount: NanoUsd(held.amount.min(balance.amount.max(0))), seq: held.seq.max(balance.seq) }
    }

    /// Takes what was billed off the node's leases: by account, how much and up to which number. Gives the leases that changed.
    pub(super) fn charge_leases(
        &mut self,
        node: &Arc<str>,
        billed: &BTreeMap<Arc<str>, (i64, i64)>,
        last_seq: i64,
    ) -> BTreeMap<Arc<str>, Lease> {
        let mut changed = BTreeMap::new();
        for (account, (cost, seq)) in billed {
            if let Some(held) = self.leases.held.get_mut(&(account.clone(), Arc::clone(node))) {
                (held.amount, held.seq) = (if held.amount > *cost { held.amount - cost } else { 0 }, *seq);
                let held = *held;
                changed.insert(account.clone(), self.told(account, &held));
            }
            let leased: i64 = self.leased(account);
            if leased > 0 && self.balances.get(account).map_or(0, |sum| sum.amount) < leased {
                self.leases.wants.insert(account.clone(), last_seq);
            }
        }
        changed
    }

    /// What all nodes have leased of an account.
    pub(super) fn leased(&self, account: &str) -> i64 {
        let of_account = self.leases.held.iter().filter(|((of, _), _)| **of == *account);
        of_account.map(|(_, held)| held.amount).sum()
    }
}
