//! Plans by the month: how an account's subscription begins, changes, renews and ends.
//!
//! The rules, one for each:
//! - A month is paid whole when it begins, and counted by the calendar from the day on which it all began.
//! - Up (to a plan that costs more) is at once: a new month begins now, and what is unused of the month that was paid is taken off its
//!   price, by the millisecond, and rounded up to the cent.
//! - Down is at the period's end, for what was paid for is had. So is a cancellation.
//! - Where the credit does not cover the next month, the account goes to the default plan. So it does at every other end.
//! - Months in which nobody renewed (no process ran) are not charged afterwards.
//!
//! Every operation is one transaction with its entry in the trail, and none has its effect twice: asking for what is already so
//! changes nothing, and a period has one number, which cannot be entered again. Deliberately absent: prices and the default plan, which
//! come from the configuration with each call, and a clock.

mod renew;
mod rows;
mod step;

pub use renew::Renewal;
pub(super) use renew::STRIPE_GRACE_MS;
pub(super) use rows::{finish, insert, live, save};
pub use step::{Offer, SubscriptionChange};

use serde_json::{Value, json};

use super::period::months_after;
use crate::relay::meter::NanoUsd;

pub(super) const NANO_USD_PER_CENT: i64 = 10_000_000;

/// An account's plan by the month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// `sub_` and a UUIDv7 in hexadecimal.
    pub id: String,
    /// Whose it is.
    pub account_id: String,
    /// The plan of the present period.
    pub plan: String,
    /// Who pays.
    pub paid_by: PaidBy,
    /// From when its months are counted. Milliseconds since the Unix epoch, as all times here.
    pub anchor_ms: i64,
    /// Which of its periods is the present one, from 1.
    pub period: i64,
    /// When that began.
    pub period_starts_ms: i64,
    /// When that ends, and the next begins if there is to be one.
    pub period_ends_ms: i64,
    /// What the plan costs for it.
    pub period_price: NanoUsd,
    /// Whether another period follows.
    pub renews: bool,
    /// The plan of that, where it is another.
    pub next_plan: Option<String>,
    /// When it ends in any case.
    pub ends_at_ms: Option<i64>,
    /// What Stripe knows it by.
    pub stripe_subscription: Option<String>,
    /// When it began.
    pub started_at_ms: i64,
    /// When it ended, if it did.
    pub ended_at_ms: Option<i64>,
    /// Why: [`EndReason::name`].
    pub end_reason: Option<String>,
}

/// Who pays for a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaidBy {
    /// The account, from its credit.
    Credit,
    /// The operator: nothing is charged.
    Operator,
    /// The customer, at Stripe.
    Stripe,
}

impl PaidBy {
    /// As the store, tables and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            PaidBy::Credit => "credit",
            PaidBy::Operator => "operator",
            PaidBy::Stripe => "stripe",
        }
    }
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndReason {
    /// It was cancelled before.
    Cancelled,
    /// Its date came.
    EndDate,
    /// Somebody ended it at once.
    Ended,
    /// The credit did not cover the next month.
    InsufficientCredits,
    /// The configuration sells the plan no more.
    PlanGone,
    /// The account is suspended.
    Suspended,
    /// Stripe ended it, or was not paid.
    Stripe,
    /// One that is paid at Stripe took its place.
    Replaced,
}

impl EndReason {
    pub(super) fn name(self) -> &'static str {
        match self {
            EndReason::Cancelled => "cancelled",
            EndReason::EndDate => "end_date",
            EndReason::Ended => "ended",
            EndReason::InsufficientCredits => "insufficient_credits",
            EndReason::PlanGone => "plan_gone",
            EndReason::Suspended => "suspended",
            EndReason::Stripe => "stripe",
            EndReason::Replaced => "replaced",
        }
    }
}

/// A period that began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// Of which subscription.
    pub subscription_id: String,
    /// Which of its periods, from 1.
    pub period: i64,
    /// The plan.
    pub plan: String,
    /// When it began.
    pub starts_ms: i64,
    /// When it was to end.
    pub ends_ms: i64,
    /// What the plan costs for it.
    pub price: NanoUsd,
    /// The ledger entry that paid for it, where credit did.
    pub seq: Option<i64>,
}

impl Subscription {
    /// Begins a month at that time.
    fn begin(&mut self, offer: Offer<'_>, paid_by: PaidBy, now_ms: i64) {
        offer.plan.clone_into(&mut self.plan);
        self.paid_by = paid_by;
        self.anchor_ms = now_ms;
        self.period += 1;
        self.period_starts_ms = now_ms;
        self.period_ends_ms = months_after(now_ms, 1);
        self.period_price = if paid_by == PaidBy::Operator { NanoUsd(0) } else { offer.price };
        self.renews = true;
        self.next_plan = None;
    }

    /// What is to be paid where a plan of that price takes this one's place at that time.
    pub fn fee_of_change(&self, price: NanoUsd, now_ms: i64) -> NanoUsd {
        NanoUsd(price.0.saturating_sub(self.unused(now_ms).0).max(0))
    }

    /// What was paid for the rest of the period, rounded up to the cent.
    fn unused(&self, now_ms: i64) -> NanoUsd {
        let length = i128::from(self.period_ends_ms) - i128::from(self.period_starts_ms);
        let rest = (i128::from(self.period_ends_ms) - i128::from(now_ms)).clamp(0, length.max(0));
        if length <= 0 || rest == 0 {
            return NanoUsd(0);
        }
        // Whole cents of a price that is whole cents.
        let cents = i128::from(self.period_price.0 / NANO_USD_PER_CENT);
        let unused = (cents * rest + length - 1) / length * i128::from(NANO_USD_PER_CENT);
        NanoUsd(i64::try_from(unused).unwrap_or(self.period_price.0))
    }

    /// For the trail: what operations change.
    pub(super) fn told(&self) -> Value {
        json!({
            "subscription": self.id,
            "plan": self.plan,
            "paid_by": self.paid_by.name(),
            "period_ends_at_ms": self.period_ends_ms,
            "price_nano_usd": self.period_price,
            "renews": self.renews,
            "next_plan": self.next_plan,
            "ends_at_ms": self.ends_at_ms,
        })
    }
}

#[cfg(test)]
mod tests;
