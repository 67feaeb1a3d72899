//! Plans, subscriptions and vouchers as JSON: the same from the admin API and from the command line's `--json`.

use serde::Serialize;
use utoipa::ToSchema;

use crate::relay::auth::VoucherCode;
use crate::relay::meter::rfc3339;
use crate::relay::route::{Catalogue, Plan};
use crate::store::{Period, Subscription, VoucherBatch};

/// The limits of an account's keys, where a key has none of its own, and what a month costs. A limit that is null is none.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Plan)]
pub struct PlanDocument {
    /// What accounts refer to it by.
    pub name: String,
    /// Requests in any 60 seconds.
    requests_per_minute: u32,
    /// Tokens in any 60 seconds.
    #[schema(required)]
    tokens_per_minute: Option<u64>,
    /// Requests at once.
    #[schema(required)]
    concurrent_requests: Option<u32>,
    /// The only models that may be used.
    #[schema(required)]
    models: Option<Vec<String>>,
    /// What a month costs; null is not for sale.
    #[schema(required)]
    price_nano_usd: Option<i64>,
    /// Whether it is the plan of accounts whose own has ended.
    is_default: bool,
}

impl PlanDocument {
    /// A plan of that catalogue.
    pub fn new(catalogue: &Catalogue, plan: &Plan) -> Self {
        let models = plan.models.as_ref();
        Self {
            name: plan.name.to_string(),
            requests_per_minute: plan.requests_per_minute,
            tokens_per_minute: plan.tokens_per_minute,
            concurrent_requests: plan.concurrent_requests,
            models: models.map(|models| models.iter().map(ToString::to_string).collect()),
            price_nano_usd: plan.price.map(|price| price.0),
            is_default: catalogue.default_plan().is_some_and(|default| default.name == plan.name),
        }
    }
}

/// An account's plan by the month.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Subscription)]
pub struct SubscriptionDocument {
    /// `sub_…`.
    id: String,
    account_id: String,
    /// The plan of the present period.
    plan: String,
    /// `credit`, `operator` or `stripe`.
    #[schema(value_type = String)]
    paid_by: &'static str,
    /// Which of its periods is the present one, from 1.
    period: i64,
    #[schema(format = DateTime)]
    period_starts_at: String,
    #[schema(format = DateTime)]
    period_ends_at: String,
    /// What the plan costs for this period.
    price_nano_usd: i64,
    /// Whether another period follows.
    renews: bool,
    /// The plan of that, where it is another.
    #[schema(required)]
    next_plan: Option<String>,
    /// When it ends in any case.
    #[schema(format = DateTime, required)]
    ends_at: Option<String>,
    #[schema(format = DateTime)]
    started_at: String,
    #[schema(format = DateTime, required)]
    ended_at: Option<String>,
    /// `cancelled`, `end_date`, `ended`, `insufficient_credits`, `plan_gone`, `suspended`, `stripe` or `replaced`.
    #[schema(required)]
    end_reason: Option<String>,
}

impl From<&Subscription> for SubscriptionDocument {
    fn from(subscription: &Subscription) -> Self {
        Self {
            id: subscription.id.clone(),
            account_id: subscription.account_id.clone(),
            plan: subscription.plan.clone(),
            paid_by: subscription.paid_by.name(),
            period: subscription.period,
            period_starts_at: rfc3339(subscription.period_starts_ms),
            period_ends_at: rfc3339(subscription.period_ends_ms),
            price_nano_usd: subscription.period_price.0,
            renews: subscription.renews,
            next_plan: subscription.next_plan.clone(),
            ends_at: subscription.ends_at_ms.map(rfc3339),
            started_at: rfc3339(subscription.started_at_ms),
            ended_at: subscription.ended_at_ms.map(rfc3339),
            end_reason: subscription.end_reason.clone(),
        }
    }
}

/// A period of a subscription that began.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SubscriptionPeriod)]
pub struct PeriodDocument {
    /// The subscription's id and the period's number.
    pub id: String,
    plan: String,
    #[schema(format = DateTime)]
    starts_at: String,
    /// When it was to end.
    #[schema(format = DateTime)]
    ends_at: String,
    /// What the plan costs for it.
    price_nano_usd: i64,
    /// The ledger entry that paid for it, where credit did.
    #[schema(required)]
    seq: Option<i64>,
}

impl From<&Period> for PeriodDocument {
    fn from(period: &Period) -> Self {
        Self {
            id: format!("{}.{}", period.subscription_id, period.period),
            plan: period.plan.clone(),
            starts_at: rfc3339(period.starts_ms),
            ends_at: rfc3339(period.ends_ms),
            price_nano_usd: period.price.0,
            seq: period.seq,
        }
    }
}

/// A batch of vouchers, without their codes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VoucherBatch)]
pub struct VoucherBatchDocument {
    /// `vchb_…`.
    id: String,
    /// What each is worth.
    amount_nano_usd: i64,
    /// How many were made.
    vouchers: u64,
    /// How many were redeemed.
    redeemed: u64,
    /// `active`, `used`, `expired` or `revoked`.
    #[schema(value_type = String)]
    status: &'static str,
    /// What the operator wrote beside it.
    #[schema(required)]
    note: Option<String>,
    #[schema(format = DateTime, required)]
    expires_at: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime, required)]
    revoked_at: Option<String>,
}

impl VoucherBatchDocument {
    /// A batch as it stands at that time.
    pub fn new(batch: &VoucherBatch, now_ms: i64) -> Self {
        Self {
            id: batch.id.clone(),
            amount_nano_usd: batch.amount.0,
            vouchers: batch.vouchers,
            redeemed: batch.redeemed,
            status: batch.status_at(now_ms),
            note: batch.note.clone(),
            expires_at: batch.expires_at_ms.map(rfc3339),
            created_at: rfc3339(batch.created_at_ms),
            revoked_at: batch.revoked_at_ms.map(rfc3339),
        }
    }
}

/// A batch that was just made: the only time that its codes are shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedVouchers)]
pub struct CreatedVouchersDocument {
    /// What customers redeem, as `7K3QX-9M2PD-0ZV4T-H8RAC`. Keep them: only their digests are stored.
    codes: Vec<String>,
    #[serde(flatten)]
    about: VoucherBatchDocument,
}

impl CreatedVouchersDocument {
    /// A batch with its codes.
    pub fn new(batch: &VoucherBatch, codes: &[VoucherCode], now_ms: i64) -> Self {
        let codes = codes.iter().map(VoucherCode::expose).collect();
        Self { codes, about: VoucherBatchDocument::new(batch, now_ms) }
    }
}
