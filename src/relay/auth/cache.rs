//! The cache between requests and the store's keys.
//!
//! Nothing in it goes stale by age: whoever polls the store hands over what changed ([`KeyCache::refresh`] and
//! [`KeyCache::refresh_amounts`]), and the record is swapped inside the living entry, whose windows and purses go on. Entries
//! leave when they are not used for long, or are the least recently used of too many; an entry in use is found again even then.
//!
//! Absent: where records come from (the look-up is an argument), and whether a key is good (the record says).

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::future::Cache;
use moka::policy::EvictionPolicy;

use super::registry::{Amount, Registry};
use super::{KeyDigest, KeyRecord};
use crate::relay::admit::{HoldGauge, KeyLimiter, Lease, Purse, Spending};
use crate::relay::meter::NanoUsd;

/// How many keys are kept; one is about 1 KiB. A key that is pushed out while none of its requests runs loses its windows, so
/// this is to be more than the keys that are used in a minute.
pub const FOUND_KEYS_MAX: u64 = 100_000;

/// How many digests of keys that do not exist are kept, 32 bytes each and the cache's own.
pub const UNKNOWN_KEYS_MAX: u64 = 65_536;

/// How long a key stays that nobody uses; far longer than any window.
const FOUND_IDLE: Duration = Duration::from_secs(3600);

/// How long a key is known not to exist. It is forgotten at once when it is heard of; this is for when nothing is heard.
const UNKNOWN_AGE: Duration = Duration::from_secs(30);

/// A key in use: its record, which is swapped when it changes, and what lasts longer than a record.
#[derive(Debug)]
pub struct KeyEntry {
    record: ArcSwap<KeyRecord>,
    /// The key's windows and concurrency.
    pub limiter: Arc<KeyLimiter>,
    /// Its account's credit; all keys of an account share one.
    pub account: Arc<Purse>,
    /// What the key has spent.
    pub spending: Arc<Spending>,
}

impl KeyEntry {
    /// An entry with an account and a spending that may be older than the record is.
    pub(super) fn new(record: KeyRecord, account: Arc<Purse>, spending: Arc<Spending>) -> Self {
        account.refresh(record.balance, record.balance_seq);
        spending.refresh(record.spent, record.spent_seq);
        Self { limiter: Arc::default(), account, spending, record: ArcSwap::from_pointee(record) }
    }

    /// The record as it stands. Its amounts are as of the look-up: the purses know better.
    pub fn record(&self) -> Arc<KeyRecord> {
        self.record.load_full()
    }

    pub(super) fn refresh(&self, record: KeyRecord) {
        self.account.refresh(record.balance, record.balance_seq);
        self.spending.refresh(record.spent, record.spent_seq);
        self.record.store(Arc::new(record));
    }
}

/// How look-ups ended, for `tollgate_key_cache_total{outcome}`.
#[derive(Debug, Default)]
pub struct KeyCacheCounts {
    /// The key was in the cache.
    pub hits: AtomicU64,
    /// It was in the cache that the key does not exist.
    pub unknown_hits: AtomicU64,
    /// The store was asked, or another request's question to it was shared.
    pub misses: AtomicU64,
}

/// Keys by digest, found and not found.
#[derive(Debug)]
pub struct KeyCache {
    found: Cache<KeyDigest, Arc<KeyEntry>>,
    unknown: Cache<KeyDigest, ()>,
    registry: Mutex<Registry>,
    holds: Arc<HoldGauge>,
    counts: KeyCacheCounts,
}

impl Default for KeyCache {
    fn default() -> Self {
        Self::with_capacities(FOUND_KEYS_MAX, UNKNOWN_KEYS_MAX)
    }
}

/// Why a look-up gave no entry.
enum Missing<E> {
    Unknown,
    Failed(Arc<E>),
}

impl KeyCache {
    /// An empty one, in which accounts have what is leased of their balances, and not the balances.
    pub fn leased() -> Self {
        let cache = Self::default();
        cache.registry().set_leased();
        cache
    }

    fn with_capacities(found_keys_max: u64, unknown_keys_max: u64) -> Self {
        // Least recently used, not least frequently: a new key must get in, or its windows would begin anew at each request.
        let found = Cache::builder().max_capacity(found_keys_max).eviction_policy(EvictionPolicy::lru());
        let unknown = Cache::builder().max_capacity(unknown_keys_max).eviction_policy(EvictionPolicy::lru());
        let holds = Arc::<HoldGauge>::default();
        Self {
            found: found.time_to_idle(FOUND_IDLE).build(),
            unknown: unknown.time_to_live(UNKNOWN_AGE).build(),
            registry: Mutex::new(Registry::counting(Arc::clone(&holds))),
            holds,
            counts: KeyCacheCounts::default(),
        }
    }

    /// The key of that digest, or `None` if there is none. `load` is run if the cache knows neither; all who ask for one digest
    /// at a time wait for one `load`.
    ///
    /// # Errors
    /// What `load` failed with, for all who waited for it. A failure is not remembered.
    pub async fn find<E: Send + Sync + 'static>(
        &self,
        digest: &KeyDigest,
        load: impl Future<Output = Result<Option<KeyRecord>, E>>,
    ) -> Result<Option<Arc<KeyEntry>>, Arc<E>> {
        if let Some(entry) = self.found.get(digest).await {
            self.counts.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(entry));
        }
        if self.unknown.get(digest).await.is_some() {
            self.counts.unknown_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
        match self.found.try_get_with_by_ref(digest, self.load(digest, load)).await {
            Ok(entry) => Ok(Some(entry)),
            Err(missing) => match &*missing {
                Missing::Unknown => Ok(None),
                Missing::Failed(error) => Err(Arc::clone(error)),
            },
        }
    }

    async fn load<E>(
        &self,
        digest: &KeyDigest,
        load: impl Future<Output = Result<Option<KeyRecord>, E>>,
    ) -> Result<Arc<KeyEntry>, Missing<E>> {
        let loading = Loading::begin(self, digest);
        let record = load.await.map_err(|error| Missing::Failed(Arc::new(error)))?;
        if record.is_none() {
            // Before it is asked what was heard meanwhile: news that come after that find this and take it away.
            self.unknown.insert(*digest, ()).await;
        }
        let entry = loading.end(record).ok_or(Missing::Unknown)?;
        self.unknown.invalidate(digest).await;
        Ok(entry)
    }

    /// Takes changed keys over: of a key in use the record is swapped, a key that was unknown is forgotten to be.
    pub async fn refresh(&self, records: &[KeyRecord]) {
        for record in records {
            self.registry().hear_of_key(record);
            self.unknown.invalidate(&record.digest).await;
        }
    }

    /// Takes amounts of the ledger over: balances of accounts, and what keys have spent.
    pub fn refresh_amounts(&self, balances: &[Amount], spending: &[Amount]) {
        let mut registry = self.registry();
        balances.iter().for_each(|heard| registry.hear_of_balance(heard));
        spending.iter().for_each(|heard| registry.hear_of_spending(heard));
    }

    /// Takes an account's lease over. Gives its purse, which comes to life where something is leased.
    pub fn refresh_lease(&self, account_id: &str, lease: Lease) -> Option<Arc<Purse>> {
        self.registry().hear_of_lease(account_id, lease)
    }

    /// Takes over what accounts hold and owe in other processes; those that are not named, nothing.
    pub fn refresh_elsewhere(&self, elsewhere: HashMap<Arc<str>, NanoUsd>) {
        self.registry().hear_of_elsewhere(elsewhere);
    }

    /// Whether a key of that digest is in use.
    pub fn knows(&self, digest: &KeyDigest) -> bool {
        self.found.contains_key(digest)
    }

    /// The keys in use, and their limiters.
    pub fn limiters(&self) -> impl Iterator<Item = (KeyDigest, Arc<KeyLimiter>)> {
        self.found.iter().map(|(digest, entry)| (*digest, Arc::clone(&entry.limiter)))
    }

    /// How look-ups ended so far.
    pub fn counts(&self) -> &KeyCacheCounts {
        &self.counts
    }

    /// What running requests hold of all accounts.
    pub fn holds(&self) -> &Arc<HoldGauge> {
        &self.holds
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A look-up that is running. It ends when this is dropped: also when the request that asked goes away.
struct Loading<'a> {
    cache: &'a KeyCache,
    digest: &'a KeyDigest,
}

impl<'a> Loading<'a> {
    fn begin(cache: &'a KeyCache, digest: &'a KeyDigest) -> Self {
        cache.registry().load_began(*digest);
        Self { cache, digest }
    }

    fn end(self, record: Option<KeyRecord>) -> Option<Arc<KeyEntry>> {
        self.cache.registry().loaded(self.digest, record)
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.cache.registry().load_ended(self.digest);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread::{self, Thread};

    use super::*;
    use crate::relay::admit::KeyLimits;
    use crate::relay::meter::NanoUsd;

    type Found = Result<Option<KeyRecord>, &'static str>;

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Runs a future on this thread; the rules of the relay know no runtime.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => thread::park(),
            }
        }
    }

    fn poll_once<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// A look-up that takes until `found` holds something.
    async fn slow(found: &Cell<Option<Found>>) -> Found {
        poll_fn(|_| found.take().map_or(Poll::Pending, Poll::Ready)).await
    }

    fn record() -> KeyRecord {
        KeyRecord::for_tests()
    }

    fn find(cache: &KeyCache, record: Option<KeyRecord>) -> Option<Arc<KeyEntry>> {
        let digest = KeyRecord::for_tests().digest;
        block_on(cache.find(&digest, async { Ok::<_, Infallible>(record) })).unwrap()
    }

    fn counted(cache: &KeyCache) -> [u64; 3] {
        let counts = cache.counts();
        [&counts.hits, &counts.unknown_hits, &counts.misses].map(|count| count.load(Ordering::Relaxed))
    }

    #[test]
    fn found_and_unknown_are_asked_for_once() {
        let cache = KeyCache::default();
        assert!(find(&cache, None).is_none());
        assert!(find(&cache, Some(record())).is_none(), "known not to exist");
        assert_eq!(counted(&cache), [0, 1, 1]);
        block_on(cache.refresh(&[record()]));
        let entry = find(&cache, Some(record())).unwrap();
        assert!(Arc::ptr_eq(&entry, &find(&cache, None).unwrap()));
        assert_eq!(counted(&cache), [1, 1, 2]);
    }

    #[test]
    fn a_failure_reaches_all_who_wait_and_is_not_remembered() {
        let cache = KeyCache::default();
        let digest = record().digest;
        let (answer, asked) = (Cell::new(None), Cell::new(0));
        let load = || async {
            asked.set(asked.get() + 1);
            slow(&answer).await
        };
        let mut waiting: Vec<_> = (0..10).map(|_| Box::pin(cache.find(&digest, load()))).collect();
        assert!(waiting.iter_mut().all(|find| poll_once(find.as_mut()).is_pending()));
        answer.set(Some(Err("down")));
        for find in waiting {
            assert_eq!(block_on(find).unwrap_err().as_ref(), &"down");
        }
        assert_eq!(asked.get(), 1);
        assert!(find(&cache, Some(record())).is_some());
    }

    #[test]
    fn one_look_up_is_shared_and_survives_who_began_it() {
        let cache = KeyCache::default();
        let digest = record().digest;
        let (answer, asked) = (Cell::new(None), Cell::new(0));
        let load = || async {
            asked.set(asked.get() + 1);
            slow(&answer).await
        };
        let mut waiting: Vec<_> = (0..10).map(|_| Box::pin(cache.find(&digest, load()))).collect();
        assert!(waiting.iter_mut().all(|find| poll_once(find.as_mut()).is_pending()));
        assert_eq!(asked.get(), 1);
        drop(waiting.remove(0));
        assert!(poll_once(waiting[0].as_mut()).is_pending());
        answer.set(Some(Ok(Some(record()))));
        let entries: Vec<_> = waiting.into_iter().map(|find| block_on(find).unwrap().unwrap()).collect();
        assert!(entries.iter().all(|entry| Arc::ptr_eq(entry, &entries[0])));
        assert_eq!(asked.get(), 2, "another took the look-up over");
        assert!(cache.registry().is_quiet());
    }

    #[test]
    fn a_change_keeps_windows_and_purses() {
        let cache = KeyCache::default();
        let entry = find(&cache, Some(record())).unwrap();
        let limits = KeyLimits { requests_per_minute: 3, tokens_per_minute: None, concurrent_requests: None };
        let _permit = entry.limiter.admit(&limits, 0, 0).unwrap();
        entry.account.charge(NanoUsd(1));
        let revoked = KeyRecord { active: false, balance: NanoUsd(50), balance_seq: 9, ..record() };
        block_on(cache.refresh(&[revoked]));
        let again = find(&cache, None).unwrap();
        assert!(!again.record().active);
        assert_eq!(again.limiter.view(&limits, 0).requests.remaining, 2);
        assert_eq!(again.account.available(), NanoUsd(49));
    }

    #[test]
    fn an_entry_in_use_is_the_same_after_it_was_evicted() {
        let cache = KeyCache::default();
        let entry = find(&cache, Some(record())).unwrap();
        block_on(cache.found.invalidate(&record().digest));
        let again = find(&cache, Some(KeyRecord { plan: "pro".into(), ..record() })).unwrap();
        assert!(Arc::ptr_eq(&entry, &again));
        assert_eq!(&*entry.record().plan, "pro");
    }

    #[test]
    fn costs_on_their_way_to_the_ledger_outlive_the_entry() {
        let cache = KeyCache::default();
        let entry = find(&cache, Some(record())).unwrap();
        let (account, spending) = (Arc::clone(&entry.account), Arc::clone(&entry.spending));
        account.charge(NanoUsd(10));
        spending.charge(NanoUsd(10));
        drop(entry);
        block_on(cache.found.invalidate(&record().digest));
        block_on(cache.found.run_pending_tasks());
        let again = find(&cache, Some(KeyRecord { spent: NanoUsd(5), spent_seq: 3, ..record() })).unwrap();
        assert!(Arc::ptr_eq(&account, &again.account));
        assert_eq!(again.account.available(), NanoUsd(999_999_990));
        assert_eq!(again.spending.spent(), NanoUsd(15));
    }

    #[test]
    fn keys_of_an_account_share_its_purse() {
        let cache = KeyCache::default();
        let first = find(&cache, Some(record())).unwrap();
        let other = KeyRecord { key_id: "key_2".into(), digest: KeyDigest([8; 32]), ..record() };
        let load = async { Ok::<_, Infallible>(Some(other)) };
        let second = block_on(cache.find(&KeyDigest([8; 32]), load)).unwrap().unwrap();
        first.account.charge(NanoUsd(400_000_000));
        assert_eq!(second.account.available(), NanoUsd(600_000_000));
        cache.refresh_amounts(
            &[Amount { id: "acct_1".into(), amount: NanoUsd(2_000_000_000), seq: 2 }],
            &[Amount { id: "key_2".into(), amount: NanoUsd(77), seq: 2 }],
        );
        assert_eq!(second.account.available(), NanoUsd(1_600_000_000));
        assert_eq!((first.spending.spent(), second.spending.spent()), (NanoUsd(0), NanoUsd(77)));
    }

    #[test]
    fn what_accounts_owe_elsewhere_reaches_their_purses_present_and_to_come() {
        let cache = KeyCache::default();
        let elsewhere = |amount| HashMap::from([("acct_1".into(), NanoUsd(amount)), ("acct_none".into(), NanoUsd(7))]);
        cache.refresh_elsewhere(elsewhere(400_000_000));
        let entry = find(&cache, Some(record())).unwrap();
        assert_eq!(entry.account.available(), NanoUsd(600_000_000));
        cache.refresh_elsewhere(elsewhere(100_000_000));
        assert_eq!(entry.account.available(), NanoUsd(900_000_000));
        cache.refresh_elsewhere(HashMap::new());
        assert_eq!(entry.account.available(), NanoUsd(1_000_000_000));
    }

    #[test]
    fn what_is_heard_during_a_look_up_wins_over_what_it_read() {
        let cache = KeyCache::default();
        let digest = record().digest;
        let answer = Cell::new(None);
        let mut find = pin!(cache.find(&digest, slow(&answer)));
        assert!(poll_once(find.as_mut()).is_pending());
        block_on(cache.refresh(&[KeyRecord { active: false, ..record() }]));
        cache.refresh_amounts(
            &[Amount { id: "acct_1".into(), amount: NanoUsd(5), seq: 2 }],
            &[Amount { id: "key_1".into(), amount: NanoUsd(6), seq: 2 }],
        );
        answer.set(Some(Ok(Some(record()))));
        let entry = block_on(find).unwrap().unwrap();
        assert!(!entry.record().active);
        assert_eq!((entry.account.available(), entry.spending.spent()), (NanoUsd(5), NanoUsd(6)));
        assert!(cache.registry().is_quiet(), "and is not kept");
    }

    #[test]
    fn a_key_created_during_a_look_up_that_missed_it_is_found() {
        let cache = KeyCache::default();
        let digest = record().digest;
        let answer = Cell::new(None);
        let mut find_early = pin!(cache.find(&digest, slow(&answer)));
        assert!(poll_once(find_early.as_mut()).is_pending());
        block_on(cache.refresh(&[record()]));
        answer.set(Some(Ok(None)));
        assert!(block_on(find_early).unwrap().is_some());
        assert!(find(&cache, None).is_some());
    }

    #[test]
    fn both_caches_are_bounded() {
        let cache = KeyCache::with_capacities(10, 10);
        block_on(async {
            for number in 0..200u8 {
                let digest = KeyDigest([number; 32]);
                let key = KeyRecord { key_id: number.to_string().into(), digest, ..record() };
                let found = (number % 2 == 0).then_some(key);
                let _ = cache.find(&digest, async { Ok::<_, Infallible>(found) }).await;
            }
            cache.found.run_pending_tasks().await;
            cache.unknown.run_pending_tasks().await;
        });
        assert!(cache.found.entry_count() <= 10 && cache.unknown.entry_count() <= 10);
        let newest = KeyDigest([198; 32]);
        assert!(block_on(cache.found.get(&newest)).is_some(), "the newest gets in");
    }
}
