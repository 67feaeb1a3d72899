//! What changed since: two counters that a relay polls, so that what the command line or another node does reaches it.
//!
//! `version` numbers changes of keys and accounts, `ledger_seq` movements of money. A counter's row is held from the
//! change to its commit, so numbers are committed in their order: who has seen one has missed none below it.

use super::engine::{Connection, query_as, query_scalar};
use super::key::{self, KeyRecordRow};
use super::{Store, StoreError};
use crate::relay::auth::KeyRecord;
use crate::relay::meter::NanoUsd;

/// Keys that are not as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Where to ask from the next time.
    pub version: i64,
    /// The keys as they are now; revoked ones too.
    pub keys: Vec<KeyRecord>,
}

/// Sums of money that are not as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balances {
    /// Where to ask from the next time.
    pub seq: i64,
    /// What accounts have.
    pub accounts: Vec<Balance>,
    /// What keys have spent in all.
    pub keys: Vec<Balance>,
}

/// A sum of money as of a moment in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// The account or key.
    pub id: String,
    /// The sum.
    pub amount: NanoUsd,
    /// The last ledger entry that the sum includes.
    pub seq: i64,
}

impl Store {
    /// Keys of which the own row or the account's changed after `version`. A relay begins with the answer to
    /// `i64::MAX`, which is the present version and no keys.
    pub async fn changes_since(&self, version: i64) -> Result<Changes, StoreError> {
        let mut transaction = self.read().await?;
        let now = Counter::Version.value(&mut transaction).await?;
        if now <= version {
            return Ok(Changes { version: now, keys: Vec::new() });
        }
        let rows: Vec<KeyRecordRow> =
            query_as(key::RECORDS_CHANGED_SINCE).bind(version).fetch_all(&mut *transaction).await?;
        let keys = rows.into_iter().map(KeyRecord::try_from).collect::<Result<_, _>>()?;
        Ok(Changes { version: now, keys })
    }

    /// Accounts' balances (unless by the handle of a node that leases credit) and keys' spendings that moved after `seq`. A relay begins with the answer to `i64::MAX`,
    /// which is the present number and no sums.
    pub async fn balances_since(&self, seq: i64) -> Result<Balances, StoreError> {
        const ACCOUNTS: &str = "SELECT id, balance_nano_usd, balance_seq FROM accounts WHERE balance_seq > $1";
        const KEYS: &str = "SELECT id, spent_nano_usd, spent_seq FROM api_keys WHERE spent_seq > $1";
        let mut transaction = self.read().await?;
        let now = Counter::LedgerSeq.value(&mut transaction).await?;
        let mut balances = Balances { seq: now, accounts: Vec::new(), keys: Vec::new() };
        if now > seq {
            // Who leases credit sells no balances.
            if self.node.is_none() {
                balances.accounts = sums(&mut transaction, ACCOUNTS, seq).await?;
            }
            balances.keys = sums(&mut transaction, KEYS, seq).await?;
        }
        Ok(balances)
    }
}

async fn sums(connection: &mut Connection, sql: &'static str, seq: i64) -> Result<Vec<Balance>, StoreError> {
    let rows: Vec<(String, i64, i64)> = query_as(sql).bind(seq).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(id, nano, seq)| Balance { id, amount: NanoUsd(nano), seq }).collect())
}

/// The counters, by the names of their rows.
#[derive(Clone, Copy)]
pub(super) enum Counter {
    /// Changes of keys and accounts, but for their money.
    Version,
    /// Movements of money.
    LedgerSeq,
}

impl Counter {
    fn name(self) -> &'static str {
        match self {
            Counter::Version => "version",
            Counter::LedgerSeq => "ledger_seq",
        }
    }

    async fn value(self, connection: &mut Connection) -> Result<i64, StoreError> {
        let value = query_scalar("SELECT value FROM counters WHERE name = $1");
        Ok(value.bind(self.name()).fetch_one(connection).await?)
    }

    /// Takes the next `count` numbers for the transaction; the last of them is returned. Until the transaction ends,
    /// all others who want numbers of this counter wait.
    pub(super) async fn advance(self, connection: &mut Connection, count: i64) -> Result<i64, StoreError> {
        let last = query_scalar("UPDATE counters SET value = value + $1 WHERE name = $2 RETURNING value");
        Ok(last.bind(count).bind(self.name()).fetch_one(connection).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{DIGEST, Fixture, record};
    use super::super::{KeyTerms, NewKey};
    use super::*;
    use crate::relay::auth::KeyDigest;

    #[tokio::test]
    async fn every_change_of_a_key_or_its_account_is_told_once() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let start = store.changes_since(i64::MAX).await.unwrap();
        assert_eq!(start.keys, []);
        let mut version = start.version;
        assert_eq!(store.changes_since(0).await.unwrap().keys.len(), 1, "the past can be asked for");

        store.set_plan(&fixture.account_id, "pro", 2).await.unwrap();
        let plan = told(store, &mut version).await;
        assert_eq!((&*plan[0].plan, plan[0].active, plan[0].digest), ("pro", true, DIGEST));
        store.set_account_active(&fixture.account_id, false, 2).await.unwrap();
        assert!(!told(store, &mut version).await[0].active);
        store.set_account_active(&fixture.account_id, true, 2).await.unwrap();
        assert!(told(store, &mut version).await[0].active);
        store.revoke_key(&fixture.key_id, 2_000).await.unwrap();
        assert!(!told(store, &mut version).await[0].active);

        let new = NewKey { account_id: fixture.account_id.clone(), name: "b".into(), terms: KeyTerms::default() };
        store.create_key(&new, &KeyDigest([8; 32]), 2_000).await.unwrap();
        let created = told(store, &mut version).await;
        assert_eq!(created.iter().map(|key| key.digest).collect::<Vec<_>>(), [KeyDigest([8; 32])]);
        assert_eq!(told(store, &mut version).await, []);
    }

    async fn told(store: &Store, version: &mut i64) -> Vec<KeyRecord> {
        let changes = store.changes_since(*version).await.unwrap();
        *version = changes.version;
        changes.keys
    }

    #[tokio::test]
    async fn an_accounts_change_tells_all_its_keys_and_no_others() {
        let fixture = Fixture::with_credit("5").await;
        let other = fixture.store.create_account("Bob", "free", 1_000).await.unwrap().id;
        for (account_id, byte) in [(&fixture.account_id, 1), (&other, 2)] {
            let new = NewKey { account_id: account_id.clone(), name: "k".into(), terms: KeyTerms::default() };
            fixture.store.create_key(&new, &KeyDigest([byte; 32]), 1_000).await.unwrap();
        }
        let mut version = fixture.store.changes_since(i64::MAX).await.unwrap().version;
        fixture.store.set_plan(&fixture.account_id, "pro", 2).await.unwrap();
        let mut digests: Vec<u8> = told(&fixture.store, &mut version).await.iter().map(|key| key.digest.0[0]).collect();
        digests.sort_unstable();
        assert_eq!(digests, [1, 7]);
    }

    #[tokio::test]
    async fn a_change_through_another_handle_is_told_too() {
        let fixture = Fixture::with_credit("5").await;
        let mut version = fixture.store.changes_since(i64::MAX).await.unwrap().version;
        let other = Store::open(&fixture.url).await.unwrap();
        other.revoke_key(&fixture.key_id, 2_000).await.unwrap();
        assert!(!told(&fixture.store, &mut version).await[0].active);
    }

    #[tokio::test]
    async fn a_refused_change_leaves_no_trace() {
        let fixture = Fixture::with_credit("5").await;
        let before = fixture.store.changes_since(i64::MAX).await.unwrap();
        assert!(fixture.store.set_plan("acct_none", "pro", 2).await.is_err());
        assert!(fixture.store.revoke_key("key_none", 1).await.is_err());
        assert!(fixture.store.credit("acct_none", NanoUsd(1), None, 1).await.is_err());
        assert_eq!(fixture.store.changes_since(i64::MAX).await.unwrap(), before);
        assert_eq!(fixture.store.balances_since(i64::MAX).await.unwrap().seq, 1);
    }

    #[tokio::test]
    async fn sums_that_moved_are_told_and_no_others() {
        let fixture = Fixture::with_credit("5").await;
        let start = fixture.store.balances_since(i64::MAX).await.unwrap();
        assert_eq!((start.seq, start.accounts.len(), start.keys.len()), (1, 0, 0));
        let other = fixture.store.create_account("Bob", "free", 1_000).await.unwrap().id;
        fixture.store.credit(&other, NanoUsd(9), None, 1_000).await.unwrap();
        let credited = fixture.store.balances_since(start.seq).await.unwrap();
        assert_eq!(credited.accounts, [Balance { id: other, amount: NanoUsd(9), seq: 2 }]);
        assert_eq!(credited.keys, []);

        fixture.store.settle(&[record(&fixture, 4), record(&fixture, 6)], None).await.unwrap();
        let settled = fixture.store.balances_since(credited.seq).await.unwrap();
        let account = Balance { id: fixture.account_id.clone(), amount: NanoUsd(4_999_999_990), seq: 4 };
        let key = Balance { id: fixture.key_id.clone(), amount: NanoUsd(10), seq: 4 };
        assert_eq!((settled.seq, settled.accounts, settled.keys), (4, vec![account], vec![key]));
        assert_eq!(fixture.store.balances_since(4).await.unwrap().accounts, []);
    }
}
