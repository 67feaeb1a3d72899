//! Accounts, keys and the rest as JSON: the same from the admin API and from the command line's `--json`.
//!
//! Names and units are what programs build on: they do not change. A request's own object is `relay::meter`'s; here, what the operator
//! sees besides is put to it.

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::relay::meter::{TokensDocument, UsageDocument, UsageRecord, rfc3339};
use crate::store::{Account, AuditEntry, By, Credit, Key, Node, UsageTotal, User};

/// A customer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Account)]
pub struct AccountDocument {
    /// `acct_…`.
    id: String,
    /// For people; need not be unique.
    name: String,
    /// The plan, by name.
    plan: String,
    /// `active` or `suspended`.
    #[schema(value_type = String)]
    status: &'static str,
    /// What is left of the credit.
    balance_nano_usd: i64,
    #[schema(format = DateTime)]
    created_at: String,
}

impl From<&Account> for AccountDocument {
    fn from(account: &Account) -> Self {
        Self {
            id: account.id.clone(),
            name: account.name.clone(),
            plan: account.plan.clone(),
            status: account.status(),
            balance_nano_usd: account.balance.0,
            created_at: rfc3339(account.created_at_ms),
        }
    }
}

/// A movement of an account's money that no request caused.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Credit)]
pub struct CreditDocument {
    /// Its place in the ledger.
    seq: i64,
    account_id: String,
    /// `grant`; where the amount is negative, `correction`, or `fee` for a plan's month.
    #[schema(value_type = String)]
    kind: &'static str,
    amount_nano_usd: i64,
    /// What the operator wrote beside it, or what it was for.
    #[schema(required)]
    note: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
}

impl CreditDocument {
    /// A credit of that account.
    pub fn new(account_id: &str, credit: Credit) -> Self {
        Self {
            seq: credit.seq,
            account_id: account_id.to_owned(),
            kind: credit.kind.name(),
            amount_nano_usd: credit.amount.0,
            note: credit.note,
            created_at: rfc3339(credit.created_at_ms),
        }
    }
}

/// A node that sells from the store.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Node)]
pub struct NodeDocument {
    /// `node_…`.
    id: String,
    /// For people; need not be unique.
    name: String,
    /// The program's.
    version: String,
    /// `live`, `draining` (it is to get no more requests) or `gone`.
    #[schema(value_type = String)]
    status: &'static str,
    draining: bool,
    /// Rises when its leases are taken back.
    epoch: i64,
    #[schema(format = DateTime)]
    started_at: String,
    /// When it last renewed its leases.
    #[schema(format = DateTime)]
    seen_at: String,
    /// Until when they are its own.
    #[schema(format = DateTime)]
    expires_at: String,
    /// What it may still spend, of all accounts.
    leased_nano_usd: i64,
}

impl NodeDocument {
    /// A node as it is at that time.
    pub fn new(node: &Node, now_ms: i64) -> Self {
        Self {
            id: node.id.clone(),
            name: node.name.clone(),
            version: node.version.clone(),
            status: Self::status(node, now_ms),
            draining: node.draining,
            epoch: node.epoch,
            started_at: rfc3339(node.started_at_ms),
            seen_at: rfc3339(node.seen_at_ms),
            expires_at: rfc3339(node.expires_at_ms),
            leased_nano_usd: node.leased.0,
        }
    }

    /// In one word.
    pub fn status(node: &Node, now_ms: i64) -> &'static str {
        match node.draining {
            _ if node.expires_at_ms <= now_ms => "gone",
            true => "draining",
            false => "live",
        }
    }
}

/// An API key, without the key itself. A limit that is null is the plan's.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Key)]
pub struct KeyDocument {
    /// `key_…`; not the key.
    id: String,
    account_id: String,
    /// For people; need not be unique.
    name: String,
    /// `active`, `revoked` or `expired`.
    #[schema(value_type = String)]
    status: &'static str,
    /// Requests in any 60 seconds.
    #[schema(required)]
    requests_per_minute: Option<u32>,
    /// Tokens in any 60 seconds.
    #[schema(required)]
    tokens_per_minute: Option<u64>,
    /// Requests at once.
    #[schema(required)]
    concurrent_requests: Option<u32>,
    /// What it may spend in all; null is without bound.
    #[schema(required)]
    budget_nano_usd: Option<i64>,
    /// The only models that it may use; null is all of the plan's.
    #[schema(required)]
    models: Option<Vec<String>>,
    /// The only networks that it may be used from, in CIDR notation; any where empty.
    allow_ip: Vec<String>,
    #[schema(format = DateTime, required)]
    expires_at: Option<String>,
    /// Its limits are at most the plan's, whichever plan the account has then: what customers make for themselves is so.
    within_plan: bool,
    /// What it has spent in all.
    spent_nano_usd: i64,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime, required)]
    revoked_at: Option<String>,
}

impl KeyDocument {
    /// A key as it stands at that time.
    pub fn new(key: &Key, now_ms: i64) -> Self {
        let terms = &key.terms;
        Self {
            id: key.id.clone(),
            account_id: key.account_id.clone(),
            name: key.name.clone(),
            status: key.status_at(now_ms).name(),
            requests_per_minute: terms.requests_per_minute,
            tokens_per_minute: terms.tokens_per_minute,
            concurrent_requests: terms.concurrent_requests,
            budget_nano_usd: terms.budget.map(|budget| budget.0),
            models: terms.models.clone(),
            allow_ip: terms.allow_ip.iter().map(IpNet::to_string).collect(),
            expires_at: terms.expires_at_ms.map(rfc3339),
            within_plan: terms.within_plan,
            spent_nano_usd: key.spent.0,
            created_at: rfc3339(key.created_at_ms),
            revoked_at: key.revoked_at_ms.map(rfc3339),
        }
    }
}

/// A key that was just made: the only time that `key` is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedKey)]
pub struct CreatedKeyDocument {
    /// `tg_live_…`: what clients send. Keep it: only its digest is stored.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub about: KeyDocument,
}

/// A request as the operator sees it: with what the provider charges for it, which is in no document that customers get.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageRecord)]
pub struct RequestDocument<'a> {
    #[serde(flatten)]
    request: UsageDocument<'a>,
    /// What the provider charges for it; null where the configuration does not say.
    #[schema(required)]
    provider_cost_nano_usd: Option<i64>,
}

impl<'a> From<&'a UsageRecord> for RequestDocument<'a> {
    fn from(record: &'a UsageRecord) -> Self {
        Self { request: UsageDocument::from(record), provider_cost_nano_usd: record.provider_cost.map(|cost| cost.0) }
    }
}

/// Sums over the requests of one account, model, key, provider or day; which one, one of the first five says.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageTotal)]
pub struct UsageTotalDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// UTC, `YYYY-MM-DD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    requests: u64,
    /// Of those, how many were answered with a status of 400 or more.
    errors: u64,
    #[serde(flatten)]
    tokens: TokensDocument,
    cost_nano_usd: i64,
    /// What providers charge for them, as far as that is known.
    provider_cost_nano_usd: i64,
    /// How many of the requests used tokens of which it is not known what the provider charges for them.
    uncosted_requests: u64,
}

impl UsageTotalDocument {
    /// A sum by that.
    pub fn new(by: By, total: &UsageTotal) -> Self {
        let group = |of: By| (by == of).then(|| total.group.clone());
        Self {
            account_id: group(By::Account),
            model: group(By::Model),
            key_id: group(By::Key),
            provider: group(By::Provider),
            day: group(By::Day),
            requests: total.requests,
            errors: total.errors,
            tokens: TokensDocument::from(&total.usage),
            cost_nano_usd: total.cost.0,
            provider_cost_nano_usd: total.provider_cost.0,
            uncosted_requests: total.uncosted,
        }
    }
}

/// Who changed what.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct AuditDocument {
    /// A UUIDv7.
    id: String,
    #[schema(format = DateTime)]
    at: String,
    /// `user`, `cli`, `admin-token`, `stripe` or `relay`.
    actor_kind: String,
    /// For `user`, the e-mail address; for `cli`, the Unix user's name.
    #[schema(required)]
    actor_name: Option<String>,
    /// `account.create`, `account.update`, `account.credit`, `key.create`, `key.revoke`, `subscription.start`,
    /// `subscription.renew`, `subscription.change`, `subscription.end`, `voucher.create`, `voucher.revoke`, `voucher.redeem`,
    /// `payment.grant`, `payment.take_back`, `user.create`, `user.update`, `user.password` or `user.link`.
    action: String,
    /// `account`, `key`, `voucher-batch` or `user`.
    subject_kind: String,
    subject_id: String,
    /// What changed, as it was; null where there was nothing.
    #[schema(value_type = Option<Object>, required)]
    before: Option<Value>,
    /// What changed, as it was afterwards.
    #[schema(value_type = Option<Object>, required)]
    after: Option<Value>,
}

impl From<AuditEntry> for AuditDocument {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id,
            at: rfc3339(entry.at_ms),
            actor_kind: entry.actor_kind,
            actor_name: entry.actor_name,
            action: entry.action,
            subject_kind: entry.subject_kind,
            subject_id: entry.subject_id,
            before: entry.before,
            after: entry.after,
        }
    }
}

/// Somebody who may sign in to the dashboard.
#[derive(Debug, Serialize)]
pub struct UserDocument {
    /// `user_…`.
    pub id: String,
    /// In lower case.
    pub email: String,
    /// `customer` or `operator`.
    pub role: &'static str,
    /// Whose keys, usage and money are theirs.
    pub account_id: Option<String>,
    /// `active`, `invited` (there is no password yet) or `suspended`.
    pub status: &'static str,
    /// RFC 3339, UTC.
    pub created_at: String,
}

impl From<&User> for UserDocument {
    fn from(user: &User) -> Self {
        Self {
            id: user.id.clone(),
            email: user.email.clone(),
            role: user.role.name(),
            account_id: user.account_id.clone(),
            status: user.status(),
            created_at: rfc3339(user.created_at_ms),
        }
    }
}

/// A link that lets somebody in once. This program sends no mail: pass it on.
#[derive(Debug, Serialize)]
pub struct LinkDocument {
    /// Whom it lets in.
    pub user: UserDocument,
    /// `invite`, `reset` or `sign_in`.
    pub purpose: &'static str,
    /// The whole address, shown this once.
    pub url: String,
    /// RFC 3339, UTC.
    pub expires_at: String,
}
