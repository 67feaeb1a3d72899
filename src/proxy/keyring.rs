//! The keys that the relay knows: the cache, the store behind it, and the watch over what changes there, and in other processes at
//! the same spool.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

use super::clock::{Clock, micros};
use super::leases::Leases;
use crate::billing::Elsewhere;
use crate::relay::admit::{HoldGauge, TakenLimits};
use crate::relay::auth::{Amount, ApiKey, KeyCache, KeyCacheCounts, KeyDigest, KeyEntry};
use crate::relay::meter::NanoUsd;
use crate::store::{Balance, Store, StoreError};

/// How often the store is asked what has changed: twice within the two seconds after which a change must hold.
const ASK_EVERY: Duration = Duration::from_millis(750);

/// The keys that the relay knows.
pub(super) struct Keyring {
    cache: KeyCache,
    store: Store,
    /// What accounts hold and owe in other processes.
    elsewhere: Elsewhere,
    /// What accounts have here, where this is one node of several.
    leases: Option<Arc<Leases>>,
    clock: Clock,
    /// How long keys that are known are good while the store cannot be asked about them.
    grace: Duration,
    /// When the store last said what has changed.
    heard_us: AtomicU64,
    /// Where the store stood when the cache was empty.
    began: Seen,
    /// Where it stood when its changes were last taken over. Locked while they are.
    seen: Mutex<Seen>,
    store_reachable: AtomicBool,
}

/// How far the store's changes have been taken over.
#[derive(Clone, Copy)]
struct Seen {
    version: i64,
    seq: i64,
}

impl Keyring {
    /// Begins with an empty cache. Keys that are known are good for `grace` after the store last answered.
    ///
    /// # Errors
    /// The store could not be asked.
    pub(super) async fn open(
        store: Store,
        elsewhere: Elsewhere,
        leases: Option<Arc<Leases>>,
        (clock, grace): (Clock, Duration),
    ) -> Result<Self, StoreError> {
        let (version, seq) = (store.changes_since(i64::MAX).await?.version, store.balances_since(i64::MAX).await?.seq);
        let began = Seen { version, seq };
        let store_reachable = AtomicBool::new(true);
        let cache = if leases.is_some() { KeyCache::leased() } else { KeyCache::default() };
        let (seen, heard_us) = (Mutex::new(began), AtomicU64::new(clock.now_us()));
        let keyring = Self { cache, store, elsewhere, leases, clock, grace, heard_us, began, seen, store_reachable };
        // What a process before this one had leased.
        keyring.hear_of_leases(0).await?;
        // Before the first request is admitted: what a dead process left is owed still.
        keyring.catch_up().await?;
        Ok(keyring)
    }

    /// The entry of that key, if there is one; it may be revoked.
    ///
    /// # Errors
    /// The store could not be asked.
    pub(super) async fn lookup(&self, key: &ApiKey) -> Result<Option<Arc<KeyEntry>>, Arc<StoreError>> {
        self.lookup_digest(&key.digest()).await
    }

    async fn lookup_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyEntry>>, Arc<StoreError>> {
        self.cache.find(digest, self.store.find_key(digest)).await
    }

    /// The keys of whose limits something is taken, by the hexadecimal digits of their digests.
    pub(super) fn taken(&self, now_us: u64) -> HashMap<String, TakenLimits> {
        let taken = self.cache.limiters().map(|(digest, limiter)| (digest, limiter.taken(now_us)));
        taken.filter(|(_, taken)| !taken.is_empty()).map(|(digest, taken)| (digest.to_string(), taken)).collect()
    }

    /// How many requests run, of each key that has some.
    pub(super) fn running(&self) -> HashMap<String, u32> {
        let running = self.cache.limiters().map(|(digest, limiter)| (digest, limiter.running()));
        running.filter(|(_, running)| *running > 0).map(|(digest, running)| (digest.to_string(), running)).collect()
    }

    /// The key of those digits, as it was called in [`Keyring::taken`]. One that cannot be found has no limits to be kept to.
    pub(super) async fn named(&self, digits: &str) -> Option<Arc<KeyEntry>> {
        self.lookup_digest(&KeyDigest::from_hex(digits)?).await.ok().flatten()
    }

    /// Takes over what other processes hold and owe now.
    pub(super) async fn look_elsewhere(&self) -> Result<(), StoreError> {
        self.take_over(self.began).await.map(|_| ())
    }

    /// Whether the key is in use already, so that it needs no look-up.
    pub(super) fn knows(&self, key: &ApiKey) -> bool {
        self.cache.knows(&key.digest())
    }

    /// How look-ups ended.
    pub(super) fn counts(&self) -> &KeyCacheCounts {
        self.cache.counts()
    }

    /// What running requests hold.
    pub(super) fn holds(&self) -> &HoldGauge {
        self.cache.holds()
    }

    /// Whether the store answered when it was last asked what has changed.
    pub(super) fn is_store_reachable(&self) -> bool {
        self.store_reachable.load(Ordering::Relaxed)
    }

    /// Whether what is known of keys can still be relied on.
    pub(super) fn is_trusted(&self) -> bool {
        self.clock.now_us().saturating_sub(self.heard_us.load(Ordering::Relaxed)) < micros(self.grace)
    }

    /// Takes the store's changes over, for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut turns = tokio::time::interval(ASK_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let caught_up = self.catch_up().await;
            if let Err(error) = &caught_up {
                tracing::warn!(%error, "the store cannot be asked what has changed");
            }
            self.store_reachable.store(caught_up.is_ok(), Ordering::Relaxed);
        }
    }

    /// Takes over what has changed since the last time.
    ///
    /// # Errors
    /// The store could not be asked.
    pub(super) async fn catch_up(&self) -> Result<(), StoreError> {
        let mut seen = self.seen.lock().await;
        let asked_us = self.clock.now_us();
        *seen = self.take_over(*seen).await?;
        self.heard_us.store(asked_us, Ordering::Relaxed);
        Ok(())
    }

    async fn hear_of_leases(&self, seq: i64) -> Result<(), StoreError> {
        let Some(leases) = &self.leases else { return Ok(()) };
        let news = self.store.leases_since(leases.node_id(), seq).await?;
        let mut leased = Vec::new();
        for (account_id, lease) in news.leases {
            let purse = self.cache.refresh_lease(&account_id, lease);
            leased.extend(purse.filter(|_| lease.amount > NanoUsd(0)).map(|purse| (account_id, purse)));
        }
        leases.hear(&leased, &news.wanted, seq);
        Ok(())
    }

    async fn take_over(&self, seen: Seen) -> Result<Seen, StoreError> {
        // Before the balances, or what the ledger takes in between would count in neither.
        let elsewhere = self.elsewhere.amounts().await;
        let changes = self.store.changes_since(seen.version).await?;
        self.cache.refresh(&changes.keys).await;
        let balances = self.store.balances_since(seen.seq).await?;
        self.cache.refresh_amounts(&amounts(balances.accounts), &amounts(balances.keys));
        self.hear_of_leases(seen.seq).await?;
        match elsewhere {
            Ok(elsewhere) => self.cache.refresh_elsewhere(elsewhere),
            Err(error) => tracing::warn!(%error, "what accounts owe in other processes cannot be read from the spool"),
        }
        Ok(Seen { version: changes.version, seq: balances.seq })
    }
}

fn amounts(balances: Vec<Balance>) -> Vec<Amount> {
    balances.into_iter().map(|Balance { id, amount, seq }| Amount { id: id.into(), amount, seq }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::{self, Durability, SpoolPlace};
    use crate::store::{KeyTerms, NewKey};

    struct Fixture {
        keyring: Keyring,
        store: Store,
        account_id: String,
        _folder: tempfile::TempDir,
    }

    impl Fixture {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&format!("sqlite://{}/tollgate.db", folder.path().display())).await.unwrap();
            let account_id = store.create_account("Ada", "free", 1).await.unwrap().id;
            let place = SpoolPlace {
                path: folder.path().join("spool.db"),
                bytes_max: u64::MAX,
                durability: Durability::Process,
                sinks: Vec::new(),
            };
            let (recorder, _) = billing::open(&place, store.clone()).await.unwrap();
            let keyring = Keyring::open(
                store.clone(),
                recorder.elsewhere().clone(),
                None,
                (Clock::start(), Duration::from_secs(300)),
            );
            let keyring = keyring.await.unwrap();
            Self { keyring, store, account_id, _folder: folder }
        }

        async fn create_key(&self, key: &ApiKey) -> String {
            let terms = KeyTerms::default();
            let new = NewKey { account_id: self.account_id.clone(), name: "laptop".into(), terms };
            self.store.create_key(&new, &key.digest(), 1).await.unwrap().id
        }

        async fn lookup(&self, key: &ApiKey) -> Option<Arc<KeyEntry>> {
            self.keyring.lookup(key).await.unwrap()
        }
    }

    fn key(number: u8) -> ApiKey {
        ApiKey::from_entropy(&[number; ApiKey::ENTROPY_BYTES]).unwrap()
    }

    #[tokio::test]
    async fn what_changes_in_the_store_reaches_keys_in_use() {
        let fixture = Fixture::new().await;
        let began = fixture.keyring.began;
        let key_id = fixture.create_key(&key(1)).await;
        let entry = fixture.lookup(&key(1)).await.unwrap();
        assert_eq!(entry.account.available(), NanoUsd(0));

        fixture.store.credit(&fixture.account_id, NanoUsd(500), None, 2).await.unwrap();
        let seen = fixture.keyring.take_over(began).await.unwrap();
        assert_eq!(entry.account.available(), NanoUsd(500));
        assert!(entry.record().is_good_at(2));

        fixture.store.revoke_key(&key_id, 3).await.unwrap();
        let seen = fixture.keyring.take_over(seen).await.unwrap();
        assert!(!entry.record().is_good_at(3));
        assert!(Arc::ptr_eq(&entry, &fixture.lookup(&key(1)).await.unwrap()), "the same entry, its windows with it");

        fixture.store.set_plan(&fixture.account_id, "pro", 2).await.unwrap();
        fixture.keyring.take_over(seen).await.unwrap();
        assert_eq!(&*entry.record().plan, "pro");
    }

    #[tokio::test]
    async fn a_key_that_was_unknown_is_found_once_it_is_created() {
        let fixture = Fixture::new().await;
        assert!(fixture.lookup(&key(1)).await.is_none());
        fixture.create_key(&key(1)).await;
        assert!(fixture.lookup(&key(1)).await.is_none(), "not asked for again before it is heard of");
        fixture.keyring.take_over(fixture.keyring.began).await.unwrap();
        assert!(fixture.lookup(&key(1)).await.is_some());
    }
}
