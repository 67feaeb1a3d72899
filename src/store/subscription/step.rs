//! What people do with a subscription: begin it, change it, end it.

use serde_json::json;
use uuid::Uuid;

use super::{EndReason, PaidBy, Subscription, finish, insert, live, save};
use crate::relay::meter::{NanoUsd, rfc3339};
use crate::store::account::{self, move_money};
use crate::store::engine::Connection;
use crate::store::trail::{Action, Deed};
use crate::store::{CreditKind, Store, StoreError};

/// A plan at the price that it has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The plan.
    pub plan: &'a str,
    /// What a month of it costs.
    pub price: NanoUsd,
}

/// What is to become of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriptionChange<'a> {
    /// Another plan: at once where it costs more than the present one, else from the period's end on. The present plan itself is
    /// [`SubscriptionChange::Keep`].
    To {
        /// The plan.
        offer: Offer<'a>,
        /// What a month of the present plan costs now; `None` where the configuration has it no more.
        present_price: Option<NanoUsd>,
        /// Who pays, where it begins at once.
        paid_by: PaidBy,
    },
    /// It goes on as it is: neither cancelled nor changed.
    Keep,
    /// It ends with its period.
    Cancel,
    /// It ends at that time, whatever is paid. Milliseconds since the Unix epoch.
    EndAt(i64),
}

impl Store {
    /// Begins a subscription, and pays its first month where credit does. One to the same plan that is there already stays as it is.
    ///
    /// # Errors
    /// The account has one to another plan, or not the credit.
    pub async fn subscribe(
        &self,
        account_id: &str,
        offer: Offer<'_>,
        paid_by: PaidBy,
        ends_at_ms: Option<i64>,
        now_ms: i64,
    ) -> Result<Subscription, StoreError> {
        let mut transaction = self.write().await?;
        let account = account::find(&mut transaction, account_id).await?;
        if let Some(present) = live(&mut transaction, account_id).await? {
            return match present.plan == offer.plan && present.paid_by == paid_by {
                true => Ok(present),
                false => Err(StoreError::Subscribed { plan: present.plan }),
            };
        }
        let mut new = Subscription {
            id: format!("sub_{}", Uuid::now_v7().simple()),
            account_id: account_id.to_owned(),
            plan: String::new(),
            paid_by,
            anchor_ms: now_ms,
            period: 0,
            period_starts_ms: now_ms,
            period_ends_ms: now_ms,
            period_price: NanoUsd(0),
            renews: true,
            next_plan: None,
            ends_at_ms,
            stripe_subscription: None,
            started_at_ms: now_ms,
            ended_at_ms: None,
            end_reason: None,
        };
        new.begin(offer, paid_by, now_ms);
        let seq = pay(&mut transaction, &new, new.period_price, now_ms).await?;
        insert(&mut transaction, &new, seq).await?;
        let before = Some(json!({"plan": account.plan}));
        let deed = Deed { action: Action::SubscriptionStart, subject_id: account_id, before, after: new.told() };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(new)
    }

    /// Changes an account's subscription. What is so already changes nothing.
    ///
    /// # Errors
    /// The account has none, or it is paid at Stripe, or the credit does not cover what is to be paid.
    pub async fn change_subscription(
        &self,
        account_id: &str,
        change: SubscriptionChange<'_>,
        now_ms: i64,
    ) -> Result<Subscription, StoreError> {
        let mut transaction = self.write().await?;
        account::find(&mut transaction, account_id).await?;
        let before = live(&mut transaction, account_id).await?;
        let before = before.ok_or_else(|| StoreError::NotSubscribed(account_id.to_owned()))?;
        if before.paid_by == PaidBy::Stripe {
            return Err(StoreError::PaidAtStripe);
        }
        let mut after = before.clone();
        let mut seq = None;
        match change {
            SubscriptionChange::To { offer, present_price, paid_by } if offer.plan != before.plan => {
                if offer.price > present_price.unwrap_or(before.period_price) {
                    after.begin(offer, paid_by, now_ms);
                    let fee = before.fee_of_change(after.period_price, now_ms);
                    seq = pay(&mut transaction, &after, fee, now_ms).await?;
                } else {
                    (after.renews, after.next_plan) = (true, Some(offer.plan.to_owned()));
                }
            }
            SubscriptionChange::To { .. } | SubscriptionChange::Keep => {
                (after.renews, after.next_plan) = (true, None);
            }
            SubscriptionChange::Cancel => (after.renews, after.next_plan) = (false, None),
            SubscriptionChange::EndAt(at_ms) => after.ends_at_ms = Some(at_ms),
        }
        if after == before {
            return Ok(before);
        }
        save(&mut transaction, (&before, &after), seq).await?;
        let (was, is) = (Some(before.told()), after.told());
        let deed = Deed { action: Action::SubscriptionChange, subject_id: account_id, before: was, after: is };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(after)
    }

    /// Ends an account's subscription at once, and puts it on the default plan. Nothing is paid back.
    ///
    /// # Errors
    /// The account has none.
    pub async fn end_subscription(
        &self,
        account_id: &str,
        default_plan: &str,
        now_ms: i64,
    ) -> Result<Subscription, StoreError> {
        let mut transaction = self.write().await?;
        account::find(&mut transaction, account_id).await?;
        let before = live(&mut transaction, account_id).await?;
        let before = before.ok_or_else(|| StoreError::NotSubscribed(account_id.to_owned()))?;
        let mut after = before.clone();
        let told = finish(&mut transaction, &mut after, EndReason::Ended, (default_plan, now_ms)).await?;
        let was = Some(before.told());
        let deed = Deed { action: Action::SubscriptionEnd, subject_id: account_id, before: was, after: told };
        self.note(&mut transaction, deed, now_ms).await?;
        transaction.commit().await?;
        Ok(after)
    }
}

/// Takes a fee from the account's credit, where credit pays. Gives the number of its entry.
pub(super) async fn pay(
    connection: &mut Connection,
    subscription: &Subscription,
    fee: NanoUsd,
    now_ms: i64,
) -> Result<Option<i64>, StoreError> {
    if subscription.paid_by != PaidBy::Credit || fee.0 <= 0 {
        return Ok(None);
    }
    let day = |at_ms| rfc3339(at_ms).chars().take(10).collect::<String>();
    let (from, to) = (day(subscription.period_starts_ms), day(subscription.period_ends_ms));
    let note = format!("plan {}, {from} to {to}", subscription.plan);
    let (id, amount) = (&subscription.account_id, NanoUsd(-fee.0));
    let (credit, balance) = move_money(connection, id, CreditKind::Fee, (amount, &note), now_ms).await?;
    if balance.0 < 0 {
        // The transaction ends without effect.
        let before = NanoUsd(balance.0.saturating_add(fee.0));
        return Err(StoreError::NotEnoughCredit { needed: fee, balance: before });
    }
    Ok(Some(credit.seq))
}
