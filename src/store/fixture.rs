//! A store in a folder of its own with one account and one key, for the tests of this room.

use uuid::Uuid;

use super::{Account, KeyTerms, NewKey, Store};
use crate::relay::auth::KeyDigest;
use crate::relay::meter::{NanoUsd, Usage, UsageRecord, parse_nano_usd};

pub(super) const DIGEST: KeyDigest = KeyDigest([7; 32]);

pub(super) struct Fixture {
    pub(super) store: Store,
    pub(super) url: String,
    pub(super) account_id: String,
    pub(super) key_id: String,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// With an account that was credited once, and a key of that account without terms.
    pub(super) async fn with_credit(usd: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tollgate.db", folder.path().display());
        let store = Store::open(&url).await.unwrap();
        let account_id = store.create_account("Ada", "free", 1_000).await.unwrap().id;
        store.credit(&account_id, NanoUsd(parse_nano_usd(usd).unwrap()), None, 1_000).await.unwrap();
        let key = NewKey { account_id: account_id.clone(), name: "laptop".into(), terms: KeyTerms::default() };
        let key_id = store.create_key(&key, &DIGEST, 1_000).await.unwrap().id;
        Self { store, url, account_id, key_id, _folder: folder }
    }

    pub(super) async fn account(&self) -> Account {
        self.store.account(&self.account_id).await.unwrap()
    }
}

/// A finished request of the fixture's key.
pub(super) fn record(fixture: &Fixture, cost_nano_usd: i64) -> UsageRecord {
    UsageRecord {
        request_id: Uuid::now_v7(),
        account_id: fixture.account_id.as_str().into(),
        key_id: fixture.key_id.as_str().into(),
        model: "gpt-4o".into(),
        provider: "openai".into(),
        status: 200,
        usage: Usage { input: 11, cache_read: 2, cache_write_5m: 3, cache_write_1h: 4, output: 5, reasoning: 1 },
        cost: NanoUsd(cost_nano_usd),
        provider_cost: None,
        estimated: false,
        interrupted: false,
        started_at_ms: 10_000,
        first_token_ms: Some(120),
        total_ms: 900,
    }
}
