//! What a node leases of accounts' credit: how much it asks for, when it gives something back, and how long a request waits for it.
//!
//! A node sells an account's credit against a lease, which is a part of the balance that nobody else sells. It asks for more when a
//! request does not fit, and beforehand when little is left; for what is needed at once, and beyond that for about as much as was
//! spent in the last ten seconds, of which the store gives it a part of what is free. What it has not used for some seconds it gives
//! back, and at once when another node wants it, all but what is held and owed.
//!
//! Where the account's credit lies with other nodes, a request waits for it to come back, a second and a half at the most. A refusal
//! would be wrong, for the account has the credit; so would a shorter answer. Past that the credit is in use, or its node is dead, and
//! the client is told what it would be told by one node: there is too little. That is remembered for a moment, so that a thousand
//! requests without credit are not a thousand questions.
//!
//! Absent: the store, the clock, and who waits how; the time comes in, what is to be asked goes out.

mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use self::words::{Lease, LeaseAnswer, LeaseAsk, LeaseReturn, LeaseReturned};
use super::{Purse, PurseUse};
use crate::relay::meter::NanoUsd;

/// Of so many who wait it is said one by one what they need.
const STEPS_MAX: usize = 64;

/// How long requests wait for credit that lies with other nodes, which look twice in this time what is wanted.
const PATIENCE_US: u64 = 1_700_000;

/// How long until it is asked again whether something came back.
const AGAIN_US: u64 = 100_000;

/// How long it is remembered that there is nothing to be had.
const REST_US: u64 = 250_000;

/// How long nothing is asked for beforehand after that gave too little.
const LOW_REST_US: u64 = 2_000_000;

/// How long a lease is kept that nobody uses.
const IDLE_US: u64 = 5_000_000;

/// How long an account is remembered of which nothing is leased.
const REMEMBERED_US: u64 = 60_000_000;

/// Over so long the spending of an account is looked at.
const RECENT_US: u64 = 10_000_000;

/// So many of a request's holds are kept ready at least.
const HOLDS_READY: i64 = 4;

/// More is leased when less than one of so many parts of what should be there is left.
const LOW_PARTS: i64 = 3;

/// How a request's wait for credit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseVerdict {
    /// It is being asked for.
    Wait,
    /// There is enough now.
    Ready,
    /// There is no more to be had.
    Nothing,
    /// The store cannot be asked.
    Away,
}

/// How often what happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// Leases were made larger, or found to be as large as they can be.
    pub takes: u64,
    /// The account had too little free.
    pub short: u64,
    /// The store could not be asked.
    pub failed: u64,
    /// Something was given back.
    pub returns: u64,
    /// Requests had to wait.
    pub waits: u64,
}

/// What a node has leased, of which accounts, and who waits for more.
#[derive(Debug, Default)]
pub struct LeaseBook {
    accounts: HashMap<Arc<str>, Entry>,
    /// Accounts that are to be looked at before the next turn.
    urgent: BTreeSet<Arc<str>>,
    next_number: u64,
    /// Nothing is asked for that no request needs.
    is_draining: bool,
    counts: LeaseCounts,
}

#[derive(Debug)]
struct Entry {
    purse: Arc<Purse>,
    /// Requests that wait, by number: what each must have, and what it would have.
    waiting: BTreeMap<u64, (NanoUsd, NanoUsd)>,
    /// Up to this number it has been decided, and how.
    decided: u64,
    verdict: LeaseVerdict,
    /// It is being asked, for all up to this number.
    asked: Option<u64>,
    /// The want that is waited for, and since when.
    since: Option<(i64, u64)>,
    again_us: u64,
    /// Who needs more than what was free is not asked for before; there was nothing to be had.
    rests_until_us: u64,
    free: i64,
    /// Nothing is asked for beforehand before.
    low_rests_until_us: u64,
    pace: Pace,
    /// Others want some.
    wanted: Option<i64>,
    /// What is on its way back.
    returning: Option<LeaseReturn>,
}

/// How fast an account's credit is spent here.
#[derive(Debug, Default)]
struct Pace {
    seen: PurseUse,
    looked_us: u64,
    used_us: u64,
    /// Spent lately, older spending counting ever less.
    recent: i64,
    /// What the last request that had to wait would have held.
    hold: i64,
}

impl LeaseBook {
    /// What happened so far.
    pub fn counts(&self) -> LeaseCounts {
        self.counts
    }

    /// What is leased in all.
    pub fn leased(&self) -> NanoUsd {
        NanoUsd(self.accounts.values().fold(0, |sum, entry| sum.saturating_add(entry.purse.lease().0.max(0))))
    }

    /// Whether more than what requests need is asked for.
    pub fn set_draining(&mut self, is_draining: bool) {
        self.is_draining = is_draining;
    }

    /// Looks after an account from now on, of which something is leased.
    pub fn keep(&mut self, account_id: &str, purse: &Arc<Purse>, now_us: u64) {
        self.entry(account_id, purse, now_us);
    }

    /// Other nodes want some of an account.
    pub fn want(&mut self, account_id: &str, seq: i64) {
        if let Some(entry) = self.accounts.get_mut(account_id) {
            entry.wanted = Some(seq);
        }
    }

    /// Little is left of what is leased of an account.
    pub fn is_low(&mut self, account_id: &str) {
        if self.accounts.contains_key(account_id) {
            self.urgent.insert(account_id.into());
        }
    }

    /// Whether it is known that there is no credit to be had.
    pub fn is_exhausted(&self, account_id: &str, now_us: u64) -> bool {
        self.accounts.get(account_id).is_some_and(|entry| {
            let is_known = entry.verdict == LeaseVerdict::Nothing && entry.is_resting(NanoUsd(1), now_us);
            is_known && entry.purse.available() <= NanoUsd(0)
        })
    }

    /// A request waits until its account has `most` available, or it is known that it will not have; it must have `least`. It is known
    /// by the number from now on, until it [leaves](LeaseBook::leave).
    pub fn join(&mut self, account_id: &str, purse: &Arc<Purse>, least: NanoUsd, most: NanoUsd, now_us: u64) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.counts.waits += 1;
        let entry = self.entry(account_id, purse, now_us);
        entry.pace.hold = most.0;
        if entry.is_resting(least, now_us) {
            entry.decided = number + 1;
        } else {
            entry.waiting.insert(number, (least, most));
            self.urgent.insert(account_id.into());
        }
        number
    }

    /// How the wait of the request of that number stands.
    pub fn verdict(&self, account_id: &str, number: u64, most: NanoUsd) -> LeaseVerdict {
        match self.accounts.get(account_id) {
            None => LeaseVerdict::Nothing,
            Some(entry) if entry.purse.available() >= most => LeaseVerdict::Ready,
            Some(entry) if number < entry.decided => entry.verdict,
            Some(_) => LeaseVerdict::Wait,
        }
    }

    /// The request of that number waits no longer.
    pub fn leave(&mut self, account_id: &str, number: u64) {
        if let Some(entry) = self.accounts.get_mut(account_id) {
            entry.waiting.remove(&number);
        }
    }

    /// What is to be asked of the store now, at most so many; [`LeaseBook::answered`] or [`LeaseBook::failed`] follows.
    pub fn asks(&mut self, now_us: u64, most: usize) -> Vec<LeaseAsk> {
        let mut asks = Vec::new();
        let mut later = BTreeSet::new();
        while asks.len() < most {
            let Some(account_id) = self.urgent.pop_first() else { break };
            let Some(entry) = self.accounts.get_mut(&account_id) else { continue };
            if entry.asked.is_none() && now_us < entry.again_us && entry.is_waited_for() {
                later.insert(account_id);
            } else if let Some(ask) = entry.ask(&account_id, self.is_draining, now_us) {
                entry.asked = Some(self.next_number);
                asks.push(ask);
            }
        }
        self.urgent.append(&mut later);
        asks
    }

    /// When something is to be asked again, if anybody waits for it.
    pub fn due_us(&self) -> Option<u64> {
        let entries = self.urgent.iter().filter_map(|id| self.accounts.get(id));
        entries.map(|entry| entry.again_us).min()
    }

    /// The store has answered.
    pub fn answered(&mut self, answers: Vec<LeaseAnswer>, now_us: u64) {
        for answer in answers {
            let Some(entry) = self.accounts.get_mut(&answer.account_id) else { continue };
            let upto = entry.asked.take().unwrap_or(entry.decided);
            entry.purse.refresh_lease(answer.lease);
            entry.free = answer.free.0;
            if entry.purse.is_low() && !entry.is_waited_for() {
                entry.low_rests_until_us = now_us + LOW_REST_US;
            }
            if !answer.is_short {
                // Somebody who came meanwhile may be faster than those that it was asked for: they wait on, and it is asked again.
                (entry.since, entry.again_us) = (None, now_us);
                self.counts.takes += 1;
            } else {
                self.counts.short += 1;
                match answer.wanted {
                    Some(seq) if entry.since.is_none_or(|(_, since_us)| now_us < since_us + PATIENCE_US) => {
                        entry.since = entry.since.or(Some((seq, now_us)));
                        entry.again_us = now_us + AGAIN_US;
                    }
                    _ => entry.decide(upto, LeaseVerdict::Nothing, now_us),
                }
            }
            if entry.is_waited_for() {
                self.urgent.insert(answer.account_id);
            }
        }
    }

    /// The store could not be asked that; whether it did something is not known.
    pub fn failed(&mut self, asks: &[LeaseAsk], now_us: u64) {
        for ask in asks {
            let Some(entry) = self.accounts.get_mut(&ask.account_id) else { continue };
            let upto = entry.asked.take().unwrap_or(entry.decided);
            self.counts.failed += 1;
            entry.free = 0;
            entry.low_rests_until_us = now_us + LOW_REST_US;
            entry.decide(upto, LeaseVerdict::Away, now_us);
            if entry.is_waited_for() {
                self.urgent.insert(ask.account_id.clone());
            }
        }
    }

    /// The node was buried, and has nothing any more, as of the ledger's number `seq`. What was asked is to be asked again.
    pub fn lost(&mut self, seq: i64) {
        for (account_id, entry) in &mut self.accounts {
            entry.purse.lose_lease(seq);
            (entry.asked, entry.since, entry.returning, entry.wanted) = (None, None, None, None);
            if entry.is_waited_for() {
                self.urgent.insert(account_id.clone());
            }
        }
    }

    /// Looks at all accounts, once a turn: how fast they are spent, and of which more is to be leased beforehand. Forgets those of
    /// which nothing is leased and that nobody has used for long.
    pub fn turn(&mut self, now_us: u64) {
        let (urgent, is_draining) = (&mut self.urgent, self.is_draining);
        self.accounts.retain(|account_id, entry| {
            entry.pace.look(entry.purse.use_so_far(), now_us);
            let reserve = entry.pace.reserve(is_draining, now_us);
            entry.purse.set_low_water(NanoUsd(reserve / LOW_PARTS));
            if entry.purse.is_low() {
                urgent.insert(account_id.clone());
            }
            let is_old = now_us.saturating_sub(entry.pace.used_us) > REMEMBERED_US;
            let is_needed = entry.is_waited_for() || entry.asked.is_some() || entry.returning.is_some();
            is_needed || !is_old || !entry.purse.is_at_rest()
        });
    }

    /// What is to be given back now, at most so much; [`LeaseBook::returned`] follows, or the same again.
    pub fn returns(&mut self, now_us: u64, most: usize) -> Vec<LeaseReturn> {
        let is_draining = self.is_draining;
        let due = self.accounts.iter_mut().filter_map(|(account_id, entry)| {
            if entry.returning.is_none() && entry.asked.is_none() {
                entry.returning = entry.give_back(account_id, is_draining, now_us);
            }
            entry.returning.clone()
        });
        due.take(most).collect()
    }

    /// It is known what became of what was to be given back.
    pub fn returned(&mut self, returned: Vec<LeaseReturned>) {
        for LeaseReturned { account_id, lease, taken } in returned {
            let Some(entry) = self.accounts.get_mut(&account_id) else { continue };
            let Some(given) = entry.returning.take() else { continue };
            entry.purse.returned(given.amount, lease);
            if taken {
                self.counts.returns += 1;
                if given.wanted >= entry.wanted {
                    entry.wanted = None;
                }
            }
        }
    }

    fn entry(&mut self, account_id: &str, purse: &Arc<Purse>, now_us: u64) -> &mut Entry {
        let new = || Entry {
            purse: Arc::clone(purse),
            waiting: BTreeMap::new(),
            decided: 0,
            verdict: LeaseVerdict::Wait,
            asked: None,
            since: None,
            again_us: 0,
            rests_until_us: 0,
            free: 0,
            low_rests_until_us: 0,
            pace: Pace { seen: purse.use_so_far(), looked_us: now_us, used_us: now_us, ..Pace::default() },
            wanted: None,
            returning: None,
        };
        self.accounts.entry(account_id.into()).or_insert_with(new)
    }
}

impl Entry {
    /// Whether it is known that who must have so much would ask in vain.
    fn is_resting(&self, least: NanoUsd, now_us: u64) -> bool {
        now_us < self.rests_until_us && least.0 > self.free.saturating_add(self.purse.available().0.max(0))
    }

    fn undecided(&self) -> impl Iterator<Item = &(NanoUsd, NanoUsd)> {
        self.waiting.range(self.decided..).map(|(_, wants)| wants)
    }

    fn is_waited_for(&self) -> bool {
        self.undecided().next().is_some()
    }

    /// What all who wait would have.
    fn wanted_here(&self) -> i64 {
        self.undecided().fold(0, |sum, (_, most)| sum.saturating_add(most.0))
    }

    fn ask(&self, account_id: &str, is_draining: bool, now_us: u64) -> Option<LeaseAsk> {
        let reserve = self.pace.reserve(is_draining, now_us);
        let available = self.purse.available().0;
        let need = self.wanted_here().saturating_sub(available).max(0);
        let is_beforehand = !self.is_waited_for();
        let is_pointless = is_beforehand && (now_us < self.low_rests_until_us || !self.purse.is_low());
        if self.asked.is_some() || is_pointless || (!is_beforehand && need == 0) {
            return None;
        }
        let target = need.max(need.saturating_add(reserve).saturating_sub(available.max(0)));
        let least = self.undecided().map(|(least, _)| least.0).min();
        let mut wants: Vec<i64> = self.undecided().map(|(_, most)| most.0).collect();
        wants.sort_unstable();
        let sums = wants.iter().take(STEPS_MAX).scan(0_i64, |sum, most| {
            *sum = sum.saturating_add(*most);
            Some(sum.saturating_sub(available))
        });
        let steps = sums.filter(|step| *step > 0).map(NanoUsd).collect();
        let useful = least.map_or(target / 2, |least| least.saturating_sub(available)).max(1);
        let since = self.since.map(|(seq, _)| seq);
        let [need, target, unit, useful] = [need, target, self.pace.hold, useful].map(NanoUsd);
        Some(LeaseAsk { account_id: account_id.into(), need, steps, target, unit, useful, since })
    }

    /// Nobody up to that number needs to wait any longer.
    fn decide(&mut self, upto: u64, verdict: LeaseVerdict, now_us: u64) {
        (self.decided, self.verdict) = (self.decided.max(upto), verdict);
        (self.since, self.again_us) = (None, now_us);
        self.rests_until_us = now_us + REST_US;
    }

    fn give_back(&mut self, account_id: &str, is_draining: bool, now_us: u64) -> Option<LeaseReturn> {
        let is_idle = is_draining || now_us.saturating_sub(self.pace.used_us) >= IDLE_US;
        if self.wanted.is_none() && (!is_idle || self.is_waited_for() || self.purse.available() <= NanoUsd(0)) {
            return None;
        }
        // Somebody who waited for it is about to take it.
        if self.undecided().any(|(_, most)| *most <= self.purse.available()) {
            return None;
        }
        let Lease { amount, seq } = self.purse.begin_return();
        Some(LeaseReturn { account_id: account_id.into(), amount, seq, wanted: self.wanted })
    }
}

impl Pace {
    fn look(&mut self, seen: PurseUse, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.looked_us).min(RECENT_US);
        let faded = i128::from(self.recent) * i128::from(passed_us) / i128::from(RECENT_US);
        let spent = seen.spent.0.saturating_sub(self.seen.spent.0);
        self.recent = self.recent.saturating_sub(i64::try_from(faded).unwrap_or(self.recent)).saturating_add(spent);
        if seen.holds != self.seen.holds {
            self.used_us = now_us;
        }
        (self.seen, self.looked_us) = (seen, now_us);
    }

    /// How much should be there, beyond what is needed at once.
    fn reserve(&self, is_draining: bool, now_us: u64) -> i64 {
        if is_draining || now_us.saturating_sub(self.used_us) >= IDLE_US {
            return 0;
        }
        self.recent.max(self.hold.saturating_mul(HOLDS_READY))
    }
}

#[cfg(test)]
mod tests;
