//! Which purses wait for the ledger, so that a settled cost leaves the purse that it was charged to.
//!
//! Holds one entry for each account and key that has records in the spool, not one for each record: the spool may hold millions
//! while the store cannot be reached.

use std::collections::HashMap;
use std::sync::Arc;

use crate::relay::admit::{Charge, Purse, Spending};
use crate::relay::meter::UsageRecord;
use crate::store::Settled;

/// Purses with charges that the ledger does not have yet.
#[derive(Debug, Default)]
pub(super) struct Debts {
    accounts: Waiting<Purse>,
    keys: Waiting<Spending>,
}

impl Debts {
    /// A request was charged to its purses and will be settled.
    pub(super) fn charged(&mut self, record: &UsageRecord, charge: &Charge) {
        self.accounts.add(&record.account_id, &charge.account);
        self.keys.add(&record.key_id, &charge.spending);
    }

    /// Requests charged before are in the ledger.
    pub(super) fn settled(&mut self, records: &[UsageRecord], settled: &[Settled]) {
        for (record, settled) in records.iter().zip(settled) {
            if let Some(account) = self.accounts.take(&record.account_id) {
                let credit = settled.credit();
                account.settled(record.cost, credit.amount, credit.seq);
            }
            if let Some(spending) = self.keys.take(&record.key_id) {
                spending.settled(record.cost, settled.spent, settled.spent_seq);
            }
        }
    }
}

/// Things by id, each with the number of records that it waits for. Being held here, an account's purse stays the one that new
/// requests of the account are given, even if the cache of keys forgets it.
#[derive(Debug)]
struct Waiting<T>(HashMap<Box<str>, (Arc<T>, u64)>);

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Waiting<T> {
    fn add(&mut self, id: &str, thing: &Arc<T>) {
        match self.0.get_mut(id) {
            Some((_, records)) => *records += 1,
            None => {
                self.0.insert(id.into(), (Arc::clone(thing), 1));
            }
        }
    }

    fn take(&mut self, id: &str) -> Option<Arc<T>> {
        let (thing, records) = self.0.get_mut(id)?;
        *records -= 1;
        if *records > 0 {
            return Some(Arc::clone(thing));
        }
        self.0.remove(id).map(|(thing, _)| thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_held_for_as_long_as_it_waits() {
        let mut waiting = Waiting::default();
        let thing = Arc::new(5);
        waiting.add("a", &thing);
        waiting.add("a", &thing);
        assert_eq!((Arc::strong_count(&thing), waiting.0.len()), (2, 1));
        assert_eq!(waiting.take("a").as_deref(), Some(&5));
        assert_eq!(waiting.take("a").as_deref(), Some(&5));
        assert_eq!(waiting.take("a"), None);
        assert_eq!((Arc::strong_count(&thing), waiting.0.len()), (1, 0));
    }
}
