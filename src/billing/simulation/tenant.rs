//! A node's leases in a process of the simulation: the real book, moved by hand, before the simulated ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::runtime::Runtime;

use super::chance::Chance;
use super::leases::LEASE_MS;
use super::ledger::SimLedger;
use crate::relay::admit::{LeaseBook, Purse};
use crate::relay::meter::NanoUsd;
use crate::store::NodeTerm;

/// By so much a lease ends earlier at the node than in the store, microseconds.
const MARGIN_US: u64 = 500_000;

/// What becomes of what is asked of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Well,
    /// Nothing was done.
    NotAsked,
    /// It was done, and nobody hears of it.
    NotAnswered,
}

/// A request that waits for credit.
pub(super) struct Waiting {
    pub(super) number: u64,
    pub(super) account: usize,
    pub(super) key: usize,
    pub(super) least: i64,
    pub(super) most: i64,
}

pub(super) struct Tenant {
    pub(super) book: LeaseBook,
    pub(super) waiting: Vec<Waiting>,
    term: NodeTerm,
    until_us: u64,
    /// The ledger's number up to which it has heard.
    heard_seq: i64,
    purses: BTreeMap<Arc<str>, Arc<Purse>>,
}

impl Tenant {
    pub(super) fn begin(ledger: &SimLedger, id: &Arc<str>, now_us: u64, runtime: &Runtime) -> Self {
        let term = runtime.block_on(ledger.begin_node(id, ms(now_us)));
        let until_us = now_us + LEASE_MS.unsigned_abs() * 1_000 - MARGIN_US;
        let (book, waiting, purses) = (LeaseBook::default(), Vec::new(), BTreeMap::new());
        Self { book, waiting, term, until_us, heard_seq: 0, purses }
    }

    /// Which purse is which account's.
    pub(super) fn know(&mut self, accounts: &[Arc<str>], purses: &[Arc<Purse>]) {
        self.purses = accounts.iter().cloned().zip(purses.iter().cloned()).collect();
    }

    /// Whether what is leased may be sold.
    pub(super) fn is_current(&self, now_us: u64) -> bool {
        now_us < self.until_us
    }

    /// Hears what has changed about its leases, as a poll does.
    pub(super) fn hear(&mut self, ledger: &SimLedger, now_us: u64, runtime: &Runtime) {
        let seq = ledger.books().seq;
        let news = runtime.block_on(ledger.leases_since(&self.term.id, self.heard_seq));
        for (account, lease) in &news.leases {
            let purse = &self.purses[account];
            purse.refresh_lease(*lease);
            if lease.amount > NanoUsd(0) {
                self.book.keep(account, purse, now_us);
            }
        }
        news.wanted.iter().for_each(|(account, want)| self.book.want(account, *want));
        self.heard_seq = seq;
    }

    pub(super) fn ask(&mut self, ledger: &SimLedger, now_us: u64, heard: Heard, runtime: &Runtime) -> usize {
        let asks = self.book.asks(now_us, 9);
        if asks.is_empty() {
            return 0;
        }
        let answers = match heard {
            Heard::NotAsked => None,
            _ => Some(runtime.block_on(ledger.take_leases(&self.term, &asks, ms(now_us)))),
        };
        match answers {
            Some(None) => self.begin_anew(ledger, now_us, runtime),
            Some(Some(answers)) if heard == Heard::Well => self.book.answered(answers, now_us),
            _ => self.book.failed(&asks, now_us),
        }
        asks.len()
    }

    pub(super) fn give_back(&mut self, ledger: &SimLedger, now_us: u64, heard: Heard, runtime: &Runtime) -> usize {
        let returns = self.book.returns(now_us, 9);
        if returns.is_empty() || heard == Heard::NotAsked {
            return 0;
        }
        let returned = runtime.block_on(ledger.return_leases(&self.term, &returns));
        if heard == Heard::Well {
            self.book.returned(returned);
        }
        returns.len()
    }

    pub(super) fn renew(&mut self, ledger: &SimLedger, now_us: u64, heard: Heard, runtime: &Runtime) {
        if heard == Heard::NotAsked {
            return;
        }
        let is_known = runtime.block_on(ledger.renew_node(&self.term, ms(now_us)));
        match (is_known, heard) {
            (true, Heard::Well) => self.until_us = now_us + LEASE_MS.unsigned_abs() * 1_000 - MARGIN_US,
            (false, Heard::Well) => self.begin_anew(ledger, now_us, runtime),
            _ => {}
        }
    }

    /// It was buried: it has nothing, and begins anew.
    fn begin_anew(&mut self, ledger: &SimLedger, now_us: u64, runtime: &Runtime) {
        self.term = runtime.block_on(ledger.begin_node(&self.term.id, ms(now_us)));
        self.until_us = now_us + LEASE_MS.unsigned_abs() * 1_000 - MARGIN_US;
        self.book.lost(self.term.seq);
    }

    /// Gives everything back.
    pub(super) fn end(self, ledger: &SimLedger, now_us: u64, runtime: &Runtime) {
        runtime.block_on(ledger.end_node(&self.term, ms(now_us)));
    }
}

impl Heard {
    pub(super) fn draw(chance: &mut Chance, is_ledger_down: bool) -> Self {
        match chance.below(8) {
            _ if is_ledger_down => Self::NotAsked,
            0 => Self::NotAsked,
            1 => Self::NotAnswered,
            _ => Self::Well,
        }
    }
}

fn ms(now_us: u64) -> i64 {
    i64::try_from(now_us / 1_000).unwrap()
}
