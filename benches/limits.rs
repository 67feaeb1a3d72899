//! What stands before every request: the key's check, and its window; alone and with others at the same time.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use divan::{Bencher, black_box};
use tollgate::relay::admit::{Hold, KeyLimiter, KeyLimits, Purse, Spending};
use tollgate::relay::auth::{ApiKey, KeyCache, KeyRecord};
use tollgate::relay::meter::NanoUsd;

/// Shows what is allocated.
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

/// More than any bench admits, so that the windows that are measured are never full.
const UNLIMITED: u32 = u32::MAX;

fn main() {
    divan::main();
}

/// The value of a future that has nothing to wait for.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a cache hit does not wait"),
    }
}

fn key(number: u8) -> ApiKey {
    ApiKey::from_entropy(&[number; ApiKey::ENTROPY_BYTES]).unwrap_or_else(|| unreachable!("enough entropy"))
}

/// A cache of so many keys, with one of them to look for.
fn cache(keys: u8) -> (KeyCache, String) {
    let cache = KeyCache::default();
    for number in 0..keys {
        let record = record(&key(number), number);
        let _ = now(cache.find(&record.digest, async { Ok::<_, Infallible>(Some(record.clone())) }));
    }
    (cache, key(keys / 2).expose().to_owned())
}

fn record(key: &ApiKey, number: u8) -> KeyRecord {
    KeyRecord {
        key_id: format!("key_{number}").into(),
        account_id: "acct_1".into(),
        digest: key.digest(),
        plan: "max".into(),
        active: true,
        expires_at_ms: None,
        within_plan: false,
        requests_per_minute: None,
        tokens_per_minute: None,
        concurrent_requests: None,
        budget: None,
        models: None,
        allow_ip: Vec::new(),
        balance: NanoUsd(1_000_000_000),
        balance_seq: 1,
        spent: NanoUsd(0),
        spent_seq: 0,
    }
}

/// From the header's text to the key's entry: form and checksum, digest, cache hit.
#[divan::bench(threads = [1, 2, 8])]
fn key_check(bencher: Bencher) {
    let (cache, text) = cache(200);
    bencher.bench(|| {
        let key = ApiKey::parse(black_box(&text))?;
        now(cache.find(&key.digest(), async { Ok::<_, Infallible>(None) })).ok().flatten()
    });
}

/// What a key with a wrong checksum costs: no digest, no look-up.
#[divan::bench]
fn key_check_wrong_checksum(bencher: Bencher) {
    let mut text = key(7).expose().to_owned();
    let last = if text.pop() == Some('0') { '1' } else { '0' };
    text.push(last);
    bencher.bench(|| ApiKey::parse(black_box(&text)));
}

/// One key's window under contention: a request a microsecond is admitted and ends; 60 seconds of them are in the window when
/// it has run for long.
#[divan::bench(threads = [1, 2, 8, 64])]
fn admission(bencher: Bencher) {
    let limits = KeyLimits { requests_per_minute: UNLIMITED, tokens_per_minute: None, concurrent_requests: None };
    contend(bencher, limits, 1);
}

/// The same with every limit there is, at 300 requests in the window: a plan's key in steady use.
#[divan::bench(threads = [1, 2, 8, 64])]
fn admission_all_limits(bencher: Bencher) {
    let limits = KeyLimits {
        requests_per_minute: UNLIMITED,
        tokens_per_minute: Some(u64::MAX),
        concurrent_requests: Some(UNLIMITED),
    };
    contend(bencher, limits, 200_000);
}

/// What a key costs that is over its limit.
#[divan::bench(threads = [1, 8])]
fn admission_refused(bencher: Bencher) {
    let limits = KeyLimits { requests_per_minute: 30, tokens_per_minute: None, concurrent_requests: None };
    let limiter = Arc::new(KeyLimiter::default());
    for _ in 0..30 {
        let _ = limiter.admit(&limits, 0, 0).map(drop);
    }
    bencher.bench(|| limiter.admit(black_box(&limits), 0, 1).map(drop));
}

/// One account's hold under contention: taken from account and key, settled at half of it, and entered into the ledger.
#[divan::bench(threads = [1, 2, 8, 64])]
fn hold_and_settle(bencher: Bencher) {
    let account = Arc::new(Purse::new(NanoUsd(i64::MAX / 2), 1));
    let spending = Arc::new(Spending::new(NanoUsd(0), 1));
    bencher.bench(|| {
        let hold = Hold::take(&account, &spending, None, NanoUsd(black_box(100_000)), NanoUsd(900_000)).ok()?;
        let charge = hold.settle(NanoUsd(450_000));
        charge.account.settled(charge.cost, NanoUsd(0), 0);
        charge.spending.settled(charge.cost, NanoUsd(0), 0);
        Some(charge)
    });
}

/// What an account costs that has nothing left: the early look, and the hold.
#[divan::bench(threads = [1, 8])]
fn hold_refused(bencher: Bencher) {
    let account = Arc::new(Purse::new(NanoUsd(0), 1));
    let spending = Arc::new(Spending::new(NanoUsd(0), 1));
    bencher.bench(|| Hold::take(&account, &spending, None, NanoUsd(black_box(1)), NanoUsd(2)).is_ok());
}

fn contend(bencher: Bencher, limits: KeyLimits, apart_us: u64) {
    let limiter = Arc::new(KeyLimiter::default());
    let clock_us = AtomicU64::new(0);
    bencher.bench(|| {
        let now_us = clock_us.fetch_add(apart_us, Ordering::Relaxed);
        limiter.admit(black_box(&limits), 1_000, now_us).map(drop)
    });
}
