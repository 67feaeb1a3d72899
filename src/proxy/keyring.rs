//! The keys that the relay knows: the cache, the store behind it, and the watch over what changes there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::relay::auth::{Amount, ApiKey, KeyCache, KeyCacheCounts, KeyEntry};
use crate::store::{Balance, Store, StoreError};

/// How often the store is asked what has changed: twice within the two seconds after which a change must hold.
const ASK_EVERY: Duration = Duration::from_millis(750);

/// The keys that the relay knows.
pub(super) struct Keyring {
    cache: KeyCache,
    store: Store,
    /// Where the store stood when the cache was empty.
    began: Seen,
    store_reachable: AtomicBool,
}

/// How far the store's changes have been taken over.
#[derive(Clone, Copy)]
struct Seen {
    version: i64,
    seq: i64,
}

impl Keyring {
    /// Begins with an empty cache.
    ///
    /// # Errors
    /// The store could not be asked.
    pub(super) async fn open(store: Store) -> Result<Self, StoreError> {
        let (version, seq) = (store.changes_since(i64::MAX).await?.version, store.balances_since(i64::MAX).await?.seq);
        let began = Seen { version, seq };
        Ok(Self { cache: KeyCache::default(), store, began, store_reachable: AtomicBool::new(true) })
    }

    /// The entry of that key, if there is one; it may be revoked.
    ///
    /// # Errors
    /// The store could not be asked.
    pub(super) async fn lookup(&self, key: &ApiKey) -> Result<Option<Arc<KeyEntry>>, Arc<StoreError>> {
        let digest = key.digest();
        self.cache.find(&digest, self.store.find_key(&digest)).await
    }

    /// Whether the key is in use already, so that it needs no look-up.
    pub(super) fn knows(&self, key: &ApiKey) -> bool {
        self.cache.knows(&key.digest())
    }

    /// How look-ups ended.
    pub(super) fn counts(&self) -> &KeyCacheCounts {
        self.cache.counts()
    }

    /// Whether the store answered when it was last asked what has changed.
    pub(super) fn is_store_reachable(&self) -> bool {
        self.store_reachable.load(Ordering::Relaxed)
    }

    /// Takes the store's changes over, for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut turns = tokio::time::interval(ASK_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.began;
        loop {
            turns.tick().await;
            let reachable = match self.take_over(seen).await {
                Ok(now) => {
                    seen = now;
                    true
                }
                Err(error) => {
                    tracing::warn!(%error, "the store cannot be asked what has changed");
                    false
                }
            };
            self.store_reachable.store(reachable, Ordering::Relaxed);
        }
    }

    async fn take_over(&self, seen: Seen) -> Result<Seen, StoreError> {
        let changes = self.store.changes_since(seen.version).await?;
        self.cache.refresh(&changes.keys).await;
        let balances = self.store.balances_since(seen.seq).await?;
        self.cache.refresh_amounts(&amounts(balances.accounts), &amounts(balances.keys));
        Ok(Seen { version: changes.version, seq: balances.seq })
    }
}

fn amounts(balances: Vec<Balance>) -> Vec<Amount> {
    balances.into_iter().map(|Balance { id, amount, seq }| Amount { id: id.into(), amount, seq }).collect()
}
