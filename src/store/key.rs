//! API keys: only their digests are here.

use ipnet::IpNet;
use serde_json::{Value, json};
use uuid::Uuid;

use super::change::Counter;
use super::engine::{Connection, query, query_as};
use super::trail::{Action, Deed};
use super::{Store, StoreError, account};
use crate::relay::auth::{KeyDigest, KeyRecord};
use crate::relay::meter::{NanoUsd, rfc3339};

/// The terms on which a key is given; where `None`, the plan's hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyTerms {
    /// Requests in any 60 seconds.
    pub requests_per_minute: Option<u32>,
    /// Tokens in any 60 seconds.
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    pub concurrent_requests: Option<u32>,
    /// What the key may spend in all; without bound where `None`.
    pub budget: Option<NanoUsd>,
    /// The ids of the models that it may use.
    pub models: Option<Vec<String>>,
    /// The networks that it may be used from; any where empty.
    pub allow_ip: Vec<IpNet>,
    /// Milliseconds since the Unix epoch; for ever where `None`.
    pub expires_at_ms: Option<i64>,
    /// Its limits are at most the plan's, whichever plan that is then: what customers make for themselves is so.
    pub within_plan: bool,
}

/// A key to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Whose it is.
    pub account_id: String,
    /// For people; need not be unique.
    pub name: String,
    /// What it may do.
    pub terms: KeyTerms,
}

/// A key as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `key_` and a UUIDv7 in hexadecimal; not the key.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// For people; need not be unique.
    pub name: String,
    /// What it may do.
    pub terms: KeyTerms,
    /// What it has spent in all.
    pub spent: NanoUsd,
    /// Milliseconds since the Unix epoch, once it is revoked.
    pub revoked_at_ms: Option<i64>,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: i64,
}

/// Whether a key is good, apart from its account's state and its money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    /// It is.
    Active,
    /// It was taken back, for good.
    Revoked,
    /// Its time is over.
    Expired,
}

impl KeyStatus {
    /// For tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            KeyStatus::Active => "active",
            KeyStatus::Revoked => "revoked",
            KeyStatus::Expired => "expired",
        }
    }
}

impl Key {
    /// Whether the key is good at that time.
    pub fn status_at(&self, unix_ms: i64) -> KeyStatus {
        match self.terms.expires_at_ms {
            _ if self.revoked_at_ms.is_some() => KeyStatus::Revoked,
            Some(expires) if expires <= unix_ms => KeyStatus::Expired,
            _ => KeyStatus::Active,
        }
    }
}

macro_rules! select_record {
    ($rest:literal) => {
        concat!(
            "SELECT k.id, k.account_id, k.digest, a.plan, a.active AND k.revoked_at_ms IS NULL AS active, \
             k.requests_per_minute, k.tokens_per_minute, k.concurrent_requests, k.budget_nano_usd, k.models, \
             k.allow_ip, k.expires_at_ms, k.within_plan, a.balance_nano_usd, a.balance_seq, k.spent_nano_usd, k.spent_seq \
             FROM api_keys k JOIN accounts a ON a.id = k.account_id ",
            $rest
        )
    };
}

/// Written so that each half of the condition has an index of its own.
pub(super) const RECORDS_CHANGED_SINCE: &str =
    select_record!("WHERE k.version > $1 OR k.account_id IN (SELECT id FROM accounts WHERE version > $1)");

macro_rules! select_key {
    ($($rest:literal),+) => {
        concat!(
            "SELECT id, account_id, name, requests_per_minute, tokens_per_minute, concurrent_requests, \
             budget_nano_usd, models, allow_ip, expires_at_ms, within_plan, spent_nano_usd, revoked_at_ms, created_at_ms \
             FROM api_keys ",
            $($rest),+
        )
    };
}

macro_rules! select_page {
    ($where:literal) => {
        select_key!(
            "WHERE ",
            $where,
            " AND number > COALESCE((SELECT number FROM api_keys WHERE id = $2), -1) ORDER BY number LIMIT $3"
        )
    };
}

impl Store {
    /// The key of that digest, with what is needed of its account; revoked and expired ones too.
    pub async fn find_key(&self, digest: &KeyDigest) -> Result<Option<KeyRecord>, StoreError> {
        let row: Option<KeyRecordRow> =
            query_as(select_record!("WHERE k.digest = $1")).bind(digest.to_string()).fetch_optional(&self.pool).await?;
        row.map(KeyRecord::try_from).transpose()
    }

    /// A new key, known by its digest.
    pub async fn create_key(&self, new: &NewKey, digest: &KeyDigest, now_ms: i64) -> Result<Key, StoreError> {
        let mut transaction = self.write().await?;
        let version = Counter::Version.advance(&mut transaction, 1).await?;
        account::find(&mut transaction, &new.account_id).await?;
        let id = format!("key_{}", Uuid::now_v7().simple());
        let terms = &new.terms;
        query(
            "INSERT INTO api_keys (id, account_id, name, digest, requests_per_minute, tokens_per_minute, \
             concurrent_requests, budget_nano_usd, models, allow_ip, expires_at_ms, revoked_at_ms, spent_nano_usd, \
             spent_seq, version, created_at_ms, number, within_plan) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, NULL, 0, 0, $12, $13, $12, $14)",
        )
        .bind(&id)
        .bind(&new.account_id)
        .bind(&new.name)
        .bind(digest.to_string())
        .bind(terms.requests_per_minute.map(i64::from))
        .bind(terms.tokens_per_minute.map(saturating_i64))
        .bind(terms.concurrent_requests.map(i64::from))
        .bind(terms.budget.map(|budget| budget.0))
        .bind(terms.models.as_deref().map(list_to_text))
        .bind(list_to_text(&terms.allow_ip.iter().map(IpNet::to_string).collect::<Vec<_>>()))
        .bind(terms.expires_at_ms)
        .bind(version)
        .bind(now_ms)
        .bind(terms.within_plan)
        .execute(&mut *transaction)
        .await?;
        let key = find(&mut transaction, &id).await?;
        let deed = Deed { action: Action::KeyCreate, subject_id: &id, before: None, after: told(&key) };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(key)
    }

    /// The key of that id, revoked and expired ones too.
    pub async fn key(&self, id: &str) -> Result<Key, StoreError> {
        find(&mut self.pool.acquire().await?, id).await
    }

    /// The keys of an account, or all, oldest first.
    pub async fn keys(&self, account_id: Option<&str>) -> Result<Vec<Key>, StoreError> {
        let rows: Vec<KeyRow> = match account_id {
            Some(id) => {
                let of_account = select_key!("WHERE account_id = $1 ORDER BY number");
                query_as(of_account).bind(id).fetch_all(&self.pool).await?
            }
            None => query_as(select_key!("ORDER BY number")).fetch_all(&self.pool).await?,
        };
        rows.into_iter().map(Key::try_from).collect()
    }

    /// At most `limit` keys of an account, or of all, oldest first, from the first or from those after the key of that id,
    /// which is taken to be there.
    pub async fn keys_after(
        &self,
        account_id: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Key>, StoreError> {
        let sql = match account_id {
            Some(_) => select_page!("account_id = $1"),
            None => select_page!("$1 = ''"),
        };
        let rows: Vec<KeyRow> = query_as(sql)
            .bind(account_id.unwrap_or_default())
            .bind(after.unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(Key::try_from).collect()
    }

    /// Takes a key back for good. Answers with the key as it is then; one that was revoked before stays as it was.
    pub async fn revoke_key(&self, id: &str, now_ms: i64) -> Result<Key, StoreError> {
        let mut transaction = self.write().await?;
        let version = Counter::Version.advance(&mut transaction, 1).await?;
        let before = find(&mut transaction, id).await?;
        if before.revoked_at_ms.is_some() {
            return Ok(before);
        }
        query("UPDATE api_keys SET revoked_at_ms = $1, version = $2 WHERE id = $3")
            .bind(now_ms)
            .bind(version)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        let key = find(&mut transaction, id).await?;
        let [was, is] = [&before, &key].map(|key| json!({"status": key.status_at(now_ms).name()}));
        let deed = Deed { action: Action::KeyRevoke, subject_id: id, before: Some(was), after: is };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(key)
    }
}

async fn find(connection: &mut Connection, id: &str) -> Result<Key, StoreError> {
    let row: Option<KeyRow> = query_as(select_key!("WHERE id = $1")).bind(id).fetch_optional(connection).await?;
    row.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?.try_into()
}

/// A key as its audit entry tells of it.
fn told(key: &Key) -> Value {
    let terms = &key.terms;
    json!({
        "account_id": key.account_id,
        "name": key.name,
        "requests_per_minute": terms.requests_per_minute,
        "tokens_per_minute": terms.tokens_per_minute,
        "concurrent_requests": terms.concurrent_requests,
        "budget_nano_usd": terms.budget,
        "models": terms.models,
        "allow_ip": terms.allow_ip.iter().map(IpNet::to_string).collect::<Vec<_>>(),
        "expires_at": terms.expires_at_ms.map(rfc3339),
        "within_plan": terms.within_plan,
    })
}

/// The terms as stored: lists are JSON texts, numbers signed.
#[derive(sqlx::FromRow)]
struct TermsRow {
    requests_per_minute: Option<i64>,
    tokens_per_minute: Option<i64>,
    concurrent_requests: Option<i64>,
    budget_nano_usd: Option<i64>,
    models: Option<String>,
    allow_ip: String,
    expires_at_ms: Option<i64>,
    within_plan: bool,
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    id: String,
    account_id: String,
    name: String,
    #[sqlx(flatten)]
    terms: TermsRow,
    spent_nano_usd: i64,
    revoked_at_ms: Option<i64>,
    created_at_ms: i64,
}

#[derive(sqlx::FromRow)]
pub(super) struct KeyRecordRow {
    id: String,
    account_id: String,
    digest: String,
    plan: String,
    active: bool,
    #[sqlx(flatten)]
    terms: TermsRow,
    balance_nano_usd: i64,
    balance_seq: i64,
    spent_nano_usd: i64,
    spent_seq: i64,
}

impl TermsRow {
    fn read(self, id: &str) -> Result<KeyTerms, StoreError> {
        let damaged = |what| move || StoreError::Damaged { what, id: id.to_owned() };
        let allow_ip = list_from_text(&self.allow_ip)
            .and_then(|list| list.iter().map(|network| network.parse().ok()).collect::<Option<_>>())
            .ok_or_else(damaged("allow_ip"))?;
        Ok(KeyTerms {
            requests_per_minute: unsigned(self.requests_per_minute).ok_or_else(damaged("requests_per_minute"))?,
            tokens_per_minute: unsigned(self.tokens_per_minute).ok_or_else(damaged("tokens_per_minute"))?,
            concurrent_requests: unsigned(self.concurrent_requests).ok_or_else(damaged("concurrent_requests"))?,
            budget: self.budget_nano_usd.map(NanoUsd),
            models: self.models.map(|text| list_from_text(&text).ok_or_else(damaged("models"))).transpose()?,
            allow_ip,
            expires_at_ms: self.expires_at_ms,
            within_plan: self.within_plan,
        })
    }
}

impl TryFrom<KeyRow> for Key {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<Self, StoreError> {
        Ok(Self {
            terms: row.terms.read(&row.id)?,
            id: row.id,
            account_id: row.account_id,
            name: row.name,
            spent: NanoUsd(row.spent_nano_usd),
            revoked_at_ms: row.revoked_at_ms,
            created_at_ms: row.created_at_ms,
        })
    }
}

impl TryFrom<KeyRecordRow> for KeyRecord {
    type Error = StoreError;

    fn try_from(row: KeyRecordRow) -> Result<Self, StoreError> {
        let terms = row.terms.read(&row.id)?;
        let digest = KeyDigest::from_hex(&row.digest)
            .ok_or_else(|| StoreError::Damaged { what: "digest", id: row.id.clone() })?;
        Ok(Self {
            key_id: row.id.into(),
            account_id: row.account_id.into(),
            digest,
            plan: row.plan.into(),
            active: row.active,
            expires_at_ms: terms.expires_at_ms,
            within_plan: terms.within_plan,
            requests_per_minute: terms.requests_per_minute,
            tokens_per_minute: terms.tokens_per_minute,
            concurrent_requests: terms.concurrent_requests,
            budget: terms.budget,
            models: terms.models.map(|models| models.into_iter().map(Into::into).collect()),
            allow_ip: terms.allow_ip,
            balance: NanoUsd(row.balance_nano_usd),
            balance_seq: row.balance_seq,
            spent: NanoUsd(row.spent_nano_usd),
            spent_seq: row.spent_seq,
        })
    }
}

/// `None` where the stored number is not one that this program writes.
fn unsigned<N: TryFrom<i64>>(stored: Option<i64>) -> Option<Option<N>> {
    stored.map(N::try_from).transpose().ok()
}

pub(super) fn saturating_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn list_to_text(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}

fn list_from_text(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{DIGEST, Fixture, record};
    use super::*;

    #[tokio::test]
    async fn a_key_is_found_by_its_digest_with_what_its_account_has() {
        let fixture = Fixture::with_credit("5").await;
        fixture.store.settle(&[record(&fixture, 100)], None).await.unwrap();
        let found = fixture.store.find_key(&DIGEST).await.unwrap().unwrap();
        let expected = KeyRecord {
            key_id: fixture.key_id.as_str().into(),
            account_id: fixture.account_id.as_str().into(),
            digest: DIGEST,
            plan: "free".into(),
            active: true,
            expires_at_ms: None,
            within_plan: false,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrent_requests: None,
            budget: None,
            models: None,
            allow_ip: Vec::new(),
            balance: NanoUsd(4_999_999_900),
            balance_seq: 2,
            spent: NanoUsd(100),
            spent_seq: 2,
        };
        assert_eq!(found, expected);
        assert_eq!(fixture.store.find_key(&KeyDigest([8; 32])).await.unwrap(), None);
    }

    #[tokio::test]
    async fn terms_come_back_as_they_were_given() {
        let fixture = Fixture::with_credit("5").await;
        let terms = KeyTerms {
            requests_per_minute: Some(u32::MAX),
            tokens_per_minute: Some(i64::MAX as u64),
            concurrent_requests: Some(1),
            budget: Some(NanoUsd(0)),
            models: Some(vec!["Pro/zai-org/GLM-5.1".into(), "a\"b,c".into()]),
            allow_ip: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            expires_at_ms: Some(-1),
            within_plan: true,
        };
        let new = NewKey { account_id: fixture.account_id.clone(), name: "all".into(), terms: terms.clone() };
        let digest = KeyDigest([9; 32]);
        let created = fixture.store.create_key(&new, &digest, 5_000).await.unwrap();
        assert_eq!((&created.terms, created.created_at_ms, created.revoked_at_ms), (&terms, 5_000, None));
        let keys = fixture.store.keys(Some(&fixture.account_id)).await.unwrap();
        assert_eq!(keys[1], created, "oldest first");
        let found = fixture.store.find_key(&digest).await.unwrap().unwrap();
        assert_eq!((found.requests_per_minute, found.tokens_per_minute), (Some(u32::MAX), Some(i64::MAX as u64)));
        assert_eq!((found.concurrent_requests, found.budget), (Some(1), Some(NanoUsd(0))));
        assert_eq!(found.models.unwrap()[1], "a\"b,c".into());
        assert_eq!((found.allow_ip, found.expires_at_ms), (terms.allow_ip, Some(-1)));
        assert!(found.within_plan);
    }

    #[tokio::test]
    async fn a_revoked_key_stays_revoked_since_the_first_time() {
        let fixture = Fixture::with_credit("5").await;
        fixture.store.revoke_key(&fixture.key_id, 2_000).await.unwrap();
        let key = fixture.store.revoke_key(&fixture.key_id, 3_000).await.unwrap();
        assert_eq!(key.revoked_at_ms, Some(2_000));
        assert!(!fixture.store.find_key(&DIGEST).await.unwrap().unwrap().active);
    }

    #[tokio::test]
    async fn status_is_of_a_moment() {
        let fixture = Fixture::with_credit("5").await;
        let mut key = fixture.store.keys(None).await.unwrap().remove(0);
        assert_eq!(key.status_at(i64::MAX), KeyStatus::Active);
        key.terms.expires_at_ms = Some(10);
        assert_eq!((key.status_at(9), key.status_at(10)), (KeyStatus::Active, KeyStatus::Expired));
        key.revoked_at_ms = Some(5);
        assert_eq!(key.status_at(10), KeyStatus::Revoked);
    }

    #[tokio::test]
    async fn a_digest_is_given_once() {
        let fixture = Fixture::with_credit("5").await;
        let new = NewKey { account_id: fixture.account_id.clone(), name: "twin".into(), terms: KeyTerms::default() };
        assert!(fixture.store.create_key(&new, &DIGEST, 1).await.is_err());
        let stranger = NewKey { account_id: "acct_none".into(), ..new };
        let error = fixture.store.create_key(&stranger, &KeyDigest([8; 32]), 1).await.unwrap_err();
        assert!(matches!(error, StoreError::UnknownAccount(id) if id == "acct_none"));
    }

    #[tokio::test]
    async fn a_damaged_row_is_named() {
        let fixture = Fixture::with_credit("5").await;
        query("UPDATE api_keys SET allow_ip = '[\"nowhere\"]'").execute(&fixture.store.pool).await.unwrap();
        let error = fixture.store.find_key(&DIGEST).await.unwrap_err().to_string();
        assert!(error.contains("allow_ip") && error.contains(&fixture.key_id), "{error}");
    }
}
