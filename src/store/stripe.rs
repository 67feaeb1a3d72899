//! What Stripe has told, and what follows from it for credit and plans.
//!
//! Events come late, twice, and in any order. So none of them is an instruction: each makes what is known of a payment or a subscription
//! more (amounts only grow, a later state stands before an earlier one, an end is for good), and from what is known follows what the
//! account has. An event is remembered by its id in the transaction of its effect. Whatever is refunded or contested is taken from the
//! credit that it had bought, also where the balance falls below zero by it; a contest that is won gives it back.
//!
//! Deliberately absent: signatures and Stripe's wire format, which are `relay`'s, and which price is which plan.

use serde_json::json;
use sqlx::FromRow;
use uuid::Uuid;

use super::account::{self, move_money};
use super::engine::{Connection, query, query_as, query_scalar};
use super::subscription::{self, EndReason, NANO_USD_PER_CENT, STRIPE_GRACE_MS};
use super::trail::{Action, Deed};
use super::{CreditKind, PaidBy, Store, StoreError, Subscription};
use crate::relay::meter::NanoUsd;
use crate::relay::stripe::{Event, Invoice, State, Told};

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripeOutcome {
    /// It is known now.
    Taken,
    /// It was before.
    Repeated,
    /// It tells nothing that matters here.
    Ignored,
    /// It is of an account that this store does not have: several relays may have one account at Stripe.
    UnknownAccount,
    /// It is of a price that no plan has.
    UnknownPrice,
    /// It is of money in another currency than USD.
    OtherCurrency,
}

impl StripeOutcome {
    /// As the store and the log have it.
    pub fn name(self) -> &'static str {
        match self {
            StripeOutcome::Taken => "taken",
            StripeOutcome::Repeated => "repeated",
            StripeOutcome::Ignored => "ignored",
            StripeOutcome::UnknownAccount => "unknown_account",
            StripeOutcome::UnknownPrice => "unknown_price",
            StripeOutcome::OtherCurrency => "other_currency",
        }
    }
}

/// What the configuration says to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StripePlans<'a> {
    /// The plan of the price that the event names.
    pub of_price: Option<&'a str>,
    /// The plan of accounts whose own has ended.
    pub default: &'a str,
}

#[derive(FromRow)]
struct PaymentRow {
    account_id: Option<String>,
    paid_cents: i64,
    refunded_cents: i64,
    disputed_cents: i64,
    dispute_won: bool,
    granted_cents: i64,
    taken_back_cents: i64,
}

#[derive(Clone, FromRow, PartialEq, Eq)]
struct SubscribedRow {
    id: String,
    account_id: Option<String>,
    plan: Option<String>,
    period_starts_ms: i64,
    period_ends_ms: i64,
    price_nano_usd: i64,
    paid_told_at_ms: i64,
    paid_told_by: String,
    next_plan: Option<String>,
    renews: bool,
    state_told_at_ms: i64,
    state_told_by: String,
    deleted: bool,
}

impl Store {
    /// Takes an event, and does what follows from what is known then.
    pub async fn take_stripe_event(
        &self,
        event: &Event,
        plans: StripePlans<'_>,
        now_ms: i64,
    ) -> Result<StripeOutcome, StoreError> {
        let mut transaction = self.write().await?;
        if is_known(&mut transaction, event).await? {
            return Ok(StripeOutcome::Repeated);
        }
        let outcome = self.effect(&mut transaction, event, plans, now_ms).await?;
        if outcome == StripeOutcome::UnknownPrice {
            // Not remembered, so that it can be sent again when the configuration has the price.
            return Ok(outcome);
        }
        query(
            "INSERT INTO stripe_events (id, kind, created_at_ms, received_at_ms, outcome) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&event.id)
        .bind(&event.kind)
        .bind(event.created_ms)
        .bind(now_ms)
        .bind(outcome.name())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn effect(
        &self,
        connection: &mut Connection,
        event: &Event,
        plans: StripePlans<'_>,
        now_ms: i64,
    ) -> Result<StripeOutcome, StoreError> {
        let account = match &event.told {
            Told::Paid(payment) => Some(&*payment.account),
            Told::Subscribed { account, .. } => Some(&**account),
            Told::Invoice(invoice) => invoice.account.as_deref(),
            Told::State(state) => state.account.as_deref(),
            Told::OtherCurrency => return Ok(StripeOutcome::OtherCurrency),
            Told::Nothing => return Ok(StripeOutcome::Ignored),
            Told::Refunded { .. } | Told::Disputed { .. } | Told::DisputeWon { .. } => None,
        };
        if let Some(account) = account
            && !has_account(connection, account).await?
        {
            return Ok(StripeOutcome::UnknownAccount);
        }
        match &event.told {
            Told::Paid(payment) => self.payment(connection, &payment.payment_intent, &event.told, now_ms).await,
            Told::Refunded { payment_intent, .. }
            | Told::Disputed { payment_intent, .. }
            | Told::DisputeWon { payment_intent } => {
                self.payment(connection, payment_intent, &event.told, now_ms).await
            }
            Told::Subscribed { subscription, .. } => {
                self.subscribed(connection, (subscription, event), plans, now_ms).await
            }
            Told::Invoice(Invoice { subscription, .. }) if plans.of_price.is_some() => {
                self.subscribed(connection, (subscription, event), plans, now_ms).await
            }
            Told::Invoice(_) => Ok(StripeOutcome::UnknownPrice),
            Told::State(State { subscription, .. }) => {
                self.subscribed(connection, (subscription, event), plans, now_ms).await
            }
            Told::OtherCurrency | Told::Nothing => Ok(StripeOutcome::Ignored),
        }
    }

    /// What is known of a payment, and the credit that follows.
    async fn payment(
        &self,
        connection: &mut Connection,
        payment_intent: &str,
        told: &Told,
        now_ms: i64,
    ) -> Result<StripeOutcome, StoreError> {
        let mut row = payment_row(connection, payment_intent).await?;
        let why = match told {
            Told::Paid(payment) => {
                row.account_id = Some(payment.account.clone());
                row.paid_cents = row.paid_cents.max(payment.cents);
                "paid"
            }
            Told::Refunded { cents, .. } => {
                row.refunded_cents = row.refunded_cents.max(*cents);
                "refunded"
            }
            Told::Disputed { cents, .. } => {
                row.disputed_cents = row.disputed_cents.max(*cents);
                "contested"
            }
            _ => {
                row.dispute_won = true;
                "contest won"
            }
        };
        if let Some(id) = row.account_id.clone() {
            let contested = if row.dispute_won { 0 } else { row.disputed_cents };
            let taken_back = row.refunded_cents.saturating_add(contested).min(row.paid_cents);
            let moves = [(row.paid_cents - row.granted_cents, "paid"), (row.taken_back_cents - taken_back, why)];
            for (cents, why) in moves.into_iter().filter(|(cents, _)| *cents != 0) {
                let note = format!("Stripe {payment_intent}: {why}");
                self.move_cents(connection, &id, (cents, &note), now_ms).await?;
            }
            (row.granted_cents, row.taken_back_cents) = (row.paid_cents, taken_back);
        }
        save_payment(connection, payment_intent, &row).await?;
        Ok(StripeOutcome::Taken)
    }

    async fn move_cents(
        &self,
        connection: &mut Connection,
        id: &str,
        (cents, note): (i64, &str),
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let amount = cents.checked_mul(NANO_USD_PER_CENT).map(NanoUsd).ok_or(StoreError::AmountTooLarge)?;
        let (kind, action) = match amount.0 < 0 {
            true => (CreditKind::Correction, Action::PaymentTakeBack),
            false => (CreditKind::Grant, Action::PaymentGrant),
        };
        let (credit, balance) = move_money(connection, id, kind, (amount, note), now_ms).await?;
        let before = Some(json!({"balance_nano_usd": balance.0.saturating_sub(amount.0)}));
        let after = json!({"balance_nano_usd": balance, "amount_nano_usd": amount, "note": note, "seq": credit.seq});
        self.note(connection, Deed { action, subject_id: id, before, after }, now_ms).await
    }

    /// What is known of a subscription at Stripe, and the plan that follows.
    async fn subscribed(
        &self,
        connection: &mut Connection,
        (id, event): (&str, &Event),
        plans: StripePlans<'_>,
        now_ms: i64,
    ) -> Result<StripeOutcome, StoreError> {
        let before = subscribed_row(connection, id).await?;
        let mut row = before.clone();
        match &event.told {
            Told::Subscribed { account, .. } => row.account_id = Some(account.clone()),
            Told::Invoice(invoice) => row.pay(invoice, event, plans.of_price),
            Told::State(state) => row.stand(state, event, plans.of_price),
            _ => {}
        }
        if row != before {
            save_subscribed(connection, &row).await?;
        }
        if let Some(account_id) = &row.account_id {
            self.follow_stripe(connection, account_id, plans.default, now_ms).await?;
        }
        Ok(StripeOutcome::Taken)
    }

    /// Makes an account's subscription what is known of those that it has at Stripe: of several, the one that is paid for the longest.
    async fn follow_stripe(
        &self,
        connection: &mut Connection,
        account_id: &str,
        default_plan: &str,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let paid = longest_paid(connection, account_id, now_ms).await?;
        let present = subscription::live(connection, account_id).await?;
        let (action, before, after) = match (paid, present) {
            (Some(paid), Some(present)) if present.stripe_subscription.as_deref() == Some(&*paid.id) => {
                let after = paid.followed_by(&present);
                if after == present {
                    return Ok(());
                }
                subscription::save(connection, (&present, &after), None).await?;
                let is_next = after.period != present.period;
                let action = if is_next { Action::SubscriptionRenew } else { Action::SubscriptionChange };
                (action, Some(present.told()), after.told())
            }
            (Some(paid), present) => {
                let new = paid.begun(account_id, now_ms);
                let before = present.as_ref().map(Subscription::told);
                if let Some(mut present) = present {
                    let to = (&*new.plan, now_ms);
                    subscription::finish(connection, &mut present, EndReason::Replaced, to).await?;
                }
                subscription::insert(connection, &new, None).await?;
                (Action::SubscriptionStart, before, new.told())
            }
            (None, Some(mut present)) if present.paid_by == PaidBy::Stripe => {
                let before = Some(present.told());
                let to = (default_plan, now_ms);
                let after = subscription::finish(connection, &mut present, EndReason::Stripe, to).await?;
                (Action::SubscriptionEnd, before, after)
            }
            (None, _) => return Ok(()),
        };
        self.note(connection, Deed { action, subject_id: account_id, before, after }, now_ms).await
    }
}

impl SubscribedRow {
    fn pay(&mut self, invoice: &Invoice, event: &Event, plan: Option<&str>) {
        self.account_id = self.account_id.take().or_else(|| invoice.account.clone());
        let known = (self.period_ends_ms, self.paid_told_at_ms, &*self.paid_told_by);
        if known >= (invoice.ends_ms, event.created_ms, &*event.id) {
            return;
        }
        self.plan = plan.map(str::to_owned);
        (self.period_starts_ms, self.period_ends_ms) = (invoice.starts_ms, invoice.ends_ms);
        self.price_nano_usd = invoice.cents.saturating_mul(NANO_USD_PER_CENT);
        (self.paid_told_at_ms, self.paid_told_by) = (event.created_ms, event.id.clone());
    }

    fn stand(&mut self, state: &State, event: &Event, plan: Option<&str>) {
        self.account_id = self.account_id.take().or_else(|| state.account.clone());
        self.deleted |= state.is_over;
        if (self.state_told_at_ms, &*self.state_told_by) >= (event.created_ms, &*event.id) {
            return;
        }
        self.next_plan = plan.map(str::to_owned);
        self.renews = state.renews;
        (self.state_told_at_ms, self.state_told_by) = (event.created_ms, event.id.clone());
    }

    /// The account's subscription as it is to be.
    fn followed_by(&self, present: &Subscription) -> Subscription {
        let plan = self.plan.clone().unwrap_or_else(|| present.plan.clone());
        let is_same = plan == present.plan
            && (self.period_starts_ms, self.period_ends_ms) == (present.period_starts_ms, present.period_ends_ms);
        Subscription {
            period: if is_same { present.period } else { present.period + 1 },
            period_starts_ms: self.period_starts_ms,
            period_ends_ms: self.period_ends_ms,
            period_price: NanoUsd(self.price_nano_usd),
            renews: self.renews,
            next_plan: self.next_plan.clone().filter(|next| self.renews && *next != plan),
            plan,
            ..present.clone()
        }
    }

    fn begun(&self, account_id: &str, now_ms: i64) -> Subscription {
        let none = Subscription {
            id: format!("sub_{}", Uuid::now_v7().simple()),
            account_id: account_id.to_owned(),
            plan: String::new(),
            paid_by: PaidBy::Stripe,
            anchor_ms: self.period_starts_ms,
            period: 0,
            period_starts_ms: 0,
            period_ends_ms: 0,
            period_price: NanoUsd(0),
            renews: true,
            next_plan: None,
            ends_at_ms: None,
            stripe_subscription: Some(self.id.clone()),
            started_at_ms: now_ms,
            ended_at_ms: None,
            end_reason: None,
        };
        self.followed_by(&none)
    }
}

async fn is_known(connection: &mut Connection, event: &Event) -> Result<bool, StoreError> {
    let found: Option<i64> = query_scalar("SELECT CAST(1 AS BIGINT) FROM stripe_events WHERE id = $1")
        .bind(&event.id)
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

async fn has_account(connection: &mut Connection, id: &str) -> Result<bool, StoreError> {
    match account::find(connection, id).await {
        Ok(_) => Ok(true),
        Err(StoreError::UnknownAccount(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn payment_row(connection: &mut Connection, payment_intent: &str) -> Result<PaymentRow, StoreError> {
    query(
        "INSERT INTO stripe_payments (payment_intent, paid_cents, refunded_cents, disputed_cents, dispute_won, \
         granted_cents, taken_back_cents) VALUES ($1, 0, 0, 0, FALSE, 0, 0) ON CONFLICT (payment_intent) DO NOTHING",
    )
    .bind(payment_intent)
    .execute(&mut *connection)
    .await?;
    const SELECT: &str = "SELECT account_id, paid_cents, refunded_cents, disputed_cents, dispute_won, granted_cents, \
         taken_back_cents FROM stripe_payments WHERE payment_intent = $1";
    Ok(query_as(SELECT).bind(payment_intent).fetch_one(connection).await?)
}

async fn save_payment(connection: &mut Connection, payment_intent: &str, row: &PaymentRow) -> Result<(), StoreError> {
    query(
        "UPDATE stripe_payments SET account_id = $1, paid_cents = $2, refunded_cents = $3, disputed_cents = $4, \
         dispute_won = $5, granted_cents = $6, taken_back_cents = $7 WHERE payment_intent = $8",
    )
    .bind(&row.account_id)
    .bind(row.paid_cents)
    .bind(row.refunded_cents)
    .bind(row.disputed_cents)
    .bind(row.dispute_won)
    .bind(row.granted_cents)
    .bind(row.taken_back_cents)
    .bind(payment_intent)
    .execute(connection)
    .await?;
    Ok(())
}

macro_rules! select_subscribed {
    ($rest:literal) => {
        concat!(
            "SELECT id, account_id, plan, period_starts_ms, period_ends_ms, price_nano_usd, paid_told_at_ms, \
             paid_told_by, next_plan, renews, state_told_at_ms, state_told_by, deleted FROM stripe_subscriptions ",
            $rest
        )
    };
}

async fn subscribed_row(connection: &mut Connection, id: &str) -> Result<SubscribedRow, StoreError> {
    query(
        "INSERT INTO stripe_subscriptions (id, period_starts_ms, period_ends_ms, price_nano_usd, paid_told_at_ms, \
         paid_told_by, renews, state_told_at_ms, state_told_by, deleted) VALUES ($1, 0, 0, 0, 0, '', TRUE, 0, '', FALSE) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(id)
    .execute(&mut *connection)
    .await?;
    Ok(query_as(select_subscribed!("WHERE id = $1")).bind(id).fetch_one(connection).await?)
}

async fn save_subscribed(connection: &mut Connection, row: &SubscribedRow) -> Result<(), StoreError> {
    query(
        "UPDATE stripe_subscriptions SET account_id = $1, plan = $2, period_starts_ms = $3, period_ends_ms = $4, \
         price_nano_usd = $5, paid_told_at_ms = $6, paid_told_by = $7, next_plan = $8, renews = $9, \
         state_told_at_ms = $10, state_told_by = $11, deleted = $12 WHERE id = $13",
    )
    .bind(&row.account_id)
    .bind(&row.plan)
    .bind(row.period_starts_ms)
    .bind(row.period_ends_ms)
    .bind(row.price_nano_usd)
    .bind(row.paid_told_at_ms)
    .bind(&row.paid_told_by)
    .bind(&row.next_plan)
    .bind(row.renews)
    .bind(row.state_told_at_ms)
    .bind(&row.state_told_by)
    .bind(row.deleted)
    .bind(&row.id)
    .execute(connection)
    .await?;
    Ok(())
}

async fn longest_paid(
    connection: &mut Connection,
    account_id: &str,
    now_ms: i64,
) -> Result<Option<SubscribedRow>, StoreError> {
    let row = query_as(select_subscribed!(
        "WHERE account_id = $1 AND NOT deleted AND plan IS NOT NULL AND period_ends_ms > $2 \
         ORDER BY period_ends_ms DESC, id DESC LIMIT 1"
    ));
    Ok(row.bind(account_id).bind(now_ms.saturating_sub(STRIPE_GRACE_MS)).fetch_optional(connection).await?)
}

#[cfg(test)]
mod tests;
