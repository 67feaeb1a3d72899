//! Which keys, spendings and accounts are alive in this process, so that one of each exists and news reach it.
//!
//! The cache may drop a key that still has requests running; when the key is loaded again it must be the same one, or its
//! windows would begin anew. Costs that are on their way to the ledger hold purse and spending longer still. So all of them
//! are remembered weakly, for as long as anyone holds them.
//!
//! News (a changed key, a balance) may arrive while the key that they are about is being loaded. What was loaded may then be
//! older than the news, so news are kept for as long as a load that they may concern is running. What accounts owe elsewhere is no
//! news but the whole truth at a moment: it is kept until the next moment's.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::cache::KeyEntry;
use super::{KeyDigest, KeyRecord};
use crate::relay::admit::{HoldGauge, Lease, Purse, Spending};
use crate::relay::meter::NanoUsd;

/// So many names of the dead may be there before they are looked for.
const DEAD_MIN: usize = 1024;

/// An amount of the ledger: an account's balance, or what a key has spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount {
    /// The account's or the key's id.
    pub id: Arc<str>,
    /// How much it is.
    pub amount: NanoUsd,
    /// The ledger's sequence number that the amount includes.
    pub seq: i64,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    keys: Living<KeyEntry>,
    /// By key.
    spending: Living<Spending>,
    accounts: Living<Purse>,
    /// What all of them hold.
    holds: Arc<HoldGauge>,
    /// Accounts' purses have what is leased of the balance, and not the balance.
    is_leased: bool,
    /// What accounts hold and owe in other processes; those that are not named, nothing.
    elsewhere: HashMap<Arc<str>, NanoUsd>,
    loading: HashMap<KeyDigest, Load>,
    /// Amounts heard of while something is being loaded; at most one for each account and key that there is.
    balances_heard: HashMap<Arc<str>, Amount>,
    spending_heard: HashMap<Arc<str>, Amount>,
}

/// A key that is being loaded.
#[derive(Debug, Default)]
struct Load {
    /// More than one where a look-up was given up and another began before the first was gone.
    running: u32,
    /// The newest record that was heard of meanwhile.
    heard: Option<KeyRecord>,
}

impl Registry {
    /// An empty one, whose purses count their holds there.
    pub(super) fn counting(holds: Arc<HoldGauge>) -> Self {
        Self { holds, ..Self::default() }
    }

    /// From now on the purses of accounts are leased. There is none yet.
    pub(super) fn set_leased(&mut self) {
        self.is_leased = true;
    }

    /// A look-up begins; [`Registry::loaded`] follows, and in any case [`Registry::load_ended`].
    pub(super) fn load_began(&mut self, digest: KeyDigest) {
        self.loading.entry(digest).or_default().running += 1;
    }

    /// The look-up's outcome, put right by what was heard while it ran: the one living entry of that key, up to date.
    pub(super) fn loaded(&mut self, digest: &KeyDigest, record: Option<KeyRecord>) -> Option<Arc<KeyEntry>> {
        let heard = self.loading.get(digest).and_then(|load| load.heard.clone());
        let record = heard.or(record)?;
        let entry = match self.keys.find(&record.key_id) {
            Some(entry) => {
                entry.refresh(record);
                entry
            }
            None => self.bring_to_life(record),
        };
        let record = entry.record();
        if let Some(heard) = self.balances_heard.get(&*record.account_id) {
            entry.account.refresh(heard.amount, heard.seq);
        }
        if let Some(heard) = self.spending_heard.get(&*record.key_id) {
            entry.spending.refresh(heard.amount, heard.seq);
        }
        Some(entry)
    }

    /// A look-up is over, whatever became of it.
    pub(super) fn load_ended(&mut self, digest: &KeyDigest) {
        if let Some(load) = self.loading.get_mut(digest) {
            load.running -= 1;
            if load.running == 0 {
                self.loading.remove(digest);
            }
        }
        if self.loading.is_empty() {
            self.balances_heard.clear();
            self.spending_heard.clear();
        }
    }

    /// A key changed.
    pub(super) fn hear_of_key(&mut self, record: &KeyRecord) {
        if let Some(load) = self.loading.get_mut(&record.digest) {
            load.heard = Some(record.clone());
        }
        if let Some(entry) = self.keys.find(&record.key_id) {
            entry.refresh(record.clone());
        }
    }

    /// An account's balance changed.
    pub(super) fn hear_of_balance(&mut self, heard: &Amount) {
        if let Some(purse) = self.accounts.find(&heard.id) {
            purse.refresh(heard.amount, heard.seq);
        }
        if !self.loading.is_empty() {
            self.balances_heard.insert(heard.id.clone(), heard.clone());
        }
    }

    /// An account's lease changed. Gives its purse, which comes to life where something is leased.
    pub(super) fn hear_of_lease(&mut self, account_id: &str, lease: Lease) -> Option<Arc<Purse>> {
        let purse = match self.accounts.find(account_id) {
            None if lease.amount <= NanoUsd(0) => return None,
            _ => self.purse_of(account_id, None),
        };
        purse.refresh_lease(lease);
        Some(purse)
    }

    /// What accounts hold and owe in other processes, all of it.
    pub(super) fn hear_of_elsewhere(&mut self, heard: HashMap<Arc<str>, NanoUsd>) {
        let before = std::mem::replace(&mut self.elsewhere, heard);
        for id in before.keys().chain(self.elsewhere.keys()) {
            if let Some(purse) = self.accounts.find(id) {
                purse.set_elsewhere(self.elsewhere.get(id).copied().unwrap_or_default());
            }
        }
    }

    /// What a key has spent changed.
    pub(super) fn hear_of_spending(&mut self, heard: &Amount) {
        if let Some(spending) = self.spending.find(&heard.id) {
            spending.refresh(heard.amount, heard.seq);
        }
        if !self.loading.is_empty() {
            self.spending_heard.insert(heard.id.clone(), heard.clone());
        }
    }

    /// Whether no look-up runs and nothing is kept for one.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        self.loading.is_empty() && self.balances_heard.is_empty() && self.spending_heard.is_empty()
    }

    fn bring_to_life(&mut self, record: KeyRecord) -> Arc<KeyEntry> {
        let account = self.purse_of(&record.account_id, Some(&record));
        let spending = self.spending.find_or(&record.key_id, || Spending::new(record.spent, record.spent_seq));
        let key_id = record.key_id.clone();
        let entry = Arc::new(KeyEntry::new(record, account, spending));
        self.keys.remember(key_id, &entry);
        entry
    }

    /// The account's purse; a new one has the balance that was looked up, or nothing that it has not leased.
    fn purse_of(&mut self, account_id: &str, record: Option<&KeyRecord>) -> Arc<Purse> {
        let elsewhere = self.elsewhere.get(account_id).copied().unwrap_or_default();
        let (holds, is_leased) = (&self.holds, self.is_leased);
        self.accounts.find_or(account_id, || {
            let purse = match record {
                Some(record) if !is_leased => Purse::gauged(record.balance, record.balance_seq, Arc::clone(holds)),
                _ => Purse::leased(Arc::clone(holds)),
            };
            purse.set_elsewhere(elsewhere);
            purse
        })
    }
}

/// Things by id, for as long as someone holds them.
#[derive(Debug)]
struct Living<T> {
    by_id: HashMap<Arc<str>, Weak<T>>,
    /// At how many names the dead are looked for.
    sweep_at: usize,
}

impl<T> Default for Living<T> {
    fn default() -> Self {
        Self { by_id: HashMap::new(), sweep_at: DEAD_MIN }
    }
}

impl<T> Living<T> {
    fn find(&self, id: &str) -> Option<Arc<T>> {
        self.by_id.get(id)?.upgrade()
    }

    /// The living one, or a new one.
    fn find_or(&mut self, id: &str, new: impl FnOnce() -> T) -> Arc<T> {
        self.find(id).unwrap_or_else(|| {
            let thing = Arc::new(new());
            self.remember(id.into(), &thing);
            thing
        })
    }

    /// Forgets the dead whenever they may be half of all, so the cost of looking for them is spread evenly.
    fn remember(&mut self, id: Arc<str>, thing: &Arc<T>) {
        if self.by_id.len() >= self.sweep_at {
            self.by_id.retain(|_, thing| thing.strong_count() > 0);
            self.sweep_at = self.by_id.len() * 2 + DEAD_MIN;
        }
        self.by_id.insert(id, Arc::downgrade(thing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_forgotten() {
        let mut living = Living::default();
        let held = Arc::new(0);
        living.remember("held".into(), &held);
        for id in 0..10 * DEAD_MIN {
            living.remember(id.to_string().into(), &Arc::new(id));
        }
        assert!(living.by_id.len() <= 2 * DEAD_MIN + 2, "{}", living.by_id.len());
        assert!(living.find("held").is_some_and(|found| Arc::ptr_eq(&found, &held)));
        assert!(living.find("5").is_none());
    }
}
