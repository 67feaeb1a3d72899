//! Who changed what: beside every change of accounts and keys stands an entry, written in the change's own transaction.
//!
//! Append-only: nothing here changes or deletes an entry. Deliberately absent: what requests do, which ledger and usage say,
//! and secrets: an entry holds what a list of accounts or keys shows.

use std::sync::Arc;

use serde_json::Value;
use sqlx::FromRow;
use uuid::Uuid;

use super::engine::{Connection, query, query_as, query_scalar};
use super::{Store, StoreError};

/// In whose name something is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The relay itself, where nobody asked for it.
    Relay,
    /// Whoever ran a command: the Unix user's name.
    Cli(Arc<str>),
    /// Whoever knows the admin API's token.
    AdminToken,
    /// Stripe, by a signed event.
    Stripe,
    /// Somebody who is signed in: their e-mail address.
    User(Arc<str>),
}

impl Actor {
    /// What kind of actor it is, for tables and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Actor::Relay => "relay",
            Actor::Cli(_) => "cli",
            Actor::AdminToken => "admin-token",
            Actor::Stripe => "stripe",
            Actor::User(_) => "user",
        }
    }

    /// Which one of its kind, where there are several.
    pub fn name(&self) -> Option<&str> {
        match self {
            Actor::Cli(name) | Actor::User(name) => Some(name),
            Actor::Relay | Actor::AdminToken | Actor::Stripe => None,
        }
    }
}

/// A change, and who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// A UUIDv7.
    pub id: String,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// [`Actor::kind`].
    pub actor_kind: String,
    /// [`Actor::name`].
    pub actor_name: Option<String>,
    /// `account.create`, `account.update`, `account.credit`, `key.create`, `key.revoke`, `subscription.start`,
    /// `subscription.renew`, `subscription.change`, `subscription.end`, `voucher.create`, `voucher.revoke`, `voucher.redeem`,
    /// `payment.grant`, `payment.take_back`, `user.create`, `user.update`, `user.password` or `user.link`.
    pub action: String,
    /// `account`, `key`, `voucher-batch` or `user`.
    pub subject_kind: String,
    /// Its id.
    pub subject_id: String,
    /// What changed, as it was; `None` where there was nothing.
    pub before: Option<Value>,
    /// What changed, as it was afterwards.
    pub after: Option<Value>,
}

/// Which entries are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only changes of this account or key.
    pub subject_id: Option<String>,
    /// Only from this time on. Milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
}

/// Where a page of entries ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPosition {
    at_ms: i64,
    id: String,
}

impl AuditPosition {
    /// The position of that entry: the page after it holds what is older.
    pub fn of(entry: &AuditEntry) -> Self {
        Self { at_ms: entry.at_ms, id: entry.id.clone() }
    }
}

/// What was done to what.
pub(super) struct Deed<'a> {
    pub(super) action: Action,
    pub(super) subject_id: &'a str,
    pub(super) before: Option<Value>,
    pub(super) after: Value,
}

/// What can be done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    AccountCreate,
    AccountUpdate,
    AccountCredit,
    KeyCreate,
    KeyRevoke,
    SubscriptionStart,
    SubscriptionRenew,
    SubscriptionChange,
    SubscriptionEnd,
    VoucherCreate,
    VoucherRevoke,
    VoucherRedeem,
    PaymentGrant,
    PaymentTakeBack,
    UserCreate,
    UserUpdate,
    UserPassword,
    UserLink,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::AccountCreate => "account.create",
            Action::AccountUpdate => "account.update",
            Action::AccountCredit => "account.credit",
            Action::KeyCreate => "key.create",
            Action::KeyRevoke => "key.revoke",
            Action::SubscriptionStart => "subscription.start",
            Action::SubscriptionRenew => "subscription.renew",
            Action::SubscriptionChange => "subscription.change",
            Action::SubscriptionEnd => "subscription.end",
            Action::VoucherCreate => "voucher.create",
            Action::VoucherRevoke => "voucher.revoke",
            Action::VoucherRedeem => "voucher.redeem",
            Action::PaymentGrant => "payment.grant",
            Action::PaymentTakeBack => "payment.take_back",
            Action::UserCreate => "user.create",
            Action::UserUpdate => "user.update",
            Action::UserPassword => "user.password",
            Action::UserLink => "user.link",
        }
    }

    fn subject_kind(self) -> &'static str {
        match self {
            Action::KeyCreate | Action::KeyRevoke => "key",
            Action::VoucherCreate | Action::VoucherRevoke => "voucher-batch",
            Action::AccountCreate
            | Action::AccountUpdate
            | Action::AccountCredit
            | Action::SubscriptionStart
            | Action::SubscriptionRenew
            | Action::SubscriptionChange
            | Action::SubscriptionEnd
            | Action::VoucherRedeem
            | Action::PaymentGrant
            | Action::PaymentTakeBack => "account",
            Action::UserCreate | Action::UserUpdate | Action::UserPassword | Action::UserLink => "user",
        }
    }
}

macro_rules! select_entries {
    ($where:literal) => {
        concat!(
            "SELECT id, at_ms, actor_kind, actor_name, action, subject_kind, subject_id, before_change, after_change \
             FROM audit_entries WHERE ",
            $where,
            " AND at_ms >= $2 AND (at_ms, id) < ($3, $4) ORDER BY at_ms DESC, id DESC LIMIT $5"
        )
    };
}

impl Store {
    /// The same store, changed in the name of `actor` from there on.
    #[must_use]
    pub fn in_the_name_of(&self, actor: Actor) -> Self {
        Self { actor, ..self.clone() }
    }

    /// Writes an entry into a change's transaction.
    pub(super) async fn note(
        &self,
        connection: &mut Connection,
        deed: Deed<'_>,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        query(
            "INSERT INTO audit_entries (id, at_ms, actor_kind, actor_name, action, subject_kind, subject_id, \
             before_change, after_change) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(Uuid::now_v7().to_string())
        .bind(now_ms)
        .bind(self.actor.kind())
        .bind(self.actor.name())
        .bind(deed.action.name())
        .bind(deed.action.subject_kind())
        .bind(deed.subject_id)
        .bind(deed.before.map(|before| before.to_string()))
        .bind(deed.after.to_string())
        .execute(connection)
        .await?;
        Ok(())
    }

    /// At most `limit` entries, newest first, from the newest or from where another page ended.
    pub async fn audit_entries(
        &self,
        filter: &AuditFilter,
        after: Option<&AuditPosition>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let sql = match filter.subject_id {
            Some(_) => select_entries!("subject_id = $1"),
            None => select_entries!("$1 = ''"),
        };
        let rows: Vec<EntryRow> = query_as(sql)
            .bind(filter.subject_id.as_deref().unwrap_or_default())
            .bind(filter.since_ms.unwrap_or(i64::MIN))
            .bind(after.map_or(i64::MAX, |after| after.at_ms))
            .bind(after.map_or("", |after| &after.id))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(AuditEntry::try_from).collect()
    }

    /// Where the entry of that id stands, if there is one.
    pub async fn audit_position(&self, id: &str) -> Result<Option<AuditPosition>, StoreError> {
        let at_ms: Option<i64> =
            query_scalar("SELECT at_ms FROM audit_entries WHERE id = $1").bind(id).fetch_optional(&self.pool).await?;
        Ok(at_ms.map(|at_ms| AuditPosition { at_ms, id: id.to_owned() }))
    }
}

#[derive(FromRow)]
struct EntryRow {
    id: String,
    at_ms: i64,
    actor_kind: String,
    actor_name: Option<String>,
    action: String,
    subject_kind: String,
    subject_id: String,
    before_change: Option<String>,
    after_change: Option<String>,
}

impl TryFrom<EntryRow> for AuditEntry {
    type Error = StoreError;

    fn try_from(row: EntryRow) -> Result<Self, StoreError> {
        let read = |what: &'static str, text: Option<String>| {
            let damaged = |_| StoreError::Damaged { what, id: row.id.clone() };
            text.map(|text| serde_json::from_str(&text).map_err(damaged)).transpose()
        };
        Ok(Self {
            before: read("before_change", row.before_change)?,
            after: read("after_change", row.after_change)?,
            id: row.id,
            at_ms: row.at_ms,
            actor_kind: row.actor_kind,
            actor_name: row.actor_name,
            action: row.action,
            subject_kind: row.subject_kind,
            subject_id: row.subject_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{Fixture, record};
    use super::super::{AccountChange, KeyTerms, NewKey};
    use super::*;
    use crate::relay::auth::KeyDigest;
    use crate::relay::meter::NanoUsd;

    async fn entries(store: &Store) -> Vec<AuditEntry> {
        store.audit_entries(&AuditFilter::default(), None, 100).await.unwrap()
    }

    #[tokio::test]
    async fn every_change_has_its_entry_in_the_name_of_who_made_it() {
        let fixture = Fixture::with_credit("5").await;
        let (store, id) = (fixture.store.in_the_name_of(Actor::Cli("ada".into())), &fixture.account_id);
        let made = entries(&store).await.len();
        assert_eq!(made, 3, "the fixture's account, credit and key");
        store.set_plan(id, "pro", 2_000).await.unwrap();
        let both = AccountChange { name: Some("Bea"), active: Some(false), plan: None };
        store.in_the_name_of(Actor::AdminToken).update_account(id, &both, 3_000).await.unwrap();
        store.revoke_key(&fixture.key_id, 4_000).await.unwrap();
        let found = entries(&store).await;
        let [revoked, updated, planned] = &found[..found.len() - made] else { panic!("{found:?}") };
        assert_eq!((&*planned.actor_kind, planned.actor_name.as_deref()), ("cli", Some("ada")));
        assert_eq!((&*planned.action, &planned.subject_id, planned.at_ms), ("account.update", id, 2_000));
        let plans = (json!({"plan": "free"}), json!({"plan": "pro"}));
        assert_eq!((planned.before.as_ref(), planned.after.as_ref()), (Some(&plans.0), Some(&plans.1)));
        assert_eq!((&*updated.actor_kind, updated.actor_name.as_deref()), ("admin-token", None));
        assert_eq!(updated.after, Some(json!({"name": "Bea", "status": "suspended"})));
        assert_eq!(
            (&*revoked.action, &*revoked.subject_kind, &revoked.subject_id),
            ("key.revoke", "key", &fixture.key_id)
        );
    }

    #[tokio::test]
    async fn what_changes_nothing_and_what_is_refused_leave_no_entry() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        store.revoke_key(&fixture.key_id, 2_000).await.unwrap();
        let before = entries(store).await;
        store.revoke_key(&fixture.key_id, 3_000).await.unwrap();
        store.set_plan(&fixture.account_id, "free", 3_000).await.unwrap();
        store.settle(&[record(&fixture, 5)], None).await.unwrap();
        assert!(store.set_plan("acct_none", "pro", 3_000).await.is_err());
        assert!(store.credit("acct_none", NanoUsd(1), None, 3_000).await.is_err());
        assert_eq!(entries(store).await, before);
    }

    #[tokio::test]
    async fn no_digest_stands_in_an_entry() {
        let fixture = Fixture::with_credit("5").await;
        let digest = KeyDigest([9; 32]);
        let new = NewKey { account_id: fixture.account_id.clone(), name: "k".into(), terms: KeyTerms::default() };
        fixture.store.create_key(&new, &digest, 2_000).await.unwrap();
        let told = format!("{:?}", entries(&fixture.store).await);
        assert!(told.contains("key.create") && !told.contains(&digest.to_string()), "{told}");
    }

    #[tokio::test]
    async fn entries_are_paged_and_filtered() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        for at in 0..5 {
            store.credit(&fixture.account_id, NanoUsd(1), None, 2_000 + at / 2).await.unwrap();
        }
        let filter = AuditFilter { subject_id: Some(fixture.account_id.clone()), since_ms: Some(2_000) };
        let all = store.audit_entries(&filter, None, 100).await.unwrap();
        assert_eq!(all.len(), 5);
        let mut paged: Vec<AuditEntry> = Vec::new();
        loop {
            let after = paged.last().map(AuditPosition::of);
            let page = store.audit_entries(&filter, after.as_ref(), 2).await.unwrap();
            if page.is_empty() {
                break;
            }
            paged.extend(page);
            // Whatever is added meanwhile stands before.
            store.credit(&fixture.account_id, NanoUsd(1), None, 9_000).await.unwrap();
        }
        assert_eq!(paged, all);
        let position = store.audit_position(&all[4].id).await.unwrap();
        assert_eq!(position, Some(AuditPosition::of(&all[4])));
        assert_eq!(store.audit_position("none").await.unwrap(), None);
    }
}
