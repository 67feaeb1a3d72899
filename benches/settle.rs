//! What entering finished requests costs the store: `cargo bench --bench settle -- [RECORDS [PARCEL [PAYERS [MODELS]]]] [URL]`.
//!
//! In a file of its own; with the URL of an empty database (`postgres://…`) then in that, too.
//!
//! Requests come in parcels, as the spool hands them over, of so many accounts (each with a key) and models: what a parcel has in
//! common is written once. Prints the time of a record. For instructions, `valgrind --tool=callgrind` over two counts of records,
//! whose difference leaves out the opening of the store.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench measures time and prints")]

use std::time::{Duration, Instant};

use tollgate::relay::auth::KeyDigest;
use tollgate::relay::meter::{NanoUsd, Usage, UsageRecord};
use tollgate::store::{KeyTerms, NewKey, Store};
use uuid::Uuid;

/// As in the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// When the first request began: 2026-11-23, in milliseconds since the Unix epoch.
const BEGAN_MS: i64 = 1_795_392_000_000;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |place: usize, usual| numbers.get(place).copied().unwrap_or(usual);
    let (records, parcel, payers, models) = (number(0, 100_000), number(1, 500), number(2, 8), number(3, 1));
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let file = format!("sqlite://{}/tollgate.db", folder.path().display());
    let database = std::env::args().skip(1).find(|argument| argument.starts_with("postgres"));
    for (name, url) in [("SQLite", Some(file)), ("Postgres", database)] {
        let Some(url) = url else { continue };
        let (took, entered) = runtime.block_on(settle(&url, (records, parcel, payers, models)))?;
        let each = took.as_nanos() / u128::try_from(entered.max(1))?;
        println!("{name}: {entered} records in parcels of {parcel}: {each} ns each");
    }
    Ok(())
}

/// How long it took to enter how many records.
async fn settle(
    url: &str,
    (records, parcel, payers, models): (usize, usize, usize, usize),
) -> Result<(Duration, usize), Failure> {
    let store = Store::open(url).await?;
    let payers = open_accounts(&store, payers).await?;
    let (mut entered, mut took) = (0, Duration::ZERO);
    while entered < records {
        let parcel: Vec<_> = (entered..records.min(entered + parcel))
            .map(|number| record(number, &payers[number % payers.len()], number / payers.len() % models))
            .collect();
        let begins = Instant::now();
        store.settle(&parcel, None).await?;
        took += begins.elapsed();
        entered += parcel.len();
    }
    store.close().await;
    Ok((took, entered))
}

/// Accounts, each with a key: the ids of both.
async fn open_accounts(store: &Store, count: usize) -> Result<Vec<(String, String)>, Failure> {
    let mut payers = Vec::with_capacity(count);
    for number in 0..count {
        let account_id = store.create_account("bench", "free", 1).await?.id;
        let key = NewKey { account_id: account_id.clone(), name: "bench".into(), terms: KeyTerms::default() };
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        let key_id = store.create_key(&key, &KeyDigest(digest), 1).await?.id;
        payers.push((account_id, key_id));
    }
    Ok(payers)
}

fn record(number: usize, (account_id, key_id): &(String, String), model: usize) -> UsageRecord {
    UsageRecord {
        request_id: Uuid::now_v7(),
        account_id: account_id.as_str().into(),
        key_id: key_id.as_str().into(),
        model: format!("model-{model}").into(),
        provider: "openai".into(),
        status: 200,
        usage: Usage { input: 1_234, output: 321, ..Usage::default() },
        cost: NanoUsd(378_000),
        provider_cost: None,
        estimated: false,
        interrupted: false,
        started_at_ms: BEGAN_MS + i64::try_from(number).unwrap_or(0),
        first_token_ms: Some(412),
        total_ms: 1_500,
    }
}
